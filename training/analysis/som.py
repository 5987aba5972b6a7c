"""Self-organizing maps of a layer's codes. N images, C code dimensions, U = rows * columns units.

A map is a grid of codebook vectors in which neighbours are alike; an image's best-matching unit
(BMU) is its code, the first of equally good ones. Batch learning: every epoch assigns all images
and moves all units at once, so the order of the images does not matter.

Source: Kohonen 2001, Self-Organizing Maps, section 3.6; Lee and Vijayan, arXiv 2205.10952.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, check_rows, check_varies
from reluguard.training.analysis.spectra import first_least, largest_axes
from reluguard.training.errors import ShapeError

__all__ = [
    "Som",
    "bmu_entropy",
    "bmu_map",
    "displacement",
    "fit_som",
    "label_information",
    "participation_ratio",
    "purity",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Som:
    """A trained map.

    Attributes:
        codebook: float64, (U, C), in standardised units, row by row over the grid.
        rows, columns: of the grid.
        center, spread: float64, (C,). How codes were standardised.
    """

    codebook: Floats
    rows: int
    columns: int
    center: Floats
    spread: Floats

    def _distances(self, codes: NDArray[Any]) -> Floats:
        if codes.ndim != 2 or codes.shape[1] != self.codebook.shape[1]:
            raise ShapeError(
                f"expected codes of shape (N, {self.codebook.shape[1]}), got {codes.shape}"
            )
        return _squared(_standardise(codes, self.center, self.spread), self.codebook)

    def best(self, codes: NDArray[Any]) -> Ints:
        """Return each image's best-matching unit: int64, (N,)."""
        return first_least(self._distances(codes), len(self.center))

    def errors(self, codes: NDArray[Any]) -> Floats:
        """Return each image's quantisation error, in standard deviations: float64, (N,)."""
        error: Floats = np.sqrt(np.maximum(self._distances(codes).min(axis=1), 0))
        return error

    def quantisation_error(self, codes: NDArray[Any]) -> float:
        """Return the mean distance from an image to its best unit."""
        return float(self.errors(codes).mean())

    def topographic_error(self, codes: NDArray[Any]) -> float:
        """Return the share of images whose two best units do not touch, corners included.

        Source: Kiviluoto 1996.
        """
        distances = self._distances(codes)
        best = first_least(distances, len(self.center))
        np.put_along_axis(distances, best[:, None], np.inf, axis=1)
        second = first_least(distances, len(self.center))
        (r0, c0), (r1, c1) = np.divmod(best, self.columns), np.divmod(second, self.columns)
        return float((np.maximum(np.abs(r0 - r1), np.abs(c0 - c1)) > 1).mean())

    def codebook_distance(self) -> float:
        """Return the mean cosine distance between codebook vectors, in the codes' own units.

        In standardised units it would be about one for every layer, as the vectors surround zero.
        """
        book = self.codebook * self.spread + self.center
        norm = np.linalg.norm(book, axis=1, keepdims=True)
        unit = np.divide(book, norm, out=np.zeros_like(book), where=norm > 0)
        u = len(unit)
        return float(1 - (np.sum(unit.sum(axis=0) ** 2) - np.sum(unit**2)) / (u * (u - 1)))


def _standardise(codes: NDArray[Any], center: Floats, spread: Floats) -> Floats:
    standard: Floats = (np.asarray(codes, np.float64) - center) / spread
    return standard


def _squared(x: Floats, y: Floats) -> Floats:
    squared: Floats = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
    return squared


def fit_som(
    codes: NDArray[Any],
    *,
    rows: int | None = None,
    columns: int | None = None,
    epochs: int = 20,
    seed: int = 0,
) -> Som:
    """Return a map trained on one layer's codes.

    Starts on the plane of the two largest principal components; the Gaussian neighbourhood shrinks
    from half the grid to half a unit.

    Args:
        codes: (N, C).
        rows: of the grid; by default the square root of 5 sqrt(N), Vesanto's rule.
        columns: by default as many as rows.
        epochs: passes over all images.
        seed: of the tiny noise that breaks ties at the start.

    Raises:
        ShapeError: not a matrix of two or more images, or a grid without two units.
        ConstantError: all images have the same code.
    """
    if codes.ndim != 2 or len(codes) < 2:
        raise ShapeError(f"expected codes of shape (N, C) with two or more rows, got {codes.shape}")
    check_varies(codes, "the code")
    side = max(2, round(np.sqrt(5 * np.sqrt(len(codes)))))
    rows, columns = rows or side, columns or rows or side
    if rows * columns < 2 or epochs < 1:
        raise ShapeError(f"expected two or more units and one epoch, got {rows} x {columns}")
    center = codes.mean(axis=0, dtype=np.float64)
    spread = codes.std(axis=0, dtype=np.float64)
    spread[spread < 1e-12] = 1.0  # a dead channel stays at zero and moves nothing
    x = _standardise(codes, center, spread)
    grid = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1).astype(np.float64)
    apart = _squared(grid, grid)
    w = _start(x, rows, columns, seed)
    for sigma in np.geomspace(max(rows, columns) / 2, 0.5, epochs):
        best = first_least(_squared(x, w), x.shape[1])
        hits = np.bincount(best, minlength=len(w)).astype(np.float64)
        sums = np.zeros_like(w)
        np.add.at(sums, best, x)
        kernel = np.exp(-apart / (2 * sigma**2))
        weight = (kernel @ hits)[:, None]
        w = np.divide(kernel @ sums, weight, out=w, where=weight > 1e-12)
    return Som(codebook=w, rows=rows, columns=columns, center=center, spread=spread)


def _start(x: Floats, rows: int, columns: int, seed: int) -> Floats:
    values, vectors = largest_axes(x.T @ x / len(x), min(2, x.shape[1]))
    axes = vectors * np.sqrt(np.maximum(values, 0))
    first, second = axes[:, 0], axes[:, 1] if len(values) > 1 else 0 * axes[:, 0]
    across = np.linspace(-1, 1, columns) if columns > 1 else np.zeros(1)
    down = np.linspace(-1, 1, rows) if rows > 1 else np.zeros(1)
    w = (down[:, None, None] * second + across[None, :, None] * first).reshape(rows * columns, -1)
    noise: Floats = w + 1e-6 * np.random.default_rng(seed).standard_normal(w.shape)
    return noise


def bmu_map(best: Ints, labels: Ints, rows: int, columns: int, classes: int) -> Ints:
    """Return how many images of each class lie on each unit: int64, (rows, columns, K)."""
    check_rows(best, labels)
    table = np.zeros((rows * columns, classes), np.int64)
    np.add.at(table, (best, labels), 1)
    return table.reshape(rows, columns, classes)


def bmu_entropy(best: Ints, units: int) -> float:
    """Return how evenly images spread over the units: 0 all on one, 1 all units alike."""
    share = np.bincount(best, minlength=units) / len(best)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / np.log(units)) if units > 1 else 0.0


def purity(best: Ints, labels: Ints) -> float:
    """Return the share of images whose class is the most frequent one on their unit."""
    check_rows(best, labels)
    table = np.zeros((int(best.max()) + 1, int(labels.max()) + 1), np.int64)
    np.add.at(table, (best, labels), 1)
    return float(table.max(axis=1).sum() / len(labels))


def label_information(best: Ints, labels: Ints) -> float:
    """Return the normalised mutual information of unit and class, in [0, 1].

    Source: Strehl and Ghosh 2002, with the arithmetic mean of the entropies.
    """
    n = check_rows(best, labels)
    table = np.zeros((int(best.max()) + 1, int(labels.max()) + 1))
    np.add.at(table, (best, labels), 1.0 / n)
    a, b = table.sum(axis=1), table.sum(axis=0)
    on = table > 0
    mutual = float((table[on] * np.log(table[on] / np.outer(a, b)[on])).sum())
    entropy = -sum(float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (a, b)) / 2
    return float(np.clip(mutual / entropy, 0, 1)) if entropy > 0 else 1.0


def participation_ratio(codes: NDArray[Any]) -> float:
    """Return in how many directions the codes really vary: (sum l)^2 / sum l^2, in [1, C].

    l are the eigenvalues of the covariance. Homogeneous codes have a low ratio.

    Raises:
        ConstantError: all images have the same code.
    """
    check_varies(codes, "the code")
    x = np.asarray(codes, np.float64)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def displacement(before: Ints, after: Ints, columns: int) -> Floats:
    """Return how far each image moved on the grid, in units: float64, (N,)."""
    check_rows(before, after)
    (r0, c0), (r1, c1) = np.divmod(before, columns), np.divmod(after, columns)
    moved: Floats = np.hypot(r1 - r0, c1 - c0)
    return moved

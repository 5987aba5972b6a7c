"""Centred kernel alignment. N images, P and Q features.

Bits need no features at all: their Gram matrix and squared distances follow from Hamming counts.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, check_rows, check_square
from reluguard.training.errors import ConstantError, ShapeError

__all__ = [
    "center_gram",
    "gram_cka",
    "linear_cka",
    "minibatch_cka",
    "rbf_cka",
    "rbf_gram",
    "unbiased_hsic",
]


def linear_cka(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return how alike two representations of the same images are, in [0, 1].

    One means equal up to rotation, uniform scale and shift. Works in feature space, so the (N, N)
    Gram matrices are never built.

    Args:
        x: (N, P). One row per image.
        y: (N, Q). The same images in the same order.

    Raises:
        ShapeError: the row counts differ.
        ConstantError: a representation is constant.

    Source: Kornblith et al. 2019, arXiv 1905.00414.
    """
    check_rows(x, y)
    a, b = _centred(x), _centred(y)
    norm = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    return float(np.clip(np.linalg.norm(a.T @ b) ** 2 / norm, 0, 1))


def _centred(x: NDArray[np.floating]) -> Floats:
    values = np.asarray(x, np.float64)
    centred: Floats = values - values.mean(axis=0)
    if not np.abs(centred).max(initial=0) > 1e-12 * max(1.0, float(np.abs(values).max())):
        raise ConstantError(f"the layer is constant: it says the same of all {len(x)} images")
    return centred


def gram_cka(k: NDArray[Any], m: NDArray[Any]) -> float:
    """Return CKA from two Gram matrices of the same images, in [0, 1].

    Args:
        k: (N, N), symmetric, positive semidefinite.
        m: (N, N), likewise.

    Raises:
        ShapeError: other sizes.
        ConstantError: a centred Gram matrix is zero.
    """
    if check_square(k) != check_square(m):
        raise ShapeError(f"expected Gram matrices of the same images, got {k.shape} and {m.shape}")
    a, b = center_gram(k), center_gram(m)
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norm == 0:
        raise ConstantError(f"the layer is constant: it says the same of all {len(k)} images")
    return float(np.clip(np.vdot(a, b) / norm, 0, 1))


def center_gram(k: NDArray[Any]) -> Floats:
    """Return H K H with H = I - 1/N: what centring the features does to their Gram matrix."""
    values = np.asarray(k, np.float64)
    mean = values.mean(axis=0)
    centred: Floats = values - mean[:, None] - mean[None, :] + mean.mean()
    return centred


def rbf_gram(squared: NDArray[np.floating] | NDArray[np.integer], width: float = 1.0) -> Floats:
    """Return the Gaussian kernel of squared distances: float64, (N, N).

    Args:
        squared: (N, N). For bits these are the Hamming counts themselves.
        width: of the Gaussian, in medians of the distances, so the scale of a layer drops out.

    Raises:
        ConstantError: the median distance is zero.
    """
    n = check_square(squared)
    median = float(np.median(np.asarray(squared)[np.triu_indices(n, 1)]))
    if median <= 0:
        raise ConstantError("the layer is constant: most images are at distance zero")
    kernel: Floats = np.exp(-np.asarray(squared, np.float64) / (2 * width**2 * median))
    return kernel


def rbf_cka(x: NDArray[np.floating], y: NDArray[np.floating], width: float = 1.0) -> float:
    """Return CKA with Gaussian kernels, in [0, 1]. Sees more than linear structure."""
    check_rows(x, y)
    return gram_cka(rbf_gram(_squared(x), width), rbf_gram(_squared(y), width))


def _squared(x: NDArray[np.floating]) -> Floats:
    values = _centred(x)
    norms = (values**2).sum(axis=1)
    squared: Floats = np.maximum(norms[:, None] + norms[None, :] - 2 * values @ values.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def unbiased_hsic(k: NDArray[np.floating], m: NDArray[np.floating]) -> float:
    """Return an estimate of the dependence of two kernels that is right on average for any N > 3.

    It can be negative for unrelated representations.

    Source: Song et al. 2012, J. Mach. Learn. Res. 13, equation 5.
    """
    n = check_square(k)
    if n != check_square(m) or n < 4:
        raise ShapeError(f"expected two kernels of four or more images, got {k.shape}, {m.shape}")
    a, b = np.array(k, np.float64), np.array(m, np.float64)
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    row_a, row_b = a.sum(axis=0), b.sum(axis=0)
    total = np.vdot(a, b) + row_a.sum() * row_b.sum() / ((n - 1) * (n - 2))
    return float((total - 2 * (row_a @ row_b) / (n - 2)) / (n * (n - 3)))


def minibatch_cka(
    batches: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> float:
    """Return linear CKA from small batches that are never in memory together.

    The average of unbiased HSIC over batches does not depend on their size, in expectation; the
    result may leave [0, 1] by a little.

    Args:
        batches: pairs of features (n, P) and (n, Q) of the same images, n of 4 or more.

    Raises:
        ShapeError: no batch, or one of fewer than four images.
        ConstantError: a representation is constant.

    Source: Nguyen et al. 2021, arXiv 2010.15327, section 3.
    """
    sums = np.zeros(3)
    count = 0
    for x, y in batches:
        check_rows(x, y)
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        k, m = a @ a.T, b @ b.T
        sums += unbiased_hsic(k, m), unbiased_hsic(k, k), unbiased_hsic(m, m)
        count += 1
    if count == 0:
        raise ShapeError("expected one or more batches, got none")
    if min(sums[1], sums[2]) <= 1e-12:
        raise ConstantError("the layer is constant: it says the same of all images")
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))

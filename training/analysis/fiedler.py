"""Splitting a similarity graph at its weakest place. N images as nodes, M new ones, K classes.

The Fiedler vector is the eigenvector of the second-smallest eigenvalue of a graph's Laplacian; its
sign is a two-way cut found without any label. Up to `DENSE` nodes LAPACK solves it, above that
Lanczos iterations, on a sparse matrix where the graph is one.

Source: Fiedler 1973; Jamil et al. 2023, arXiv 2305.01808; Shi and Malik 2000.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, check_labels, check_rows, check_square
from reluguard.training.errors import ConstantError, LabelError, ShapeError
from reluguard.training.statistics.intervals import class_pair_mean
from reluguard.training.statistics.metrics import Interval

__all__ = [
    "DENSE",
    "GRAPHS",
    "Cut",
    "Graph",
    "NystromFiedler",
    "check_similarity",
    "fiedler",
    "knn_graph",
    "matched_accuracy",
    "nystrom",
    "pair_accuracies",
    "pair_estimate",
    "partition",
    "split_accuracy",
]

Graph = Literal["plain", "normalised", "knn"]
GRAPHS: tuple[Graph, ...] = ("plain", "normalised", "knn")
DENSE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A graph's Fiedler vector and how sure its cut is.

    Attributes:
        vector: float64, (N,), of unit length, its largest component positive.
        connectivity: the second-smallest eigenvalue; zero means the graph falls apart by itself.
        gap: the third minus the second; zero means another cut is as good.
    """

    vector: Floats
    connectivity: float
    gap: float

    @property
    def side(self) -> NDArray[np.bool_]:
        """bool, (N,): which side of the cut each image is on. Which is called true is chance."""
        return self.vector > 0


def knn_graph(similarity: NDArray[np.floating], neighbours: int | None = None) -> Any:
    """Return the graph of each node's nearest neighbours, symmetric: scipy CSR, (N, N).

    An edge is there if either end counts the other among its nearest.

    Args:
        similarity: (N, N), symmetric, non-negative.
        neighbours: by default the square root of N.
    """
    from scipy.sparse import csr_array

    n = check_square(similarity)
    k = neighbours or max(1, round(np.sqrt(n)))
    if not 1 <= k < n:
        raise ShapeError(f"expected 1 to {n - 1} neighbours among {n} images, got {k}")
    masked = np.array(similarity, np.float64)
    np.fill_diagonal(masked, -np.inf)
    columns = np.argpartition(masked, -k, axis=1)[:, -k:].ravel()
    rows = np.repeat(np.arange(n), k)
    directed = csr_array((masked[rows, columns], (rows, columns)), shape=(n, n))
    return directed.maximum(directed.T)


def fiedler(
    similarity: NDArray[np.floating],
    graph: Graph = "normalised",
    *,
    neighbours: int | None = None,
    rescale: bool = False,
    seed: int = 0,
) -> Cut:
    """Return the weakest cut of a similarity graph.

    Args:
        similarity: (N, N), symmetric, in [0, 1]; the diagonal is not read.
        graph: "plain" for L = D - W; "normalised" for I - D^-1/2 W D^-1/2, which measured far
            better on bit patterns; "knn" for the latter on nearest neighbours only.
        neighbours: of the knn graph, by default the square root of N.
        rescale: stretch the off-diagonal similarities to [0, 1] first.
        seed: of the iterative solver's starting vector.

    Raises:
        ShapeError: not a square matrix of three or more images.
        ConstantError: all similarities are equal, so no cut is weaker than another.
    """
    low, high = check_similarity(similarity)
    weights = np.array(similarity, np.float64)
    if rescale:
        weights = (weights - low) / (high - low)
    np.fill_diagonal(weights, 0.0)
    if graph == "knn":
        return _solve(knn_graph(weights, neighbours), normalise=True, seed=seed)
    return _solve(weights, normalise=graph == "normalised", seed=seed)


def check_similarity(similarity: NDArray[np.floating]) -> tuple[float, float]:
    """Return the least and the largest similarity of two different images.

    Raises:
        ShapeError: not a square matrix of three or more images, or negative numbers in it.
        ConstantError: all similarities are equal, so no cut is weaker than another.
    """
    n = check_square(similarity)
    if n < 3:
        raise ShapeError(f"expected three or more images to split, got {n}")
    off = ~np.eye(n, dtype=bool)
    low, high = float(similarity[off].min()), float(similarity[off].max())
    if not np.isfinite(low) or not np.isfinite(high) or low < 0:
        raise ShapeError(f"expected finite, non-negative similarities, got {low} to {high}")
    if low == high:
        raise ConstantError(
            f"the layer is constant: all {n} images are equally alike, no cut is weaker"
        )
    return low, high


def _solve(weights: Any, *, normalise: bool, seed: int) -> Cut:
    n = weights.shape[0]
    degree = np.asarray(weights.sum(axis=1), np.float64).ravel()
    if normalise:
        root = 1 / np.sqrt(np.maximum(degree, np.finfo(np.float64).tiny))
        root[degree == 0] = 0
        values, vectors = _top_three(weights, root, seed) if n > DENSE else _all(weights, root)
    else:
        values, vectors = _plain(weights, degree, seed)
    vector = vectors[:, 1]
    if vector[np.argmax(np.abs(vector))] < 0:
        vector = -vector
    return Cut(
        vector=vector,
        connectivity=float(max(values[1], 0.0)),
        gap=float(max(values[2] - values[1], 0.0)),
    )


def _all(weights: Any, root: Floats) -> tuple[Floats, Floats]:
    from scipy.linalg import eigh

    dense = weights.toarray() if hasattr(weights, "toarray") else weights
    laplacian = np.eye(len(root)) - root[:, None] * dense * root[None, :]
    return cast(
        "tuple[Floats, Floats]",
        eigh(laplacian, subset_by_index=(0, 2), check_finite=False, overwrite_a=True),
    )


def _top_three(weights: Any, root: Floats, seed: int) -> tuple[Floats, Floats]:
    """Largest of D^-1/2 W D^-1/2 are smallest of the Laplacian, and Lanczos finds large ones."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(root)
    operator = LinearOperator((n, n), matvec=lambda x: root * (weights @ (root * x.ravel())))
    start = np.random.default_rng(seed).standard_normal(n)
    values, vectors = eigsh(operator, k=3, which="LA", v0=start)
    order = np.argsort(-values)
    return 1 - values[order], vectors[:, order]


def _plain(weights: Any, degree: Floats, seed: int) -> tuple[Floats, Floats]:
    from scipy.linalg import eigh
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(degree)
    if n <= DENSE:
        laplacian = np.diag(degree) - weights
        return cast(
            "tuple[Floats, Floats]",
            eigh(laplacian, subset_by_index=(0, 2), check_finite=False, overwrite_a=True),
        )
    shift = 2 * degree.max()
    operator = LinearOperator(
        (n, n), matvec=lambda x: (shift - degree) * x.ravel() + weights @ x.ravel()
    )
    start = np.random.default_rng(seed).standard_normal(n)
    values, vectors = eigsh(operator, k=3, which="LA", v0=start)
    order = np.argsort(-values)
    return shift - values[order], vectors[:, order]


def split_accuracy(side: NDArray[np.bool_], labels: NDArray[Any]) -> float:
    """Return how well a two-way split meets two labels, up to label switching: in [.5, 1].

    Args:
        side: bool, (N,).
        labels: (N,), of exactly two values.

    Raises:
        LabelError: not exactly two classes.
    """
    check_rows(side, labels)
    found = np.unique(labels)
    if len(found) != 2:
        raise LabelError(
            f"expected images of exactly two classes, got {len(found)}: {found.tolist()}"
        )
    agree = float((side == (labels == found[1])).mean())
    return max(agree, 1 - agree)


def pair_accuracies(
    similarity: NDArray[np.floating], labels: Ints, graph: Graph = "normalised", *, seed: int = 0
) -> Floats:
    """Return the two-class split accuracy for all class pairs: float64, (K, K), NaN diagonal.

    Args:
        similarity: (N, N).
        labels: int64, (N,). Classes are taken in sorted order.
        graph: which Laplacian.
        seed: of the iterative solver.

    Raises:
        LabelError: fewer than two classes.
        ConstantError: the layer is constant.
    """
    check_rows(similarity, labels)
    classes = check_labels(labels)
    table = np.full((len(classes), len(classes)), np.nan)
    for i in range(len(classes)):
        for j in range(i + 1, len(classes)):
            rows = np.flatnonzero((labels == classes[i]) | (labels == classes[j]))
            cut = fiedler(similarity[np.ix_(rows, rows)], graph, seed=seed)
            table[i, j] = table[j, i] = split_accuracy(cut.side, labels[rows])
    return table


def pair_estimate(table: Floats, *, seed: int = 0) -> Interval:
    """Return the mean over class pairs with its interval over classes."""
    return class_pair_mean(table, seed=seed)


def partition(
    similarity: NDArray[np.floating], parts: int, graph: Graph = "normalised", *, seed: int = 0
) -> Ints:
    """Return a partition into `parts` by cutting again and again: int64, (N,), values 0 .. parts-1.

    Every step cuts the part whose own graph is the least connected.

    Raises:
        ShapeError: more parts than the images allow.
    """
    n = check_square(similarity)
    if not 1 <= parts <= n // 3:
        raise ShapeError(f"expected 1 to {n // 3} parts of {n} images, got {parts}")
    groups: list[Ints] = [np.arange(n, dtype=np.int64)]
    cuts: list[Cut | None] = [_cut(similarity, groups[0], graph, seed)]
    while len(groups) < parts:
        open_ = [(c.connectivity, i) for i, c in enumerate(cuts) if c is not None]
        if not open_:
            raise ConstantError(f"the layer is constant within its {len(groups)} parts")
        chosen = min(open_)[1]
        cut, rows = cuts.pop(chosen), groups.pop(chosen)
        assert cut is not None
        for half in (rows[cut.side], rows[~cut.side]):
            groups.append(half)
            cuts.append(_cut(similarity, half, graph, seed))
    found = np.zeros(n, np.int64)
    for index, rows in enumerate(sorted(groups, key=lambda rows: int(rows[0]))):
        found[rows] = index
    return found


def _cut(similarity: NDArray[np.floating], rows: Ints, graph: Graph, seed: int) -> Cut | None:
    if len(rows) < 3:
        return None
    try:
        cut = fiedler(similarity[np.ix_(rows, rows)], graph, seed=seed)
    except ConstantError:
        return None
    return cut if cut.side.any() and not cut.side.all() else None


def matched_accuracy(found: Ints, labels: Ints) -> float:
    """Return the share of images in the part that stands for their class, under the best matching.

    Source: Kuhn 1955, the Hungarian method.
    """
    from scipy.optimize import linear_sum_assignment

    check_rows(found, labels)
    _, a = np.unique(found, return_inverse=True)
    _, b = np.unique(labels, return_inverse=True)
    table = np.zeros((a.max() + 1, b.max() + 1), np.int64)
    np.add.at(table, (a, b), 1)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / len(labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class NystromFiedler:
    """A Fiedler coordinate for images that were not in the graph: usable as a guard's feature.

    Attributes:
        root: float64, (N,). 1 / sqrt of each reference image's degree.
        vector: float64, (N,). The references' Fiedler vector.
        value: mu, its eigenvalue of the normalised similarity.
    """

    root: Floats
    vector: Floats
    value: float

    def coordinate(self, similarity: NDArray[np.floating]) -> Floats:
        """Return the coordinate of new images: float64, (M,). Its sign is the side of the cut.

        Args:
            similarity: (M, N), of each new image to each reference.

        Raises:
            ShapeError: another number of references.
            ConstantError: an image is like no reference.
        """
        if similarity.ndim != 2 or similarity.shape[1] != len(self.vector):
            raise ShapeError(
                f"expected similarities to {len(self.vector)} references, got {similarity.shape}"
            )
        degree = similarity.sum(axis=1, dtype=np.float64)
        if (degree <= 0).any():
            raise ConstantError("an image has no similarity to any reference")
        raw: Floats = similarity @ (self.root * self.vector)
        coordinate: Floats = raw / np.sqrt(degree) / self.value
        return coordinate


def nystrom(similarity: NDArray[np.floating], *, seed: int = 0) -> NystromFiedler:
    """Return the out-of-sample form of the normalised Fiedler vector.

    v2(x) = 1 / mu * sum_j w(x, j) / sqrt(d(x) d(j)) v2(j). Here each reference is linked to
    itself, as a new image that equals it would be: a reference put in again gets exactly its own
    coordinate. Without those links mu is a difference of small numbers and may turn the sign.

    Args:
        similarity: (N, N), between the reference images, with their self-similarity.
        seed: of the iterative solver.

    Raises:
        ShapeError: not a square matrix of three or more images.
        ConstantError: all similarities are equal, or the second eigenvalue vanishes.

    Source: Bengio et al. 2003, out-of-sample extensions; Fowlkes et al. 2004.
    """
    check_similarity(similarity)
    cut = _solve(np.array(similarity, np.float64), normalise=True, seed=seed)
    degree = similarity.sum(axis=1, dtype=np.float64)
    value = 1 - cut.connectivity
    if abs(value) < 1e-12:
        raise ConstantError("the graph's second eigenvalue is 1: the coordinate can't be extended")
    return NystromFiedler(root=1 / np.sqrt(degree), vector=cut.vector, value=value)

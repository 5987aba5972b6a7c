"""Splitting a similarity graph at its weakest place. N images as nodes, M new ones, K classes.

The Fiedler vector is the eigenvector of the second-smallest eigenvalue of a graph's Laplacian; its
sign is a two-way cut found without any label. Up to `DENSE` nodes LAPACK solves it, above that
Lanczos iterations, on a sparse matrix where the graph is one. No cut hangs on the solver: what
falls apart by itself is cut between its pieces, and of equally weak cuts a rule takes one.

Source: Fiedler 1973; Jamil et al. 2023, arXiv 2305.01808; Shi and Malik 2000.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, check_labels, check_rows, check_square
from reluguard.training.analysis.spectra import ROUNDING, nearest, settle
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
_KRYLOV = 64  # vectors between two restarts of the iterations
_TURNS = 8  # equal eigenvalues that are looked for one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A graph's Fiedler vector and how sure its cut is.

    Attributes:
        vector: float64, (N,), of unit length, its largest component positive. Between equally weak
            cuts it is the one that reaches furthest into one image, the first if several do.
        connectivity: the second-smallest eigenvalue; exactly zero means that the graph falls apart
            by itself, and the vector has one sign on each of its pieces.
        gap: the third minus the second; exactly zero means another cut is as good.
    """

    vector: Floats
    connectivity: float
    gap: float

    @property
    def side(self) -> NDArray[np.bool_]:
        """bool, (N,): which side of the cut each image is on. Which is called true says nothing."""
        return self.vector > 0


def knn_graph(similarity: NDArray[np.floating], neighbours: int | None = None) -> Any:
    """Return the graph of each node's nearest neighbours, symmetric: scipy CSR, (N, N).

    An edge is there if either end counts the other among its nearest. Whoever is as near as the
    last of them counts too, so that the graph does not hang on the order of the images.

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
    kept = nearest(masked, k)
    return csr_array(np.where(kept | kept.T, masked, 0))


def fiedler(
    similarity: NDArray[np.floating],
    graph: Graph = "normalised",
    *,
    neighbours: int | None = None,
    rescale: bool = False,
    seed: int = 0,
) -> Cut:
    """Return the weakest cut of a similarity graph.

    A graph in pieces, or so weakly held together that no solver can tell, is cut between them: from
    the largest down, each piece joins the side of fewer images. Of equally many images the piece of
    more similarity goes first, then that of the first image.

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
    laplacian = _Laplacian(weights, normalise=normalise)
    pieces = _pieces(weights > 0)
    if pieces.max() == 0:
        values, vectors = laplacian.lowest(laplacian.constant[:, None], seed)
        weak = values[0] <= ROUNDING * laplacian.scale
        if weak:  # a link holds no more than its cut is worth, times the number of images
            pieces = _pieces(laplacian.links > len(pieces) * ROUNDING * laplacian.scale)
        if not weak or pieces.max() == 0:
            gap = float(values[-1] - values[0]) if vectors.shape[1] == 1 else 0.0
            return Cut(
                vector=settle(vectors)[:, 0], connectivity=max(float(values[0]), 0.0), gap=gap
            )
    vector = laplacian.step(_gathered(pieces, laplacian.degree))
    gap = 0.0
    if pieces.max() == 1:
        values, _ = laplacian.lowest(np.stack([laplacian.constant, vector], axis=1), seed)
        gap = max(float(values[0]), 0.0)
    return Cut(vector=settle(vector[:, None])[:, 0], connectivity=0.0, gap=gap)


def _pieces(linked: Any) -> Ints:
    """Return which piece of the graph each node lies in, numbered by first nodes: int64, (N,)."""
    piece = np.full(linked.shape[0], -1, np.int64)
    while (piece < 0).any():
        found = np.arange(len(piece)) == np.argmin(piece >= 0)
        number, edge = piece.max() + 1, found
        while edge.any():
            piece[edge] = number
            edge = (np.asarray(linked[np.flatnonzero(edge)].sum(axis=0)) > 0) & (piece < 0)
    return piece


def _gathered(pieces: Ints, degree: Floats) -> NDArray[np.bool_]:
    """Return two sides made of whole pieces, of about as many images each."""
    _, first, sizes = np.unique(pieces, return_index=True, return_counts=True)
    # rounded, as a sum hangs on its order
    strengths = [float(f"{total:.9g}") for total in np.bincount(pieces, degree)]
    side = np.zeros(len(pieces), np.bool_)
    lead = 0
    for piece in np.lexsort((first, np.negative(strengths), -sizes)):
        side[pieces == piece] = lead > 0
        lead += -sizes[piece] if lead > 0 else sizes[piece]
    return side


class _Laplacian:
    """A graph's Laplacian: its lowest eigenvalues beside known ones.

    Attributes:
        degree: float64, (N,).
        scale: its eigenvalues are at most twice this.
        constant: float64, (N,). The vector of eigenvalue 0 that every graph has.
        links: (N, N), like the weights. What it has off its diagonal, positive.
    """

    def __init__(self, weights: Any, *, normalise: bool) -> None:
        self.degree: Floats = np.asarray(weights.sum(axis=1), np.float64).ravel()
        if normalise:
            self._diagonal = (self.degree > 0).astype(np.float64)
            root = np.sqrt(np.divide(1, self.degree, out=self.degree * 0, where=self.degree > 0))
            self.links = weights * root[:, None] * root
            # what is linked to nothing may weigh anything
            self._mass = np.where(self.degree > 0, self.degree, self.degree.mean())
        else:
            self._diagonal, self.links = self.degree, weights
            self._mass = np.ones(len(self.degree))
        self.scale = float(self._diagonal.max())
        self.constant: Floats = np.sqrt(self._mass / self._mass.sum())

    def step(self, side: NDArray[np.bool_]) -> Floats:
        """Return the vector of eigenvalue 0 that tells two sides without a link: float64, (N,)."""
        shares = np.where(side, 1 / self._mass[side].sum(), -1 / self._mass[~side].sum())
        vector: Floats = np.sqrt(self._mass) * shares
        return vector / np.linalg.norm(vector)

    def lowest(self, known: Floats, seed: int) -> tuple[Floats, Floats]:
        """Return the lowest eigenvalue left, all vectors of it, and the next eigenvalue.

        Equal eigenvalues count as one however many vectors there are, and the known vectors are put
        out of the way first: nothing here is the solver's to choose but a turn of the space.

        Args:
            known: (N, M). Vectors to leave out.
            seed: of the iterative solver's start.

        Returns:
            The eigenvalues, the next one last where there is one; and the vectors (N, L).
        """
        if len(known) > DENSE:
            found = self._lanczos(known, seed)
            if found is not None:
                return found
        return self._lapack(known)

    def _lapack(self, known: Floats) -> tuple[Floats, Floats]:
        from scipy.linalg import eigh

        links = self.links.toarray() if hasattr(self.links, "toarray") else self.links
        matrix = np.diag(self._diagonal) - links + 3 * self.scale * known @ known.T
        left, count = len(known) - known.shape[1], 2
        while True:
            values, vectors = eigh(
                matrix, subset_by_index=(0, min(count, left) - 1), check_finite=False
            )
            alike = int((values <= values[0] + ROUNDING * self.scale).sum())
            if alike < len(values) or len(values) == left:
                return values[: alike + 1], vectors[:, :alike]
            count *= 4

    def _lanczos(self, known: Floats, seed: int) -> tuple[Floats, Floats] | None:
        """One vector after the other, as iterations see only one of an eigenvalue; None: too many.

        What is smallest of the Laplacian is largest of its mirror image, and is found sooner there.
        """
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        n, top = len(known), 2 * self.scale
        generator = np.random.default_rng(seed)
        space, found = known, np.zeros(0)
        while len(found) < _TURNS:

            def mirrored(x: Floats, space: Floats = space) -> Floats:
                x = x.ravel()
                kept = (top - self._diagonal) * x + self.links @ x
                return np.asarray(kept - top * (space @ (space.T @ x)))

            operator = LinearOperator((n, n), matvec=mirrored, dtype=np.float64)
            try:
                values, vectors = eigsh(
                    operator,
                    k=1,
                    which="LA",
                    v0=generator.standard_normal(n),
                    ncv=min(n, _KRYLOV),
                )
            except ArpackError:  # did not converge: the gap is tiny
                return None
            found = np.append(found, top - values)
            apart = found[-1] - found[0]
            if apart < -ROUNDING * self.scale:  # one was passed over
                return None
            if apart > ROUNDING * self.scale:
                return found, space[:, known.shape[1] :]
            space = np.concatenate([space, vectors], axis=1)
        return None


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

    Every step cuts the part whose own graph is the least connected; of equally connected ones the
    part of most images, then that of the first image.

    Raises:
        ShapeError: more parts than the images allow.
    """
    n = check_square(similarity)
    if not 1 <= parts <= n // 3:
        raise ShapeError(f"expected 1 to {n // 3} parts of {n} images, got {parts}")
    groups: list[Ints] = [np.arange(n, dtype=np.int64)]
    cuts: list[Cut | None] = [_cut(similarity, groups[0], graph, seed)]
    while len(groups) < parts:
        open_ = [
            (cut.connectivity, -len(rows), int(rows[0]), i)
            for i, (cut, rows) in enumerate(zip(cuts, groups, strict=True))
            if cut is not None
        ]
        if not open_:
            raise ConstantError(f"the layer is constant within its {len(groups)} parts")
        chosen = min(open_)[-1]
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
    weights = np.array(similarity, np.float64)
    cut = _solve(weights, normalise=True, seed=seed)
    degree = weights.sum(axis=1)
    value = 1 - cut.connectivity
    if abs(value) < 1e-12:
        raise ConstantError("the graph's second eigenvalue is 1: the coordinate can't be extended")
    # a reference that is like nothing, itself included, has no say
    root = np.sqrt(np.divide(1, degree, out=np.zeros(len(degree)), where=degree > 0))
    return NystromFiedler(root=root, vector=cut.vector, value=value)

import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.cluster import SpectralClustering

from reluguard.training.analysis import fiedler as fd
from reluguard.training.analysis.pattern import pack
from reluguard.training.analysis.similarity import hamming_counts, hamming_similarity
from reluguard.training.errors import ConstantError, LabelError, ShapeError


def cliques(first: int, second: int, bridge: float = 1.0) -> np.ndarray:
    """Two cliques joined by one edge."""
    n = first + second
    graph = np.zeros((n, n))
    graph[:first, :first] = graph[first:, first:] = 1
    graph[0, n - 1] = graph[n - 1, 0] = bridge
    np.fill_diagonal(graph, 0)
    return graph


def blobs(
    n: int, bits: int, flip: float, classes: int = 2, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Noisy copies of one random pattern per class: similarities and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    active = (rng.random((classes, bits)) < 0.5)[labels] ^ (rng.random((n, bits)) < flip)
    return hamming_similarity(hamming_counts(pack(active)), bits).astype(float), labels


def pieces(sizes: tuple[int, ...], between: float = 0.0, seed: int = 0) -> np.ndarray:
    """A random dense graph of each size, side by side, with weak links between all of them."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.arange(len(sizes)), sizes)
    graph = np.where(own[:, None] == own, rng.uniform(0.5, 1, (len(own),) * 2), between)
    graph = np.triu(graph, 1)
    return graph + graph.T


def ring(n: int) -> np.ndarray:
    """A ring of n nodes: its second eigenvalue is a double one."""
    return np.asarray(np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1))


@pytest.mark.parametrize("graph", ["plain", "normalised"])
@pytest.mark.parametrize("sizes", [(4, 4), (5, 9), (30, 11)], ids=str)
def test_two_cliques_are_cut_at_their_edge(graph: fd.Graph, sizes: tuple[int, int]) -> None:
    """The weakest place of two cliques joined by one edge is that edge."""
    cut = fd.fiedler(cliques(*sizes), graph)
    assert len(set(cut.side[: sizes[0]])) == 1
    assert len(set(cut.side[sizes[0] :])) == 1
    assert cut.side[0] != cut.side[-1]
    assert cut.connectivity > 0
    assert cut.gap > 0


@pytest.mark.parametrize("graph", fd.GRAPHS)
def test_clear_classes_are_found_whatever_the_order(graph: fd.Graph) -> None:
    """Noisy copies of two patterns are split right, and permuting images permutes the sides."""
    similarity, labels = blobs(60, 400, 0.2)
    assert fd.split_accuracy(fd.fiedler(similarity, graph).side, labels) == 1
    order = np.random.default_rng(0).permutation(60)
    shuffled = fd.fiedler(similarity[np.ix_(order, order)], graph)
    assert fd.split_accuracy(shuffled.side, labels[order]) == 1


@pytest.mark.parametrize("between", [0.0, 1e-18, 1e-15, 1e-14])
@pytest.mark.parametrize("graph", ["plain", "normalised"])
@pytest.mark.parametrize(
    ("sizes", "smaller"),
    [((7, 5), 5), ((20, 2, 2), 4), ((9, 4, 3, 3), 9), ((12, 11, 3, 2), 14), ((8, 7, 5, 4, 2), 12)],
    ids=str,
)
def test_pieces_stay_whole_and_sides_even(
    sizes: tuple[int, ...], smaller: int, graph: fd.Graph, between: float
) -> None:
    """What falls apart is cut between pieces into even sides, whatever the order of the images.

    Nor do links matter that no solver can tell from none: eigenvalues of all but zero.
    """
    weights = pieces(sizes, between)
    own = np.repeat(np.arange(len(sizes)), sizes)
    cut = fd.fiedler(weights, graph)
    assert (cut.connectivity, cut.gap > 0) == (0, len(sizes) == 2)
    for piece in range(len(sizes)):
        assert len(set(cut.side[own == piece])) == 1
    assert min(cut.side.sum(), (~cut.side).sum()) == smaller
    assert np.linalg.norm(cut.vector) == pytest.approx(1)
    assert (np.abs(cut.vector) > 1e-3).all()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(own))
        vector = fd.fiedler(weights[np.ix_(order, order)], graph).vector
        # two sides as heavy as each other have no sign but that of the first image
        assert_allclose(vector * np.sign(vector @ cut.vector[order]), cut.vector[order], atol=1e-9)


@pytest.mark.parametrize("graph", ["plain", "normalised"])
def test_images_like_no_other_lie_opposite_the_rest(graph: fd.Graph) -> None:
    """One large piece and single images without a link are told apart."""
    cut = fd.fiedler(pieces((1, 14, 1, 1)), graph)
    assert_array_equal(cut.side, [True, *[False] * 14, True, True])
    assert (cut.connectivity, cut.gap) == (0, 0)


@pytest.mark.parametrize("graph", ["plain", "normalised"])
def test_pieces_of_one_size_are_told_apart_by_their_links(graph: fd.Graph) -> None:
    """Three pieces of as many images are gathered in the same way in any order."""
    weights = pieces((4, 4, 4))
    cut = fd.fiedler(weights, graph)
    assert sorted((cut.side.sum(), (~cut.side).sum())) == [4, 8]
    order = np.random.default_rng(2).permutation(12)
    shuffled = fd.fiedler(weights[np.ix_(order, order)], graph).side
    assert fd.split_accuracy(shuffled, cut.side[order].astype(np.int64)) == 1


@pytest.mark.parametrize("graph", ["plain", "normalised"])
@pytest.mark.parametrize("between", [1e-5, 1e-9, 1e-11])
def test_two_pieces_hang_together_by_a_thread(graph: fd.Graph, between: float) -> None:
    """The cut of two pieces with hardly a link is clean: the first eigenvector is not mixed in."""
    weights = pieces((9, 6), between)
    cut = fd.fiedler(weights, graph)
    assert fd.split_accuracy(cut.side, np.arange(15) < 9) == 1
    assert 0 < cut.connectivity < 100 * between
    assert abs(cut.vector.sum()) < 1e-9 or graph == "normalised"
    root = np.sqrt(weights.sum(axis=1))
    assert abs(cut.vector @ root) < 1e-9 or graph == "plain"


@pytest.mark.parametrize("graph", ["plain", "normalised"])
@pytest.mark.parametrize("n", [4, 9, 12, 30])
def test_of_equally_weak_cuts_a_rule_takes_one(
    graph: fd.Graph, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring is cut about its first image by either solver from any start, and its gap is zero."""
    cut = fd.fiedler(ring(n), graph)
    assert cut.gap == 0
    expected = np.cos(2 * np.pi * np.arange(n) / n)
    assert_allclose(cut.vector, expected / np.linalg.norm(expected), atol=1e-9)
    assert_array_equal(cut.side, expected > 1e-9)
    monkeypatch.setattr(fd, "DENSE", 3)
    for seed in range(3):
        iterated = fd.fiedler(ring(n), graph, seed=seed)
        assert_array_equal(iterated.side, cut.side)
        assert_allclose(iterated.vector, cut.vector, atol=1e-6)
        assert iterated.gap == 0


def test_many_equal_eigenvalues_are_one_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty nodes about one have eighteen equal eigenvalues: the first of them is cut off."""
    star = np.zeros((21, 21))
    star[20, :20] = star[:20, 20] = 1
    dense = fd.fiedler(star)
    monkeypatch.setattr(fd, "DENSE", 10)
    for cut in (dense, fd.fiedler(star, seed=4)):
        assert_array_equal(np.flatnonzero(cut.side), [0])
        assert cut.gap == 0
        assert cut.connectivity == pytest.approx(1)


def test_a_middle_that_belongs_to_neither_side_is_not_drawn_by_lot() -> None:
    """The node between two equal halves is zero, not the sign of a rounding error."""
    for arm in range(1, 9):
        path = np.diag(np.ones(2 * arm), 1)
        cut = fd.fiedler(path + path.T, "plain")
        assert cut.vector[arm] == 0
        assert_array_equal(cut.side, np.arange(2 * arm + 1) < arm)


@pytest.mark.parametrize("bits", [3, 8, 20])
def test_ties_do_not_hang_on_the_order(bits: int) -> None:
    """Few bits tie often: neighbour graphs of shuffled images are the shuffled graphs."""
    similarity, _ = blobs(40, bits, 0.3, seed=bits)
    graph = fd.knn_graph(similarity, 5).toarray()
    assert ((graph > 0).sum(axis=1) >= 5).all()
    order = np.random.default_rng(1).permutation(40)
    shuffled = fd.knn_graph(similarity[np.ix_(order, order)], 5).toarray()
    assert_array_equal(shuffled, graph[np.ix_(order, order)])


def test_parts_of_a_graph_in_pieces_are_its_pieces() -> None:
    """Cut into as many parts as there are pieces, each part is one, in any order of the images."""
    weights = pieces((9, 8, 6, 4, 3))
    own = np.repeat(np.arange(5), (9, 8, 6, 4, 3))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(own))
        parts = fd.partition(weights[np.ix_(order, order)], 5)
        assert fd.matched_accuracy(parts, own[order]) == 1


def test_new_images_find_their_piece() -> None:
    """The extension of a graph in three pieces puts a new image on the side of what it is like."""
    weights = pieces((8, 7, 6))
    np.fill_diagonal(weights, 1)
    extended = fd.nystrom(weights)
    assert_allclose(extended.coordinate(weights), extended.vector, atol=1e-9)
    own = np.repeat(np.arange(3), (8, 7, 6))
    new = np.where(own[None] == np.arange(3)[:, None], 0.7, 0.0)
    side = extended.coordinate(new) > 0
    assert_array_equal(side[own], extended.vector > 0)
    assert side[1] == side[2] != side[0]


def test_a_reference_like_nothing_has_no_say() -> None:
    """A blank reference, not even like itself, leaves the coordinate of others finite."""
    weights = pieces((5, 5, 1), seed=1)
    np.fill_diagonal(weights[:10, :10], 1)
    coordinate = fd.nystrom(weights).coordinate(weights[:10])
    assert fd.split_accuracy(coordinate > 0, np.arange(10) < 5) == 1


def test_networkx_finds_the_same_vector() -> None:
    """Algebraic connectivity and Fiedler vector are networkx's, for both Laplacians."""
    graph = cliques(6, 8, 0.5)
    reference = nx.from_numpy_array(graph)
    kinds: tuple[tuple[fd.Graph, bool], ...] = (("plain", False), ("normalised", True))
    for kind, normalised in kinds:
        cut = fd.fiedler(graph, kind)
        value = nx.algebraic_connectivity(
            reference, normalized=normalised, method="lanczos", seed=1
        )
        assert cut.connectivity == pytest.approx(value, abs=1e-6)
    vector = nx.fiedler_vector(reference, method="lanczos", seed=1, tol=1e-10)
    assert abs(vector @ fd.fiedler(graph, "plain").vector) == pytest.approx(1, abs=1e-6)


def test_scikit_learn_makes_the_same_parts() -> None:
    """Recursive cuts of clear classes are the clusters spectral clustering finds."""
    similarity, labels = blobs(90, 900, 0.1, classes=3)
    found = fd.partition(similarity, 3)
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(similarity)
    assert fd.matched_accuracy(found, labels) == 1
    assert fd.matched_accuracy(found, theirs) == 1


@pytest.mark.parametrize("graph", fd.GRAPHS)
def test_iterative_and_dense_solvers_agree(
    graph: fd.Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanczos gives LAPACK's vector and eigenvalues."""
    similarity, _ = blobs(120, 300, 0.35, seed=3)
    dense = fd.fiedler(similarity, graph)
    monkeypatch.setattr(fd, "DENSE", 10)
    lanczos = fd.fiedler(similarity, graph, seed=5)
    assert abs(dense.vector @ lanczos.vector) == pytest.approx(1, abs=1e-5)
    assert lanczos.connectivity == pytest.approx(dense.connectivity, rel=1e-5, abs=1e-8)
    assert lanczos.gap == pytest.approx(dense.gap, rel=1e-4, abs=1e-8)


def test_rescaling_changes_the_graph_and_not_the_answer() -> None:
    """Stretching similarities to [0, 1] keeps clear classes apart with a wider gap."""
    similarity, labels = blobs(40, 400, 0.2)
    plain, stretched = (fd.fiedler(similarity, rescale=r) for r in (False, True))
    assert fd.split_accuracy(stretched.side, labels) == 1
    assert stretched.gap > plain.gap


def test_label_switching_does_not_matter() -> None:
    """A split and its opposite are equally good, and no split is worse than a coin."""
    side = np.array([True, True, False, False, False])
    labels = np.array([3, 3, 8, 8, 3])
    assert fd.split_accuracy(side, labels) == fd.split_accuracy(~side, labels) == 0.8
    assert fd.split_accuracy(np.arange(4) % 2 == 0, np.array([0, 0, 1, 1])) == 0.5


def test_neighbour_graph_keeps_the_nearest() -> None:
    """Each node keeps its k largest, an edge counts if either end wants it."""
    similarity = np.array([[0, 3, 2, 1], [3, 0, 1, 1.5], [2, 1, 0, 0.5], [1, 1.5, 0.5, 0]])
    graph = fd.knn_graph(similarity, 1).toarray()
    assert_array_equal(graph, graph.T)
    assert_array_equal(graph > 0, [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])


def test_nystrom_gives_known_images_their_own_coordinate() -> None:
    """A reference image put in again gets the coordinate it had in the graph."""
    similarity, labels = blobs(50, 300, 0.25)
    extended = fd.nystrom(similarity)
    assert_allclose(extended.coordinate(similarity), extended.vector, atol=1e-8)
    both, labels = blobs(80, 300, 0.35, seed=2)
    known, new = np.arange(50), np.arange(50, 80)
    extended = fd.nystrom(both[np.ix_(known, known)])
    side = extended.coordinate(both[np.ix_(new, known)]) > 0
    # one split of all: an image that was not in the graph must come to lie on its class's side
    assert fd.split_accuracy(np.r_[extended.vector > 0, side], labels) > 0.95


def test_pairs_are_symmetric_and_match_single_cuts() -> None:
    """The table of class pairs holds each pair's own cut."""
    similarity, labels = blobs(60, 300, 0.3, classes=3)
    table = fd.pair_accuracies(similarity, labels)
    assert np.isnan(np.diagonal(table)).all()
    assert_array_equal(table, table.T)
    rows = np.flatnonzero(labels != 1)
    cut = fd.fiedler(similarity[np.ix_(rows, rows)])
    assert table[0, 2] == fd.split_accuracy(cut.side, labels[rows])
    interval = fd.pair_estimate(table)
    assert interval.low <= interval.value <= interval.high


def test_errors_say_what_came() -> None:
    """One class, a constant layer, too few images and wrong parts are named."""
    similarity, labels = blobs(12, 50, 0.3)
    with pytest.raises(LabelError, match=r"exactly two classes, got 1: \[4\]"):
        fd.split_accuracy(np.ones(5, np.bool_), np.full(5, 4))
    with pytest.raises(LabelError, match="2 or more classes, got 1"):
        fd.pair_accuracies(similarity, np.zeros(12, np.int64))
    with pytest.raises(ConstantError, match="constant: all 6 images are equally alike"):
        fd.fiedler(np.ones((6, 6)))
    with pytest.raises(ShapeError, match="three or more images"):
        fd.fiedler(np.ones((2, 2)))
    with pytest.raises(ShapeError, match="non-negative"):
        fd.fiedler(similarity - 5)
    with pytest.raises(ShapeError, match="1 to 11 neighbours among 12"):
        fd.knn_graph(similarity, 12)
    with pytest.raises(ShapeError, match="1 to 4 parts"):
        fd.partition(similarity, 9)
    with pytest.raises(ShapeError, match=r"similarities to 12 references, got \(3, 5\)"):
        fd.nystrom(similarity).coordinate(np.ones((3, 5)))
    del labels

import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reluguard.training.analysis import gbs
from reluguard.training.errors import ConstantError, ShapeError


def cosines(features: NDArray[np.float64]) -> NDArray[np.floating]:
    """The paper's graph of features."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return gbs.layer_graph(unit @ unit.T)


@pytest.fixture
def features() -> NDArray[np.float64]:
    """Thirty images, twelve features."""
    return np.random.default_rng(0).normal(size=(30, 12))


def test_invariances_are_those_the_paper_names(features: NDArray[np.float64]) -> None:
    """Rotation and uniform scale change nothing, a stretch does; a layer is most like itself."""
    rng = np.random.default_rng(1)
    graph = cosines(features)
    rotated = features @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    stretched = features * np.r_[10.0, np.ones(11)]
    assert gbs.lsim(graph, graph) == pytest.approx(1, abs=1e-6)
    assert gbs.lsim(graph, cosines(rotated)) == pytest.approx(1, abs=1e-5)
    assert gbs.lsim(graph, cosines(features * 7)) == pytest.approx(1, abs=1e-5)
    assert gbs.lsim(graph, cosines(stretched)) < 0.9


def test_permuting_images_in_both_changes_nothing(features: NDArray[np.float64]) -> None:
    """The order of the images is nothing, if it is the same in both graphs."""
    a, b = cosines(features), cosines(features**3)
    order = np.random.default_rng(2).permutation(30)
    permuted = (graph[np.ix_(order, order)] for graph in (a, b))
    assert gbs.lsim(*permuted) == pytest.approx(gbs.lsim(a, b), abs=1e-6)
    assert gbs.lsim(a, b) == pytest.approx(gbs.lsim(b, a))


def test_lsim_is_the_papers_formula(features: NDArray[np.float64]) -> None:
    """The mean over nodes of the cosine between adjacency rows, as a loop."""
    a, b = cosines(features), cosines(np.abs(features))
    rows = [a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i]) for i in range(30)]
    assert gbs.lsim(a, b) == pytest.approx(np.mean(rows), abs=1e-6)
    assert_allclose(gbs.lsim_rows(a, b), rows, atol=1e-6)
    table = gbs.lsim_table(np.stack([a, b]).astype(np.float32))
    assert_allclose(table, [[1, gbs.lsim(a, b)], [gbs.lsim(a, b), 1]], atol=1e-5)


def test_matching_counts_layers_that_find_themselves() -> None:
    """A diagonal that is the largest of its row counts."""
    assert gbs.match_layers(np.eye(4)) == 1
    assert gbs.match_layers(np.array([[0.9, 0.1], [0.8, 0.2]])) == 0.5


def test_sparse_graph_keeps_k_and_is_averaged() -> None:
    """Each row keeps its k largest, halved where the other end does not want it."""
    similarity = np.array([[1, 0.9, 0.1], [0.9, 1, 0.8], [0.1, 0.8, 1]])
    graph = gbs.layer_graph(similarity, 1)
    assert_allclose(graph, [[0, 0.9, 0], [0.9, 0, 0.4], [0, 0.4, 0]], atol=1e-6)


def test_ties_stay_in_the_graph() -> None:
    """Neighbours as near as the last are kept: no order of the images changes the graph."""
    codes = np.random.default_rng(3).integers(0, 2, (20, 4))
    similarity = (codes[:, None] == codes[None]).mean(axis=2)
    graph = gbs.layer_graph(similarity, 3)
    order = np.random.default_rng(4).permutation(20)
    shuffled = gbs.layer_graph(similarity[np.ix_(order, order)], 3)
    assert_array_equal(shuffled, graph[np.ix_(order, order)])


def test_layers_that_are_alike_share_the_match() -> None:
    """A layer found twice counts for a half, on whichever side rounding errors fall."""
    table = np.array([[1, 1 - 1e-9, 0.2], [1 - 1e-9, 1, 0.2], [0.2, 0.2, 1]])
    assert gbs.match_layers(table) == gbs.match_layers(table[:, [1, 0, 2]]) == 2 / 3


def test_triangles_are_networkx_and_split_by_class(features: NDArray[np.float64]) -> None:
    """All triangles are counted once, by how many classes meet in them."""
    graph = gbs.layer_graph(cosines(features) + 1, 4)
    labels = np.random.default_rng(3).integers(0, 3, 30)
    reference = nx.from_numpy_array((graph != 0).astype(int))
    expected = {1: 0, 2: 0, 3: 0}
    for clique in nx.enumerate_all_cliques(reference):
        if len(clique) == 3:
            expected[len(set(labels[clique]))] += 1
    found = gbs.motifs(graph, labels)
    assert (found.same, found.two, found.different) == tuple(expected.values())
    assert found.same + found.two + found.different == sum(nx.triangles(reference).values()) // 3
    assert found.same_share == pytest.approx(expected[1] / sum(expected.values()))
    assert_array_equal(gbs.motifs(graph, np.zeros(30, np.int64)).two, 0)


def test_errors_say_what_came(features: NDArray[np.float64]) -> None:
    """Other sizes, an empty graph and too many neighbours are named."""
    graph = cosines(features)
    with pytest.raises(ShapeError, match=r"same images, got \(30, 30\) and \(29, 29\)"):
        gbs.lsim(graph, graph[:29, :29])
    with pytest.raises(ConstantError, match="constant: its graph has no edge"):
        gbs.lsim(graph, np.zeros((30, 30)))
    with pytest.raises(ShapeError, match="1 to 29 neighbours among 30"):
        gbs.layer_graph(graph, 30)
    with pytest.raises(ShapeError, match="as many layers in both"):
        gbs.match_layers(np.ones((2, 3)))

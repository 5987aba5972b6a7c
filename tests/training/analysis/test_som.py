import warnings

import numpy as np
import pytest
from minisom import MiniSom
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score

from reluguard.training.analysis import som as maps
from reluguard.training.errors import ConstantError, ShapeError


def clusters(n: int = 300, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Five blobs in eight dimensions: codes and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 5
    return rng.normal(0, 3, (5, 8))[labels] + rng.normal(0, 0.4, (n, 8)), labels


def test_a_map_knows_its_clusters() -> None:
    """Clear blobs land on units of their own."""
    codes, labels = clusters()
    som = maps.fit_som(codes, rows=6, columns=6)
    best = som.best(codes)
    assert maps.purity(best, labels) > 0.98
    assert maps.label_information(best, labels) > 0.5
    assert som.topographic_error(codes) < 0.2


def test_a_map_does_not_hang_on_rounding() -> None:
    """Codes that spread alike in all directions, or but few codes, give one map in any order.

    Their axes are of equal length, and many units are equally good: both are free choices.
    """
    cube = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(-1, 3)
    for codes in (np.repeat(cube, 5, axis=0), np.repeat(cube[[0, 7]], 20, axis=0)):
        som = maps.fit_som(codes, rows=4, columns=4)
        best, error = som.best(codes), som.topographic_error(codes)
        for seed in range(4):
            order = np.random.default_rng(seed).permutation(len(codes))
            nudge = 1 + 1e-15 * np.random.default_rng(seed).standard_normal(codes.shape)
            other = maps.fit_som((codes * nudge)[order], rows=4, columns=4)
            assert_allclose(other.codebook, som.codebook, atol=1e-6)
            assert_array_equal(other.best(codes), best)
            assert other.topographic_error(codes) == error


def test_as_good_as_minisom() -> None:
    """Quantisation error is no worse than that of a well-kept library, on the same grid."""
    codes, _ = clusters(400, 1)
    ours = maps.fit_som(codes, rows=7, columns=7)
    x = (codes - ours.center) / ours.spread
    theirs = MiniSom(7, 7, 8, sigma=3, learning_rate=0.5, random_seed=0)
    theirs.pca_weights_init(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.train_batch(x, 8000)
    assert ours.quantisation_error(codes) <= 1.1 * theirs.quantization_error(x)
    assert ours.topographic_error(codes) <= theirs.topographic_error(x) + 0.1


def test_errors_are_minisoms_on_the_same_codebook() -> None:
    """Given one codebook, both errors are MiniSom's."""
    codes, _ = clusters(200, 2)
    ours = maps.fit_som(codes, rows=5, columns=4, epochs=3)
    x = (codes - ours.center) / ours.spread
    theirs = MiniSom(5, 4, 8, random_seed=0)
    theirs._weights = ours.codebook.reshape(5, 4, 8).copy()  # noqa: SLF001 - there is no setter
    assert ours.quantisation_error(codes) == pytest.approx(theirs.quantization_error(x))
    assert ours.topographic_error(codes) == pytest.approx(theirs.topographic_error(x))


def test_order_of_images_and_scale_of_channels_do_not_matter() -> None:
    """Batch learning sees a set; standardising takes each channel's unit away."""
    codes, _ = clusters(150, 3)
    order = np.random.default_rng(0).permutation(150)
    som = maps.fit_som(codes, rows=5, columns=5, seed=4)
    assert_allclose(maps.fit_som(codes[order], rows=5, columns=5, seed=4).codebook, som.codebook)
    scaled = maps.fit_som(codes * np.arange(1, 9) + 7, rows=5, columns=5, seed=4)
    assert_allclose(scaled.codebook, som.codebook, atol=1e-6)
    assert_array_equal(maps.fit_som(codes, rows=5, columns=5, seed=4).codebook, som.codebook)


def test_label_information_is_scikit_learns() -> None:
    """Normalised mutual information agrees, and renaming units or classes changes nothing."""
    rng = np.random.default_rng(5)
    units, labels = rng.integers(0, 9, 200), rng.integers(0, 4, 200)
    expected = normalized_mutual_info_score(labels, units)
    assert maps.label_information(units, labels) == pytest.approx(expected)
    renamed = rng.permutation(9)[units]
    assert maps.label_information(renamed, 3 - labels) == pytest.approx(expected)
    assert maps.label_information(labels, labels) == pytest.approx(1)


def test_participation_ratio_counts_directions() -> None:
    """It is 1 on a line, C for a ball, blind to rotation, and follows from PCA's variances."""
    rng = np.random.default_rng(6)
    line = rng.normal(size=(500, 1)) @ rng.normal(size=(1, 6))
    assert maps.participation_ratio(line) == pytest.approx(1)
    ball = rng.normal(size=(20_000, 6))
    assert maps.participation_ratio(ball) == pytest.approx(6, rel=0.01)
    codes, _ = clusters()
    turned = codes @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    variance = PCA().fit(codes).explained_variance_
    expected = variance.sum() ** 2 / (variance**2).sum()
    assert maps.participation_ratio(codes) == pytest.approx(expected)
    assert maps.participation_ratio(turned) == pytest.approx(expected)


def test_entropy_displacement_and_map_of_small_cases() -> None:
    """One unit has no entropy, all units full; moves are grid distances; a map counts images."""
    assert maps.bmu_entropy(np.zeros(9, np.int64), 4) == 0
    assert maps.bmu_entropy(np.arange(4), 4) == pytest.approx(1)
    moved = maps.displacement(np.array([0, 5]), np.array([0, 10]), columns=4)
    assert_allclose(moved, [0, np.sqrt(2)])
    table = maps.bmu_map(np.array([0, 0, 5]), np.array([1, 1, 0]), 2, 3, 2)
    assert table[0, 0, 1] == 2
    assert table[1, 2, 0] == 1
    assert table.sum() == 3


def test_codebook_distance_tells_one_code_from_many() -> None:
    """Codes along one direction make a homogeneous codebook, codes along axes a diverse one."""
    rng = np.random.default_rng(7)
    one = rng.random((200, 1)) * np.ones(5) + 1 + rng.random((200, 5)) * 0.01
    many = np.eye(5)[np.arange(200) % 5] + rng.random((200, 5)) * 0.01
    same, diverse = (maps.fit_som(x, rows=4, columns=4).codebook_distance() for x in (one, many))
    assert same < 0.01
    assert diverse > 0.3


def test_errors_say_what_came() -> None:
    """Constant codes and other shapes are named."""
    with pytest.raises(ConstantError, match="the code is constant: it says the same of all 4"):
        maps.fit_som(np.ones((4, 3)))
    with pytest.raises(ConstantError, match="the code is constant"):
        maps.participation_ratio(np.ones((4, 3)))
    with pytest.raises(ShapeError, match="two or more rows"):
        maps.fit_som(np.ones((1, 3)))
    codes, _ = clusters(50)
    with pytest.raises(ShapeError, match=r"codes of shape \(N, 8\), got \(50, 7\)"):
        maps.fit_som(codes, epochs=1).best(codes[:, :7])
    with pytest.raises(ShapeError, match="two or more units and one epoch, got 1 x 1"):
        maps.fit_som(codes, rows=1, columns=1)

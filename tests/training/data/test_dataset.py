"""Labelled images from disk."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from reluguard.training.data.dataset import (
    Dataset,
    check_classes,
    check_enough,
    check_labels,
    load_data,
    save_dataset,
)
from reluguard.training.data.reading import Reading
from reluguard.training.data.splits import split_sources
from reluguard.training.errors import DataError


def dataset(count: int = 6, classes: int = 3, channels: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 5, 4, channels)).astype(np.uint8)
    return Dataset(images=images, labels=np.arange(count) % classes, source="here")


@given(
    st.lists(st.integers(0, 2), min_size=40, max_size=300),
    st.lists(st.floats(0.15, 0.3), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_parts_are_disjoint_stratified_and_repeatable(
    labels: Any, shares: list[float], seed: int
) -> None:
    """No image is in two parts, and each part has its share of every class, off by one at most."""
    labels = np.array(labels)
    fractions = {f"part{i}": share for i, share in enumerate(shares)}
    parts = split_sources(labels, fractions, seed)
    again = split_sources(labels, fractions, seed)
    together = np.concatenate(list(parts.values()))
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(labels)
    for name, rows in parts.items():
        assert rows.dtype == np.int64
        assert_array_equal(rows, again[name])
        for label in np.unique(labels):
            expected = fractions[name] * (labels == label).sum()
            assert abs((labels[rows] == label).sum() - expected) <= 1


def test_whole_shares_leave_no_image_out() -> None:
    """Fractions that add up to one deal out every image."""
    labels = np.repeat(np.arange(10), 17)
    parts = split_sources(labels, {"fit": 0.5, "calibrate": 0.3, "test": 0.2}, 3)
    assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(170))


def test_parts_do_not_depend_on_the_order_of_the_fractions() -> None:
    """A manifest sorts its keys: read back, the fitting images must not end up calibrating."""
    labels = np.repeat(np.arange(5), 37)
    fractions = {"fit": 0.5, "calibrate": 0.3, "test": 0.2}
    parts = split_sources(labels, fractions, 3)
    for name, rows in split_sources(labels, dict(sorted(fractions.items())), 3).items():
        assert_array_equal(rows, parts[name])


def test_another_seed_is_another_split() -> None:
    """The seed decides who goes where."""
    labels = np.repeat(np.arange(3), 40)
    first, second = (split_sources(labels, {"fit": 0.5}, seed)["fit"] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.0}, {"a": 0.7, "b": 0.4}, {"a": -1.0}])
def test_split_refuses_what_is_no_share(fractions: dict[str, float]) -> None:
    """Fractions are positive and at most one together."""
    with pytest.raises(DataError, match="expected positive fractions of at most 1 in all, got"):
        split_sources(np.zeros(10, np.int64), fractions, 0)


def test_saved_images_come_back(tmp_path: Path) -> None:
    """What was saved is loaded bit for bit, with the same digest, and nothing is left beside it."""
    data = dataset()
    save_dataset(data, tmp_path / "new" / "d.npz")
    loaded = load_data(str(tmp_path / "new" / "d.npz"))
    assert_array_equal(loaded.images, data.images)
    assert_array_equal(loaded.labels, data.labels)
    assert loaded.digest == data.digest
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["d.npz"]


def test_digest_names_the_content() -> None:
    """One pixel, one label or another shape is another digest; the source's name is not."""
    data = dataset()
    images = data.images.copy()
    images[0, 0, 0, 0] ^= 1
    labels = data.labels.copy()
    labels[0] += 1
    others = [
        Dataset(images=images, labels=data.labels, source="here"),
        Dataset(images=data.images, labels=labels, source="here"),
        Dataset(images=data.images.reshape(6, 4, 5, 3), labels=data.labels, source="here"),
    ]
    assert len({data.digest, *(other.digest for other in others)}) == 4
    renamed = Dataset(images=data.images, labels=data.labels, source="there")
    assert renamed.digest == data.digest


def test_grey_images_get_a_channel(tmp_path: Path) -> None:
    """Images of shape (N, H, W) are taken as one channel."""
    np.savez(tmp_path / "g.npz", images=np.zeros((3, 5, 4), np.uint8), labels=np.arange(3))
    assert load_data(str(tmp_path / "g.npz")).images.shape == (3, 5, 4, 1)


def test_take_by_mask_and_index() -> None:
    """Rows are chosen by index or by mask."""
    data = dataset()
    assert_array_equal(data.take(np.array([2, 0])).labels, [2, 0])
    assert len(data.take(data.labels == 1)) == 2


def write_folder(root: Path, sizes: dict[str, tuple[int, int]], mode: str = "RGB") -> None:
    for i, (name, size) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True)
        Image.new(mode, size, 40 * i if mode == "L" else (40 * i, 0, 9)).save(root / name / "a.png")


def test_folder_per_class(tmp_path: Path) -> None:
    """Folders are classes in alphabetical order; height comes first."""
    write_folder(tmp_path, {"cat": (4, 5), "ant": (4, 5)})
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = load_data(str(tmp_path))
    assert data.images.shape == (2, 5, 4, 3)
    assert_array_equal(data.labels, [0, 1])
    assert_array_equal(data.images[:, 0, 0, 0], [40, 0])


def test_folder_of_mixed_sizes_is_resized(tmp_path: Path) -> None:
    """A size to resize to makes images of mixed sizes one array."""
    write_folder(tmp_path, {"a": (4, 5), "b": (9, 3)})
    with pytest.raises(DataError, match=r"expected images of one size in .*, got .* and .*"):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), Reading(size=(6, 7))).images.shape == (2, 6, 7, 3)


def test_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    """Grey files stay grey, unless there are coloured ones among them."""
    write_folder(tmp_path / "grey", {"a": (4, 5)}, "L")
    assert load_data(str(tmp_path / "grey")).images.shape == (1, 5, 4, 1)
    write_folder(tmp_path / "grey", {"b": (4, 5)})
    assert load_data(str(tmp_path / "grey")).images.shape == (2, 5, 4, 3)


def test_npz_is_resized_on_request(tmp_path: Path) -> None:
    """Any source can be resized."""
    for channels in (1, 3):
        save_dataset(dataset(channels=channels), tmp_path / "d.npz")
        assert load_data(str(tmp_path / "d.npz"), Reading(size=(8, 9))).images.shape == (
            6,
            8,
            9,
            channels,
        )


def test_torchvision_never_downloads(tmp_path: Path) -> None:
    """A data set that is not there is an error."""
    with pytest.raises(
        DataError, match=r"expected torchvision's CIFAR10 under .*; nothing is down"
    ):
        load_data(f"torchvision:CIFAR10:{tmp_path}:train")


@pytest.mark.parametrize("text", ["torchvision:Imaginary:/x", "torchvision:CIFAR10:"])
def test_torchvision_needs_a_name_and_a_root(text: str) -> None:
    """The text says which data set and where."""
    with pytest.raises(DataError, match="expected torchvision:NAME:ROOT with NAME one of"):
        load_data(text)


def test_torchvision_reads_both_parts(tmp_path: Path) -> None:
    """CIFAR-10 as torchvision keeps it on disk is read without its network."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    sums = {}
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for i, name in enumerate(names):
        rows = {b"data": None, "data": np.full((2, 3072), i, np.uint8), "labels": [i % 10, 1]}
        data = pickle.dumps(rows)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    meta = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n, _ in CIFAR10.train_list])
        patch.setattr(CIFAR10, "test_list", [[n, sums[n]] for n, _ in CIFAR10.test_list])
        digest = hashlib.md5(meta).hexdigest()
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digest})
        assert len(load_data(f"torchvision:CIFAR10:{tmp_path}:train")) == 10
        assert load_data(f"torchvision:CIFAR10:{tmp_path}").images.shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "labels missing: it has images"),
        ({"labels": np.zeros(2, np.int64)}, "images missing"),
        ({"x": np.zeros(2)}, "images and labels missing: it has x"),
    ],
)
def test_npz_names_the_missing_array(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """A missing array is named, and what is there instead."""
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.arange(2), r"got float32 \(2, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 2), np.uint8), np.arange(2), r"got uint8 \(2, 4, 4, 2\)"),
        (np.zeros((2, 48), np.uint8), np.arange(2), r"expected uint8 images of shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), r"expected whole-number labels .* float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 1), int), r"got int64 \(2, 1\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.arange(3), "got 2 images and 3 labels"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), "expected at least one image"),
        (
            np.zeros((2, 4, 4, 3), np.uint8),
            np.array([0, -1]),
            "expected labels of 0 or more, got -1",
        ),
    ],
)
def test_npz_of_other_things_is_refused(
    tmp_path: Path, images: Any, labels: Any, message: str
) -> None:
    """Each wrong dtype, shape or value is named with what was expected."""
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "d.npz"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    """An array of objects would run code on loading."""
    np.savez(tmp_path / "d.npz", images=np.array([{}], object), labels=np.arange(1))
    with pytest.raises(DataError, match=r"expected a .npz file of plain arrays"):
        load_data(str(tmp_path / "d.npz"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is no archive, a cut one, and nothing at all are told apart from data."""
    (tmp_path / "d.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"expected a .npz file of plain arrays, .* is not one"):
        load_data(str(tmp_path / "d.npz"))
    with pytest.raises(DataError, match=r"expected a .npz file, a folder or torchvision:NAME:ROOT"):
        load_data(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="got no images"):
        load_data(str(tmp_path / "empty"))
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"expected an image, .* does not decode"):
        load_data(str(tmp_path / "bad"))


def test_checks_before_fitting() -> None:
    """Labels beyond the model's classes, a single class and too few images are refused."""
    data = dataset(classes=3)
    check_labels(data, 3)
    check_classes(data)
    check_enough(data, 6)
    with pytest.raises(DataError, match=r"expected labels below 2, .* got 2 from here"):
        check_labels(data, 2)
    with pytest.raises(DataError, match="expected images of at least 2 classes, got only class 0"):
        check_classes(dataset(classes=1))
    with pytest.raises(DataError, match="expected at least 7 images, got 6 from here"):
        check_enough(data, 7)


def test_large_plain_images_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are mapped, travel as a place, and read the same; compressed ones are loaded."""
    monkeypatch.setattr(sys.modules[load_data.__module__], "MAPPED_BYTES", 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", images=images, labels=np.arange(40) % 2)
    np.savez_compressed(tmp_path / "packed.npz", images=images, labels=np.arange(40) % 2)
    plain, packed = (
        load_data(str(tmp_path / f"{n}.npz"), Reading(size=(16, 16))) for n in ("plain", "packed")
    )
    assert plain.digest == packed.digest
    small, large = (len(pickle.dumps(data)) for data in (plain, packed))
    assert small < 2000 < images.nbytes < large
    again = pickle.loads(pickle.dumps(plain))
    plain.release()
    packed.release()
    for data in (plain, packed, again, pickle.loads(pickle.dumps(packed))):
        assert_array_equal(data.images, images)
    assert not plain.images.flags.writeable
    part = plain.take(np.arange(3))
    assert_array_equal(pickle.loads(pickle.dumps(part)).images, images[:3])

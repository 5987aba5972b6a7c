"""A folder of photographs means what the same files mean when they are served."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reluguard.detector.images import Images, InputSpec, decode_image
from reluguard.detector.pixels.pipeline import Pipeline, Resize
from reluguard.detector.pixels.presets import preset
from reluguard.training.data import mapped
from reluguard.training.data.dataset import load_data
from reluguard.training.data.items import read_rows
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError


def noise(*shape: int) -> Images:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def odd_files(root: Path) -> list[Path]:
    """Write photographs of every kind into a class's folder."""
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "a.jpg": (Image.fromarray(noise(40, 61, 3)), {"quality": 90}),
        "b.png": (Image.fromarray(noise(50, 30, 4)), {}),
        "c.png": (Image.fromarray(noise(33, 44).astype(np.uint16) * 257), {}),
        "d.png": (Image.fromarray(noise(37, 41, 3)).quantize(64), {}),
        "e.jpg": (Image.fromarray(noise(40, 40, 4), "CMYK"), {}),
        "f.webp": (Image.fromarray(noise(29, 70, 3)), {"quality": 80}),
        "g.png": (Image.fromarray(noise(24, 24, 2)), {}),
        "h.jpg": (Image.fromarray(noise(25, 90)), {}),
    }
    (root / "one").mkdir(parents=True)
    for name, (image, options) in kinds.items():
        image.save(root / "one" / name, **options)
    return [root / "one" / name for name in sorted(kinds)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [None, "torchvision", "timm:background=255/255/255", "opencv"])
def test_a_folder_is_read_as_files_are_served(
    name: str | None, channels: int, tmp_path: Path
) -> None:
    """Every pixel is the same, for every kind of file."""
    files = odd_files(tmp_path)
    spec = InputSpec(
        name="x",
        height=24,
        width=24,
        channels=channels,
        files=None if name is None else preset(name, (24, 24)).files,
    )
    served = np.stack([decode_image(file.read_bytes(), spec) for file in files])
    read = load_data(str(tmp_path), Reading.of(spec))
    np.testing.assert_array_equal(read.images, served)
    if name is None:
        assert "7 of 8 files are not 24 x 24 and were stretched to it" in read.words[0]
    else:
        assert read.words == ()


def test_hidden_folders_and_files_are_no_classes(tmp_path: Path) -> None:
    """What notebooks and archives leave behind is passed by, at any depth."""
    for name in ("b", "a", ".ipynb_checkpoints", "__MACOSX", "a/.thumbnails"):
        (tmp_path / name).mkdir()
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / name / "x.png")
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a" / "._x.png")
    found = load_data(str(tmp_path))
    assert len(found) == 2
    assert found.folders == {"a": 0, "b": 1}


def test_names_that_are_no_utf8_are_told_in_words(tmp_path: Path) -> None:
    """A damaged file of such a name makes a message that can be printed."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png")
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a" / "x.png")
    Path(odd).write_bytes(b"damaged")
    with pytest.raises(DataError, match="does not decode") as caught:
        load_data(str(tmp_path))
    str(caught.value).encode()


def test_much_lies_on_disk_and_goes_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded photographs above a size are a mapped file, gone when nobody needs it."""
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    odd_files(tmp_path / "data")
    found = load_data(str(tmp_path / "data"), Reading(size=(24, 24)))
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 2**28)
    plain = load_data(str(tmp_path / "data"), Reading(size=(24, 24)))
    assert found.digest == plain.digest
    del found
    assert list((tmp_path / "temporary").iterdir()) == []


def test_arrays_of_another_size_go_the_way_of_files(tmp_path: Path) -> None:
    """Those of the model's size pass as they are."""
    images = noise(3, 40, 60, 3)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(3))
    files = preset("torchvision", (24, 24)).files
    assert files is not None
    found = load_data(str(tmp_path / "d.npz"), Reading(files=files, size=(24, 24)))
    np.testing.assert_array_equal(found.images[1], files.apply(images[1]))
    same = load_data(str(tmp_path / "d.npz"), Reading(files=files, size=(40, 60)))
    np.testing.assert_array_equal(same.images, images)


def test_pictures_that_are_not_read_are_told(tmp_path: Path) -> None:
    """What is left out for its format is counted, also where nothing else is there."""
    (tmp_path / "cat").mkdir()
    for name in ("a.HEIC", "b.avif"):
        (tmp_path / "cat" / name).write_bytes(b"?")
    with pytest.raises(DataError, match=r"no images: 2 files are left out, for \.avif, \.heic is"):
        load_data(str(tmp_path))
    Image.fromarray(noise(4, 4)).save(tmp_path / "cat" / "c.pgm")
    Image.fromarray(noise(4, 4)).save(tmp_path / "cat" / "d.jfif", "JPEG")
    read = load_data(str(tmp_path))
    assert len(read) == 2
    assert read.words == (
        "2 files are left out, for .avif, .heic is not read: convert to PNG or JPEG",
    )


def test_arrays_of_another_size_are_told_as_files_are(tmp_path: Path) -> None:
    """What is stretched although nobody said how is said, however the images were given."""
    images, labels = noise(3, 9, 12, 1), np.zeros(3, np.int64)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    reading = Reading(size=(8, 8), channels=1)
    rows = [(image, 0) for image in images]
    for given in (load_data(str(tmp_path / "a.npz"), reading), read_rows(rows, reading, "rows")):
        assert "3 of 3 images are not 8 x 8 and were stretched to it" in given.words[0]
    said = replace(reading, files=Pipeline(resize=Resize(height=8, width=8)))
    for given in (load_data(str(tmp_path / "a.npz"), said), read_rows(rows, said, "rows")):
        assert given.words == ()

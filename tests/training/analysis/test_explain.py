from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reluguard.detector.errors import ImageError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import ShapeError
from reluguard.training.explain import explain, explain_image
from reluguard.training.pages.explanation import draw_explanation


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, tiny_guard: Path) -> Guard:
    """The tiny network with its guard."""
    return Guard.open(tiny_model, tiny_guard)


def test_an_image_among_the_references_is_its_own_nearest(
    tiny_model: Path, guarded: Guard, make_images: Callable[..., Images]
) -> None:
    """At every tap the nearest clean image is the image itself, at distance zero."""
    references = make_images(40)
    labels = np.arange(40) % 4
    found = explain_image(tiny_model, guarded, references[7], references, labels)
    assert (found.neighbours[:, 0] == 7).all()
    assert (found.distances[:, 0] == 0).all()
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert np.allclose(found.looks_like.sum(axis=1), 1)
    assert (found.neighbour_labels == labels[found.neighbours]).all()


def test_the_verdict_and_its_evidence_are_the_guards(
    tiny_model: Path, guarded: Guard, make_images: Callable[..., Images]
) -> None:
    """Nothing is computed anew that the guard has said, and channels are those of the head."""
    images = make_images(30, seed=9)
    found = explain_image(tiny_model, guarded, images[0], images[1:], np.zeros(29, np.int64))
    verdict = guarded.inspect(images[:1])[0]
    assert found.verdict == verdict
    assert len(found.taps) == len(verdict.evidence)
    sizes = [tap.channels for tap in guarded.artifact.manifest.taps]
    assert all(channel < sizes[tap] for tap, channel in found.channels)
    assert len(set(found.channels)) == len(found.channels)  # its levels count together
    assert (np.diff(np.abs(found.contributions)) <= 1e-9).all()


@pytest.mark.parametrize(
    ("evidence", "loudest"),
    [
        ((-0.25, 0.1, -0.4, -1.78), 3),
        ((-0.25, -1.78, 0.4, 0.1), 1),
        ((1.9, -0.3, 0.4, -1.78), 0),
        ((0.2, -0.3, 0.4, 0.1), 2),
    ],
    ids=str,
)
def test_the_tap_that_is_named_speaks_loudest(
    tiny_model: Path,
    guarded: Guard,
    make_images: Callable[..., Images],
    evidence: tuple[float, ...],
    loudest: int,
) -> None:
    """The largest evidence counts, for or against an attack, wherever the tap lies."""
    images = make_images(20)
    found = explain_image(tiny_model, guarded, images[0], images[1:], np.zeros(19, np.int64))
    found = replace(found, verdict=replace(found.verdict, evidence=evidence))
    assert found.loudest == loudest
    assert abs(evidence[found.loudest]) == max(map(abs, evidence))


def test_a_plot_without_a_bar_is_not_drawn(
    tiny_model: Path, guarded: Guard, make_images: Callable[..., Images], tmp_path: Path
) -> None:
    """Where no firing rate moved anything, its plot and its sentence are left out."""
    images = make_images(20)
    found = explain_image(tiny_model, guarded, images[0], images[1:], np.zeros(19, np.int64))
    assert np.any(found.contributions)
    silent = replace(found, channels=(), contributions=np.empty(0))
    sizes = []
    for name, one in (("whole.svg", found), ("silent.svg", silent)):
        draw_explanation(one, tmp_path / name)
        sizes.append((tmp_path / name).read_text().count("<g id="))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_written(
    tiny_model: Path,
    tiny_guard: Path,
    make_images: Callable[..., Images],
    tmp_path: Path,
    suffix: str,
) -> None:
    """From files to one picture, with nothing left beside it."""
    references = Dataset(
        images=make_images(30), labels=np.arange(30, dtype=np.int64) % 4, source="test"
    )
    save_dataset(references, tmp_path / "clean.npz")
    Image.fromarray(references.images[3, :, :, 0]).save(tmp_path / "one.png")
    out = tmp_path / "out" / f"why{suffix}"
    out.parent.mkdir()
    explain(tiny_model, tiny_guard, str(tmp_path / "clean.npz"), tmp_path / "one.png", out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.stat().st_size > 10_000


def test_errors_say_what_came(
    tiny_model: Path,
    tiny_guard: Path,
    guarded: Guard,
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """A missing image, another kind of file and too few references are named."""
    with pytest.raises(
        ImageError, match=r"expected a \.png, \.svg or \.pdf to write to, got x\.txt"
    ):
        explain(tiny_model, tiny_guard, "d", tmp_path / "i.png", tmp_path / "x.txt")
    with pytest.raises(ImageError, match=r"can't read the image .*i\.png: No such file"):
        explain(tiny_model, tiny_guard, "d", tmp_path / "i.png", tmp_path / "x.png")
    images = make_images(3)
    with pytest.raises(ShapeError, match="1 to 2 neighbours among 2 images, got 5"):
        explain_image(tiny_model, guarded, images[0], images[1:], np.zeros(2, np.int64))

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from reluguard.detector.errors import ImageError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production, infer_spec, load_production
from reluguard.detector.runtime import Reader
from reluguard.detector.taps import Tap, find_taps
from reluguard.training.analysis.pattern import unpack
from reluguard.training.analysis.recording import Recorder
from reluguard.training.errors import ShapeError

Opened = tuple[Production, InputSpec, tuple[Tap, ...]]


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> Opened:
    """The tiny network, how images go in, and its taps."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    return production, spec, find_taps(production, spec)


def test_rates_and_logits_are_the_detectors(
    opened: Opened, make_images: Callable[..., Images]
) -> None:
    """What analysis reads is what the guard reads."""
    production, spec, taps = opened
    images = make_images(11)
    found = Recorder(production, spec, taps).record(images, batch=4)
    rates, logits = Reader(production, spec, taps).read(images)
    assert_allclose(np.concatenate(found.rates, axis=1), rates, atol=1e-6)
    assert_allclose(found.logits, logits, atol=1e-5)
    assert_array_equal(found.answers, logits.argmax(axis=1))


def test_bits_are_the_relus(opened: Opened, make_images: Callable[..., Images]) -> None:
    """Packed bits, rates and means all follow from the same outputs."""
    production, spec, taps = opened
    found = Recorder(production, spec, taps).record(make_images(5))
    for tap, packed, rates, means in zip(
        taps, found.patterns, found.rates, found.means, strict=True
    ):
        bits = unpack(np.asarray(packed), tap.bits).reshape(5, *tap.shape)
        assert_allclose(bits.mean(axis=(2, 3)), rates, atol=1e-6)
        assert ((means > 0) == bits.any(axis=(2, 3))).all()


@pytest.mark.parametrize("batch", [1, 3, 64], ids=str)
def test_batch_and_folder_change_nothing(
    opened: Opened, make_images: Callable[..., Images], tmp_path: Path, batch: int
) -> None:
    """In files or in memory, in any batch, the bits are the same, and every image is counted."""
    production, spec, taps = opened
    recorder, images = Recorder(production, spec, taps), make_images(7)
    told: list[int] = []
    on_disk = recorder.record(images, folder=tmp_path / "bits", batch=batch, progress=told.append)
    whole = recorder.record(images, batch=7)
    for a, b in zip(on_disk.patterns, whole.patterns, strict=True):
        assert isinstance(a, np.memmap)
        assert_array_equal(a, b)
    assert sum(told) == 7
    part = on_disk.take(np.array([5, 1]))
    assert_array_equal(part.patterns[0], whole.patterns[0][[5, 1]])
    assert len(part) == 2


def test_the_file_is_left_as_it_was(opened: Opened) -> None:
    """Reading a model adds nothing to the model that was read."""
    production, spec, taps = opened
    before = production.proto.SerializeToString()
    Recorder(production, spec, taps)
    assert production.proto.SerializeToString() == before
    assert ort.InferenceSession(before, providers=["CPUExecutionProvider"]).get_outputs()


def test_errors_say_what_came(opened: Opened, make_images: Callable[..., Images]) -> None:
    """Images of another size and an empty batch are named."""
    production, spec, taps = opened
    recorder = Recorder(production, spec, taps)
    with pytest.raises(ImageError, match=r"\(N, 8, 8, 1\), got \(2, 9, 9, 1\)"):
        recorder.record(make_images(2, size=9))
    with pytest.raises(ShapeError, match="one or more images per batch, got 0"):
        recorder.record(make_images(2), batch=0)

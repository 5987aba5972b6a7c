"""The demo: digits, a small network, and the whole main job."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

import reluguard
from reluguard.detector.runtime import Guard
from reluguard.training.demo import digits, train_classifier


def test_digits_are_whole_grey_images() -> None:
    """Real handwriting in 8-bit steps over the whole range, ten classes."""
    data = digits()
    assert data.images.shape == (1797, 8, 8, 1)
    assert data.images.dtype == np.uint8
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert_array_equal(np.unique(data.labels), np.arange(10))


def test_training_learns_and_repeats() -> None:
    """A few epochs beat chance by far on other images; a seed repeats; global state stays."""
    data = digits()
    train, rest = data.take(np.arange(400)), data.take(np.arange(400, 800))
    state = torch.random.get_rng_state()
    first, again, other = (train_classifier(train, seed=s, epochs=6) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    x = torch.from_numpy(rest.images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = [network(x) for network in (first, again, other)]
    assert (logits[0].argmax(dim=1).numpy() == rest.labels).mean() > 0.6
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_goes_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Train, export, attack, fit, serve, ask: one JSON document with figures that make sense."""
    out = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["reluguard", "demo", "--json", "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        reluguard.main()
    assert stop.value.code == 0
    said = json.loads(capfd.readouterr().out)
    assert 0.97 < said["auroc_interval"][0] <= said["auroc"] <= said["auroc_interval"][1] <= 1
    assert 0.4 < said["tpr_at_1pct_fpr"] <= 1
    assert 0.95 < said["clean_accuracy"] <= 1
    assert said["false_positive_rate"] < 0.12
    assert said["logits_identical"] is True
    assert said["served_equals_offline"] is True
    with np.load(out / "unseen.npz") as unseen:
        assert len(unseen["clean"]) == said["clean_images"]
        assert len(unseen["attacked"]) == said["attacked_images"]
    assert said["seconds"] > 0
    assert said["attacked_images"] > 300
    with Image.open(said["picture"]) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    guard = Path(said["guard"])
    assert sum(file.stat().st_size for file in guard.iterdir()) < 1_000_000
    Guard.open(out / "digits.onnx", guard, threads=1)

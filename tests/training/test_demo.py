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
from reluguard.detector.metrics import Interval
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdict
from reluguard.training.demo import Demo, DemoResult, digits, train_classifier
from reluguard.training.demo.painted import SIDE, paint, strokes
from reluguard.training.demo.picture import Pair, Scale, draw_pairs
from reluguard.training.demo.story import story


def test_digits_are_whole_grey_images() -> None:
    """Real handwriting in 8-bit steps over the whole range, ten classes."""
    data = digits()
    assert data.images.shape == (1797, 8, 8, 1)
    assert data.images.dtype == np.uint8
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert_array_equal(np.unique(data.labels), np.arange(10))


def test_digits_are_painted_on_photographs_whole_and_repeatably() -> None:
    """Whole pixels in colour, a seed repeats, and where there is paint the picture changed most."""
    drawn, labels = strokes()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn.shape == (1797, SIDE, SIDE)
    assert_array_equal(np.bincount(labels), np.bincount(digits().labels))
    first, again, other = (paint(drawn[:40], np.random.default_rng(s)) for s in (3, 3, 4))
    assert first.shape == (40, SIDE, SIDE, 3)
    assert first.dtype == np.uint8
    assert_array_equal(first, again)
    assert (first != other).any()
    bare = paint(np.zeros_like(drawn[:40]), np.random.default_rng(3))
    change = np.abs(first.astype(int) - bare.astype(int)).mean(axis=3)
    covered = drawn[:40] > 0.5
    assert change[covered].mean() > 40
    assert change[drawn[:40] < 0.003].max() <= 1


def pair(largest: int = 4) -> Pair:
    """A picture before and after, with made-up verdicts."""
    before, after = np.full((8, 8, 3), 90, np.uint8), np.full((8, 8, 3), 94, np.uint8)
    calm, loud = (
        Verdict(
            prediction=answer,
            score=score,
            likelihood=0.5,
            p_value=p,
            is_adversarial=score > 0,
            evidence=evidence,
        )
        for answer, score, p, evidence in ((3, -2.0, 0.4, (0.1, -0.5)), (8, 4.0, 0.004, (0.2, 1.0)))
    )
    return Pair(
        before=before,
        after=after,
        attack="pgd-linf-4",
        label=3,
        calm=calm,
        loud=loud,
        largest=largest,
    )


def test_the_story_is_ten_lines() -> None:
    """Each fits a terminal of 100 columns, and figures are those of the result."""
    share = Interval(0.75, 0.7, 0.8, 400)
    result = DemoResult(
        summary={
            "clean_accuracy": 0.975,
            "attacked_images": 400,
            "clean_images": 200,
            "logits_identical": True,
            "served_equals_offline": False,
            "seconds": 21.4,
        },
        auroc=Interval(0.95, 0.94, 0.96, 600),
        detected=share,
        alarms=Interval(0.04, 0.02, 0.07, 200),
        pairs=[pair()],
        metrics=[
            f'reluguard_verdicts_total{{model="m",policy="annotate",verdict="{word}"}} {count}.0'
            for word, count in (("clean", 292), ("adversarial", 308))
        ],
        files=Demo(model=Path("d/digits.onnx"), held_out=Path("d/h.npz"), guard=Path("d/guard")),
        picture=Path("d/verdicts.png"),
    )
    lines = story(result)
    assert len(lines) == 10
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "A 3, read as 3: not flagged, p-value 0.400." in text
    assert "read as 8: ADVERSARIAL, p-value 0.004 (layer 2)." in text
    assert "75.0 % of 400 attacks" in text
    assert "SOMETHING ELSE" in text
    assert "292 clean and 308 adversarial" in text


def test_the_picture_is_as_wide_as_it_is_said(tmp_path: Path) -> None:
    """A thousand and more pixels, to be read at 800; without a pair nothing is written."""
    file = tmp_path / "verdicts.png"
    share = Interval(0.9, 0.8, 0.95, 100)
    scale = Scale(clean_scores=np.linspace(-3, 1, 50, dtype=np.float32), threshold=0.5)
    draw_pairs(file, [pair(), pair()], scale, share, share)
    with Image.open(file) as picture:
        assert picture.width == 1600
    file.unlink()
    draw_pairs(file, [], scale, share, share)
    assert not file.exists()


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
    assert 0.8 < said["auroc_interval"][0] <= said["auroc"] <= said["auroc_interval"][1] <= 1
    assert 0.3 < said["detected"] <= 1
    assert 0 <= said["tpr_at_1pct_fpr"] <= said["detected"]
    assert 0.9 < said["clean_accuracy"] <= 1
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

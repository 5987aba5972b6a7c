import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import numpy_helper

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.harden import HardenSettings, harden, harden_images
from reluguard.training.hardening.halves import Joined
from reluguard.training.hardening.tuning import Networks
from reluguard.training.progress import Step, progress_of
from reluguard.training.twin.onnx_torch import OnnxModule
from reluguard.training.twin.twin import Twin, to_pixels
from tests.training.following import assert_told_to_the_end


@pytest.fixture
def labelled(tiny_model: Path, make_images: Callable[..., Images]) -> Dataset:
    """Images with labels that one bright corner settles."""
    del tiny_model
    images = make_images(120, seed=4)
    labels = np.arange(120, dtype=np.int64) % 2
    images[labels == 1, :4, :4] = np.minimum(images[labels == 1, :4, :4].astype(int) + 120, 255)
    return Dataset(images=images, labels=labels, source="test")


def test_the_graph_stays_and_the_weights_move(
    tiny_model: Path, labelled: Dataset, tmp_path: Path
) -> None:
    """The hardened file has the same nodes and names, other numbers, and loads as a model."""
    save_dataset(labelled, tmp_path / "data.npz")
    settings = HardenSettings(epochs=2, batch=32, evaluate=24)
    told: list[Step] = []
    report = harden(
        tiny_model,
        tmp_path / "data.npz",
        out=tmp_path / "out",
        settings=settings,
        progress=progress_of(told.append),
    )
    assert_told_to_the_end(told, "harden", "robust accuracy")
    before, after = (
        load_production(path).proto for path in (tiny_model, tmp_path / "out" / "model.onnx")
    )
    assert list(before.graph.node) == list(after.graph.node)
    pairs = zip(before.graph.initializer, after.graph.initializer, strict=True)
    moved = [
        not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b)) for a, b in pairs
    ]
    assert all(moved)
    assert report.evaluated == 24
    assert report.images == 96
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["report"]["clean_after"]["value"] == report.clean_after.value
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "report.json"]


def test_training_learns_and_draws_codes_together(tiny_model: Path, labelled: Dataset) -> None:
    """Accuracy on clean images rises, and attacked codes come to lie nearer to clean ones."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    settings = HardenSettings(epochs=15, batch=20, rate=0.05, evaluate=40, budget=8)
    train, test = labelled.take(np.arange(80)), labelled.take(np.arange(80, 120))
    _, report = harden_images(production, spec, train, test, settings=settings)
    assert report.clean_gain.low > 0
    assert report.robust_gain.value > 0


def test_a_seed_repeats_the_weights(tiny_model: Path, labelled: Dataset) -> None:
    """The same seed gives the same bytes, another does not."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    made = [
        harden_images(
            production, spec, labelled, labelled, settings=HardenSettings(epochs=1, seed=seed)
        )[0].proto.SerializeToString()
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]
    assert onnx.load_model_from_string(made[0]).graph.node


def test_attacks_of_a_step_keep_within_the_budget(tiny_model: Path, labelled: Dataset) -> None:
    """No pixel moves by more than the budget or out of its range, and weights can learn again."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    whole = OnnxModule(production.proto, production.logits)
    networks = Networks.of(Joined(production, spec), whole, spec, labelled.images[:8])
    x = to_pixels(labelled.images[:20])
    target = networks.target(x, labelled.labels[:20], 0.8)
    assert_allclose(target.sum(1).numpy(), 1, rtol=1e-5)
    for varied in (False, True):
        settings = HardenSettings(budget=3.0, varied=varied)
        moved = networks.attacked(x, target, settings, np.random.default_rng(0))
        assert float((moved - x).abs().max()) <= 3 / 255 + 1e-6
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
        assert float((moved - x).abs().mean()) > 0.5 / 255
    assert all(weight.requires_grad for weight in networks.weights.values())


def test_who_is_told_all_by_the_model_alone_stays_as_it_answers(
    tiny_model: Path, labelled: Dataset
) -> None:
    """With the model as the only teacher and no attack counted, nothing is to be learned."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    settings = HardenSettings(
        epochs=1, teacher=1.0, follow=0, apart=0, weight=0, decay=0, average=0, rate=1e-3
    )
    _, report = harden_images(production, spec, labelled, labelled, settings=settings)
    assert report.clean_after.value == pytest.approx(report.clean_before.value, abs=0.03)


def test_the_average_of_the_steps_is_written(tiny_model: Path, labelled: Dataset) -> None:
    """It lies nearer to where training began than the last step does."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    begun = weights_of(production.proto)
    moved = [
        sum(
            float(np.square(weight - begun[name]).sum())
            for name, weight in weights_of(
                harden_images(
                    production, spec, labelled, labelled,
                    settings=HardenSettings(epochs=2, average=average, rate=0.05),
                )[0].proto
            ).items()
        )
        for average in (0.0, 0.998)
    ]  # fmt: skip
    assert 0 < moved[1] < moved[0]


def weights_of(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def test_a_copy_that_lost_much_is_told(
    tiny_model: Path, labelled: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who trains on labels that are wrong hears that the copy knows less."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    twin = Twin(OnnxModule(production.proto, production.logits), spec)
    scores = twin.predict(labelled.images)
    answers = scores.argmax(1)
    wrong = replace(labelled, labels=(answers + 1) % scores.shape[1])
    save_dataset(wrong.take(np.arange(96)), tmp_path / "wrong.npz")
    save_dataset(replace(labelled, labels=answers).take(np.arange(96, 120)), tmp_path / "own.npz")
    settings = HardenSettings(epochs=15, batch=20, rate=0.05, teacher=0.0, evaluate=24)
    report = harden(
        tiny_model, tmp_path / "wrong.npz", held_out=tmp_path / "own.npz", out=tmp_path / "out",
        settings=settings,
    )  # fmt: skip
    assert report.clean_before.value == 1
    assert report.clean_after.value < 0.9
    assert "fewer clean images than the model: give more images" in caplog.text


def test_settings_are_checked() -> None:
    """Senseless settings are refused."""
    with pytest.raises(
        SettingsError,
        match="epochs, batch, evaluate and steps of 1 or more, got 0, 64, 500, 40",
    ):
        HardenSettings(epochs=0)
    with pytest.raises(SettingsError, match="positive budget and rate and weights of 0 or more"):
        HardenSettings(budget=-1)
    with pytest.raises(SettingsError, match="a teacher of 0 to 1, an average of 0 to below 1"):
        HardenSettings(teacher=1.5)

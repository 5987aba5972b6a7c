"""Two classes, as two outputs and as one: the whole path from images to a served verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.compile.guarded import IS_ADVERSARIAL, SCORE, compile_guard
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.client.client import Client
from reluguard.training.attacks import (
    APGD,
    CWL2,
    FAB,
    FMN,
    Attack,
    DeepFool,
    Ensemble,
    Victim,
    open_victim,
)
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.evaluate import evaluate
from reluguard.training.fit import fit
from reluguard.training.recipes import Recipe
from reluguard.training.twin.twin import load_twin

ATTACKS = ("apgd-dlr-linf-4", "deepfool-l2")


def with_one_output(model: Path, path: Path) -> Path:
    """Write the same classifier as a sigmoid of how far the second class is ahead."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name in {"t4", "t5"}:
            even, odd = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.stack([odd - even]), tensor.name))
    proto.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["odd"]))
    output = helper.make_tensor_value_info("odd", TensorProto.FLOAT, ["N", 1])
    proto.graph.output[0].CopyFrom(output)
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module", params=["two outputs", "one output"])
def model(request: pytest.FixtureRequest, parity_model: Path) -> Path:
    """A classifier of odd and even, of logits or of one probability."""
    if request.param == "two outputs":
        return parity_model
    return with_one_output(parity_model, parity_model.with_name("one.onnx"))


@pytest.fixture(scope="module")
def data(parity: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 digits with their parity."""
    path = tmp_path_factory.mktemp("parity") / "digits.npz"
    save_dataset(parity.take(np.arange(400)), path)
    return str(path)


@pytest.fixture(scope="module")
def guard(
    model: Path, data: str, brief_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> GuardArtifact:
    """A guard fitted on them."""
    out = tmp_path_factory.mktemp("guard") / "guard"
    asked: dict[str, Any] = {"recipe": brief_recipe, "second": "none", "threads": 1, "workers": 1}
    return fit(model, data, out=out, **asked).artifact


@pytest.fixture(scope="module")
def victim(guard: GuardArtifact, model: Path, parity: Dataset) -> Victim:
    """The classifier under attack, its twin also taken for another model."""
    spec = guard.manifest.input
    twin = load_twin(model, spec, images=parity.images[:8], device="cpu")
    assert twin is not None
    return open_victim(model, spec, twin=twin, surrogates=(twin,), threads=1)


def test_a_guard_has_probes_of_two_classes(guard: GuardArtifact) -> None:
    """Probes and identity know both classes, no code stands for them, and attacks are found."""
    features = guard.head.features
    assert (features.classes, features.code.size) == (2, 0)
    assert features.probes > 1
    report = json.loads((guard.path / "report.json").read_text())
    found = [attack["auroc"]["value"] for attack in report["attacks"].values()]
    assert min(found) > 0.7


def test_the_only_other_class_is_the_runner_up(
    guard: GuardArtifact, model: Path, parity: Dataset
) -> None:
    """Golden images replay, and the answer is one of two classes, mostly the right one."""
    opened = Guard.open(model, guard.path, threads=1)
    some = parity.take(np.arange(300, 364))
    verdicts = opened.inspect(some.images)
    assert set(verdicts.prediction.tolist()) == {0, 1}
    assert (verdicts.prediction == some.labels).mean() > 0.9


def test_exported_and_served_say_the_same(
    guard: GuardArtifact, model: Path, parity: Dataset
) -> None:
    """Plain ONNX Runtime on the exported file, our server, and the guard in this process."""
    opened = Guard.open(model, guard.path, threads=1)
    images = parity.images[:16]
    wanted = opened.inspect(images)
    manifest = guard.manifest
    production = load_production(model, output=manifest.answer)
    exported = compile_guard(production, manifest.taps, guard.head, fpr=manifest.fpr)
    session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    tensor = manifest.input.to_tensor(images)
    score, flagged = session.run([SCORE, IS_ADVERSARIAL], {manifest.input.name: tensor})
    np.testing.assert_allclose(score, wanted.score, atol=1e-3)
    np.testing.assert_array_equal(flagged, wanted.is_adversarial)
    with running(opened) as server, Client(server.address) as client:
        served = client.inspect(images)
    np.testing.assert_array_equal(served.prediction, wanted.prediction)
    np.testing.assert_allclose(served.score, wanted.score, atol=1e-3)


@pytest.mark.slow
def test_heads_without_an_attack_are_judged(
    guard: GuardArtifact, model: Path, data: str, tmp_path: Path
) -> None:
    """The report card and heads that leave an attack out are made of two classes too."""
    card: dict[str, Any] = evaluate(
        model,
        guard.path,
        data,
        out=tmp_path,
        attacks=ATTACKS,
        benign=("gaussian-8",),
        baseline_rows=80,
        matrix_rows=80,
        limit=40,
        threads=1,
        workers=1,
    ).to_json()
    assert set(card["attacks"]) == set(ATTACKS)
    assert 0 <= card["clean"]["false_positive_rate"][f"{guard.manifest.fpr:g}"]["value"] < 0.3


@pytest.mark.parametrize(
    "attack",
    [
        APGD(loss="dlr", size=48.0),
        CWL2(),
        DeepFool(),
        FAB(),
        FMN(),
        Ensemble(rate=16.0, weight=30.0),
    ],
    ids=lambda attack: attack.name,
)
def test_attacks_find_the_only_other_class(attack: Attack, victim: Victim, parity: Dataset) -> None:
    """Losses that rank the other classes have one to rank, and it is what they reach."""
    right = victim.predict(parity.images[:32]).argmax(axis=1) == parity.labels[:32]
    images, labels = parity.images[:32][right], parity.labels[:32][right]
    result = attack(images, labels, victim, seed=0)
    assert result.success.mean() > 0.5
    answers = victim.predict(result.images).argmax(axis=1)
    np.testing.assert_array_equal(answers[result.success], 1 - labels[result.success])
    if attack.targeted:
        assert result.target is not None
        np.testing.assert_array_equal(result.target, 1 - labels)

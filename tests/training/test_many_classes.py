"""More classes than have images: ten digits of 200 classes, from images to a retrained guard."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.head import Head
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.data.case import open_case
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.fit import fit
from reluguard.training.recipes import Recipe

CLASSES = 200
MIB = 2**20


@pytest.fixture(scope="module")
def model(digits_model: Path) -> Path:
    """The digits network with 190 classes more, each between two digits and less likely."""
    rng = np.random.default_rng(0)
    proto = onnx.load(digits_model)
    pairs = rng.integers(10, size=(CLASSES - 10, 2))
    for tensor in proto.graph.initializer:
        if tensor.name in {"t4", "t5"}:
            known = numpy_helper.to_array(tensor)
            more = known[pairs].mean(axis=1)
            more += 0.1 * known.std() * rng.normal(size=more.shape)
            more -= 1.0 if tensor.name == "t5" else 0.0
            wide = np.concatenate([known, more]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES
    path = digits_model.with_name("many.onnx")
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def data(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 digits."""
    path = tmp_path_factory.mktemp("many") / "digits.npz"
    save_dataset(digits.take(np.arange(400)), path)
    return str(path)


@pytest.fixture(scope="module")
def guard(
    model: Path, data: str, brief_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> GuardArtifact:
    """A guard fitted on them."""
    out = tmp_path_factory.mktemp("many") / "guard"
    return fit(model, data, out=out, recipe=brief_recipe, threads=1, workers=1).artifact


def test_a_guard_of_many_classes_is_small(guard: GuardArtifact) -> None:
    """A code stands for the classes, its probes are there, and all is under a megabyte."""
    features = guard.head.features
    assert features.classes == CLASSES
    assert 0 < features.code.shape[1] <= 32
    assert features.probes > 1
    files = [file for file in guard.path.iterdir() if file.suffix in {".npz", ".json"}]
    assert sum(file.stat().st_size for file in files) < MIB


def test_the_guard_on_disk_is_the_one_in_the_graph(
    guard: GuardArtifact, model: Path, digits: Dataset
) -> None:
    """The compiled code says what the arrays say in NumPy, and golden images replay."""
    opened = Guard.open(model, guard.path, threads=1)
    images = digits.images[:12]
    verdicts = opened.inspect(images)
    manifest = guard.manifest
    production = load_production(model, output=manifest.answer)
    rates, logits = Reader(production, manifest.input, manifest.taps, threads=1).read(images)
    again = Head.from_arrays(guard.head.to_arrays())
    np.testing.assert_allclose(verdicts.score, again.score(rates, logits).score, atol=1e-3)


def test_classes_without_images_are_named(model: Path, data: str, brief_recipe: Recipe) -> None:
    """Whoever fits is told how many classes the guard has never seen, and what that means."""
    case, _ = open_case(
        model,
        data,
        levels=(),
        shares=brief_recipe.shares,
        preprocessing=None,
        output=None,
        fpr=0.05,
        seed=0,
        threads=1,
    )
    (word,) = (word for word in case.words if "no calibration images" in word)
    assert "no calibration images of 190 of 200 classes: 10, 11" in word
    assert "flagged far more often" in word

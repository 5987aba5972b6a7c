import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import TwinError
from reluguard.training.harden import HardenSettings, harden, harden_images
from reluguard.training.hardening.halves import Joined
from reluguard.training.hardening.own import Own as Student
from reluguard.training.hardening.own import scores_before
from reluguard.training.hardening.tuning import Networks
from reluguard.training.models.torch_model import TorchModel
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


class Own(nn.Module):
    """A network of somebody's: its gates are modules, and it takes a view of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.gate = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(512, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        seen = self.gate(self.norm(self.first(images)))
        found: torch.Tensor = self.last(self.drop(seen.view(seen.size(0), -1)))
        return found


def own() -> Own:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Own().eval()


def opened(module: Any, tiny_model: Path) -> Student:
    """Return a network as it is trained; of the model beside it only the ending is asked."""
    production = load_production(tiny_model)
    source = TorchModel(program=module, source="mine")
    return Student(source, production, infer_spec(production, (8, 8, 1)))


def test_a_copy_learns_and_the_owners_module_stays(tiny_model: Path) -> None:
    """Nothing is shared; the last gate is heard over several calls, whatever the order of pixels.

    BatchNorm keeps its averages, Dropout rests.
    """
    module = own()
    learner = opened(module, tiny_model)
    x = torch.rand(6, 8, 8, 1).permute(0, 3, 1, 2)  # channels last in memory
    learner.forget()
    scores = torch.cat([learner(x[:4]), learner(x[4:])])
    with torch.no_grad():
        assert_allclose(scores.detach(), module(x.clone(memory_format=torch.contiguous_format)))
        assert_allclose(
            learner.phi.detach(),
            module.gate(module.norm(module.first(x))),
            atol=1e-6,
        )
    assert set(learner.weights) == {name for name, _ in module.named_parameters()}
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scores.square().sum().backward()
    for weight in learner.weights.values():
        assert weight.grad is not None
        weight.data -= weight.grad
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(learner.state()["norm.running_mean"], before["norm.running_mean"])
    assert not torch.equal(learner.state()["last.weight"], before["last.weight"])


def test_what_can_not_be_trained_says_why(tiny_model: Path) -> None:
    """Half precision, and a frozen TorchScript file whose weights are constants."""
    with pytest.raises(TwinError, match=r"float32 to train, mine has some of torch\.float16"):
        opened(own().half(), tiny_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(own(), torch.zeros(2, 1, 8, 8)))
    with pytest.raises(TwinError, match="a frozen TorchScript file keeps them as constants"):
        opened(frozen, tiny_model)


@pytest.mark.parametrize(
    ("ending", "raw"), [("softmax", [[0.2, 0.8]]), ("sigmoid", [[0.8]]), ("", [[np.log(4)]])]
)
def test_scores_are_those_before_an_ending(ending: str, raw: list[list[float]]) -> None:
    """A softmax of them gives the shares again, with a column per class."""
    found = torch.softmax(scores_before(torch.tensor(raw), ending), 1)
    assert_allclose(found, [[0.2, 0.8]], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", "program", "script"])
def test_a_network_of_torch_is_trained_itself(kind: str, labelled: Dataset, tmp_path: Path) -> None:
    """It learns, its weights fit its own module, and the ONNX file answers as that does."""
    module = own()
    given: Any = module
    example = torch.zeros(2, 1, 8, 8)
    if kind == "program":
        free = ({0: torch.export.Dim("images")},)
        torch.export.save(
            torch.export.export(module, (example,), dynamic_shapes=free), tmp_path / "net.pt2"
        )
        given = tmp_path / "net.pt2"
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(module), tmp_path / "net.ts")
        given = tmp_path / "net.ts"
    settings = HardenSettings(epochs=15, batch=20, rate=0.05, evaluate=24, budget=8)
    report = harden(given, (labelled.images, labelled.labels), out=tmp_path / "out",
                    settings=settings)  # fmt: skip
    assert report.clean_gain.low > 0
    after = own()
    after.load_state_dict(torch.load(tmp_path / "out" / "weights.pt", weights_only=True))
    tensor = labelled.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: tensor})
    with torch.no_grad():
        wanted = after(torch.from_numpy(tensor).clone(memory_format=torch.contiguous_format))
        begun = module(torch.from_numpy(tensor).clone(memory_format=torch.contiguous_format))
    assert_allclose(found, wanted, atol=1e-3)
    assert float((wanted - begun).abs().max()) > 0.1
    kept = {entry.key for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert "reluguard_export" not in kept


def test_a_model_of_a_fixed_batch_is_hardened(
    make_network: Callable[..., onnx.ModelProto], labelled: Dataset
) -> None:
    """What the last gate says of all images of a step is heard, however few go in at a time."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(make_network(batch=4), Path(folder, "four.onnx"))
        production = load_production(Path(folder, "four.onnx"))
    spec = infer_spec(production, (8, 8, 1))
    settings = HardenSettings(epochs=1, batch=24, evaluate=24, steps=2)
    some = labelled.take(np.arange(49))  # the last step has one, and its batch is filled up
    _, report = harden_images(production, spec, some, some, settings=settings)
    assert report.images == 49

"""The whole way from a torch module, its files and a library's name to verdicts."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import reluguard
from reluguard.commands.app import app
from reluguard.detector.errors import ModelError
from reluguard.detector.onnx_file.beside import beside
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.data.preprocessing import Preprocessing
from reluguard.training.models.given import Given, ready_model
from reluguard.training.provenance import provenance_of
from reluguard.training.recipes import Recipe
from tests.training.conftest import trained


@pytest.fixture(scope="module")
def net(digits: Dataset) -> nn.Sequential:
    """A network that knows digits, trained on all but the first 300."""
    return trained(digits.take(np.arange(300, len(digits))), units=8, seed=0)


@pytest.fixture(scope="module")
def guard(
    net: nn.Sequential,
    digits: Dataset,
    brief_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a guard fitted to the module itself."""
    out = tmp_path_factory.mktemp("fitted") / "guard"
    some = digits.take(np.arange(300))
    reluguard.fit(
        net,
        (some.images, some.labels),
        out=out,
        recipe=brief_recipe,
        second="none",
        threads=1,
        workers=1,
    )
    return out


@pytest.mark.slow
def test_a_module_is_fitted_and_served_from_its_export(
    guard: Path, net: nn.Sequential, digits: Dataset
) -> None:
    """The guard says what it is of, and every way to give the model has the same verdicts."""
    opened = reluguard.Guard.open(beside(guard), guard)
    exported = provenance_of(opened.artifact.manifest).exported
    assert exported is not None
    assert exported.source == "module Sequential"
    some = digits.images[:20]
    wanted = opened.inspect(some)
    found = reluguard.score(net, guard, (some, digits.labels[:20]))
    np.testing.assert_array_equal(found["score"], wanted.score)
    module = reluguard.GuardedModule(net, guard)
    np.testing.assert_allclose(module(some).score, wanted.score, atol=1e-3)


@pytest.mark.slow
def test_a_retrained_guard_has_the_export_beside_it(
    guard: Path, digits: Dataset, tmp_path: Path
) -> None:
    """It is put there when the guard is written; what is another's is left alone."""
    out = tmp_path / "next"
    beside(out).write_text("mine")
    save_dataset(digits.take(np.arange(300)), tmp_path / "fitted.npz")
    asked: dict[str, Any] = {
        "attacks": ["deepfool-l2-o1"],
        "sources": 60,
        "threads": 1,
        "data": str(tmp_path / "fitted.npz"),
    }
    with pytest.raises(ModelError, match="something else is there; give the guard another name"):
        reluguard.retrain(str(guard), None, [], str(out), **asked)
    beside(out).unlink()
    made = reluguard.retrain(guard, None, [], out, **asked)
    assert beside(out).read_bytes() == beside(guard).read_bytes()
    again = reluguard.Guard.open(None, out)
    assert again.artifact.digest == made.guard.digest


@pytest.mark.slow
def test_files_of_torch_are_taken_by_the_commands(
    guard: Path, net: nn.Sequential, digits_file: Path, tmp_path: Path
) -> None:
    """`score` and `export` take a .pt2 and a TorchScript file, and serve names what to give."""
    program = torch.export.export(
        net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("images")},)
    )
    files = [tmp_path / "net.pt2", tmp_path / "net.pt"]
    torch.export.save(program, files[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, 8, 8)), str(files[1]))
    tables = []
    for place, file in enumerate(files):
        out = tmp_path / f"{place}.csv"
        told = ["--model", str(file), "--guard", str(guard)]
        done = CliRunner().invoke(
            app, ["score", *told, "--data", str(digits_file), "--out", str(out)]
        )
        assert done.exit_code == 0, done.output
        tables.append(out.read_text())
        done = CliRunner().invoke(app, ["export", *told, "--out", str(tmp_path / "whole.onnx")])
        assert done.exit_code == 0, done.output
    assert tables[0] == tables[1]
    with pytest.raises(ModelError, match=r"net\.pt2 is a program .*: give .*guard\.onnx, which"):
        reluguard.Guard.open(files[0], guard)


@pytest.mark.slow
def test_every_way_from_torch_gives_the_same_answers(
    net: nn.Sequential, digits: Dataset, tmp_path: Path
) -> None:
    """A program in memory and on disk, for any batch or for one image, and TorchScript."""
    given = torch.zeros(2, 1, 8, 8)
    free = torch.export.export(net, (given,), dynamic_shapes=({0: torch.export.Dim("images")},))
    single = torch.export.export(net, (given[:1],))
    torch.export.save(single, tmp_path / "one.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), str(tmp_path / "script.pt"))
    data = (digits.images[:70], digits.labels[:70])
    ways: list[Any] = [free, tmp_path / "one.pt2", tmp_path / "script.pt"]
    for place, model in enumerate(ways):
        found = ready_model(Given(model=model, data=data), folder=tmp_path / str(place))
        assert "agree on 64 images" in found.words[-1]
    with pytest.raises(reluguard.SettingsError, match=r"takes images of shape \(1, 8, 8\)"):
        ready_model(Given(model=free, data=data, input_shape=(3, 8, 8)), folder=tmp_path / "other")


class Noisy(nn.Module):
    """Answers otherwise each time it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores of the images and of chance."""
        flat = images.flatten(1)
        found: torch.Tensor = self.last(torch.relu(flat + torch.rand_like(flat)))
        return found


class Branching(nn.Module):
    """Goes another way for bright images, which no exporter can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores."""
        flat = images.flatten(1)
        found: torch.Tensor = self.last(torch.relu(flat if flat.sum() > 3 else -flat))
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Noisy(), r"answers otherwise after its export to ONNX: scores differ by up to"),
        (Branching(), r"Branching can't be exported to ONNX: \w+: .*\. Change the module so"),
    ],
    ids=["noisy", "branching"],
)
def test_what_can_not_be_exported_says_why(
    module: nn.Module, message: str, digits: Dataset, tmp_path: Path
) -> None:
    """The cause in a sentence, and nothing is left behind."""
    data = (digits.images[:70], digits.labels[:70])
    with pytest.raises(ModelError, match=message) as caught:
        ready_model(Given(model=module.eval(), data=data), folder=tmp_path / "work")
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "work" / "model.onnx").exists()


@pytest.mark.slow
def test_a_torchvision_name_brings_preprocessing_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of one's own classes or of ImageNet's, of a file or of torchvision's own cache."""
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    data = (rng.integers(0, 256, (3, 224, 224, 3), np.uint8), np.array([0, 1, 1]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save({"state_dict": resnet18(num_classes=7).state_dict()}, tmp_path / "seven.pth")
        cache = tmp_path / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        whole = ResNet18_Weights.IMAGENET1K_V1
        torch.save(resnet18().state_dict(), cache / whole.url.rpartition("/")[2])
    seven = ready_model(
        Given(model="torchvision:resnet18", data=data, weights=tmp_path / "seven.pth"),
        folder=tmp_path / "7",
    )
    proto = onnx.load(str(seven.file))
    assert proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7
    assert isinstance(seven.preprocessing, Preprocessing)
    assert seven.preprocessing.mean == (0.485, 0.456, 0.406)
    assert seven.preprocessing.files is not None
    assert seven.preprocessing.files.size == (224, 224)
    assert "names" not in {entry.key for entry in proto.metadata_props}
    own = ready_model(Given(model="torchvision:resnet18", data=data), folder=tmp_path / "1000")
    names = {entry.key: entry.value for entry in onnx.load(str(own.file)).metadata_props}["names"]
    assert "tench" in names
    assert "preprocessing is torchvision's for ResNet18_Weights.IMAGENET1K_V1" in own.words[0]
    with pytest.raises(ModelError, match=r"not those of torchvision:resnet34: Missing key"):
        ready_model(
            Given(model="torchvision:resnet34", data=data, weights=tmp_path / "seven.pth"),
            folder=tmp_path / "34",
        )


@pytest.mark.slow
def test_a_timm_name_brings_preprocessing(tmp_path: Path) -> None:
    """As torchvision's, where timm is installed."""
    timm = pytest.importorskip("timm", reason="timm is not installed here")
    net = timm.create_model("test_resnet", pretrained=False, num_classes=5)
    torch.save(net.state_dict(), tmp_path / "five.pth")
    rng = np.random.default_rng(0)
    side = net.pretrained_cfg["input_size"][-1]
    data = (rng.integers(0, 256, (3, side, side, 3), np.uint8), np.array([0, 1, 1]))
    found = ready_model(
        Given(model="timm:test_resnet", data=data, weights=tmp_path / "five.pth"),
        folder=tmp_path / "five",
    )
    assert isinstance(found.preprocessing, Preprocessing)
    assert found.preprocessing.mean == tuple(net.pretrained_cfg["mean"])
    assert "agree on 3 images" in found.words[-1]
    with pytest.raises(ModelError, match=r"nothing is downloaded here: .*--weights FILE"):
        ready_model(Given(model="timm:test_resnet", data=data), folder=tmp_path / "none")
    with pytest.raises(ModelError, match=r"among timm's networks, got 'resnet_18'"):
        ready_model(Given(model="timm:resnet_18", data=data), folder=tmp_path / "none")

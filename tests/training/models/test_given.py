"""A production model from wherever it is given becomes an ONNX file that answers as it does."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from reluguard.detector.errors import GuardError, ModelError, SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import load_production
from reluguard.detector.onnx_file.beside import beside
from reluguard.detector.session import in_batches, open_session
from reluguard.training.data.given import Data
from reluguard.training.models.given import Given, Ready, ready_model
from reluguard.training.models.of_guard import guard_model

SIZE = 8
SPEC = InputSpec(name="image", height=SIZE, width=SIZE, channels=1)


def network(seed: int = 0) -> nn.Sequential:
    """Return a small network of random weights with a gate and a part that only training has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(4 * SIZE * SIZE, 10),
        )
    return made.eval()


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Random images with labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, SIZE, SIZE, 1), dtype=np.uint8)
    return images, rng.integers(0, 10, 40)


@pytest.fixture(scope="module")
def ready(pixels: Data, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """The export of `network()`."""
    return ready_model(
        Given(model=network(), data=pixels), folder=tmp_path_factory.mktemp("exported")
    )


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime says."""
    production = load_production(file)
    found = in_batches(
        open_session(production.proto), SPEC, SPEC.to_tensor(images), [production.answer]
    )
    return np.asarray(found[0])


def test_an_exported_module_answers_as_the_module(
    ready: Ready, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    """ONNX Runtime gives torch's scores, for any number of images."""
    images = pixels[0]
    with torch.no_grad():
        wanted = network()(torch.from_numpy(SPEC.to_tensor(images))).numpy()
    for count in (1, 7, len(images)):
        np.testing.assert_allclose(answers(ready.file, images[:count]), wanted[:count], atol=1e-5)


def test_an_export_is_made_once(ready: Ready, pixels: Data) -> None:
    """The same weights leave the same bytes, so that a killed fit goes on."""
    before = ready.file.read_bytes()
    again = ready_model(Given(model=network(), data=pixels), folder=ready.file.parent)
    assert again.exported == ready.exported
    assert again.file.read_bytes() == before


def test_what_was_exported_is_told(ready: Ready) -> None:
    """Its words name the module, and the file says what it is of."""
    assert ready.exported is not None
    assert ready.exported.source == "module Sequential"
    assert ready.exported.shape == (1, SIZE, SIZE)
    (word,) = ready.words
    assert "torch and ONNX Runtime agree on 40 images" in word
    assert {entry.key for entry in onnx.load(str(ready.file)).metadata_props} >= {
        "reluguard_export"
    }


def test_an_onnx_file_is_taken_as_it_is(tiny_model: Path, pixels: Data, tmp_path: Path) -> None:
    """Nothing is read, copied or written."""
    found = ready_model(Given(model=tiny_model, data=pixels), folder=tmp_path / "none")
    assert (found.file, found.exported, found.words) == (tiny_model, None, ())
    assert found.data is pixels
    assert not list(tmp_path.iterdir())


@pytest.fixture
def guarded(ready: Ready, make_guard: Callable[..., Path], tmp_path: Path) -> Path:
    """A guard of the export, with the export beside it."""
    guard = make_guard(ready.file, tmp_path / "guard", image_shape=(SIZE, SIZE, 1))
    shutil.copyfile(ready.file, beside(guard))
    return guard


def test_beside_a_guard_the_file_it_was_fitted_to_is_used(guarded: Path) -> None:
    """A module that answers alike stands for the export; a path to ONNX is itself."""
    assert guard_model(network(), guarded) == guarded.parent / "guard.onnx"
    assert guard_model(beside(guarded), guarded) == beside(guarded)


def test_another_network_is_not_the_guards(guarded: Path) -> None:
    """Other weights answer the golden images otherwise, and that is said."""
    with pytest.raises(GuardError, match=r"module Sequential answers its golden images otherwise"):
        guard_model(network(seed=1), guarded)


def test_a_guard_without_its_export_says_what_to_do(guarded: Path) -> None:
    """The file is asked for by name."""
    beside(guarded).unlink()
    with pytest.raises(ModelError, match=r"guard\.onnx is not there: put it there, or give it"):
        guard_model(network(), guarded)


def test_training_mode_is_refused(pixels: Data, tmp_path: Path) -> None:
    """All of a module, or one part of it, that would answer otherwise in production."""
    with pytest.raises(ModelError, match=r"in evaluation mode: .* call model\.eval\(\) first"):
        ready_model(Given(model=network().train(), data=pixels), folder=tmp_path)
    half = network()
    half[2].train()
    with pytest.raises(ModelError, match="in evaluation mode, its part 2 is not"):
        ready_model(Given(model=half, data=pixels), folder=tmp_path)
    assert not list(tmp_path.iterdir())


class Trap:
    """What would run if a pickle were opened."""

    def __reduce__(self) -> tuple[object, ...]:
        """Leave a trace."""
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_refused_unopened(
    archive: bool, pixels: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole module in a file may hold any code, whichever way torch wrote it."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "whole.pt"
    if archive:
        torch.save(Trap(), file)
    else:
        file.write_bytes(pickle.dumps(Trap()))
    for model, weights in ((file, None), ("torchvision:resnet18", file)):
        with pytest.raises(ModelError, match=r"run whatever code|could run its code"):
            ready_model(Given(model=model, data=pixels, weights=weights), folder=tmp_path)
    assert not (tmp_path / "opened").exists()


def test_what_lies_where_the_export_goes_is_left_alone(pixels: Data, tmp_path: Path) -> None:
    """A file beside the guard that is not ours is not replaced."""
    place = tmp_path / "guard.onnx"
    place.write_text("mine")
    with pytest.raises(ModelError, match="something else is there; give the guard another name"):
        ready_model(
            Given(model=network(), data=pixels), folder=tmp_path / "work", out=tmp_path / "guard"
        )
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "asked", "error", "message"),
    [
        ("m.onnx", {"weights": "w.pt"}, SettingsError, "no weights beside an ONNX file"),
        ("m.onnx", {"input_shape": (1, 8, 8)}, SettingsError, "no input shape beside an ONNX"),
        (network(), {"weights": "w.pt"}, SettingsError, "weights beside a network's name alone"),
        (network(), {"input_shape": (8, 8)}, SettingsError, r"like 3,224,224, got \(8, 8\)"),
        (3, {}, ModelError, "expected an ONNX file, a torch module, .* got int"),
        ("torchvision:resnet81", {}, ModelError, r"; did you mean 'resnet18' or"),
        (
            "torchvision:resnet18:V9",
            {},
            ModelError,
            "among torchvision's weights of resnet18, got 'V9'",
        ),
        ("torchvision:resnet18", {"weights": "no.pt"}, ModelError, r"no\.pt is not there"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_said(
    model: object,
    asked: dict[str, object],
    error: type[Exception],
    message: str,
    pixels: Data,
    tmp_path: Path,
) -> None:
    """Each in a sentence that says what was expected."""
    with pytest.raises(error, match=message):
        ready_model(Given(model=model, data=pixels, **asked), folder=tmp_path)  # type: ignore[arg-type] # as users may


def test_a_name_without_weights_says_what_to_do(
    pixels: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded, and the message names the file that would be."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"nothing is downloaded here.*--weights FILE.*resnet18-"):
        ready_model(Given(model="torchvision:resnet18", data=pixels), folder=tmp_path / "work")

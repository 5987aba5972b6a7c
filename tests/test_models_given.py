"""Every command with `--model` takes a model from where people have it, and says what it uses."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from onnx import numpy_helper

import reluguard
from benchmarks.drawn import write_drawn_guard
from reluguard.commands.app import app
from reluguard.detector.errors import DetectorError, ModelError
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.onnx_file.beside import beside
from reluguard.detector.shelf.shelf import promote
from reluguard.service.models.sources import sources_in
from tests.commanding import Run, assert_one_line

# What follows `--model` and `--guard`, and what a command says when it has found its model: of
# images that are not there, of nothing new, or that all is well. None of it is of the model.
GONE = "gone.npz"
MISSED = r"gone\.npz"
REST: dict[str, tuple[tuple[str, ...], str]] = {
    "score": (("--data", GONE, "--out", "v.npz"), MISSED),
    "evaluate": (("--data", GONE, "--out", "judged"), MISSED),
    "redteam": (("--data", GONE, "--out", "attacked"), MISSED),
    "export": (("--out", "guarded.onnx", "--target-fpr", "2"), "rate"),
    "bench": (("--provider", "NoneSuch"), "NoneSuch"),
    "analyze": (("--data", GONE, "--out", "looked"), MISSED),
    "explain": (("gone.png", "--data", GONE), r"gone\.png"),
    "harden": (("--data", GONE, "--out", "hardened"), MISSED),
    "retrain": (("--new", GONE, "--out", "next", "--work", "gone"), "gone"),
    "try": (("--data", GONE,), MISSED),
}  # fmt: skip
OTHERWISE = {"fit", "serve"}  # one makes the export, one is no place for torch
GROUP: Any = typer.main.get_group(app)


CODE = """
import torch
from torch import nn

def other():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()

def build():
    made = other()
    made.load_state_dict(torch.load("weights.pt"))
    return made
"""


@pytest.fixture(scope="module")
def fitted(
    tiny_model: Path,
    make_images: Callable[..., Images],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder where the guard `mine` has its model beside it, and `bare` has none.

    The network lies there as an ONNX file, as weights, as code and as TorchScript.
    """
    folder = tmp_path_factory.mktemp("given")
    write_drawn_guard(
        tiny_model,
        folder / "mine",
        clean=make_images(199, seed=1),
        golden=make_images(5, seed=2),
        rates=(0.05,),
        provenance={},
        reports={},
    )
    shutil.copytree(folder / "mine", folder / "bare")
    for name in ("model.onnx", "mine.onnx"):
        shutil.copyfile(tiny_model, folder / name)
    (folder / "own_net.py").write_text(CODE)
    known: dict[str, Any] = {}
    exec(CODE, known)
    module = known["other"]()
    kept = {
        t.name: numpy_helper.to_array(t)
        for t in load_production(tiny_model).proto.graph.initializer
    }
    places = {"0": "1", "2": "2", "6": "3"}
    state = {
        f"{layer}.{kind}": torch.from_numpy(kept[f"{kind[0]}{place}"].copy())
        for layer, place in places.items()
        for kind in ("weight", "bias")
    }
    module.load_state_dict(state)
    torch.save(state, folder / "weights.pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is no longer advised, and still met
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 1, 8, 8)), folder / "net.ts")
    return folder


@pytest.fixture
def there(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the working folder."""
    monkeypatch.chdir(fitted)
    return fitted


def test_every_command_with_a_model_is_told_of_here() -> None:
    """A new command can't take models in a way of its own unseen."""
    have = {
        name
        for name, command in GROUP.commands.items()
        if any("--model" in option.opts for option in command.params)
    }
    assert have == set(REST) | OTHERWISE


KINDS = {  # what is given, and what is said of it
    "an ONNX file": ("model.onnx", ""),
    "nothing": (None, "model: mine.onnx, which lies beside the guard"),
    "TorchScript": ("net.ts", "model: mine.onnx, the export of net.ts; both answer alike"),
    "code": (
        "own_net.py:build",
        "model: mine.onnx, the export of own_net.py:build; both answer alike",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", REST)
@pytest.mark.usefixtures("there")
def test_a_command_finds_the_model_of_its_guard(run: Run, command: str, kind: str) -> None:
    """Whatever it is given as; it says in one line which file it uses, where that was not named."""
    given, word = KINDS[kind]
    rest, ends = REST[command]
    ended = run(command, *([] if given is None else ["--model", given]), "--guard", "mine", *rest)
    assert_one_line(ended, ends)
    said = [line for line in ended.err.splitlines() if line.startswith("model: ")]
    if command == "harden" and given not in {None, "model.onnx"}:
        assert not said  # what is given is what is trained
    else:
        assert said == ([word] if word else [])


@pytest.mark.parametrize("command", REST)
@pytest.mark.usefixtures("there")
def test_a_command_without_any_model_says_where_it_looked(run: Run, command: str) -> None:
    """The guard's own export is not there, so the file is asked for."""
    ended = run(command, "--guard", "bare", *REST[command][0])
    assert_one_line(ended, r"the guard bare: none is given \(--model\), and bare\.onnx")


@pytest.mark.parametrize("command", ["score", "retrain"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("own_net.py:other", "own_net.py:other answers its golden images otherwise"),
        ("own_net.py:bild", "can't find the model own_net.py:bild: .* has no bild, only build"),
        ("weights.pt", "expected a network, weights.pt is a pickle"),
        ("gone.onnx", "can't read the model gone.onnx: No such file"),
    ],
)
@pytest.mark.usefixtures("there")
def test_what_is_not_the_guards_model_is_said(
    run: Run, command: str, given: str, message: str
) -> None:
    """Before any work, in one sentence."""
    rest = ("--new", "model.onnx", "--out", "next") if command == "retrain" else REST[command][0]
    assert_one_line(run(command, "--model", given, "--guard", "mine", *rest), message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("net.ts", "net.ts is a TorchScript file: give mine.onnx, which was exported for this"),
        ("own_net.py:build", "own_net.py:build is what makes a torch module: give mine.onnx"),
        ("torchvision:resnet18", "torchvision:resnet18 is the name of a network: give mine.onnx"),
        ("weights.pt", "weights.pt is a pickle of torch's: give mine.onnx"),
    ],
)
@pytest.mark.usefixtures("there")
def test_a_server_runs_onnx_files_alone(run: Run, given: str, message: str) -> None:
    """It needs no torch, so it names the file to give; `Guard.open` says the same."""
    ended = run("serve", "--check-config", "--model", given, "--guard", "mine")
    assert ended.code == 1
    assert message in ended.err
    with pytest.raises(ModelError, match="or no model at all"):
        reluguard.Guard.open(given, "mine")


@pytest.mark.usefixtures("there")
def test_a_server_finds_the_export_beside_its_guard(run: Run) -> None:
    """Settings without a model are right where the export lies beside the guard."""
    ended = run("serve", "--check-config", "--guard", "mine")
    assert (ended.code, ended.out) == (0, "the settings are right\n")
    ended = run("serve", "--check-config", "--guard", "bare")
    assert ended.code == 1
    assert "bare.onnx, where one that fit exported would be, is not there" in ended.err


def test_in_python_none_is_the_export(there: Path) -> None:
    """A guard, a session in its place and verdicts need no model where the export is kept."""
    images = np.zeros((2, 8, 8, 1), np.uint8)
    wanted = reluguard.Guard.open(there / "model.onnx", there / "mine").inspect(images).score
    np.testing.assert_array_equal(
        reluguard.Guard.open(None, there / "mine").inspect(images).score, wanted
    )
    session = reluguard.GuardedSession(None, there / "mine")
    session.run(None, {"image": np.zeros((2, 1, 8, 8), np.float32)})
    assert session.verdicts is not None
    np.testing.assert_array_equal(session.verdicts.score, wanted)
    found = reluguard.score(None, there / "mine", (images, np.zeros(2, np.int64)))
    np.testing.assert_array_equal(found["score"], wanted)


def test_a_shelf_keeps_the_export_of_its_guards(fitted: Path, tmp_path: Path) -> None:
    """What is promoted brings it along; what lies there already stays."""
    shelf = tmp_path / "shelf"
    promote(shelf, fitted / "bare", who="ann", why="first")
    assert not beside(shelf).exists()
    promote(shelf, fitted / "mine", who="ann", why="the same, with its export")
    assert beside(shelf).read_bytes() == (fitted / "model.onnx").read_bytes()
    beside(shelf).write_text("mine")
    promote(shelf, fitted / "mine", who="ann", why="again")
    assert beside(shelf).read_text() == "mine"
    other = tmp_path / "other"
    shutil.copytree(fitted / "bare", tmp_path / "guard")
    beside(tmp_path / "guard").write_bytes((fitted / "net.ts").read_bytes())
    with pytest.raises(DetectorError, match="expected an ONNX model"):
        promote(other, tmp_path / "guard", who="ann", why="something else beside it")


def test_a_folder_of_models_may_hold_guards_with_their_exports(
    fitted: Path, tmp_path: Path
) -> None:
    """NAME/model.onnx is the model, or else what lies beside NAME/guard."""
    for name, file in (("a", "model.onnx"), ("b", "guard.onnx"), ("c", "net.onnx")):
        shutil.copytree(fitted / "bare", tmp_path / name / "guard")
        shutil.copyfile(fitted / "model.onnx", tmp_path / name / file)
    found = sources_in(tmp_path, providers=None, threads=1)
    assert {name: source.model.name for name, source in found.items()} == {
        "a": "model.onnx",
        "b": "guard.onnx",
    }


def test_the_place_beside_a_guard_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the guard is the working folder."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert beside("guards/mine/") == Path("guards/mine.onnx")
    assert beside(".") == tmp_path / "mine.onnx"

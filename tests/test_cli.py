"""The command line: what it prints where, and its exit codes."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import typer.main

from reluguard.commands.app import app
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.detector.taps import find_taps
from reluguard.training.data.dataset import Dataset, save_dataset
from tests.commanding import Run, assert_one_line

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(typer.main.get_group(app).commands)
IMAGES = 160


@pytest.fixture(scope="module")
def data(
    tiny_model: Path,
    make_images: Callable[..., Images],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Images with the tiny model's own answers as labels."""
    images = make_images(IMAGES, seed=11)
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    reader = Reader(production, spec, find_taps(production, spec), threads=1)
    labels = reader.read(images)[1].argmax(axis=1)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    save_dataset(Dataset(images=images, labels=labels, source="test"), path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    """Help says what the command does and what each option means, and ends well."""
    ended = run(command, "--help")
    assert ended.code == 0
    assert not ended.err
    assert f"reluguard {command}" in ended.out
    assert len(ended.out.split("Options:")[0].split()) > 8
    options = re.findall(r"^  -{1,2}[a-z][^\n]*", ended.out, re.MULTILINE)
    assert options
    for option in options:
        assert len(option.split()) > 2 or ended.out.split(option)[1].startswith("\n   "), option


def test_the_version_is_the_packages(run: Run) -> None:
    """One line for scripts, as the installed package says it."""
    ended = run("--version")
    assert (ended.code, ended.out) == (0, f"{importlib.metadata.version('reluguard')}\n")


def test_help_lists_the_commands(run: Run) -> None:
    """The commands of the contract are there; with none, help is given as wrong usage."""
    ended = run("--help")
    assert ended.code == 0
    for command in ("demo", "fit", "score", "export", "serve", "bench", "health"):
        assert re.search(rf"^  {command} ", ended.out, re.MULTILINE), command
    assert run().code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["fit"], "Missing option '--model'"),
        (["fit", "--nonsense"], "No such option: --nonsense"),
        (["fit", "--seed", "-1"], "'--seed'"),
        (["fit", "--workers", "0"], "'--workers'"),
        (["score", "--threads", "0"], "'--threads'"),
        (["bench", "--rounds", "0"], "'--rounds'"),
        (["bench", "--batch", "0"], "'--batch'"),
        (["fit", "--target-fpr", "low"], "'--target-fpr'"),
    ],
)
def test_wrong_usage_is_two(run: Run, arguments: list[str], message: str) -> None:
    """Wrong usage ends with 2, names the option on standard error and does nothing."""
    ended = run(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert not ended.out
    assert "Traceback" not in ended.err


def test_numbers_with_commas(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """A mean that is no list of numbers is wrong usage."""
    ended = run(
        "fit", "--model", tiny_model, "--data", data, "--out", tmp_path / "g", "--mean", "0,x"
    )
    assert ended.code == 2
    assert "expected numbers with commas between, got '0,x'" in ended.err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "nowhere.onnx", "can't read the model nowhere.onnx"),
        ("--model", __file__, "does not parse as one"),
        ("--data", "nowhere.npz", "folder or torchvision:NAME:ROOT, got 'nowhere.npz'"),
        ("--data", __file__, r"expected a \.npz file"),
        (
            "--recipe",
            "nix",
            "a recipe of default, quick, digits, or module:name of yours, got 'nix'",
        ),
        ("--twin", "no_such_module:make", "can't find the twin no_such_module:make"),
        ("--twin", "nonsense", "expected a twin of auto, none or package.module:function"),
        ("--output", "nix", "expected an output named 'nix'"),
        ("--target-fpr", "1.5", "between 0 and 1, got 1.5"),
        ("--target-fpr", "0.001", "needs 999 calibration images, which is 3330 images in all"),
        ("--prevalence", "1", "prevalence between 0 and 1"),
        ("--std", "0", "expected positive std"),
        ("--mean", "1,2", "expected 1 finite mean value of grey images"),
        ("--out", str(ROOT / "tests"), "holds other files"),
    ],
)
def test_fit_fails_with_one_line(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    """Whatever is wrong, there is one clear line after any notes, no guard and no JSON."""
    given = {"--model": tiny_model, "--data": data, "--out": tmp_path / "g", "--recipe": "digits"}
    given |= {option: value, "--work": tmp_path / "work", "--workers": 1}
    ended = run("fit", "--json", *(part for pair in given.items() for part in pair))
    assert_one_line(ended, message)
    *notes, _ = ended.err.splitlines()
    assert all(note.startswith("reluguard: note: ") for note in notes)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("command", ["score", "export", "bench"])
def test_a_guard_of_another_model_is_one_line(
    run: Run,
    command: str,
    make_network: Callable[..., onnx.ModelProto],
    tiny_guard: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    """A guard fitted to another model is refused by every command that takes one."""
    onnx.save(make_network(seed=9), tmp_path / "other.onnx")
    extra = {
        "score": ["--data", data, "--out", tmp_path / "s.npz"],
        "export": ["--out", tmp_path / "x.onnx"],
        "bench": ["--rounds", 1],
    }[command]
    ended = run(command, "--model", tmp_path / "other.onnx", "--guard", tiny_guard, *extra)
    assert_one_line(ended, "was fitted to the model with SHA-256")
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


@pytest.mark.parametrize("command", ["score", "export", "bench"])
def test_a_missing_guard_is_one_line(
    run: Run, command: str, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """A folder without a guard is named."""
    extra = {
        "score": ["--data", data, "--out", tmp_path / "s.npz"],
        "export": ["--out", tmp_path / "x.onnx"],
        "bench": [],
    }[command]
    ended = run(command, "--model", tiny_model, "--guard", tmp_path / "none", *extra)
    assert_one_line(ended, "expected a guard in .*none, it has no file manifest.json")


def test_a_place_that_can_not_be_written_is_one_line(
    run: Run, tiny_model: Path, tiny_guard: Path, data: Path
) -> None:
    """The system's own error comes as a line too."""
    ended = run(
        *("export", "--model", tiny_model, "--guard", tiny_guard),
        *("--out", data / "inside-a-file.onnx"),
    )
    assert_one_line(ended, r"data\.npz is no folder$")


def test_a_missing_extra_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """Where torch is not installed, as in the service image, fit says what to install."""
    for name in [name for name in sys.modules if name.startswith("training.")]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        """An import system that has no torch."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    ended = run("fit", "--model", tiny_model, "--data", data, "--out", tmp_path / "g")
    assert_one_line(ended, r"no module torch here: install reluguard with the extra \[training\]")


def test_score_writes_verdicts(
    run: Run, tiny_model: Path, tiny_guard: Path, data: Path, tmp_path: Path
) -> None:
    """The arrays of the contract, and one JSON document that counts them."""
    out = tmp_path / "new" / "s.npz"
    given = ("score", "--model", tiny_model, "--guard", tiny_guard, "--data", data, "--out", out)
    ended = run(*given, "--json")
    assert ended.code == 0
    assert not ended.err
    summary = json.loads(ended.out)
    with np.load(out, allow_pickle=False) as arrays:
        names = {"prediction", "score", "likelihood", "p_value", "is_adversarial"}
        assert names <= set(arrays.files)
        assert {len(arrays[name]) for name in names} == {IMAGES}
        assert summary == {"images": IMAGES, "flagged": int(arrays["is_adversarial"].sum())}
    told = run(*given)
    assert told.code == 0
    assert f"{summary['flagged']} of {IMAGES} images flagged" in told.out


def test_export_runs_in_bare_onnx_runtime(
    run: Run, tiny_model: Path, tiny_guard: Path, make_images: Callable[..., Images], tmp_path: Path
) -> None:
    """The file alone gives the guard's scores and, bit for bit, the model's logits."""
    out = tmp_path / "guarded.onnx"
    ended = run("export", "--model", tiny_model, "--guard", tiny_guard, "--out", out)
    assert ended.code == 0
    assert "reluguard_score" in ended.out
    images = make_images(9, seed=3)
    tensor = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    exported = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    plain = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    names = ["logits", "reluguard_score", "reluguard_likelihood", "reluguard_is_adversarial"]
    logits, score, likelihood, flagged = exported.run(names, {"image": tensor})
    np.testing.assert_array_equal(logits, plain.run(["logits"], {"image": tensor})[0])
    verdicts = Guard.open(tiny_model, tiny_guard, threads=1).inspect(images)
    np.testing.assert_allclose(score, verdicts.score, atol=1e-5)
    np.testing.assert_allclose(likelihood, verdicts.likelihood, atol=1e-6)
    np.testing.assert_array_equal(flagged, verdicts.is_adversarial)


def test_export_at_a_rate_the_guard_can_not_keep(
    run: Run, tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """Too few calibration images for the rate is an error that counts them."""
    given = ("export", "--model", tiny_model, "--guard", tiny_guard, "--out", tmp_path / "x.onnx")
    ended = run(*given, "--target-fpr", "0.001")
    assert_one_line(ended, "needs 999 clean calibration images, this guard has 199")
    assert not (tmp_path / "x.onnx").exists()


def test_a_provider_that_is_not_there_is_named(
    run: Run, tiny_model: Path, tiny_guard: Path
) -> None:
    """Whoever asks for a GPU that this ONNX Runtime can't use is told so, and what there is."""
    given = ("--model", tiny_model, "--guard", tiny_guard, "--provider", "NoSuchProvider")
    ended = run("bench", *given)
    assert_one_line(ended, "no provider NoSuchProvider in this ONNX Runtime; it has")


def test_bench_gives_ratios(run: Run, tiny_model: Path, tiny_guard: Path) -> None:
    """One JSON document with the median ratio per batch size; a line per batch without it."""
    given = ("bench", "--model", tiny_model, "--guard", tiny_guard, "--rounds", 3)
    ended = run(*given, "--batch", 1, "--batch", 4, "--json")
    assert ended.code == 0
    said = json.loads(ended.out)
    assert set(said["overhead_p50"]) == {"1", "4"}
    assert all(ratio > 0 for ratio in said["overhead_p50"].values())
    told = run(*given, "--batch", 2)
    assert told.code == 0
    assert re.fullmatch(r"batch   2: plain .* ratio .*\n", told.out)


def test_health_of_nothing_is_one(run: Run) -> None:
    """No server is not a serving one."""
    ended = run("health", "--address", "127.0.0.1:1")
    assert ended.code == 1
    assert ended.out == "not serving\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fit_prints_one_document(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """`--json` gives the report card alone; without it, a table and where things are."""
    out = tmp_path / "g"
    given = (
        *("fit", "--model", tiny_model, "--data", data, "--out", out, "--recipe", "digits"),
        *("--workers", 1, "--threads", 1),
    )
    ended = run(*given, "--json")
    assert ended.code == 0, ended.err
    assert all(line.startswith("reluguard: note: ") for line in ended.err.splitlines())
    said = json.loads(ended.out)
    assert said["guard"] == str(out)
    assert "pgd-linf-32" in said["attacks"]
    assert 0 <= said["summary"]["worst_auroc"] <= said["summary"]["mean_auroc"] <= 1
    told = run(*given)
    assert told.code == 0
    assert "clean accuracy" in told.out
    assert f"guard: {out}" in told.out
    assert told.err == ended.err  # less than a minute of work has no lines


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_in_one_line(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """An interrupted fit says so without a trace, exits 130 and keeps its work."""
    command = [
        *(sys.executable, "-m", "reluguard", "fit", "--recipe", "digits", "--json"),
        *("--model", str(tiny_model), "--data", str(data), "--out", str(tmp_path / "g")),
        *("--workers", "2", "--threads", "1"),
    ]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as fit:
        signal.signal(signal.SIGINT, handler)
        while fit.poll() is None and not list(tmp_path.glob("g.work/*/*.npz")):
            time.sleep(0.002)
        os.killpg(fit.pid, signal.SIGINT)  # as a terminal does
        out, err = fit.communicate(timeout=120)
    assert fit.returncode == 130, err
    assert not out
    *notes, last = err.splitlines()
    assert last == "reluguard: interrupted; finished work is kept"
    assert all(note.startswith("reluguard: ") for note in notes)  # a line a minute among them
    assert list(tmp_path.glob("g.work/*/*.npz"))
    assert not (tmp_path / "g").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_installed_command_runs() -> None:
    """The entry point beside this Python is this command."""
    done = subprocess.run(
        [Path(sys.executable).with_name("reluguard"), "fit", "--model", "x", "--data", "y"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Missing option '--out'" in done.stderr


def test_a_probe_loads_neither_grpc_nor_typer() -> None:
    """It runs every few seconds: a socket is enough, and no proxy stands in its way."""
    code = (
        "import json, sys, reluguard\n"
        "try:\n    reluguard.main()\nexcept SystemExit as stop:\n"
        "    print(json.dumps([stop.code, sorted(sys.modules)]))\n"
    )
    proxy = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", code, "health", "--address", "127.0.0.1:1", "--service=x"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **proxy},
    )
    said, told = done.stdout.splitlines()
    ended, loaded = json.loads(told)
    assert (said, ended) == ("not serving", 1)
    assert not {"grpc", "typer", "numpy", "google.protobuf", "rich"} & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--address", "nowhere"), 1, "expected host:port, got 'nowhere'"),
        (("--ca", "no.pem"), 1, "expected a file as --ca, got no.pem"),
        (("--service", "x" * 200), 1, "expected a name of at most 127 bytes, got 200"),
        (("--adress", "a:1"), 2, "No such option"),
        (("--address",), 2, "requires an argument"),
    ],
)
def test_a_probe_that_can_not_be_asked_says_why(
    run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """The quick way and the long one end alike."""
    ended = run("health", *arguments)
    assert ended.code == code
    assert message in ended.err

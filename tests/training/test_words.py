"""What the command line says when something is wrong: what is the matter, and what to do."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.data.dataset import Dataset, save_dataset
from tests.commanding import Run, assert_one_line

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def fit_given(digits_model: Path, digits_file: Path, tmp_path: Path) -> dict[str, object]:
    """What a good fit would be given."""
    return {
        "--model": digits_model,
        "--data": digits_file,
        "--out": tmp_path / "guard",
        "--recipe": "digits",
        "--second": "none",
        "--workers": 1,
        "--threads": 1,
    }


def words(given: dict[str, object]) -> list[object]:
    """Return options as a command line has them."""
    return [part for pair in given.items() for part in pair]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "digit.onnx"}, r"No such file or directory; did you mean 'digits\.onnx'"),
        ({"--model": "nowhere/digits.onnx"}, "there is no folder nowhere"),
        ({"--data": "unsen.npz"}, r"nothing is there; did you mean 'unseen\.npz'\?"),
        ({"--data": "from-one.npz"}, "seem to count from 1, and the first class is 0"),
        ({"--data": "parity-by-chance.npz", "--model": "parity.onnx"}, "of 2 classes, hardly more"),
        (
            {"--mean": "125"},
            r"answers .*--mean 125, .* pixels of 0 to 1: is it meant for .* 0 to 255, --scale 1\?",
        ),
        (
            {"--scale": "1", "--mean": "0.5", "--std": "0.25"},
            "the mean 0.5 is subtracted from pixels of 0 to 255: is it meant for pixels of 0 to 1",
        ),
        (
            {"--data": "named"},
            r"9\.0% of .* and would 9.\..% if .*eight were class 8, .* give --classes FILE",
        ),
        ({"--data": "named", "--classes": "names.txt"}, "not there: nine; did you mean 'niner'"),
        ({"--recipe": "quik"}, r"got 'quik'; did you mean 'quick'\?"),
        ({"--twin": "atuo"}, r"got 'atuo'; did you mean 'auto'\?"),
        ({"--second": "miror"}, r"got 'miror'; did you mean 'mirror'\?"),
        ({"--engine": "locl"}, r"got 'locl'; did you mean 'local'\?"),
        ({"--preprocessing": "tim"}, r"got 'tim'; did you mean 'timm'\?"),
        ({"--output": "logit"}, r"did you mean 'logits'\?"),
        ({"--target-fpr": "5"}, "where 5 % is 0.05"),
        ({"--model": "guard"}, "a guard's folder, and the model is the ONNX file it was fitted to"),
        ({"--model": "weights.pt"}, "is a pickle: weights alone, .* Name the architecture"),
        ({"--model": "unseen.npz"}, "arrays of images, an .npz, which go to --data"),
        ({"--model": "empty.onnx"}, "it is empty"),
    ],
    ids=lambda value: " ".join(map(str, words(value))) if isinstance(value, dict) else "",
)
def test_a_fit_that_is_nearly_right(
    run: Run,
    fit_given: dict[str, object],
    digits: Dataset,
    parity_model: Path,
    parity: Dataset,
    fitted: GuardArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    message: str,
) -> None:
    """A fit with one easy mistake says which, in one line, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    made = set(map(str, change.values()))
    unseen = digits.take(np.arange(300))
    save_dataset(unseen, tmp_path / "unseen.npz")
    for name in ("digits.onnx", "parity.onnx"):
        source = fit_given["--model"] if name == "digits.onnx" else parity_model
        shutil.copy(str(source), name)
    if "from-one.npz" in made:
        np.savez("from-one.npz", images=unseen.images, labels=unseen.labels + 1)
    if "parity-by-chance.npz" in made:
        few = parity.take(np.arange(300))
        wrong = np.arange(300) % 20 < 9
        np.savez(
            "parity-by-chance.npz",
            images=few.images,
            labels=np.where(wrong, 1 - few.labels, few.labels),
        )
    if "named" in made:
        for row, (image, label) in enumerate(zip(unseen.images, unseen.labels, strict=True)):
            file = Path("named", NAMES[label], f"{row}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
        Path("names.txt").write_text("\n".join((*NAMES[:9], "niner")), encoding="utf-8")
    if "guard" in made:
        shutil.copytree(fitted.path, "guard")
    if "weights.pt" in made:
        import torch

        torch.save({"weight": torch.zeros(2)}, "weights.pt")
    Path("empty.onnx").touch()
    ended = run("fit", *words(fit_given | {"--out": "new"} | change))
    assert_one_line(ended, message)
    assert not Path("new").exists()


def test_pixels_of_another_range_in_colour(
    run: Run, fit_given: dict[str, object], digits: Dataset, digits_model: Path, tmp_path: Path
) -> None:
    """A mean of pixels to 255, given for pixels to 1, is told as such whatever the model is."""
    model = onnx.load(digits_model)
    weight = next(w for w in model.graph.initializer if w.name == "t0")
    value = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.repeat(value / 3, 3, axis=1), "t0"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, tmp_path / "colour.onnx")
    few = digits.take(np.arange(300))
    colour = Dataset(images=few.images.repeat(3, axis=3), labels=few.labels, source="colour")
    save_dataset(colour, tmp_path / "colour.npz")
    given = fit_given | {"--model": tmp_path / "colour.onnx", "--data": tmp_path / "colour.npz"}
    ended = run("fit", *words(given | {"--mean": "125,122,114"}))
    assert_one_line(ended, "with --mean 125,122,114, and .* the mean 125, 122, 114 is subtracted")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("score", {"--out": "s.npz"}),
        ("evaluate", {"--out": "e"}),
        ("redteam", {"--out": "r"}),
        ("retrain", {"--out": "g", "--attack": "fgsm-linf-4"}),
        ("export", {"--out": "x.onnx"}),
    ],
)
def test_another_model_whose_outputs_have_other_names(
    run: Run,
    fitted: GuardArtifact,
    digits_model: Path,
    digits_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    extra: dict[str, object],
) -> None:
    """It is called another model, not one that lacks an output."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(digits_model)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    onnx.save(model, "other.onnx")
    given = {"--model": "other.onnx", "--guard": fitted.path, **extra}
    given |= {} if command in {"export", "retrain"} else {"--data": digits_file}
    ended = run(command, *words(given))
    assert_one_line(ended, "was fitted to the model with SHA-256 .* or fit a guard to this one")


def test_a_typo_in_the_users_own_twin(
    run: Run, fit_given: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback of the user's code is told, of none of ours, and then one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    lines = ["import torch", "def make():", "    return torch.nn.Linaer(3, 3)"]
    (tmp_path / "mistyped_twin.py").write_text("\n".join(lines), encoding="utf-8")
    ended = run("fit", *words(fit_given | {"--twin": "mistyped_twin.py:make"}))
    assert ended.code == 1
    *trace, last = ended.err.strip().splitlines()
    trace = trace[trace.index("Traceback (most recent call last):") :]
    assert re.search(r'File ".*mistyped_twin\.py", line 3, in make', trace[1])
    assert "return torch.nn.Linaer(3, 3)" in ended.err
    assert "reluguard" not in "\n".join(trace)
    assert "the twin mistyped_twin.py:make failed in" in last
    assert "has no attribute 'Linaer'" in last


def test_what_is_read_is_never_written_over(
    run: Run, fitted: GuardArtifact, digits_model: Path, digits_file: Path, tmp_path: Path
) -> None:
    """A model or images given as the place to write to are left as they are."""
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    for source, copy in ((digits_model, model), (digits_file, data)):
        shutil.copy(source, copy)
    before = model.read_bytes(), data.read_bytes()
    of_guard = ("--model", model, "--guard", fitted.path)
    assert_one_line(run("export", *of_guard, "--out", model), "m.onnx is what is read")
    assert_one_line(run("score", *of_guard, "--data", data, "--out", data), "d.npz is what is read")
    assert (model.read_bytes(), data.read_bytes()) == before


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("torch.nn", r"\[training\], pip install 'reluguard\[training\]'"),
        ("sklearn", r"\[training\], pip install 'reluguard\[training\]'"),
        ("opentelemetry", r"\[otel\], pip install 'reluguard\[otel\]'"),
        ("pyarrow", r"\[tables\], pip install 'reluguard\[tables\]'"),
        ("elsewhere", "no module elsewhere here: install it"),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, line: str
) -> None:
    """Whatever a command lacks, the line for pip is told."""
    import reluguard.commands.app as commands

    def app() -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(commands, "app", app)
    assert_one_line(run("fit"), line)

"""What a user's own files can't do to the command, and what a copy without links is told.

`make smoke` tries the built wheel and sdist in clean environments.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "v0.1"
NAMES = ("commands", "detector", "models", "proto", "service", "training")


@pytest.fixture(scope="module", params=["file", "folder"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project with modules or packages that have our rooms' names."""
    folder = tmp_path_factory.mktemp("project")
    for name in NAMES:
        text = f"raise SystemExit('{name} of the user was imported')"
        if request.param == "file":
            (folder / f"{name}.py").write_text(text)
            continue
        (folder / name).mkdir()
        for module in ("__init__", "data", "errors", "fit", "settings"):
            (folder / name / f"{module}.py").write_text(text)
    return folder


def ended(*arguments: object, cwd: Path, path: str = ".") -> subprocess.CompletedProcess[str]:
    """Run the command by `python -m`, so with the working folder first on the path."""
    return subprocess.run(
        [sys.executable, "-m", "reluguard", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
    )  # fmt: skip


@pytest.mark.parametrize("command", ["--version", "fit", "serve", "label"])
def test_the_users_modules_are_left_alone(project: Path, command: str) -> None:
    """A project's own `training`, `service` and so on are never imported in place of ours."""
    done = ended(*([command] if command == "--version" else [command, "--help"]), cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_verdicts_come_out_beside_them(project: Path, tmp_path: Path) -> None:
    """A command that loads everything of ours runs in such a project, from its folder or path."""
    both = ("--model", GOLDEN / "model.onnx", "--guard", GOLDEN / "guard", "--threads", 1)
    for cwd, path in ((project, "."), (tmp_path, str(project))):
        out = tmp_path / "scores.npz"
        done = ended(
            "score", *both, "--data", GOLDEN / "images.npz", "--out", out, cwd=cwd, path=path
        )
        assert done.returncode == 0, done.stderr
        with np.load(out) as ours, np.load(GOLDEN / "scores.npz") as theirs:
            np.testing.assert_allclose(ours["score"], theirs["score"], atol=2e-3)


def test_public_names_load_beside_them(project: Path) -> None:
    """So do programs of the user's that import our names, those of training too."""
    code = "from reluguard import Client, Guard, GuardedModule\nprint(GuardedModule.__module__)\n"
    (project / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "program.py"], capture_output=True, text=True, check=False, cwd=project,
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.stdout == "reluguard.training.guarded_module\n", done.stderr


def test_a_copy_without_links_is_told(tmp_path: Path) -> None:
    """Where git wrote links as files, the build says so and what to do, and builds nothing."""
    (tmp_path / "reluguard").mkdir()
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "reluguard/__init__.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "reluguard" / "detector").write_text("../detector")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "expected reluguard/detector to be a link to ../detector, got a file" in done.stderr
    assert "git config core.symlinks true" in done.stderr


def test_every_requirement_has_a_floor_and_a_user() -> None:
    """Each dependency names its lowest version; what nothing imports is not asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"base": project["dependencies"], **project["optional-dependencies"]}
    for requirement in (entry for entries in lists.values() for entry in entries):
        assert re.match(r"[\w-]+(\[[\w,]+\])?(>=|==)\d", requirement), requirement
    folders = ["detector", "training", "service", "commands"]
    sources = [file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py")]
    modules = {  # where the module's name is not the package's
        "adversarial-robustness-toolbox": "art", "pillow": "PIL", "scikit-learn": "sklearn",
        "protobuf": "google.protobuf", "grpcio": "grpc", "grpcio-health-checking": "grpc_health",
        "grpcio-reflection": "grpc_reflection", "opentelemetry-api": "opentelemetry",
        "opentelemetry-sdk": "opentelemetry.sdk",
        "opentelemetry-exporter-otlp-proto-grpc": "opentelemetry.exporter.otlp.proto.grpc",
        "onnxscript": "torch.onnx",  # its exporter needs it
    }  # fmt: skip
    for requirement in (entry for extra, entries in lists.items() if extra not in {"docs", "test"}
                        for entry in entries):  # fmt: skip
        name = re.split(r"[\[>=]", requirement)[0]
        module = modules.get(name, name.replace("-", "_"))
        used = re.compile(rf"^\s*(import|from) {re.escape(module)}\b|{re.escape(module)}\.export",
                          re.MULTILINE)  # fmt: skip
        assert any(used.search(text) for text in sources), f"nothing imports {module}"

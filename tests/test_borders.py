"""Which package may import which: a fact of a fresh interpreter, not a wish."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DETECTOR = sorted(f"detector.{file.stem}" for file in (ROOT / "detector").glob("[!_]*.py"))
SERVICE = sorted(f"service.{file.stem}" for file in (ROOT / "service").glob("[!_]*.py"))
COMMANDS = sorted(f"commands.{file.stem}" for file in (ROOT / "commands").glob("[!_]*.py"))
HEAVY = {"numpy", "onnx", "onnxruntime", "detector.runtime", "training", "PIL"}
TRAINING_ONLY = {"torch", "torchvision", "sklearn", "scipy", "art", "onnx2torch", "matplotlib"}
EDGE_ONLY = {"grpc", "prometheus_client", "google.rpc", "service"}


def loaded_after(modules: list[str]) -> set[str]:
    """Return the names of all modules a fresh interpreter holds after importing these."""
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_probe_can_fail() -> None:
    """The probe sees a forbidden import where there is one."""
    assert "sqlite3" in loaded_after(["sqlite3.dbapi2"])
    assert "sqlite3" not in loaded_after(["json"])


@pytest.mark.parametrize("modules", [["detector"], DETECTOR], ids=["package", "every module"])
def test_the_detector_needs_neither_torch_nor_grpc(modules: list[str]) -> None:
    """What runs in production pulls in no training and no serving library."""
    loaded = loaded_after(modules)
    assert set(modules) <= loaded
    assert not loaded & (TRAINING_ONLY | EDGE_ONLY | {"training"})


def test_the_service_needs_no_torch() -> None:
    """Every module of the server imports without any training library."""
    loaded = loaded_after(["service", *SERVICE])
    assert set(SERVICE) <= loaded
    assert not loaded & (TRAINING_ONLY | {"training"})


def test_importing_reluguard_is_free() -> None:
    """The face loads what is asked for when it is asked for."""
    loaded = loaded_after(["reluguard"])
    assert not loaded & (HEAVY | TRAINING_ONLY | EDGE_ONLY | {"typer"})


def test_a_command_loads_its_libraries_when_it_runs() -> None:
    """So `--help`, a wrong option and a health probe wait for none of them."""
    loaded = loaded_after(COMMANDS)
    assert set(COMMANDS) <= loaded
    assert not loaded & (HEAVY | TRAINING_ONLY | EDGE_ONLY)


def imported(file: Path) -> set[str]:
    """Return the first parts of all names a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("detector", {"training", "service", "commands", "reluguard"}),
        ("training", {"service", "commands", "reluguard"}),
        ("service", {"training", "commands", "reluguard"}),
        ("commands", {"reluguard"}),  # that file is the program, and would be loaded twice
    ],
)
def test_no_import_goes_against_the_arrows(package: str, forbidden: set[str]) -> None:
    """Training and service use the detector and not each other, even inside functions."""
    files = [f for f in (ROOT / package).rglob("*.py") if "pb" not in f.parts]
    wrong = {str(f.relative_to(ROOT)): imported(f) & forbidden for f in files}
    assert not {name: names for name, names in wrong.items() if names}

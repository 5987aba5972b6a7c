"""Which package may import which: a fact of a fresh interpreter, not a wish."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("detector", "training", "service", "commands")


def modules_of(folder: str) -> list[str]:
    """Return the names of all modules of one of the top-level folders."""
    files = sorted(file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py"))
    parts = [file.parent.parts if file.stem == "__init__" else file.with_suffix("").parts
             for file in files]  # fmt: skip
    return [".".join(("reluguard", *names)) for names in parts]


DETECTOR = modules_of("detector")
SERVICE = modules_of("service")
COMMANDS = modules_of("commands")
HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "reluguard.detector.runtime",
    "reluguard.training",
    "PIL",
}
TRAINING_ONLY = {"torch", "torchvision", "sklearn", "scipy", "art", "matplotlib"}
EDGE_ONLY = {"grpc", "prometheus_client", "google.rpc", "reluguard.service"}
MOST_FILES = 20


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


@pytest.mark.parametrize(
    "modules", [["reluguard.detector"], DETECTOR], ids=["package", "every module"]
)
def test_the_detector_needs_neither_torch_nor_grpc(modules: list[str]) -> None:
    """What runs in production pulls in no training and no serving library."""
    loaded = loaded_after(modules)
    assert set(modules) <= loaded
    assert not loaded & (TRAINING_ONLY | EDGE_ONLY | {"reluguard.training"})


def test_the_service_needs_no_torch() -> None:
    """Every module of the server imports without any training library."""
    loaded = loaded_after(SERVICE)
    assert set(SERVICE) <= loaded
    assert not loaded & (TRAINING_ONLY | {"reluguard.training"})


def test_importing_reluguard_is_free() -> None:
    """The face loads what is asked for when it is asked for."""
    loaded = loaded_after(["reluguard"])
    assert not loaded & (HEAVY | TRAINING_ONLY | EDGE_ONLY | {"typer"})


def test_a_command_loads_its_libraries_when_it_runs() -> None:
    """So `--help`, a wrong option and a health probe wait for none of them."""
    loaded = loaded_after(COMMANDS)
    assert set(COMMANDS) <= loaded
    assert not loaded & (HEAVY | TRAINING_ONLY | EDGE_ONLY)


def imports_of(file: Path) -> set[str]:
    """Return the modules of ours that a file imports, wherever in it, in dotted names."""
    known = set(EVERY)
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
            assert not {name.split(".")[0] for name in found} & set(FOLDERS), f"{file}: {found}"
            names |= found
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            module = node.module or ""
            assert module.split(".")[0] not in FOLDERS, f"{file} imports {module}"
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= (inner & known) or {module}
    return {name for name in names if name.split(".")[0] == "reluguard"}


EVERY = {
    name: ROOT / Path(*name.split(".")[1:]) for folder in FOLDERS for name in modules_of(folder)
}


def file_of(name: str) -> Path:
    """Return the file of one of our modules."""
    path = EVERY[name]
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("detector", {"training", "service", "commands"}),
        ("training", {"service", "commands"}),
        ("service", {"training", "commands"}),
        ("commands", set()),
    ],
)
def test_no_import_goes_against_the_arrows(package: str, forbidden: set[str]) -> None:
    """Training and service use the detector and not each other, even inside functions.

    Nothing imports `reluguard` itself: the face is for users, and would load itself twice.
    """
    for name in modules_of(package):
        used = imports_of(file_of(name))
        assert "reluguard" not in used, name
        assert not {other.split(".")[1] for other in used} & forbidden, name


def test_no_two_modules_import_each_other() -> None:
    """The imports have no circle, not even one that an import inside a function hides."""
    arrows = {name: imports_of(file_of(name)) & set(EVERY) - {name} for name in EVERY}
    left = dict(arrows)
    while left:
        free = {name for name, used in left.items() if not used & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: used for name, used in left.items() if name not in free}


def test_no_two_rooms_import_each_other() -> None:
    """Folders have no circle, so a long trip goes downhill; a file on top is its own room."""

    def room(name: str) -> str:
        folder = file_of(name).parent.relative_to(ROOT)
        return name if len(folder.parts) == 1 else ".".join(folder.parts[:2])

    arrows: dict[str, set[str]] = {}
    for name in EVERY:
        used = {room(other) for other in imports_of(file_of(name)) & set(EVERY)}
        arrows.setdefault(room(name), set()).update(used - {room(name)})
    left = dict(arrows)
    while left:
        free = {name for name, used in left.items() if not used & set(left)}
        assert free, f"a circle among {[(k, sorted(v & set(left))) for k, v in left.items()]}"
        left = {name: used for name, used in left.items() if name not in free}


def test_no_room_is_a_hall() -> None:
    """A folder holds a handful of files, so that a newcomer can read their names at one look."""
    folders = {file_of(name).parent for name in EVERY}
    sizes = {str(f.relative_to(ROOT)): len(list(f.glob("[!_]*.py"))) for f in folders}
    assert not {name: size for name, size in sizes.items() if size > MOST_FILES}

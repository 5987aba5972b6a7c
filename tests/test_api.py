"""The face of the package: its public names, and the page that tells of them."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import reluguard

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """The script that writes the API reference."""
    place = ROOT / "docs" / "reference" / "write_api.py"
    spec = importlib.util.spec_from_file_location("write_api", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_tells_of_every_public_name(writer: ModuleType) -> None:
    """Each public name stands in one group of the page, and no other name does."""
    told = [name for names in writer.GROUPS.values() for name in names]
    assert sorted(told) == sorted(reluguard.__all__)


def test_the_reference_is_current(writer: ModuleType) -> None:
    """`make reference` would change nothing: signatures and docstrings are those of the code."""
    assert writer.PAGE.read_text() == writer.written()


def test_type_checkers_see_what_is_loaded() -> None:
    """The names imported for type checkers are the public ones, from where they are loaded."""
    (branch,) = (
        node
        for node in ast.parse(Path(reluguard.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sorted(reluguard.__all__)
    for name, home in seen.items():
        assert getattr(reluguard, name) is getattr(sys.modules[str(home)], name)
    assert set(reluguard.__all__) <= set(dir(reluguard))


def test_every_error_is_one_to_catch() -> None:
    """All but the client's share one base, so that one `except` takes them."""
    errors = [name for name in reluguard.__all__ if name.endswith("Error")]
    kinds = [getattr(reluguard, name) for name in errors if name != "CallError"]
    assert all(issubclass(kind, reluguard.DetectorError) for kind in kinds)
    assert issubclass(reluguard.CallError, Exception)


def test_other_names_are_refused() -> None:
    """A name that is not public is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'reluguard' has no attribute 'Gard'"):
        reluguard.Gard  # type: ignore[attr-defined]  # noqa: B018 - that it isn't there is the point


def test_a_name_of_training_says_which_extra_it_needs(tmp_path: Path) -> None:
    """Where torch is not installed, the error says what to install."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    from reluguard import Attack\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{code}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "reluguard.Attack needs torch: pip install 'reluguard[training]'\n"

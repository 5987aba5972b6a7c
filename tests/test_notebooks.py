"""The notebooks run from first cell to last, and say what they were committed with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_both_are_there() -> None:
    """A first guard, and retraining on a new attack."""
    assert [file.stem for file in NOTEBOOKS] == ["first-guard", "new-attack"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_committed_as_it_ran(notebook: Path) -> None:
    """In order, without an error, with its pictures, and small."""
    cells = [one for one in json.loads(notebook.read_text())["cells"] if one["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert notebook.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    """In a kernel of its own, in an empty folder."""
    pytest.importorskip("nbclient", reason="runs notebooks: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="runs notebooks: pip install nbclient ipykernel")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "run_notebook.py", notebook, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert (tmp_path / "guards" / "digits.onnx").is_file()

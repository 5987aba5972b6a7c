import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kernels.py"


def run(*arguments: str, **chosen: str) -> subprocess.CompletedProcess[str]:
    """Run the script as one of its own runs."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **chosen}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("expected", ["none", "numpy.libs Bogus, scipy.libs Bogus"])
def test_a_kernel_that_was_not_taken_is_no_green_run(expected: str) -> None:
    """A name that the library passed over in silence fails before any test has run."""
    done = run("run", expected, "tests/detector/test_verdict.py", OPENBLAS_CORETYPE="Bogus")
    assert done.returncode == 1
    assert f"expected {expected!r}, got" in done.stdout
    assert "passed" not in done.stdout

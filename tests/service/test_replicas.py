from pathlib import Path

import pytest

from benchmarks.replicas import run


@pytest.mark.slow
def test_a_killed_replica_is_noticed_by_no_caller(tmp_path: Path) -> None:
    """With both clients nothing failed, was lost or wrong; who comes back is asked again."""
    (finding,) = run(None, tmp_path, seconds=5, callers=3)
    assert finding.met, finding.figures

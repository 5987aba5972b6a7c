import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PB = ROOT / "service" / "protocols" / "pb"


def test_generated_files_are_current(tmp_path: Path) -> None:
    """Regenerating changes nothing."""
    subprocess.run(
        [sys.executable, ROOT / "proto" / "generate.py", tmp_path], check=True, cwd=tmp_path
    )
    committed = {file.name: file.read_bytes() for file in PB.iterdir() if file.is_file()}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == committed


@pytest.mark.parametrize("first", ["service", "tritonclient"])
def test_tritonclient_lives_in_the_same_process(first: str) -> None:
    """Both register `inference.*`, in either order, and nobody minds."""
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed")
    imports = [
        "import tritonclient.grpc",
        "from reluguard.service.protocols.pb import open_inference as ours",
    ]
    if first == "service":
        imports.reverse()
    code = "\n".join(
        [
            *imports,
            "from tritonclient.grpc import service_pb2 as theirs",
            "data = theirs.ModelInferRequest(model_name='m', id='7').SerializeToString()",
            "assert ours.ModelInferRequest.FromString(data).id == '7'",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

"""The operations guide's first chapter, its commands run as they stand."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.images import Images

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "deploy" / "README.md"
_BLOCK = re.compile(r"<!-- guide -->\n```sh\n(.*?)```", re.DOTALL)


def tools() -> Path:
    """Return the folder that holds prometheus and promtool."""
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not found or not (Path(found).parent / "prometheus").exists():
        pytest.skip("prometheus is not installed (Debian: package prometheus)")
    return Path(found).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.slow
def test_the_guide_leads_to_a_tls_server_with_alerts(
    tmp_path: Path,
    tiny_model: Path,
    tiny_guard: Path,
    make_images: Callable[..., Images],
) -> None:
    """Certificate, token, shelf, server, a verdict, and a Prometheus that scrapes with alerts."""
    path = f"{tools()}:{os.environ['PATH']}"
    demo = tmp_path / "out" / "demo"
    demo.mkdir(parents=True)
    shutil.copy(tiny_model, demo / "digits.onnx")
    shutil.copytree(tiny_guard, demo / "guard")
    np.savez(demo / "held-out.npz", images=make_images(20, seed=1))
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    blocks = _BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    assert len(blocks) == 3
    script = "set -euo pipefail\n" + "\n".join(blocks)
    for port in ("50051", "9464", "9090"):
        assert port in script
        script = script.replace(port, str(free_port()))
    # the file that is edited names the port that was replaced above
    script = re.sub(r'"reluguard:\d+"', '"reluguard:9464"', script)
    log = tmp_path / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path},
            stdout=stream, stderr=stream, start_new_session=True,
        ) as shell,
    ):  # fmt: skip
        try:
            code = shell.wait(200)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)  # the server and Prometheus
    said = log.read_text()
    assert code == 0, said
    assert "SERVING" in said
    assert "SUCCESS" in said  # promtool's word
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yml").read_text()))
    assert set(re.findall(r'"name":"(\w+)"', said)) == alerts

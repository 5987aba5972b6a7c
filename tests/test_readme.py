"""README's blocks, run in order as a reader would."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (run|serve) -->\n```(sh|python)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """README's marked blocks: what to do with each, its language and its text."""
    return BLOCK.findall((ROOT / "README.md").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's model.onnx and images.npz: the demo's digits."""
    from reluguard.training.demo import train_and_export
    from reluguard.training.progress import Progress

    made = tmp_path_factory.mktemp("readme")
    model, images = train_and_export(made, 0, Progress())
    model.rename(made / "model.onnx")
    images.rename(made / "images.npz")
    return made


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    found = shutil.which("reluguard", path=str(Path(sys.executable).parent))
    assert found, "the command reluguard is not installed beside this Python"
    return {**os.environ, "PATH": f"{Path(found).parent}:{os.environ['PATH']}"}


def test_readme_has_blocks_of_each_kind() -> None:
    """The marks are where the other test looks for them."""
    kinds = {(kind, language) for kind, language, _ in blocks()}
    assert kinds == {("run", "sh"), ("run", "python"), ("serve", "sh")}


def test_every_command_readme_names_exists() -> None:
    """A command that README mentions is one that --help lists."""
    import typer.main

    from reluguard.commands.app import app

    known = set(typer.main.get_group(app).commands)
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`reluguard ([a-z]+)\b", text)) | set(
        re.findall(r"^reluguard ([a-z]+)\b", text, re.MULTILINE)
    )
    assert named <= known
    assert {"fit", "serve", "score"} <= named


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readme_blocks_run(folder: Path, environment: dict[str, str]) -> None:
    """From fitting to asking the server, each block does what README says, in order."""
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for kind, language, text in blocks():
            if kind == "serve":
                servers.append(_serve(text, folder, environment))
                continue
            command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    finally:
        for server in servers:
            server.terminate()
            assert server.wait(60) == 0


def _serve(text: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    for port in re.findall(r"port (\d+)", text):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                pytest.skip(f"port {port}, which README uses, is taken on this machine")
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            ["bash", "-euc", f"exec {text}"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    for _ in _attempts(60):
        asked = subprocess.run(
            ["reluguard", "health"], env=environment, capture_output=True, check=False
        )
        if asked.returncode == 0:
            return server
        assert server.poll() is None, (folder / "serve.log").read_text()
    raise AssertionError((folder / "serve.log").read_text())


def _attempts(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield

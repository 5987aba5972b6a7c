"""One process at a time in a folder, and the next one as soon as that one ends, however it ends."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import pytest

from reluguard.detector.errors import HeldError
from reluguard.detector.lock import LOCK, hold

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from reluguard.detector.lock import hold

with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds `tmp_path` until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.communicate])
def test_a_folder_is_free_when_its_holder_ends(
    holder: subprocess.Popen[str], tmp_path: Path, end: Callable[..., object]
) -> None:
    """Until then its number is told to who comes; a kill frees the folder like a good end."""
    with pytest.raises(HeldError, match=rf"for this process alone, process {holder.pid} on .+ wor"):
        hold(tmp_path).__enter__()
    end(holder)
    holder.wait(30)
    with hold(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_who_may_wait_gets_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """A wait ends as soon as the folder is free."""
    timer = Timer(0.1, holder.kill)
    timer.start()
    with hold(tmp_path, wait_s=60):
        timer.join()
        assert holder.wait(30)


def test_one_process_does_not_hold_it_twice(tmp_path: Path) -> None:
    """Two threads are told of their own process; another file in the folder is another lock."""
    with hold(tmp_path):
        with pytest.raises(HeldError, match=f"process {os.getpid()} on"), hold(tmp_path):
            pass
        with hold(tmp_path, name="other"):
            pass
    with hold(tmp_path):
        pass


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Its maker knows what belongs into it."""
    with pytest.raises(FileNotFoundError), hold(tmp_path / "gone"):
        pass
    assert not (tmp_path / "gone").exists()


def test_a_disk_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Work goes on with a warning there; any other failure is raised."""

    def fail(number: int) -> Callable[..., None]:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with ExitStack() as both:
        both.enter_context(hold(tmp_path))
        both.enter_context(hold(tmp_path))
    assert "can't be locked: [Errno 37] No locks available" in caplog.text
    monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), hold(tmp_path):
        pass

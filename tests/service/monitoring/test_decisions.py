"""What was answered to whom stands in the log, line by line, and never a pixel."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError, StartError
from reluguard.service.monitoring.decisions import DecisionFile, DecisionLog
from reluguard.service.security import Scope, token_entry
from tests.waiting import until


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_decision_is_told_and_each_refused_token(
    guard: Guard, mixed: Images, tmp_path: Path
) -> None:
    """Who asked, what was answered by which guard under which policy, and how long it took."""
    tokens, path = tmp_path / "tokens.toml", tmp_path / "log" / "decisions.jsonl"
    tokens.write_text(token_entry("t", name="pipeline", scopes=[Scope.INFER]))
    own = guard.inspect(mixed[:8])
    with running(guard, tokens=tokens, decision_log=path, policy="reject") as server:
        with Client(server.address, token="t") as client:
            client.inspect(mixed[:8])
        with Client(server.address, token="wrong") as client, pytest.raises(CallError):
            client.inspect(mixed[:1])
    lines = lines_of(path)
    told = [line for line in lines if line["event"] == "decision"]
    assert [line["row"] for line in told] == list(range(8))
    assert [line["verdict"] == "adversarial" for line in told] == own.is_adversarial.tolist()
    assert [line["withheld"] for line in told] == own.is_adversarial.tolist()
    np.testing.assert_allclose([line["p_value"] for line in told], own.p_value, atol=1e-6)
    assert {(line["caller"], line["policy"]) for line in told} == {("pipeline", "reject")}
    assert {line["guard"] for line in told} == {guard.artifact.digest}
    assert all(line["latency_ms"] > 0 and line["request"] for line in told)
    refused = [line for line in lines if line["event"] == "unauthenticated"]
    assert {(line["caller"], line["reason"]) for line in refused} == {
        ("127.0.0.1", "unknown token")
    }


def test_clean_images_may_be_left_out(guard: Guard, mixed: Images, tmp_path: Path) -> None:
    """What was flagged never is."""
    path = tmp_path / "decisions.jsonl"
    with (
        running(guard, decision_log=path, decision_share=0.0) as server,
        Client(server.address) as client,
    ):
        client.inspect(mixed)
    told = lines_of(path)
    assert {line["verdict"] for line in told} == {"adversarial"}
    assert len(told) == np.count_nonzero(guard.inspect(mixed).is_adversarial)


def test_the_file_is_rotated(tmp_path: Path) -> None:
    """So many files of such a size, every line whole."""
    path = tmp_path / "decisions.jsonl"
    file = DecisionFile(path, max_bytes=1000, files=2)
    log = DecisionLog(file.write, share=1.0, dropped=lambda: None)
    for i in range(100):
        log.refused(caller=f"1.2.3.{i}", request=f"r{i}", reason="unknown token")
    log.close()
    file.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(file.stat().st_size <= 1000 for file in files)
    assert lines_of(path)[-1]["request"] == "r99"
    assert all(lines_of(file) for file in files)


def test_who_guesses_tokens_hides_nobody() -> None:
    """Sixty lines a minute of one address, ten times as many of all; the rest is a number."""
    lines: list[dict[str, Any]] = []
    log = DecisionLog(lambda line: lines.append(json.loads(line)), share=1.0, dropped=lambda: None)
    for i in range(5000):
        log.refused(caller="loud", request=str(i), reason="unknown token")
    log.refused(caller="quiet", request="last", reason="unknown token")
    for i in range(5000):
        log.refused(caller=f"crowd {i}", request=str(i), reason="unknown token")
    log.close()
    assert [line["caller"] for line in lines[:61]] == ["loud"] * 60 + ["quiet"]
    assert lines[60]["untold"] == 5000 - 60
    assert len(lines) == 600
    assert all("untold" not in line for line in lines if line["caller"] != "quiet")


@pytest.mark.parametrize("done", ["moved", "removed", "folder removed", "replaced"])
def test_a_file_that_somebody_else_rotates_is_begun_anew(tmp_path: Path, done: str) -> None:
    """As logrotate does without `copytruncate`: no line after it goes where nobody looks."""
    path = tmp_path / "log" / "decisions.jsonl"
    file = DecisionFile(path, max_bytes=10_000, files=2)
    file.write("one")
    if done == "folder removed":
        shutil.rmtree(path.parent)
    elif done == "removed":
        path.unlink()
    else:
        path.rename(path.with_suffix(".old"))
        if done == "replaced":
            path.touch()
    file.write("two")
    file.write("three")
    file.close()
    assert path.read_text() == "two\nthree\n"
    if done in {"moved", "replaced"}:
        assert path.with_suffix(".old").read_text() == "one\n"


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines are counted one by one; with room again they are written, and closing never fails."""
    path, dropped = tmp_path / "decisions.jsonl", []
    path.symlink_to("/dev/full")
    file = DecisionFile(path, max_bytes=10**6, files=1)
    log = DecisionLog(file.write, share=1.0, dropped=lambda: dropped.append(1))
    for i in range(5):
        log.refused(caller=str(i), request="r", reason="x")
    until(lambda: len(dropped) == 5)
    assert caplog.text.count("decisions are being lost") == 1
    path.unlink()
    log.refused(caller="later", request="r", reason="x")
    log.close()
    file.close()
    assert [line["caller"] for line in lines_of(path)] == ["later"]
    full = DecisionFile(Path("/dev/full"), max_bytes=10**6, files=1)
    with pytest.raises(OSError, match="No space left"):
        full.write("lost")
    full.close()


def test_a_disk_that_fails_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    """They are counted, and the next ones are written."""
    path, dropped = tmp_path / "log" / "decisions.jsonl", []
    file = DecisionFile(path, max_bytes=10, files=1)
    (path.parent / "decisions.jsonl.1").mkdir()  # nothing can be rotated there
    (path.parent / "decisions.jsonl.1" / "full").touch()
    log = DecisionLog(file.write, share=1.0, dropped=lambda: dropped.append(1))
    log.refused(caller="a", request="first", reason="x")
    for i in range(3):
        log.refused(caller="a", request=str(i), reason="x")
    log.close()
    file.close()
    assert dropped
    with pytest.raises(StartError, match=r"the decision log .* can't be written"):
        DecisionFile(path / "below", max_bytes=1, files=1)

import csv
import json
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.captures import INDEX
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.captures.capture import Capture
from reluguard.service.captures.label import export_csv, import_csv, list_captures, set_label
from reluguard.service.captures.show import show_capture, write_image
from reluguard.service.errors import LabelError
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.security import Scope, token_entry
from reluguard.service.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def captured(pair: Any, mixed: Images, tmp_path: Path) -> Path:
    guard = Guard.open(pair.model, pair.guard, threads=1, readings=True)
    capture = Capture(
        tmp_path,
        share=1.0,
        max_bytes=10**8,
        ttl_s=3600,
        with_images=False,
        dropped=lambda *_: None,
    )
    capture.offer(guard.inspect(mixed[:10]), guard, name="r", source="me", raw=None)
    capture.close()
    return tmp_path


def test_labels_go_out_and_come_back_by_csv(captured: Path, tmp_path: Path) -> None:
    """What a person fills in is what the index says afterwards; twice changes nothing."""
    sheet = tmp_path / "sheet.csv"
    assert export_csv(captured, sheet) == 10
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["label"], rows[1]["label"] = "attack:cw", "clean"
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert import_csv(captured, sheet, labeller="ann") == 2
    assert import_csv(captured, sheet, labeller="ann") == 0
    labels = {row.id: row.label for row in list_captures(captured)}
    assert labels[rows[0]["id"]] == "attack:cw"
    assert len(list_captures(captured, unlabelled=True)) == 8


def as_excel(rows: list[list[str]]) -> bytes:
    """Semicolons, a mark of UTF-8, CRLF, words begun with a capital."""
    return "\r\n".join(";".join(row) for row in rows).replace("clean", "Clean").encode("utf-8-sig")


def as_excel_text(rows: list[list[str]]) -> bytes:
    """Tabs, UTF-16, every cell quoted."""
    lines = ("\t".join(f'"{cell}"' for cell in row) for row in rows)
    return "\r\n".join(lines).encode("utf-16")


def as_libreoffice(rows: list[list[str]]) -> bytes:
    """Columns in another order, one more with a comma and quotes in it, an empty row at the end."""
    more = [[*row[::-1], f'"said ""{n}"", twice"'] for n, row in enumerate(rows)]
    more[0][-1] = "remark"
    return ("\n".join(",".join(row) for row in more) + "\n" + "," * len(rows[0]) + "\n").encode()


def as_old_excel(rows: list[list[str]]) -> bytes:
    """Its own first line, the old encoding with an umlaut in a column, blanks around labels."""
    wide = [[*row, "Prüfer"] for row in rows]
    wide = [[cell.replace("clean", " clean ") for cell in row] for row in wide]
    return ("sep=;\r\n" + "\r\n".join(";".join(row) for row in wide)).encode("cp1252")


@pytest.mark.parametrize("saved", [as_excel, as_excel_text, as_libreoffice, as_old_excel])
def test_labels_come_back_from_a_spreadsheet(
    captured: Path, tmp_path: Path, saved: Callable[[list[list[str]]], bytes]
) -> None:
    """Whatever a spreadsheet made of the file, labels are those that a person filled in."""
    sheet = tmp_path / "sheet.csv"
    assert (
        CliRunner()
        .invoke(app, ["label", "export", str(sheet), "--captures", str(captured)])
        .exit_code
        == 0
    )
    with sheet.open(newline="") as stream:
        head, *rows = list(csv.reader(stream))
    place = head.index("label")
    rows[0][place], rows[3][place] = "attack:cw", "clean"
    sheet.write_bytes(saved([head, *rows]))
    words = ["label", "import", str(sheet), "--captures", str(captured), "--labeller", "ann"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    labels = {row.id: row.label for row in list_captures(captured) if row.label}
    assert labels == {rows[0][0]: "attack:cw", rows[3][0]: "clean"}


def test_a_workbook_is_no_csv(captured: Path, tmp_path: Path) -> None:
    """A file saved as a workbook is told apart from one that lacks columns."""
    sheet = tmp_path / "sheet.xlsx"
    sheet.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(LabelError, match="it is a workbook: save it as CSV"):
        import_csv(captured, sheet, labeller="ann")
    sheet.write_text("name,verdict\n")
    with pytest.raises(LabelError, match="its first line is name, verdict"):
        import_csv(captured, sheet, labeller="ann")


def test_no_caller_makes_a_spreadsheet_calculate(captured: Path, tmp_path: Path) -> None:
    """A request that its caller named like a formula is text in the sheet."""
    with sqlite3.connect(captured / INDEX) as connection:
        connection.execute("UPDATE captures SET request = '=HYPERLINK(0)', source = '@me'")
    connection.close()
    export_csv(captured, tmp_path / "sheet.csv")
    with (tmp_path / "sheet.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["request"], row["source"]) for row in rows} == {("'=HYPERLINK(0)", "'@me")}


def test_the_most_adversarial_come_first(captured: Path) -> None:
    """A labeller's time goes where it counts."""
    scores = [row.score for row in list_captures(captured)]
    assert scores == sorted(scores, reverse=True)
    assert np.ptp(scores) > 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([("r:0", "clean"), ("nobody", "clean")], "no capture has the id 'nobody'"),
        ([("r:0", "clean"), ("r:0", "attack:x")], "'r:0' is labelled 'clean' already"),
        ([("r:0", "evil")], "expected the label clean or attack:NAME, got 'evil'"),
        ([(f"r:{i}", "clean") for i in range(4)], "at most 3 labels on images of one caller, 'me'"),
    ],
)
def test_a_label_that_can_not_be_taken_takes_none(
    captured: Path, labels: list[tuple[str, str]], message: str
) -> None:
    """One bad label leaves the index as it was."""
    with pytest.raises(LabelError, match=message):
        set_label(captured, labels, labeller="ann", most_per_source=3)
    assert len(list_captures(captured, unlabelled=True)) == 10


def test_no_captures_and_a_locked_index_are_clear(
    captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a trace."""
    with pytest.raises(LabelError, match=r"has no capture\.sqlite"):
        list_captures(tmp_path / "elsewhere")
    monkeypatch.setattr("reluguard.detector.captures.LOCK_S", 0.05)
    lock = sqlite3.connect(captured / "capture.sqlite")
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LabelError, match="can't be used: database is locked"):
        set_label(captured, [("r:0", "clean")], labeller="ann")
    lock.close()


def test_the_command_lists_sets_and_refuses_in_one_line(captured: Path) -> None:
    """A second word on the same image is an error with exit code 1."""

    def label(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "reluguard", "label", *words, "--captures", str(captured)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert "1 new labels" in label("set", "r:0", "attack:cw").stdout
    listed = json.loads(label("list", "--json").stdout)
    assert {row["id"]: row["label"] for row in listed}["r:0"] == "attack:cw"
    refused = label("set", "r:0", "clean")
    assert refused.returncode == 1
    assert refused.stderr == ("reluguard: 'r:0' is labelled 'attack:cw' already, got 'clean'\n")


def test_feedback_needs_an_admin(captured: Path, pair: Any, tmp_path: Path) -> None:
    """By gRPC: an admin's labels are taken under the token's name, anybody else's are refused."""
    tokens = tmp_path / "tokens.toml"
    entries = {"boss": Scope.ADMIN, "user": Scope.PRIVILEGED}
    tokens.write_text("\n".join(token_entry(n, name=n, scopes=[s]) for n, s in entries.items()))
    settings = Settings(
        model=pair.model,
        guard=pair.guard,
        port=0,
        metrics_port=0,
        tokens=tokens,
        capture=captured,
    )
    request = pb.FeedbackRequest(labels=[pb.Label(id="r:0", label="clean")])
    unknown = pb.FeedbackRequest(labels=[pb.Label(id="r:77", label="clean")])
    with running(settings) as server, grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary("/reluguard.v1.Guard/Feedback", None, None)

        def ask(message: pb.FeedbackRequest, token: str) -> pb.FeedbackResponse:
            metadata = [("authorization", f"Bearer {token}")]
            data = method(message.SerializeToString(), timeout=10, metadata=metadata)
            return pb.FeedbackResponse.FromString(data)

        with pytest.raises(grpc.RpcError) as refused:
            ask(request, "user")
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert ask(request, "boss").labelled == 1
        with pytest.raises(grpc.RpcError) as refused:
            ask(unknown, "boss")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        url = f"http://{server.metrics_address}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            assert 'reluguard_drift_samples{model="model",statistic="ks"}' in reply.read().decode()
        with urllib.request.urlopen(url, timeout=10) as reply:
            assert "too few to tell" in reply.read().decode()
    assert {row.id: row.label for row in list_captures(captured)}["r:0"] == "clean"


def test_a_label_given_in_error_can_be_taken_back(captured: Path) -> None:
    """Only where the labeller says so."""
    set_label(captured, [("r:0", "clean")], labeller="ann")
    assert set_label(captured, [("r:0", "attack:cw")], labeller="bob", replace=True) == 1
    assert {row.id: row.label for row in list_captures(captured)}["r:0"] == "attack:cw"


def test_a_capture_is_shown_with_its_evidence_and_pixels(
    pair: Any, mixed: Images, tmp_path: Path
) -> None:
    """What the guard said then is what its layers add up to now; pixels come back as they were."""
    guard = Guard.open(pair.model, pair.guard, threads=1, readings=True)
    capture = Capture(
        tmp_path, share=1.0, max_bytes=10**8, ttl_s=3600, with_images=True, dropped=lambda *_: None
    )
    verdicts = guard.inspect(mixed[:4])
    capture.offer(verdicts, guard, name="r", source="me", raw=mixed[:4])
    capture.close()
    shown = show_capture(tmp_path, "r:1", guard.artifact)
    np.testing.assert_allclose([*shown.evidence.values()], verdicts.evidence[1], atol=0.05)
    assert shown.raw is not None
    np.testing.assert_array_equal(shown.raw, mixed[1])
    picture = tmp_path / "seen.png"
    words = ["label", "show", "r:1", "--captures", tmp_path, "--guard", pair.guard]
    done = CliRunner().invoke(
        app, [*map(str, words), "--out", str(picture), "--json"], catch_exceptions=False
    )
    assert json.loads(done.stdout)["id"] == "r:1"
    with Image.open(picture) as drawn:
        assert min(drawn.size) >= 256
    with pytest.raises(LabelError, match="no capture has the id 'r:9'"):
        show_capture(tmp_path, "r:9")
    with pytest.raises(LabelError, match="expected captured pixels to draw, got a tensor"):
        write_image(np.zeros((3, 4, 4), np.float32), picture)
    (shard,) = (tmp_path / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(LabelError, match=r"the shard of 'r:1' can't be read"):
        show_capture(tmp_path, "r:1")

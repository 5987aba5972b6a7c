import errno
import io
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.captures import INDEX, index, shard_file
from reluguard.detector.images import Images
from reluguard.detector.reference import layer_rates
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.captures.capture import Capture, DropReason, content_of, sample
from reluguard.service.captures.label import list_captures
from reluguard.service.client.client import Client
from reluguard.service.errors import StartError
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.settings import Settings
from tests.waiting import until

KEY = bytes(32)
Make = Callable[..., Capture]


@pytest.fixture(scope="module")
def reading(pair: Any) -> Guard:
    return Guard.open(pair.model, pair.guard, threads=1, readings=True)


@pytest.fixture
def dropped() -> list[tuple[DropReason, int]]:
    return []


@pytest.fixture
def make(tmp_path: Path, dropped: list[tuple[DropReason, int]]) -> Make:
    def open_capture(**changes: Any) -> Capture:
        options = {"share": 1.0, "max_bytes": 10**8, "ttl_s": 3600.0, "with_images": False}
        return Capture(
            tmp_path, **(options | changes), dropped=lambda why, rows: dropped.append((why, rows))
        )

    return open_capture


def rows_of(folder: Path, what: str = "*") -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / INDEX)
    try:
        return connection.execute(f"SELECT {what} FROM captures ORDER BY 1").fetchall()
    finally:
        connection.close()


def offer(capture: Capture, guard: Guard, images: Images, request: str = "r") -> None:
    verdicts = guard.inspect(images)
    capture.offer(verdicts, guard, name=request, source="me", raw=images)


def test_sampling_weights_count_the_whole_traffic() -> None:
    """The weights of what is kept sum, in expectation, to what came; and retries agree."""
    p = np.random.default_rng(0).uniform(0, 1, 20_000)
    contents = content_of(list(p), source="me", kind="images", key=KEY)
    strata, weights = sample(contents, p, fpr=0.05, share=0.1)
    assert (weights[p <= 0.1] == 1).all()
    assert set(strata[p <= 0.05]) == {"above"}
    assert set(strata[(p > 0.05) & (p <= 0.1)]) == {"band"}
    assert abs(weights.sum() / len(p) - 1) < 0.05
    assert_array_equal(weights, sample(contents, p, fpr=0.05, share=0.1)[1])
    others = content_of(list(p), source="me", kind="images", key=b"other")
    assert (weights != sample(others, p, fpr=0.05, share=0.1)[1]).any()


@given(st.lists(hnp.arrays(np.uint8, (2, 2, 1)), min_size=2, max_size=6))
def test_contents_are_told_apart_by_image_and_caller(images: list[NDArray[np.uint8]]) -> None:
    """Equal exactly where image, kind and sender are; another key, other contents."""
    mine = content_of(images, source="me", kind="images", key=KEY)
    for i, image in enumerate(images):
        same = [np.array_equal(image, other) for other in images]
        assert same == [content == mine[i] for content in mine]
    for changed in ({"source": "you"}, {"kind": "tensors"}, {"key": b"k"}):
        options: dict[str, Any] = {"source": "me", "kind": "images", "key": KEY} | changed
        assert not set(mine) & set(content_of(images, **options))


def test_a_served_request_is_captured_with_what_the_head_read(
    pair: Any, mixed: Images, reading: Guard, tmp_path: Path
) -> None:
    """By gRPC: rows, strata and weights in the index, rates, logits and pixels in the shard."""
    settings = Settings(
        model=pair.model,
        guard=pair.guard,
        port=0,
        metrics_port=None,
        capture=tmp_path,
        capture_share=1.0,
        capture_images=True,
    )
    with running(settings) as server, Client(server.address) as client:
        served = client.inspect(mixed)
    direct = reading.inspect(mixed)
    assert direct.readings is not None
    found = rows_of(tmp_path, "row, score, p_value, prediction, stratum, model, source, shard")
    assert len(found) == len(mixed)
    for row, score, p_value, prediction, stratum, model, source, _ in found:
        assert score == pytest.approx(float(direct.score[row]), abs=1e-3)
        assert p_value == pytest.approx(float(direct.p_value[row]), abs=1e-2)
        assert prediction == direct.prediction[row]
        assert (stratum == "above") == served.is_adversarial[row]
        assert model == reading.artifact.manifest.model_sha256
        assert source == "anybody"
    (shard,) = {row[-1] for row in found}
    with np.load(shard_file(tmp_path, shard)) as arrays:
        assert_array_equal(arrays["images"], mixed)
        assert arrays["rates"].dtype == np.float16
        np.testing.assert_allclose(arrays["rates"], direct.readings.rates, atol=1e-3)
        np.testing.assert_allclose(arrays["logits"], direct.readings.logits, atol=1e-4)


def test_raw_input_is_kept_as_it_came_and_only_where_asked_for(
    pair: Any, mixed: Images, tensor: NDArray[np.float32], tmp_path: Path
) -> None:
    """Files as the pixels they decode to, tensors as they are; by default neither."""
    for asked in (True, False):
        folder = tmp_path / str(asked)
        settings = Settings(
            model=pair.model,
            guard=pair.guard,
            port=0,
            metrics_port=None,
            capture=folder,
            capture_share=1.0,
            capture_images=asked,
        )
        with running(settings) as server, Client(server.address) as client:
            client.inspect_encoded([png(image) for image in mixed[:3]])
            client.inspect_tensor(tensor[:2])
        kept: dict[str, list[NDArray[Any]]] = {"images": [], "tensors": []}
        for file in (folder / "shards").iterdir():
            with np.load(file) as arrays:
                for name in set(kept) & set(arrays.files):
                    kept[name].append(arrays[name])
        if asked:
            assert_array_equal(np.concatenate(kept["images"]), mixed[:3])
            assert_array_equal(np.concatenate(kept["tensors"]), tensor[:2])
        assert any(kept.values()) == asked


def png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def test_each_row_has_the_layers_rates(make: Make, reading: Guard, clean: Images) -> None:
    """What drift reads lies in the index; an index of before it was kept gets the column."""
    capture = make()
    with index(capture.folder) as connection:
        connection.execute("ALTER TABLE captures DROP COLUMN layers")
    capture.close()
    capture = make()
    offer(capture, reading, clean)
    capture.close()
    read = reading.inspect(clean).readings
    assert read is not None
    expected = layer_rates(read.rates, reading.artifact.manifest.taps)
    for row, layers in rows_of(capture.folder, "row, layers"):
        np.testing.assert_allclose(np.frombuffer(layers, "<f4"), expected[row], atol=1e-3)


def test_a_full_disk_loses_rows_and_says_so(
    make: Make,
    dropped: list[tuple[DropReason, int]],
    reading: Guard,
    clean: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither row nor shard is left, and what comes once there is room again is kept."""

    def full(file: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    capture = make()
    monkeypatch.setattr("reluguard.detector.captures.write_file", full)
    offer(capture, reading, clean, "lost")
    capture.close()
    monkeypatch.undo()
    assert dropped == [("disk", len(clean))]
    assert list((capture.folder / "shards").iterdir()) == []
    capture = make()
    offer(capture, reading, clean, "kept")
    capture.close()
    assert {row[0].partition(":")[0] for row in rows_of(capture.folder, "id")} == {"kept"}


def test_a_clock_that_goes_backwards_changes_no_order(
    make: Make, reading: Guard, clean: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing expires early, and a later shard sorts later, in a later process too."""
    names: list[str] = []
    for step in range(3):
        monkeypatch.setattr("time.time_ns", lambda step=step: 10**18 - step)
        capture = make(clock=lambda step=step: 1e9 - 3600 * step, ttl_s=60.0)
        offer(capture, reading, clean[2 * step : 2 * step + 2], f"r{step}")
        capture.close()
        (name,) = {row[0] for row in rows_of(capture.folder, "shard")} - set(names)
        names.append(name)
    assert names == sorted(names)
    assert len(rows_of(capture.folder)) == 6


def test_a_retried_request_is_kept_once(
    make: Make, dropped: list[tuple[DropReason, int]], reading: Guard, clean: Images
) -> None:
    """The second time is counted as a duplicate, whatever it is called, and on the row."""
    for name in ("first", "again"):
        capture = make()
        offer(capture, reading, clean, name)
        capture.close()
    assert {row[0] for row in rows_of(capture.folder, "repeats")} == {1}
    assert len(rows_of(capture.folder)) == len(clean)
    assert dropped == [("duplicate", len(clean))]
    assert len(list((capture.folder / "shards").iterdir())) == 1


def test_a_name_that_comes_again_hides_nothing(pair: Any, mixed: Images, tmp_path: Path) -> None:
    """However a caller calls its requests, over one connection or a stream, every image is kept."""
    settings = Settings(
        model=pair.model, guard=pair.guard, port=0, metrics_port=None, capture=tmp_path,
        capture_share=1.0,
    )  # fmt: skip
    same = [("x-request-id", "same")]
    names = set()
    with running(settings) as server, grpc.insecure_channel(server.address) as channel:
        inspect = channel.unary_unary("/reluguard.v1.Guard/Inspect")
        for image in mixed[:10]:
            n, (h, w, c) = 1, image.shape
            block = pb.Pixels(count=n, height=h, width=w, channels=c, data=image.tobytes())
            data = pb.InspectRequest(pixels=block).SerializeToString()
            names.add(pb.InspectResponse.FromString(inspect(data, metadata=same)).capture)
        stream = channel.stream_stream("/reluguard.v1.Guard/InspectStream")
        h, w, c = mixed.shape[1:]
        blocks = (
            pb.Pixels(count=1, height=h, width=w, channels=c, data=image.tobytes())
            for image in mixed[10:20]
        )
        asked = (pb.InspectRequest(pixels=block).SerializeToString() for block in blocks)
        for answer in stream(asked, metadata=same):
            names.add(pb.InspectStreamResponse.FromString(answer).response.capture)
    found = rows_of(tmp_path, "id, request")
    assert {name.partition(":")[0] for name, _ in found} == names
    assert len(names) == len(found) == 20
    assert {request for _, request in found} == {"same"}
    assert len(list_captures(tmp_path, request="same")) == 20
    assert list_captures(tmp_path, request="other") == []


def test_one_damaged_shard_costs_itself(
    make: Make, dropped: list[tuple[DropReason, int]], reading: Guard, clean: Images
) -> None:
    """A flipped byte in a labelled shard past its time: told once, left alone, and on it goes."""
    capture = make(with_images=True)
    offer(capture, reading, clean[:5], "old")
    capture.close()
    with index(capture.folder) as connection:
        connection.execute("UPDATE captures SET label = 'clean' WHERE id = 'old:0'")
    (shard,) = (capture.folder / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 255
    shard.write_bytes(bytes(data))
    told: list[int] = []
    late = make(with_images=True, ttl_s=1e-9, damaged=lambda: told.append(1))
    for i in range(3):
        offer(late, reading, clean[5 + i : 6 + i], f"new{i}")
        time_out = time.monotonic() + 20
        while f"new{i}:0" not in {row[0] for row in rows_of(late.folder, "id")}:
            assert time.monotonic() < time_out
    late.close()
    assert told == [1]
    assert shard.read_bytes() == bytes(data)
    assert dropped == []


def test_a_disk_that_fails_for_a_moment_costs_that_moment(
    make: Make, dropped: list[tuple[DropReason, int]], reading: Guard, clean: Images
) -> None:
    """Not even the folder being something else ends the writer."""
    capture = make()
    place, aside = capture.folder / "shards", capture.folder / "aside"
    place.rename(aside)
    place.write_text("no folder")
    offer(capture, reading, clean[:2], "lost")
    patience = time.monotonic() + 20
    while not dropped:
        assert time.monotonic() < patience
    place.unlink()
    aside.rename(place)
    offer(capture, reading, clean[2:4], "kept")
    capture.close()
    assert dropped == [("disk", 2)]
    assert {row[0] for row in rows_of(capture.folder, "id")} == {"kept:0", "kept:1"}


@pytest.mark.parametrize("what", ["folder", "emptied index"])
def test_a_folder_that_was_taken_away_begins_anew(
    tmp_path: Path, reading: Guard, clean: Images, what: str
) -> None:
    """Who tidied too much lost what was there, and nothing that comes after it."""
    lost: list[DropReason] = []
    folder = tmp_path / "captures"
    capture = Capture(
        folder, share=1.0, max_bytes=10**8, ttl_s=3600.0, with_images=True,
        dropped=lambda why, _: lost.append(why),
    )  # fmt: skip
    offer(capture, reading, clean[:2], "before")
    until(lambda: (folder / "shards").is_dir() and len(rows_of(folder, "id")) == 2)
    if what == "folder":
        folder.rename(tmp_path / "away")
    else:
        for file in folder.glob(f"{INDEX}*"):
            file.unlink(missing_ok=True)  # the writer may just have tidied up behind it
        (folder / INDEX).touch()
    offer(capture, reading, clean[2:5], "after")
    if what == "folder":  # the new one is held as the old one was
        until(lambda: (folder / INDEX).is_file() and has_rows(folder, 3))
        with pytest.raises(StartError, match="can't be used"):
            Capture(
                folder, share=1.0, max_bytes=1, ttl_s=1, with_images=False, dropped=lambda *_: None
            )
    capture.close()
    assert [row[0] for row in rows_of(folder, "id")] == ["after:0", "after:1", "after:2"]
    assert lost == []


def has_rows(folder: Path, count: int) -> bool:
    try:
        return len(rows_of(folder, "id")) == count
    except sqlite3.OperationalError:  # made, and not filled yet
        return False


def test_what_nobody_foresaw_ends_nothing(
    make: Make,
    dropped: list[tuple[DropReason, int]],
    reading: Guard,
    clean: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of any kind in the writer's thread is counted, and the next rows are kept."""

    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    capture = make()
    monkeypatch.setattr("reluguard.service.captures.capture.add", broken)
    offer(capture, reading, clean[:2], "lost")
    patience = time.monotonic() + 20
    while not dropped:
        assert time.monotonic() < patience
    monkeypatch.undo()
    offer(capture, reading, clean[2:4], "kept")
    capture.close()
    assert dropped == [("failed", 2)]
    assert len(rows_of(capture.folder)) == 2


def test_one_folder_has_one_writer(make: Make) -> None:
    """A second server on the same folder is refused, and may come when the first has gone."""
    first = make()
    with pytest.raises(StartError, match="for this process alone"):
        make()
    first.close()
    make().close()


def test_a_stuck_writer_holds_nobody_up(
    make: Make, reading: Guard, clean: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing gives up on a disk that does not answer."""
    entered, free = threading.Event(), threading.Event()

    def stuck(*_: object) -> int:
        entered.set()
        free.wait(30)
        return 0

    monkeypatch.setattr("reluguard.service.captures.capture.add", stuck)
    monkeypatch.setattr("reluguard.service.captures.capture._CLOSE_S", 0.05)
    capture = make()
    offer(capture, reading, clean[:1])
    assert entered.wait(20)
    capture.close()
    free.set()


def test_a_locked_index_loses_rows_and_says_so(
    make: Make,
    dropped: list[tuple[DropReason, int]],
    reading: Guard,
    clean: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writer goes on, and no shard is left without rows."""
    monkeypatch.setattr("reluguard.detector.captures.LOCK_S", 0.05)
    capture = make()
    lock = sqlite3.connect(capture.folder / INDEX)
    lock.execute("BEGIN EXCLUSIVE")
    offer(capture, reading, clean)
    capture.close()
    lock.close()
    assert dropped == [("index", len(clean))]
    assert list((capture.folder / "shards").iterdir()) == []


def test_what_a_killed_process_left_is_cleaned(make: Make, reading: Guard, clean: Images) -> None:
    """A shard whose rows never came is removed at the next start; what we did not write stays."""
    first = make()
    offer(first, reading, clean)
    first.close()
    place = first.folder / "shards"
    (kept,) = place.iterdir()
    with index(first.folder) as connection:
        connection.executemany("INSERT INTO shards VALUES (?)", [("123-1.npz",), ("124-1.npz",)])
    (place / "123-1.npz").write_bytes(b"half a sh")
    (place / ".124-1.npz.9.9").write_bytes(b"aside")
    foreign = [place / "125-1.npz", place / "notes.txt", place / ".hidden", first.folder / "mine"]
    for file in foreign:
        file.write_bytes(b"not yours")
    late = make(ttl_s=1e-9, max_bytes=1)
    offer(late, reading, clean[:3], "late")
    late.close()
    (written,) = {row[0] for row in rows_of(first.folder, "shard")}
    assert set(place.iterdir()) == {*foreign[:3], place / written}
    assert not kept.exists()
    assert all(file.read_bytes() == b"not yours" for file in foreign)


def test_old_captures_go_and_labelled_ones_lose_their_images(
    make: Make, reading: Guard, clean: Images
) -> None:
    """Past the time-to-live only what has a label stays, without its pixels."""
    capture = make(with_images=True)
    offer(capture, reading, clean[:5], "labelled")
    capture.close()
    capture = make(with_images=True)
    offer(capture, reading, clean[5:9], "plain")
    capture.close()
    connection = sqlite3.connect(capture.folder / INDEX)
    connection.execute("UPDATE captures SET label = 'clean' WHERE id = 'labelled:0'")
    connection.commit()
    connection.close()
    late = make(ttl_s=1e-9)
    offer(late, reading, clean[9:10], "new")
    late.close()
    names = {row[0] for row in rows_of(capture.folder, "id")}
    assert names == {*(f"labelled:{i}" for i in range(5)), "new:0"}
    (shard,) = {row[1] for row in rows_of(capture.folder, "id, shard") if row[0] != "new:0"}
    with np.load(shard_file(capture.folder, shard)) as arrays:
        assert sorted(arrays) == ["logits", "rates"]


def test_the_size_cap_holds(make: Make, reading: Guard, clean: Images) -> None:
    """The oldest shards make room, rows first."""
    for i in range(4):
        capture = make(max_bytes=2500)
        offer(capture, reading, clean[i::4], f"r{i}")
        capture.close()
    shards = list((capture.folder / "shards").iterdir())
    assert {row[0] for row in rows_of(capture.folder, "shard")} == {file.name for file in shards}
    assert 1 <= len(shards) < 4


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path, make: Make) -> None:
    """Start fails with one clear line."""
    (tmp_path / INDEX).write_bytes(b"not a database, but long enough to be looked at" * 50)
    before = threading.active_count()
    with pytest.raises(StartError, match=r"the capture folder .* can't be used"):
        make()
    assert threading.active_count() == before


def test_a_guard_without_readings_can_not_capture(guard: Guard, tmp_path: Path) -> None:
    """Handing one over is refused, not passed over."""
    with (
        pytest.raises(StartError, match="opened with readings=True"),
        running(guard, capture=tmp_path),
    ):
        pass


WRITER = """
import itertools, os, sys, time
from pathlib import Path
import numpy as np
from reluguard.detector.runtime import Guard
from reluguard.service.captures.capture import Capture
model, guard, folder = map(Path, sys.argv[1:])
guard = Guard.open(model, guard, threads=1, readings=True)
shape = (64, guard.spec.height, guard.spec.width, guard.spec.channels)
images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
capture = Capture(folder, share=1.0, max_bytes=10**9, ttl_s=1e6, with_images=True,
                  dropped=lambda *_: None)
print("ready", flush=True)
verdicts = guard.inspect(images)
for i in itertools.count():  # until killed; what an earlier writer kept is no row of this one
    name = f"{os.getpid()}-{i}"
    capture.offer(verdicts, guard, name=name, source=name, raw=images)
    time.sleep(0.001)
"""


def has_rows_of(folder: Path, owner: str) -> bool:
    try:
        return any(row[0].startswith(owner) for row in rows_of(folder, "id"))
    except sqlite3.OperationalError:  # not made yet
        return False


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_no_row_without_its_shard(
    pair: Any, tmp_path: Path, make: Make
) -> None:
    """Five kills, each after a row of its own: the index opens, and every row's shard reads."""
    root = Path(__file__).resolve().parents[3]
    for i in range(5):
        command = [sys.executable, "-c", WRITER, str(pair.model), str(pair.guard), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            until(partial(has_rows_of, tmp_path, f"{writer.pid}-"))
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.07 * i)
            writer.kill()
    make(max_bytes=10**9, ttl_s=1e6).close()
    rows = rows_of(tmp_path, "DISTINCT shard")
    assert rows
    for (name,) in rows:
        with np.load(shard_file(tmp_path, name)) as arrays:
            assert len(arrays["rates"]) == len(arrays["logits"]) == len(arrays["images"])
    assert len(list((tmp_path / "shards").iterdir())) == len(rows)


def test_a_server_whose_index_is_locked_answers_on(
    pair: Any, clean: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered, the lost rows are counted, and capture goes on afterwards."""
    monkeypatch.setattr("reluguard.detector.captures.LOCK_S", 0.05)
    settings = Settings(
        model=pair.model,
        guard=pair.guard,
        port=0,
        metrics_port=0,
        capture=tmp_path,
        capture_share=1.0,
        drift_s=0.05,
    )
    lost = 'reluguard_capture_dropped_total{reason="index"}'
    with running(settings) as server, Client(server.address) as client:
        lock = sqlite3.connect(tmp_path / INDEX)
        lock.execute("BEGIN EXCLUSIVE")
        assert len(client.inspect(clean)) == len(clean)
        url = f"http://{server.metrics_address}/metrics"
        patience = time.monotonic() + 30
        while time.monotonic() < patience:
            with urllib.request.urlopen(url, timeout=10) as reply:
                if f"{lost} {float(len(clean))}" in reply.read().decode():
                    break
            time.sleep(0.05)
        else:
            pytest.fail("the lost rows are not counted")
        lock.close()
        assert len(client.inspect(clean)) == len(clean)
    assert len(rows_of(tmp_path)) == len(clean)

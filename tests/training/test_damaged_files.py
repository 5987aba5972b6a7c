"""Every file that training reads, damaged: one line that names it, or the right content."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

import reluguard
from reluguard.detector.artifact import GuardArtifact, write_file
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Reader
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.errors import DataError
from reluguard.training.evaluation.leave_out import open_fit, shards_of
from reluguard.training.harvest.workspace import Workspace, read_plan, read_shard
from reluguard.training.retraining.attacked import read_attacked
from reluguard.training.retraining.kept import open_kept
from tests.damage import DAMAGES, HARMLESS, flips
from tests.training.fitting import Order

Read = Callable[[Path], Mapping[str, Any]]
CALIBRATION = ("rates", "logits", "sources", "labels")


def content(value: Any) -> dict[str, Any]:
    """Return a dataclass's arrays, rates from disk among them."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        name: np.asarray(value, np.float32) if name == "rates" else value
        for name, value in found.items()
        if hasattr(value, "shape")
    }


@pytest.fixture(scope="module")
def whole(
    fitted: GuardArtifact,
    fit_settings: Order,
    digits: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A folder for each kind of file: where it lies in it."""
    folder = tmp_path_factory.mktemp("whole")
    work = folder / "work"
    shutil.copytree(fit_settings.shards, work)
    job = shards_of(open_fit(work, fitted.manifest), fitted.manifest, "fit")["clean"][0]
    shard = work / job.file
    few = digits.take(np.arange(300, 312))
    arrays: dict[str, NDArray[Any]] = {
        "images": few.images,
        "labels": (few.labels + 1) % 10,
        "sources": np.arange(12),
    }
    write_file(folder / "data" / "images.npz", npz=arrays)
    write_file(folder / "attacked" / "images.npz", npz=arrays)
    write_file(folder / "plain" / "images.npz", npz=arrays, compress=False)
    values = read_shard(shard, "sources", "labels", "logits")
    rates = np.ones((len(values["sources"]), 3), np.float32)
    write_file(folder / "calibration" / "calibration.npz", npz={**values, "rates": rates})
    return {
        "data": folder / "data" / "images.npz",
        "large data": folder / "plain" / "images.npz",
        "attacked": folder / "attacked" / "images.npz",
        "calibration": folder / "calibration" / "calibration.npz",
        "shard": shard,
        "readings": shard,
        "harvest": shard,
    }


@pytest.fixture(scope="module")
def readers(fitted: GuardArtifact, fit_settings: Order) -> dict[str, Read]:
    """What reads each kind of file, and returns what it read."""
    manifest = fitted.manifest
    production = load_production(fit_settings.model, output=manifest.answer)
    reader = Reader(production, manifest.input, manifest.taps, threads=1)

    def shard(file: Path) -> Any:
        workspace = open_fit(file.parents[1], manifest)
        return workspace, shards_of(workspace, manifest, "fit")["clean"][:1]

    def read_whole(file: Path) -> Mapping[str, Any]:
        workspace, jobs = shard(file)
        return content(workspace.read(jobs[0]))

    def read_readings(file: Path) -> Mapping[str, Any]:
        workspace, jobs = shard(file)
        return content(workspace.readings(jobs))

    def read_harvest(file: Path) -> Mapping[str, Any]:
        kept = open_kept(fitted, file.parents[1])
        clean = next(group for group in kept.groups("fit") if group.kind == "clean")
        return content(clean)

    return {
        "data": lambda file: content(load_data(str(file))),
        "large data": lambda file: content(load_data(str(file))),
        "attacked": lambda file: content(read_attacked(file, reader)[0]),
        "calibration": lambda file: read_shard(file, *CALIBRATION),
        "shard": read_whole,
        "readings": read_readings,
        "harvest": read_harvest,
    }


KINDS = ("data", "large data", "attacked", "calibration", "shard", "readings", "harvest")


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plainly stored images of any size on disk."""
    monkeypatch.setattr(sys.modules[load_data.__module__], "MAPPED_BYTES", 1)


def told(call: Callable[[], Any], file: Path) -> bool:
    """Return whether a call refused a file in one line that names it; no other error leaves."""
    try:
        call()
    except DataError as error:
        text = str(error)
    else:
        return False
    assert str(file) in text
    assert "\n" not in text
    return True


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_told_or_does_no_harm(
    kind: str, whole: dict[str, Path], readers: dict[str, Read]
) -> None:
    """Wherever the byte lies, the file is named, or what is read is what was written."""
    file, read = whole[kind], readers[kind]
    good = file.read_bytes()
    right = {name: np.array(value) for name, value in read(file).items()}

    def check() -> None:
        found = read(file)
        for name, value in right.items():
            assert_array_equal(found[name], value)

    try:
        refused = 0
        for bad in flips(good, 60):
            file.write_bytes(bad)
            refused += told(check, file)
        assert refused > 40
    finally:
        file.write_bytes(good)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_told(kind: str, whole: dict[str, Path], readers: dict[str, Read]) -> None:
    """Each is refused in one line that names the file; what does no harm is read."""
    file, read = whole[kind], readers[kind]
    good = file.read_bytes()
    try:
        for name, harm in DAMAGES.items():
            file.write_bytes(harm(good))
            assert told(lambda: read(file), file), name
        for name, change in HARMLESS.items():
            file.write_bytes(change(good))
            if kind not in {"readings", "harvest"} or name == "stored":  # those lie uncompressed
                read(file)
        file.unlink()
        file.mkdir()
        if "data" not in kind:  # a folder there is a folder of images
            assert told(lambda: read(file), file)
    finally:
        if file.is_dir():
            file.rmdir()
        file.write_bytes(good)


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": np.zeros((3, 2), np.float32)},
        {"rates": np.zeros(3, np.uint8)},
        {"labels": np.zeros(4, np.int64)},
        {"labels": np.array(["a", "b", "c"])},
        {"success": np.zeros(3, np.int64)},
        {"logits": np.zeros((3, 2), np.complex64)},
        {"steps": np.zeros(5, np.uint8)},
        {"steps": np.array(1, np.uint8)},
        {"sources": np.array(3)},
    ],
    ids=lambda changes: " ".join(f"{n}-{v.dtype}-{v.ndim}" for n, v in changes.items()),
)
def test_other_things_under_its_names_are_no_shard(changes: dict[str, Any], tmp_path: Path) -> None:
    """Arrays of another kind, or of other lengths, are named with what is there."""
    arrays = {
        "sources": np.arange(3),
        "labels": np.arange(3),
        "success": np.ones(3, np.bool_),
        "logits": np.zeros((3, 2), np.float32),
        "rates": np.zeros((3, 4), np.uint8),
        "steps": np.ones(4, np.uint8),
    }
    file = tmp_path / "fit-00000.npz"
    write_file(file, npz=arrays, compress=False)
    assert set(read_shard(file, *arrays)) == set(arrays)
    write_file(file, npz=arrays | changes, compress=False)
    if "rates" in changes and changes["rates"].ndim == 2:
        changes = {"rates": changes["rates"]}
    with pytest.raises(DataError, match=f"expected a shard, {file} holds .*: remove it to make"):
        read_shard(file, *arrays)


def test_a_foreign_file_among_shards_is_named(
    whole: dict[str, Path], fitted: GuardArtifact
) -> None:
    """A file that no harvest writes is no shard."""
    foreign = whole["harvest"].with_name("fit-copy.npz")
    shutil.copy(whole["harvest"], foreign)
    try:
        with pytest.raises(DataError, match=r"named SPLIT-NUMBER\.npz, .*fit-copy\.npz is none"):
            open_kept(fitted, whole["harvest"].parents[1])
    finally:
        foreign.unlink()


def test_no_damage_to_a_plan_escapes_as_another_error(
    whole: dict[str, Path], fitted: GuardArtifact
) -> None:
    """Other bytes in plan.json are a plan, or the folder is named with what is wrong."""
    work = whole["harvest"].parents[1]
    file = work / "plan.json"
    good = file.read_bytes()
    plan = read_plan(work)
    assert plan is not None
    others = [
        b"",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": 1}',
        good[: len(good) // 2],
    ]
    refused = 0
    try:
        for bad in (*others, *flips(good, 60)):
            file.write_bytes(bad)
            for call in (
                lambda: open_kept(fitted, work),
                lambda: open_fit(work, fitted.manifest),
                lambda: Workspace(work, plan),
            ):
                refused += told(call, work)
        assert refused > 3 * len(others)
        file.unlink()
        file.mkdir()
        for call in (lambda: open_kept(fitted, work), lambda: Workspace(work, plan)):
            assert told(call, file)
    finally:
        if file.is_dir():
            file.rmdir()
        file.write_bytes(good)


def ends_in_one_line(
    words: list[Any], file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reluguard", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        reluguard.main()
    err = capfd.readouterr().err
    assert stop.value.code == 1, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("reluguard: expected ")
    assert file.name in last
    assert "Traceback" not in err


def commands(settings: Order, file: Path, out: Path) -> dict[str, list[Any]]:
    model = ["--model", settings.model]
    guard = [*model, "--guard", settings.out]
    put = ["--data", file, "--out", out]
    return {
        "fit": ["fit", *model, *put, "--recipe", "digits", "--workers", 1, "--json"],
        "score": ["score", *guard, *put],
        "evaluate": ["evaluate", *guard, *put, "--workers", 1],
        "redteam": ["redteam", *guard, *put],
        "analyze": ["analyze", *model, *put],
        "harden": ["harden", *model, *put],
        "retrain": ["retrain", *guard, "--new", file, "--out", out, "--json"],
    }


@pytest.mark.parametrize(
    "command", ["fit", "score", "evaluate", "redteam", "analyze", "harden", "retrain"]
)
def test_a_damaged_file_ends_a_command_in_one_line(
    command: str,
    fitted: GuardArtifact,
    fit_settings: Order,
    whole: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1, and the last line names the file; nothing is written."""
    del fitted
    file, out = tmp_path / "new.npz", tmp_path / "out"
    words = commands(fit_settings, file, out)[command]
    for name in ("flipped stream", "lzma", "encrypted", "huge shape", "objects", "deep header"):
        file.write_bytes(DAMAGES[name](whole["data"].read_bytes()))
        ends_in_one_line(words, file, monkeypatch, capfd)
    assert not [place for place in out.rglob("*") if place.is_file()]


def test_a_damaged_try_of_the_red_team_is_named(
    fitted: GuardArtifact,
    fit_settings: Order,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A kept try that can't be read is refused, and made anew once it was removed."""
    del fitted
    data = ["--data", fit_settings.data, "--out", tmp_path / "out"]
    words = ["redteam", "--model", fit_settings.model, "--guard", fit_settings.out, *data]
    words += ["--limit", 6, "--threads", 1, "--steps", 2, "--restarts", 1, "--queries", 4]
    words += ["--budget", 48, "--no-ladders", "--asking", 0]
    monkeypatch.setattr(sys, "argv", ["reluguard", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        reluguard.main()
    assert stop.value.code == 0, capfd.readouterr().err
    file = next((tmp_path / "out").rglob("*/*/*.npz"))
    good = file.read_bytes()
    for name in ("cut", "flipped stream", "objects", "other arrays"):
        file.write_bytes(DAMAGES[name](good))
        ends_in_one_line(words, file, monkeypatch, capfd)

"""The guard on disk: what was written comes back, and nothing else is read."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reluguard.detector.artifact import (
    GuardArtifact,
    check_model,
    check_out,
    folder_aside,
    read_guard,
    write_file,
    write_guard,
)
from reluguard.detector.errors import (
    GuardError,
    GuardFormatError,
    ModelMismatchError,
    SettingsError,
)
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from tests.damage import DAMAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tiny_guard: Path, tmp_path: Path) -> Path:
    """A guard of one's own to damage."""
    return Path(shutil.copytree(tiny_guard, tmp_path / "guard"))


def rewrite(source: GuardArtifact, path: Path) -> GuardArtifact:
    return write_guard(path, manifest=source.manifest, head=source.head, golden=source.golden)


def litter(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.parent.iterdir() if entry != folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def put(folder: Path, name: str, data: bytes, arrays: dict[str, Any] | None = None) -> None:
    """Replace a file and make the manifest vouch for it, as a careful forger would."""
    (folder / name).write_bytes(data)

    def vouch(document: dict[str, Any]) -> None:
        entry = document["files"].setdefault(name, {})
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if arrays is not None:
            entry["arrays"] = arrays

    edit(folder, vouch)


def declare(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {
        name: {"dtype": value.dtype.name, "shape": list(value.shape)}
        for name, value in arrays.items()
    }


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # NumPy's stub sees allow_pickle
    return buffer.getvalue()


def forge(folder: Path, name: str, **changes: NDArray[Any] | None) -> None:
    """Change arrays inside an npz, or drop those given as None, vouched for."""
    with np.load(folder / name) as archive:
        arrays = {key: archive[key] for key in archive.files} | changes
    kept = {key: value for key, value in arrays.items() if value is not None}
    put(folder, name, npz(kept), declare(kept))


def test_what_was_written_is_read_back(tiny_guard: Path, tmp_path: Path) -> None:
    """Manifest, head and golden inputs come back bit for bit, whoever wrote them."""
    first = read_guard(tiny_guard)
    second = rewrite(first, tmp_path / "again")
    assert second.manifest == first.manifest
    for name, value in first.head.to_arrays().items():
        np.testing.assert_array_equal(second.head.to_arrays()[name], value)
    for part in fields(first.golden):
        a, b = getattr(first.golden, part.name), getattr(second.golden, part.name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_the_digest_covers_every_file(tiny_guard: Path, folder: Path) -> None:
    """Another report, another digest; the same files, the same digest."""
    assert read_guard(folder).digest == read_guard(tiny_guard).digest
    put(folder, "report.json", b'{"auroc": 1}')
    assert read_guard(folder).digest != read_guard(tiny_guard).digest


def test_a_guard_is_small(tiny_guard: Path) -> None:
    """Kilobytes, not the model."""
    assert sum(file.stat().st_size for file in tiny_guard.iterdir()) < 100_000


def test_every_flipped_byte_is_noticed(folder: Path) -> None:
    """One bit anywhere in a file beside the manifest makes the guard unreadable."""
    for name in ("head.npz", "golden.npz", "report.html"):
        good = (folder / name).read_bytes()
        for position in range(0, len(good), max(1, len(good) // 20)):
            bad = bytearray(good)
            bad[position] ^= 1
            (folder / name).write_bytes(bad)
            with pytest.raises(GuardError, match=f"{name} was changed: its SHA-256"):
                read_guard(folder)
        (folder / name).write_bytes(good)
    read_guard(folder)


def test_every_cut_of_the_manifest_is_noticed(folder: Path) -> None:
    """A manifest that ends early is refused, wherever it was cut."""
    text = (folder / "manifest.json").read_bytes()
    for end in range(0, len(text) - 1, len(text) // 25):
        (folder / "manifest.json").write_bytes(text[:end])
        with pytest.raises(GuardError, match="it is cut or changed"):
            read_guard(folder)


def test_no_damage_inside_an_archive_escapes_as_another_error(folder: Path) -> None:
    """Bytes changed in a vouched-for npz either read as numbers or are a GuardError."""
    rng = np.random.default_rng(0)
    good = (folder / "head.npz").read_bytes()
    refused = 0
    for _ in range(300):
        bad = np.frombuffer(good, np.uint8).copy()
        where = rng.integers(0, len(bad), 3)
        bad[where] = rng.integers(0, 256, 3)
        put(folder, "head.npz", bad.tobytes())
        try:
            read_guard(folder)
        except GuardError:
            refused += 1
    assert refused > 200  # most of it is under zip's own checksums


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["head.npz", "golden.npz"])
def test_a_vouched_for_archive_that_is_damaged_is_named(
    folder: Path, name: str, harm: Callable[[bytes], bytes]
) -> None:
    """Whatever stands in the place of its arrays, the guard's file is named."""
    put(folder, name, harm((folder / name).read_bytes()))
    with pytest.raises(GuardError, match=rf"\A[^\n]*{name}[^\n]*\Z"):
        read_guard(folder)


def test_no_damage_to_the_manifest_escapes_as_another_error(folder: Path) -> None:
    """A changed character in the manifest is a GuardError, or a legal manifest."""
    rng = np.random.default_rng(0)
    good = (folder / "manifest.json").read_bytes()
    for _ in range(400):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] = rng.choice(list(b'0129-.{}[]",: xtfnE\x00\xff'))
        (folder / "manifest.json").write_bytes(bad)
        try:
            read_guard(folder)
        except GuardError:
            continue


def test_replacing_leaves_the_new_guard_and_no_litter(tiny_guard: Path, folder: Path) -> None:
    """A guard is replaced whole: files only the old one had are gone."""
    (folder / "notes.txt").write_text("old")
    written = rewrite(read_guard(tiny_guard), folder)
    assert written.path == folder
    assert sorted(file.name for file in folder.iterdir()) == [
        "golden.npz",
        "head.npz",
        "manifest.json",
    ]
    assert litter(folder) == []


def test_a_failed_write_leaves_the_old_guard(folder: Path) -> None:
    """An error in the middle changes nothing and leaves nothing."""
    before = read_guard(folder).digest

    def fail() -> None:
        with folder_aside(folder) as aside:
            (aside / "manifest.json").write_text("{")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert read_guard(folder).digest == before
    assert litter(folder) == []


def script(code: str, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


REWRITE = """
import sys
from pathlib import Path
from reluguard.detector.artifact import read_guard, write_guard
source, target = map(Path, sys.argv[1:3])
a = read_guard(source)
"""


def test_a_full_disk_leaves_the_old_guard(tiny_guard: Path, folder: Path) -> None:
    """When no byte more can be written, the old guard stays and the error says why."""
    before = read_guard(folder).digest
    code = REWRITE + (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    write_guard(target, manifest=a.manifest, head=a.head, golden=a.golden)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    with script(code, str(tiny_guard), str(folder)) as process:
        out, err = process.communicate(timeout=60)
    assert out == "File too large\n", err
    assert read_guard(folder).digest == before
    assert litter(folder) == []


def test_a_kill_while_writing_leaves_a_whole_guard(tiny_guard: Path, folder: Path) -> None:
    """Killed at any moment of replacing a guard again and again, one of them is there, whole."""
    code = REWRITE + (
        "while True:\n"
        "    write_guard(target, manifest=a.manifest, head=a.head, golden=a.golden)\n"
        "    print('written', flush=True)\n"
    )
    for rounds in (1, 2, 3):
        with script(code, str(tiny_guard), str(folder)) as process:
            assert process.stdout is not None
            for _ in range(rounds):
                assert process.stdout.readline() == "written\n"
            process.kill()
        assert len(read_guard(folder).manifest.taps) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A write that fails keeps the old file and leaves no other."""
    file = tmp_path / "scores.npz"
    write_file(file, npz={"score": np.arange(3)})
    with pytest.raises(ValueError, match="pickle"):
        write_file(file, npz={"score": np.array([object()])})
    with np.load(file) as archive:
        np.testing.assert_array_equal(archive["score"], np.arange(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.npz"]


def test_a_guard_never_replaces_something_else(tiny_guard: Path, tmp_path: Path) -> None:
    """A folder of other files and a plain file are refused, and stay as they were."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    (tmp_path / "file").write_text("text")
    source = read_guard(tiny_guard)
    with pytest.raises(GuardError, match="expected no folder, or a guard to replace"):
        rewrite(source, tmp_path / "photos")
    with pytest.raises(GuardError, match=r"expected no file, or a guard's folder .* is a file"):
        rewrite(source, tmp_path / "file")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "cat"
    (tmp_path / "empty").mkdir()
    assert rewrite(source, tmp_path / "empty").path == tmp_path / "empty"


def test_a_manifest_holds_only_finite_values(tiny_guard: Path, tmp_path: Path) -> None:
    """What JSON can't carry is refused before anything is written."""
    source = read_guard(tiny_guard)
    metrics = source.manifest.metrics
    assert isinstance(metrics, dict)
    bad = type(source.manifest)(
        **{
            **{f.name: getattr(source.manifest, f.name) for f in fields(source.manifest)},
            "metrics": {"auroc": float("nan")},
        }
    )
    with pytest.raises(GuardError, match="expected a manifest of plain finite values"):
        write_guard(tmp_path / "bad", manifest=bad, head=source.head, golden=source.golden)
    assert not (tmp_path / "bad").exists()


def set_key(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(key, value)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no format": (lambda d: d.pop("format"), "expected a guard's manifest"),
    "no files": (lambda d: d.pop("files"), "expected head.npz and golden.npz in the file list"),
    "no head": (lambda d: d["files"].pop("head.npz"), "expected head.npz and golden.npz"),
    "no taps": (lambda d: d.pop("taps"), "lacks taps"),
    "null taps": (set_key("taps", None), "lacks taps"),
    "one tap less": (lambda d: d["taps"].pop(), "expected a head for 1 taps, got one for 2"),
    "unknown tap field": (lambda d: d["taps"][0].update(evil=1), "is damaged"),
    "tap of no size": (lambda d: d["taps"][0].update(shape=[0, 8, 8]), "expected positive sizes"),
    "tap of text size": (lambda d: d["taps"][0].update(shape="888"), "expected positive sizes"),
    "wrong tap size": (lambda d: d["taps"][0].update(shape=[9, 8, 8]), "at the tap its rate"),
    "channel axis": (lambda d: d["taps"][0].update(channel_axis=5), "expected a channel axis"),
    "fpr of 1": (set_key("fpr", 1.0), r"rate in \(0, 1\), got 1.0"),
    "fpr of 0": (set_key("fpr", 0.0), r"rate in \(0, 1\), got 0.0"),
    "fpr as text": (set_key("fpr", "0.05"), "fpr is a"),
    "threshold as text": (set_key("thresholds", {"0.05": "1"}), "expected a score for each"),
    "threshold of a name": (set_key("thresholds", {"low": 0.5}), "expected a score for each"),
    "threshold of no rate": (set_key("thresholds", {"1.5": 0.5}), "got 0.5 for '1.5'"),
    "thresholds as list": (set_key("thresholds", [0.5]), "thresholds is a"),
    "model as number": (set_key("model_sha256", 7), "model_sha256 is a"),
    "calibration": (set_key("calibration_images", 10**6), "expected 1000000 clean scores, got 199"),
    "input": (lambda d: d["input"].update(height=9), r"expected golden images of uint8 \(5, 9"),
    "input as text": (lambda d: d["input"].update(height="8"), "expected whole sizes"),
    "input setting": (lambda d: d["input"].update(evil=1), "unknown input settings: evil"),
    "input scale": (lambda d: d["input"].update(scale=0), "expected a positive scale"),
    "huge array": (
        lambda d: d["files"]["head.npz"]["arrays"]["probe_weights"].update(shape=[10**9, 10**9]),
        r"expected probe_weights of float\d+ \(1000000000, 1000000000\)",
    ),
    "negative shape": (
        lambda d: d["files"]["head.npz"]["arrays"]["probe_weights"].update(shape=[-1, 4]),
        "expected numbers in probe_weights",
    ),
    "object array": (
        lambda d: d["files"]["head.npz"]["arrays"]["probe_weights"].update(dtype="object"),
        "expected numbers in probe_weights",
    ),
    "unknown dtype": (
        lambda d: d["files"]["head.npz"]["arrays"]["probe_weights"].update(dtype="evil"),
        "are not declared as such",
    ),
    "other shape": (
        lambda d: d["files"]["head.npz"]["arrays"]["center"].update(shape=[3]),
        r"expected center of float\d+ \(3,\)",
    ),
    "undeclared array": (
        lambda d: d["files"]["head.npz"]["arrays"].pop("center"),
        "expected the arrays that the manifest declares, .* holds others",
    ),
    "nothing declared": (
        lambda d: d["files"]["head.npz"].pop("arrays"),
        "are not declared as such",
    ),
    "parent": (
        lambda d: d["files"].update({"../../secret": {"bytes": 6, "sha256": ""}}),
        "is damaged at '../../secret'",
    ),
    "absolute": (
        lambda d: d["files"].update({"/etc/passwd": {"bytes": 6, "sha256": ""}}),
        "is damaged at '/etc/passwd'",
    ),
    "dots": (lambda d: d["files"].update({"..": {"bytes": 1}}), "is damaged at '..'"),
    "nul": (lambda d: d["files"].update({"a\0b": {}}), "is damaged at"),
    "file entry": (lambda d: d["files"].update({"report.json": 7}), "is damaged at 'report.json'"),
    "file size": (lambda d: d["files"]["head.npz"].update(bytes=7), "expected at most 7 bytes"),
    "file size as text": (lambda d: d["files"]["head.npz"].update(bytes="7"), "is damaged at"),
    "huge file": (
        lambda d: d["files"].update({"report.json": {"bytes": 2**40}}),
        "expected at most 67108864 bytes in",
    ),
    "huge folder": (
        lambda d: d["files"].update({f"part-{i}": {"bytes": 2**26} for i in range(3)}),
        "expected at most 134217728 bytes in",
    ),
    "its own signature": (lambda d: d["files"].update({"manifest.sig": {"bytes": 1}}), "damaged"),
    "hidden": (lambda d: d["files"].update({".lock": {"bytes": 1}}), "is damaged at '.lock'"),
}


@pytest.mark.parametrize(("change", "message"), EDITS.values(), ids=EDITS)
def test_an_edited_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Every edit that would mislead the reader is a GuardError that names it."""
    edit(folder, change)
    with pytest.raises(GuardError, match=message):
        read_guard(folder)


@pytest.mark.parametrize("number", [0, 2, "1", None, [1]])
def test_another_format_is_refused(folder: Path, number: Any) -> None:
    """A format number this reader doesn't know is said as such."""
    edit(folder, set_key("format", number))
    with pytest.raises(GuardFormatError, match=r"expected a guard of format 1, .* has format"):
        read_guard(folder)


HEADS: dict[str, tuple[dict[str, NDArray[Any] | None], str]] = {
    "nan": ({"bias_1": np.array([np.nan], np.float32)}, "expected finite numbers in bias_1"),
    "infinite": ({"slope": np.array(np.inf)}, "expected finite numbers in slope"),
    "missing": ({"slope": None}, "the head's arrays are incomplete: 'slope'"),
    "extra": ({"evil": np.zeros(3, np.float32)}, "arrays nobody asked for: evil"),
    "bool": ({"bias_1": np.zeros(1, np.bool_)}, "expected numbers in bias_1, got bool"),
    "shape": ({"bias_1": np.zeros(2, np.float32)}, "expected weights and biases of 16 inputs"),
    "two units": (
        {"weight_1": np.zeros((16, 2), np.float32), "bias_1": np.zeros(2, np.float32)},
        "expected a last layer of one unit, got 2",
    ),
    "vector": ({"slope": np.zeros(2)}, "the head's arrays are incomplete"),
    "unsorted": (
        {"clean_scores": np.arange(199, 0, -1, dtype=np.float32)},
        "expected the clean calibration scores in ascending order",
    ),
    "fewer scores": ({"clean_scores": np.zeros(3, np.float32)}, "expected 199 clean scores, got 3"),
    "no spread": ({"spread": np.zeros(95, np.float32)}, "expected a positive spread"),
    "columns out of range": ({"columns": np.arange(1, 61)}, r"expected columns .* in \[0, 60\)"),
    "columns below zero": ({"columns": np.arange(-1, 59)}, r"expected columns .* in \[0, 60\)"),
    "columns elsewhere": ({"columns": np.arange(60)[::-1].copy()}, "at the tap its rate is read"),
    "float columns": ({"columns": np.arange(60.0)}, r"expected columns .* in \[0, 60\)"),
    "probes of terabytes": (
        {"classes": np.array(10**9)},
        "expected probe_weights of shape",
    ),
}


@pytest.mark.parametrize(("changes", "message"), HEADS.values(), ids=HEADS)
def test_a_forged_head_is_refused(
    folder: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    """Arrays that make no head are refused even where every hash agrees."""
    forge(folder, "head.npz", **changes)
    with pytest.raises(GuardError, match=message):
        read_guard(folder)


GOLDENS: dict[str, tuple[dict[str, NDArray[Any] | None], str]] = {
    "missing": ({"score": None}, "expected the golden inputs"),
    "extra": ({"evil": np.zeros(3)}, "expected the golden inputs"),
    "scalar": ({"score": np.float32(1) * np.ones(())}, "expected the golden inputs"),
    "rows": ({"score": np.zeros(4, np.float32)}, r"expected golden images of uint8 \(4, 8, 8, 1\)"),
    "dtype": ({"prediction": np.zeros(5)}, r"expected golden prediction of int64 \(5,\)"),
    "rates": ({"rates": np.zeros((5, 3), np.float32)}, r"expected golden rates of .* \(5, 60\)"),
}


@pytest.mark.parametrize(("changes", "message"), GOLDENS.values(), ids=GOLDENS)
def test_forged_golden_inputs_are_refused(
    folder: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    """Golden inputs that don't fit the model or each other are refused."""
    forge(folder, "golden.npz", **changes)
    with pytest.raises(GuardError, match=message):
        read_guard(folder)


def test_a_zip_bomb_is_not_unpacked(folder: Path) -> None:
    """Gigabytes of zeros behind a small declaration are refused by what is declared."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("slope.npy", "w") as stream,
    ):
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}
        )
        for _ in range(8):
            stream.write(bytes(2**20))
    slope = {"slope": {"dtype": "float64", "shape": [2**20]}}
    put(folder, "head.npz", buffer.getvalue(), slope)
    with pytest.raises(GuardError, match=r"expected slope of float64 \(1048576,\) .* got float64"):
        read_guard(folder)
    put(folder, "head.npz", buffer.getvalue(), {"slope": {"dtype": "float64", "shape": [2**40]}})
    with pytest.raises(GuardError, match=r"unpacks to 8796093022208 bytes"):
        read_guard(folder)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    """An object array whose pickle would run code is refused before it is read."""
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (ran.touch, ())

    buffer = io.BytesIO()
    np.savez(buffer, slope=np.array([Evil()], dtype=object))
    for dtype in ("object", "float64"):
        put(folder, "head.npz", buffer.getvalue(), {"slope": {"dtype": dtype, "shape": [1]}})
        with pytest.raises(GuardError, match=r"expected numbers in slope|objects in slope"):
            read_guard(folder)
    assert not ran.exists()


def test_an_archive_of_twice_the_same_name_is_refused(folder: Path) -> None:
    """Two arrays of one name are not what the manifest declares."""
    buffer = io.BytesIO((folder / "head.npz").read_bytes())
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("slope.npy", archive.read("slope.npy"))
    put(folder, "head.npz", buffer.getvalue())
    with pytest.raises(GuardError, match=r"that the manifest declares, .* holds others"):
        read_guard(folder)


def test_a_manifest_that_says_a_thing_twice_is_refused(folder: Path) -> None:
    """Two readers could take different ones of two equal keys."""
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"fpr":', '"fpr": 0.9, "fpr":'))
    with pytest.raises(GuardError, match="it is cut or changed"):
        read_guard(folder)


@pytest.mark.parametrize("text", ["", "[]", "7", '"text"', "[" * 100_000, '{"format": NaN}', "\0"])
def test_other_json_is_refused(folder: Path, text: str) -> None:
    """Whatever else stands in manifest.json is a GuardError."""
    (folder / "manifest.json").write_text(text)
    with pytest.raises(GuardError, match=r"expected (JSON|a guard's manifest) in"):
        read_guard(folder)


@pytest.mark.parametrize("name", ["manifest.json", "head.npz", "golden.npz", "report.html"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """A guard that lost a file says which."""
    (folder / name).unlink()
    with pytest.raises(GuardError, match=f"has no file {name}"):
        read_guard(folder)


def test_no_guard_there_is_said(tmp_path: Path) -> None:
    """A folder that is not there is no guard."""
    with pytest.raises(GuardError, match=r"expected a guard in .*nowhere"):
        read_guard(tmp_path / "nowhere")


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """A guard's files lie in its folder: a link to elsewhere is refused, one inside is not."""
    head = folder / "head.npz"
    inside = head.rename(folder / "head.bin")
    head.symlink_to(inside)
    read_guard(folder)
    head.unlink()
    head.symlink_to(inside.rename(tmp_path / "head.bin"))
    with pytest.raises(GuardError, match=r"head\.npz links out of it"):
        read_guard(folder)


def test_a_device_or_pipe_is_not_read(folder: Path) -> None:
    """A pipe in place of a file would hang the reader: it is no file."""
    (folder / "head.npz").unlink()
    os.mkfifo(folder / "head.npz")
    with pytest.raises(GuardError, match=r"has no file head\.npz"):
        read_guard(folder)


def test_too_large_a_manifest_is_not_parsed(folder: Path) -> None:
    """A manifest over its limit is refused by its size."""
    (folder / "manifest.json").write_bytes(b" " * (4 * 2**20 + 1))
    with pytest.raises(GuardError, match="expected at most 4194304 bytes"):
        read_guard(folder)


def test_another_model_is_refused(
    tiny_guard: Path, tmp_path: Path, make_network: Callable[..., Any]
) -> None:
    """A guard belongs to one model, by its SHA-256."""
    other = tmp_path / "other.onnx"
    other.write_bytes(make_network(seed=1).SerializeToString())
    with pytest.raises(ModelMismatchError, match="was fitted to the model with SHA-256"):
        check_model(read_guard(tiny_guard), load_production(other).sha256)
    with pytest.raises(ModelMismatchError, match="this model has"):
        Guard.open(other, tiny_guard, threads=1)


def test_a_wrong_golden_score_keeps_the_guard_from_going_live(
    tiny_model: Path, folder: Path
) -> None:
    """A head that no longer says what it said when it was fitted does not open."""
    golden = read_guard(folder).golden
    forge(folder, "golden.npz", score=golden.score + np.float32(0.5))
    with pytest.raises(GuardError, match=r"expected scores within 0.25 .* off by 0.5"):
        Guard.open(tiny_model, folder, threads=1)


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    """A place that is no file, like /dev/stdout, gets the bytes and stays what it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, b"verdicts")
        assert os.read(reading, 100) == b"verdicts"
    finally:
        os.close(reading)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    """The link stays a link, also one to a file that is not there yet."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    for content in (b"first", b"second"):
        write_file(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file").read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_named() -> None:
    """A write that finds no room says where there was none."""
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_file(Path("/dev/full"), b"verdicts")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "expected a file to write to, .* is a folder"),
        ("model", "model is what is read"),
        ("link", "link is what is read"),
        ("guard/head.npz", "would lie in the guard"),
        ("guard/new/v.csv", "would lie in the guard"),
        ("model/v.csv", "a file that can be written, .*v.csv can't be: .*model is no folder"),
    ],
)
def test_a_place_that_can_not_be_written_is_refused(
    folder: Path, tmp_path: Path, out: str, message: str
) -> None:
    """Whoever would lose what is read, or find no room after hours, is told before."""
    here = tmp_path / "here"
    shutil.copytree(folder, here / "guard")
    (here / "model").write_bytes(b"")
    (here / "link").symlink_to(here / "model")
    before = sorted(here.rglob("*"))
    with pytest.raises(SettingsError, match=message):
        check_out(here / out, here / "model", here / "guard", None)
    check_out(here / "new" / "v.csv", here / "model", here / "guard", None)
    assert sorted(here.rglob("*")) == before

"""The guard on disk: a small folder that holds everything but the model.

The format, version 1:

    manifest.json   what follows as fields of Manifest, plus `format` and, for every other file,
                    its size, SHA-256 and, for an npz, the dtype and shape of each array
    head.npz        Head.to_arrays()
    golden.npz      a few inputs with what the guard must say of them
    second.npz      SecondLook.to_arrays(), if the guard looks twice; `second` in the manifest says
                    at what. Who knows nothing of it reads the first look, which stays as it is
    report.json, report.html    the report card, for people; not read back
    manifest.sig    a signature of manifest.json, if it is signed

Nothing is unpickled. Reading goes from cheap and certain to costly: sizes, format, hashes, declared
shapes against the sizes inside the archive, and only then arrays. A change that an old reader would
misread raises FORMAT; `tests/detector/test_artifact.py` keeps one abuse attempt per refusal.
"""

import ctypes
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import DAMAGE, read_arrays, write_arrays
from reluguard.detector.errors import (
    GuardError,
    GuardFormatError,
    ModelMismatchError,
    SettingsError,
    near_path,
)
from reluguard.detector.head import Head
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.looks.second import FILE as SECOND
from reluguard.detector.looks.second import Look, SecondLook
from reluguard.detector.taps import Tap

__all__ = [
    "FORMAT",
    "OWN_FILES",
    "SIGNATURE",
    "Golden",
    "GuardArtifact",
    "GuardFiles",
    "Manifest",
    "check_model",
    "check_out",
    "check_place",
    "folder_aside",
    "open_files",
    "read_files",
    "read_guard",
    "write_file",
    "write_guard",
]

FORMAT = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
Vouch = Callable[[str, bytes | None], None]
_ARRAYS = ("head.npz", "golden.npz")
OWN_FILES = (*_ARRAYS, SECOND)  # all others are reports
_MAX_MANIFEST_BYTES = 4 * 2**20
_MAX_SIGNATURE_BYTES = 1024
_MAX_FILE_BYTES = 64 * 2**20
_MAX_TOTAL_BYTES = 128 * 2**20
_MAX_UNPACKED_BYTES = 256 * 2**20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_KINDS: dict[str, type] = {
    "model_sha256": str,
    "input": dict,
    "answer": str,
    "taps": list,
    "fpr": float,
    "thresholds": dict,
    "calibration_images": int,
    "created_at": str,
    "provenance": dict,
    "metrics": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Inputs with what the guard said of them when it was fitted. G inputs, D rates.

    Attributes:
        images: uint8, (G, H, W, C).
        rates: float32, (G, D).
        score: float32, (G,).
        prediction: int64, (G,).
    """

    images: Images
    rates: NDArray[np.float32]
    score: NDArray[np.float32]
    prediction: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a guard is, where it comes from and what it promises.

    `fpr` is the false-positive rate its verdicts are made at, `thresholds` the score limits at this
    and other rates, keyed by the rate; `answer` the model output that holds the class scores.
    """

    model_sha256: str
    input: InputSpec
    answer: str
    taps: tuple[Tap, ...]
    fpr: float
    thresholds: Mapping[str, float]
    calibration_images: int
    created_at: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardArtifact:
    """A guard as read from disk. `digest` is its manifest's SHA-256, so covers everything in it."""

    path: Path
    digest: str
    manifest: Manifest
    head: Head
    golden: Golden
    second: SecondLook | None = None


def write_guard(
    path: Path | str,
    *,
    manifest: Manifest,
    head: Head,
    golden: Golden,
    second: SecondLook | None = None,
    reports: Mapping[str, bytes] | None = None,
) -> GuardArtifact:
    """Write a guard folder, whole or not at all, replacing one that is there.

    Args:
        path: the folder.
        manifest: goes into manifest.json.
        head: goes into head.npz.
        golden: goes into golden.npz.
        second: goes into second.npz, if the guard looks twice.
        reports: further files by name, kept beside and hashed.

    Raises:
        GuardError: the place holds something else than a guard, or a value can't be stored.
        OSError: the disk is full or the place can't be written; what was there stays.
    """
    path = Path(path)
    check_place(path)
    arrays = {"head.npz": head.to_arrays(), "golden.npz": asdict(golden)}
    looks = {}
    if second is not None:
        arrays[SECOND] = second.to_arrays()
        looks["second"] = second.look.to_json()
    contents = {name: _npz(values) for name, values in arrays.items()} | dict(reports or {})
    files: dict[str, dict[str, Any]] = {}
    for name, data in contents.items():
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name in arrays:
            files[name]["arrays"] = {
                key: {"dtype": value.dtype.name, "shape": list(value.shape)}
                for key, value in arrays[name].items()
            }
    document = {"format": FORMAT, **_manifest_json(manifest), **looks, "files": files}
    try:
        text = json.dumps(document, indent=2, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        raise GuardError(f"expected a manifest of plain finite values: {error}") from error
    with folder_aside(path) as aside:
        for name, data in (contents | {MANIFEST: text}).items():
            with _durably(aside / name) as stream:
                stream.write(data)
        artifact = read_guard(aside)  # what can't be read back never takes the old one's place
    return replace(artifact, path=path)


def check_place(path: Path) -> None:
    """Raise GuardError if a guard written here would take the place of something else."""
    if path.is_dir() and not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise GuardError(f"expected no folder, or a guard to replace, {path} holds other files")
    if path.exists() and not path.is_dir():
        raise GuardError(f"expected no file, or a guard's folder to replace, {path} is a file")
    if closed := _closed(path):
        raise GuardError(f"expected a folder that can be written, {closed}")


def check_out(out: Path, *inputs: Path | str | None) -> None:
    """Raise SettingsError if a file can't be written here, or would take the place of what is read.

    Args:
        out: the file.
        inputs: files that are read, and folders of guards, in which nothing else may lie.
    """
    if out.is_dir():
        raise SettingsError(f"expected a file to write to, {out} is a folder")
    for file in (Path(one) for one in inputs if one):
        if out.exists() and file.exists() and out.samefile(file):
            raise SettingsError(f"expected another place to write to, {out} is what is read")
        if (file / MANIFEST).is_file() and file.resolve() in out.resolve().parents:
            raise SettingsError(
                f"expected another place to write to, {out} would lie in the guard {file}"
            )
    if closed := _closed(out):
        raise SettingsError(f"expected a file that can be written, {closed}")


def _closed(path: Path) -> str | None:
    """Return why nothing new can be written here, None where it can."""
    if _is_stream(path):
        return None
    nearest = next(place for place in path.resolve().parents if place.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return None
    return f"{path} can't be: {nearest} is {'read-only' if nearest.is_dir() else 'no folder'}"


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Give a fresh folder beside `path` that takes its place when the block ends well.

    What was there stays whole until that moment, whenever the process dies.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield aside
            aside.chmod(0o755)
            if path.exists():
                _exchange(aside, path)
            else:
                aside.replace(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # the unfinished, the replaced, or nothing


def _exchange(aside: Path, path: Path) -> None:
    """Swap two folders of one disk: in one step where the system can, else in two renames."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux, glibc 2.28
    places = (_AT_FDCWD, os.fsencode(aside), _AT_FDCWD, os.fsencode(path))
    if rename is not None and rename(*places, _RENAME_EXCHANGE) == 0:
        return
    retired = aside.with_name(f"{aside.name}.old")
    path.replace(retired)
    try:
        aside.replace(path)
    except BaseException:
        retired.replace(path)
        raise
    retired.replace(aside)


def write_file(
    path: Path,
    data: bytes = b"",
    *,
    npz: Mapping[str, NDArray[Any]] | None = None,
    compress: bool = True,
) -> None:
    """Write a file, whole or not at all: these bytes, or these arrays as an npz.

    What a link leads to is written, not the link; a device or a pipe, like /dev/stdout, is written
    into and stays what it is.

    Raises:
        OSError: it can't be written; names `path`.
    """
    with _named(path):
        if _is_stream(path):  # an npz goes back and forth, so it is made before
            content = data if npz is None else _npz(npz, compress=compress)
            with path.open("ab") as stream:
                stream.write(content)
            return
        place = path.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with _durably(aside) as stream:
                if npz is None:
                    stream.write(data)
                else:
                    write_arrays(stream, npz, compress=compress)
            aside.replace(place)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _is_stream(path: Path) -> bool:
    """Return whether this is a device or a pipe, or leads to an open file as /dev/stdout does."""
    if not path.exists() or path.is_dir():
        return False
    return not path.is_file() or str(path.absolute().parent) in {"/dev", "/dev/fd", "/proc/self/fd"}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an OSError name what was to be written: on a full disk it names nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def _durably(file: Path) -> Iterator[BinaryIO]:
    """Give a stream to a file which is on the disk, not only on its way, once the block ends."""
    with file.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _npz(arrays: Mapping[str, NDArray[Any]], *, compress: bool = True) -> bytes:
    buffer = io.BytesIO()
    write_arrays(buffer, arrays, compress=compress)
    return buffer.getvalue()


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    values = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
    values["input"] = manifest.input.to_json()
    values["taps"] = [tap.to_json() for tap in manifest.taps]
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFiles:
    """The bytes of a guard's folder, read once: what is checked is what is used.

    Attributes:
        path: where they were read.
        manifest: of manifest.json.
        files: of all that the manifest lists, by name; each is what it declares.
        signature: of manifest.sig, if there is one.
    """

    path: Path
    manifest: bytes
    files: Mapping[str, bytes]
    signature: bytes | None

    @property
    def digest(self) -> str:
        """The manifest's SHA-256, which covers every other file."""
        return hashlib.sha256(self.manifest).hexdigest()

    def write(self, place: Path) -> None:
        """Write the same folder elsewhere, whole or not at all."""
        signed = {} if self.signature is None else {SIGNATURE: self.signature}
        with folder_aside(place) as aside:
            for name, data in {MANIFEST: self.manifest, **self.files, **signed}.items():
                with _durably(aside / name) as stream:
                    stream.write(data)


def read_guard(path: Path | str, *, vouch: Vouch | None = None) -> GuardArtifact:
    """Return the guard in a folder, every byte of it checked.

    Args:
        path: the folder.
        vouch: as `read_files` has it.

    Raises:
        GuardError: no guard there, or a file is missing, cut, changed or not what it declares.
        GuardFormatError: another format version.
    """
    return open_files(read_files(path, vouch=vouch))


def read_files(path: Path | str, *, vouch: Vouch | None = None) -> GuardFiles:
    """Return the bytes of a guard's folder: each is what the manifest declares.

    Args:
        path: the folder.
        vouch: given the digest and the signature once these are read, and before anything that may
            be large; raises GuardError unless the guard is to be trusted.

    Raises:
        GuardError: no guard there, or a file is missing, cut, changed or not what it declares.
        GuardFormatError: another format version.
    """
    path = Path(path)
    manifest = _read_capped(path / MANIFEST, _MAX_MANIFEST_BYTES)
    signature = None
    if (path / SIGNATURE).exists():
        signature = _read_capped(path / SIGNATURE, _MAX_SIGNATURE_BYTES)
    if vouch is not None:
        vouch(hashlib.sha256(manifest).hexdigest(), signature)
    declared = _declared(_document(manifest, path), path)
    return GuardFiles(
        path=path,
        manifest=manifest,
        files={name: _read_declared(path, name, entry) for name, entry in declared.items()},
        signature=signature,
    )


def open_files(read: GuardFiles) -> GuardArtifact:
    """Return the guard that these bytes are.

    Raises:
        GuardError: they are not what they declare.
        GuardFormatError: another format version.
    """
    path = read.path
    document = _document(read.manifest, path)
    files = _declared(document, path)
    manifest = _manifest(document, path)
    head = Head.from_arrays(_arrays(read.files["head.npz"], files["head.npz"], path / "head.npz"))
    golden = _arrays(read.files["golden.npz"], files["golden.npz"], path / "golden.npz")
    _check_head(head, manifest)
    checked = _golden(golden, manifest, path / "golden.npz")
    return GuardArtifact(
        path=path,
        digest=read.digest,
        manifest=manifest,
        head=head,
        golden=checked,
        second=_second(document, read, manifest, len(checked.score)),
    )


def _second(
    document: Mapping[str, Any], read: GuardFiles, manifest: Manifest, golden: int
) -> SecondLook | None:
    """Return the second look, None where neither manifest nor files have one."""
    stored, file = document.get("second"), read.path / SECOND
    if stored is None and SECOND not in read.files:
        return None
    if stored is None or SECOND not in read.files:
        raise GuardError(
            f"expected {SECOND} and `second` in {read.path / MANIFEST} together, one is missing"
        )
    arrays = _arrays(read.files[SECOND], document["files"][SECOND], file)
    try:
        return SecondLook.from_arrays(Look.from_json(stored), arrays, manifest.taps, golden)
    except (KeyError, TypeError, AttributeError, SettingsError) as error:
        raise GuardError(f"{file} is damaged: {error}") from error


def _document(manifest: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(manifest, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise GuardError(f"expected JSON in {path / MANIFEST}, it is cut or changed") from error
    if not isinstance(document, dict) or "format" not in document:
        raise GuardError(f"expected a guard's manifest in {path / MANIFEST}, got other JSON")
    if document["format"] != FORMAT:
        raise GuardFormatError(
            f"expected a guard of format {FORMAT}, {path} has format {document['format']}: open it "
            "with the version of reluguard that wrote it, or fit it anew with this one"
        )
    return document


def _declared(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the file list, each a name in this folder, all of them together of bounded size."""
    files = document.get("files")
    if not isinstance(files, dict) or not set(_ARRAYS) <= set(files):
        raise GuardError(f"expected head.npz and golden.npz in the file list of {path / MANIFEST}")
    total = 0
    for name, entry in files.items():
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not _is_name(name):
            raise GuardError(f"the file list of {path / MANIFEST} is damaged at {name!r}")
        if size > _MAX_FILE_BYTES:
            raise GuardError(f"expected at most {_MAX_FILE_BYTES} bytes in {path / name}, got more")
        total += size
    if total > _MAX_TOTAL_BYTES:
        raise GuardError(f"expected at most {_MAX_TOTAL_BYTES} bytes in {path}, got {total}")
    return files


def _is_name(name: str) -> bool:
    """Whether this is the plain name of a file that isn't one of the guard's own."""
    plain = Path(name).name == name and "\0" not in name and not name.startswith(".")
    return plain and name not in {MANIFEST, SIGNATURE}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key comes twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"expected finite numbers, got {name}")


def _read_capped(file: Path, limit: int) -> bytes:
    try:
        if not file.is_file():
            raise GuardError(
                f"expected a guard in {file.parent}, it has no file {file.name}"
                f"{_instead(file.parent)}"
            )
        if not file.resolve().is_relative_to(file.parent.resolve()):
            raise GuardError(f"expected files inside {file.parent}, {file.name} links out of it")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise GuardError(f"expected a guard in {file.parent}: {file.name} can't be read") from error
    if len(data) > limit:
        raise GuardError(f"expected at most {limit} bytes in {file}, got more")
    return data


def _instead(folder: Path) -> str:
    """Return what is where a guard should be, "" where it is a folder of other files."""
    if folder.is_file():
        return ": it is a file, and a guard is the whole folder that fit wrote"
    if not folder.exists():
        return f": there is no such folder{near_path(folder)}"
    inner = [file.parent.name for file in sorted(folder.glob(f"*/{MANIFEST}"))]
    return f": guards lie in folders of it: {', '.join(inner[:3])}" if inner else ""


def _read_declared(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    size = entry["bytes"]
    data = _read_capped(folder / name, size)
    if len(data) != size:
        raise GuardError(f"expected {size} bytes in {folder / name}, got {len(data)}")
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise GuardError(f"{folder / name} was changed: its SHA-256 is not the manifest's")
    return data


def _arrays(data: bytes, entry: Mapping[str, Any], file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz, each checked against its declaration before it is unpacked."""
    try:
        declared = {
            str(name): (np.dtype(str(item["dtype"])), tuple(map(int, item["shape"])))
            for name, item in entry["arrays"].items()
        }
    except DAMAGE as error:
        raise GuardError(f"the arrays of {file} are not declared as such: {error}") from error
    for name, (dtype, shape) in declared.items():
        if dtype.kind not in "fiub" or min(shape, default=0) < 0:
            raise GuardError(f"expected numbers in {name} of {file}, got {dtype} {shape}")
    return read_arrays(
        file,
        error=GuardError,
        like=declared,
        content=data,
        most_bytes=_MAX_UNPACKED_BYTES,
        what="the arrays that the manifest declares",
    )


def _golden(arrays: Mapping[str, NDArray[Any]], manifest: Manifest, file: Path) -> Golden:
    spec = manifest.input
    rows = len(arrays["score"]) if "score" in arrays and arrays["score"].ndim else 0
    expected = {
        "images": (np.uint8, (rows, spec.height, spec.width, spec.channels)),
        "rates": (np.float32, (rows, sum(tap.rates for tap in manifest.taps))),
        "score": (np.float32, (rows,)),
        "prediction": (np.int64, (rows,)),
    }
    if rows < 1 or set(arrays) != set(expected):
        raise GuardError(f"expected the golden inputs in {file}, got others")
    for name, (dtype, shape) in expected.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            got = f"{arrays[name].dtype} {arrays[name].shape}"
            raise GuardError(f"expected golden {name} of {np.dtype(dtype)} {shape}, got {got}")
    return Golden(**arrays)


def _check_head(head: Head, manifest: Manifest) -> None:
    f, taps = head.features, manifest.taps
    if f.taps != len(taps):
        raise GuardError(f"expected a head for {len(taps)} taps, got one for {f.taps}")
    if len(head.clean_scores) != manifest.calibration_images:
        raise GuardError(
            f"expected {manifest.calibration_images} clean scores, got {len(head.clean_scores)}"
        )
    of_rate = np.repeat(np.arange(len(taps)), [tap.rates for tap in taps])
    if f.columns.dtype != np.int64 or not ((f.columns >= 0) & (f.columns < len(of_rate))).all():
        raise GuardError(f"expected columns of the head in [0, {len(of_rate)}), got others")
    if not np.array_equal(f.column_taps, of_rate[f.columns]):
        raise GuardError("expected each column of the head at the tap its rate is read from")


def _manifest(document: Mapping[str, Any], path: Path) -> Manifest:
    values: dict[str, Any] = {name: document.get(name) for name in Manifest.__dataclass_fields__}
    missing = sorted(name for name, value in values.items() if value is None)
    if missing:
        raise GuardError(f"{path / MANIFEST} lacks {', '.join(missing)}")
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise GuardError(f"{path / MANIFEST} is damaged: {name} is a {type(values[name])}")
    if not 0 < values["fpr"] < 1:
        raise GuardError(f"expected a false-positive rate in (0, 1), got {values['fpr']}")
    for rate, limit in values["thresholds"].items():
        if not _is_rate(rate) or not isinstance(limit, float) or not math.isfinite(limit):
            raise GuardError(
                f"{path / MANIFEST} is damaged: expected a score for each false-positive rate in "
                f"(0, 1), got {limit!r} for {rate!r}"
            )
    try:
        values["input"] = InputSpec.from_json(document["input"])
        values["taps"] = tuple(map(Tap.from_json, document["taps"]))
    except (KeyError, TypeError, AttributeError, SettingsError) as error:
        raise GuardError(f"{path / MANIFEST} is damaged: {error}") from error
    return Manifest(**values)


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def check_model(artifact: GuardArtifact, sha256: str) -> None:
    """Raise ModelMismatchError unless the guard was fitted to the model of this hash."""
    expected = artifact.manifest.model_sha256
    if expected != sha256:
        raise ModelMismatchError(
            f"the guard in {artifact.path} was fitted to the model with SHA-256 {expected[:16]}…, "
            f"this model has {sha256[:16]}…: give the file it was fitted to, to the byte, or fit a "
            "guard to this one"
        )

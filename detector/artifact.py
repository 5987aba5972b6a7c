"""The guard on disk: a small folder that holds everything but the model.

The format, version 1:

    manifest.json   what follows as fields of Manifest, plus `format` and, for every other file,
                    its size, SHA-256 and, for an npz, the dtype and shape of each array
    head.npz        Head.to_arrays()
    golden.npz      a few inputs with what the guard must say of them
    report.json, report.html    the report card, for people; not read back

Nothing is unpickled. Reading goes from cheap and certain to costly: sizes, format, hashes, declared
shapes against the sizes inside the archive, and only then arrays. A change that an old reader would
misread raises FORMAT; `tests/detector/test_artifact.py` keeps one abuse attempt per refusal.
"""

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.errors import GuardError, GuardFormatError, ModelMismatchError, SettingsError
from detector.head import Head
from detector.images import Images, InputSpec
from detector.taps import Tap

__all__ = [
    "FORMAT",
    "Golden",
    "GuardArtifact",
    "Manifest",
    "check_model",
    "folder_aside",
    "read_guard",
    "write_file",
    "write_guard",
]

FORMAT = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 4 * 2**20
_MAX_FILE_BYTES = 64 * 2**20


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


def write_guard(
    path: Path | str,
    *,
    manifest: Manifest,
    head: Head,
    golden: Golden,
    reports: Mapping[str, bytes] | None = None,
) -> GuardArtifact:
    """Write a guard folder, whole or not at all, replacing one that is there.

    Args:
        path: the folder.
        manifest: goes into manifest.json.
        head: goes into head.npz.
        golden: goes into golden.npz.
        reports: further files by name, kept beside and hashed.

    Raises:
        OSError: the disk is full or the place can't be written; what was there stays.
    """
    path = Path(path)
    arrays = {"head.npz": head.to_arrays(), "golden.npz": asdict(golden)}
    contents = {name: _npz(values) for name, values in arrays.items()} | dict(reports or {})
    files: dict[str, dict[str, Any]] = {}
    for name, data in contents.items():
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name in arrays:
            files[name]["arrays"] = {
                key: {"dtype": value.dtype.name, "shape": list(value.shape)}
                for key, value in arrays[name].items()
            }
    document = {"format": FORMAT, **_manifest_json(manifest), "files": files}
    text = json.dumps(document, indent=2, allow_nan=False, sort_keys=True).encode()
    with folder_aside(path) as aside:
        for name, data in (contents | {MANIFEST: text}).items():
            _write_durably(aside / name, data)
    return read_guard(path)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Give a fresh folder beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o755)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            path.replace(retired / path.name)
            aside.replace(path)
            shutil.rmtree(retired)
        else:
            aside.replace(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_file(
    path: Path, data: bytes = b"", *, npz: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """Write a file, whole or not at all: these bytes, or these arrays as an npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_durably(aside, data if npz is None else _npz(npz))
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _write_durably(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    values = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
    values["input"] = manifest.input.to_json()
    values["taps"] = [asdict(tap) for tap in manifest.taps]
    return values


def read_guard(path: Path | str) -> GuardArtifact:
    """Return the guard in a folder, every byte of it checked.

    Raises:
        GuardError: no guard there, or a file is missing, cut, changed or not what it declares.
        GuardFormatError: another format version.
    """
    path = Path(path)
    raw = _read_capped(path / MANIFEST, _MAX_MANIFEST_BYTES)
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise GuardError(f"expected JSON in {path / MANIFEST}, it is cut or changed") from error
    if not isinstance(document, dict) or "format" not in document:
        raise GuardError(f"expected a guard's manifest in {path / MANIFEST}, got other JSON")
    if document["format"] != FORMAT:
        raise GuardFormatError(
            f"expected a guard of format {FORMAT}, {path} has format {document['format']}"
        )
    files = document.get("files")
    if not isinstance(files, dict) or not {"head.npz", "golden.npz"} <= set(files):
        raise GuardError(f"expected head.npz and golden.npz in the file list of {path / MANIFEST}")
    contents = {name: _read_declared(path, name, entry) for name, entry in files.items()}
    manifest = _manifest(document, path)
    head = Head.from_arrays(_arrays(contents["head.npz"], files["head.npz"], path / "head.npz"))
    golden = _arrays(contents["golden.npz"], files["golden.npz"], path / "golden.npz")
    if set(golden) != set(Golden.__dataclass_fields__):
        raise GuardError(f"expected the golden inputs in {path / 'golden.npz'}, got others")
    if head.features.taps != len(manifest.taps):
        raise GuardError(
            f"expected a head for {len(manifest.taps)} taps, got one for {head.features.taps}"
        )
    return GuardArtifact(
        path=path,
        digest=hashlib.sha256(raw).hexdigest(),
        manifest=manifest,
        head=head,
        golden=Golden(**golden),
    )


def _read_capped(file: Path, limit: int) -> bytes:
    try:
        size = file.stat().st_size
        if size > limit:
            raise GuardError(f"expected at most {limit} bytes in {file}, got {size}")
        return file.read_bytes()
    except OSError as error:
        raise GuardError(f"expected a guard in {file.parent}: {file.name} can't be read") from error


def _read_declared(folder: Path, name: str, entry: Any) -> bytes:
    if not isinstance(entry, dict) or Path(name).name != name:
        raise GuardError(f"the file list of {folder / MANIFEST} is damaged at {name!r}")
    data = _read_capped(folder / name, _MAX_FILE_BYTES)
    if len(data) != entry.get("bytes"):
        raise GuardError(f"expected {entry.get('bytes')} bytes in {folder / name}, got {len(data)}")
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise GuardError(f"{folder / name} was changed: its SHA-256 is not the manifest's")
    return data


def _arrays(data: bytes, entry: Mapping[str, Any], file: Path) -> dict[str, NDArray[Any]]:
    try:
        declared = {
            name: (np.dtype(item["dtype"]), tuple(map(int, item["shape"])))
            for name, item in entry["arrays"].items()
        }
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = {info.filename: info.file_size for info in archive.infolist()}
    except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise GuardError(f"{file} does not match what the manifest declares of it") from error
    total = 0
    for name, (dtype, shape) in declared.items():
        if dtype.kind not in "fiub" or min(shape, default=0) < 0:
            raise GuardError(f"expected numbers in {name} of {file}, got {dtype} {shape}")
        total += dtype.itemsize * math.prod(shape)
    headers = 1024 * len(declared)  # an npy header takes 128 bytes or a few times that
    if set(inside) != {f"{name}.npy" for name in declared}:
        raise GuardError(f"{file} holds other arrays than the manifest declares")
    if total > _MAX_FILE_BYTES or sum(inside.values()) > total + headers:
        raise GuardError(f"{file} unpacks to more than the manifest declares or {_MAX_FILE_BYTES}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in declared}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise GuardError(f"the arrays in {file} can't be read") from error
    for name, (dtype, shape) in declared.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            got = f"{arrays[name].dtype} {arrays[name].shape}"
            raise GuardError(f"expected {name} of {dtype} {shape} in {file}, got {got}")
    return arrays


def _manifest(document: Mapping[str, Any], path: Path) -> Manifest:
    values: dict[str, Any] = {name: document.get(name) for name in Manifest.__dataclass_fields__}
    missing = sorted(name for name, value in values.items() if value is None)
    if missing:
        raise GuardError(f"{path / MANIFEST} lacks {', '.join(missing)}")
    try:
        values["input"] = InputSpec.from_json(document["input"])
        values["taps"] = tuple(
            Tap(**{**tap, "shape": tuple(tap["shape"])}) for tap in document["taps"]
        )
        manifest = Manifest(**values)
        if not 0 < manifest.fpr < 1:
            raise GuardError(f"expected a false-positive rate in (0, 1), got {manifest.fpr}")
    except (KeyError, TypeError, AttributeError, SettingsError) as error:
        raise GuardError(f"{path / MANIFEST} is damaged: {error}") from error
    return replace(manifest, thresholds=dict(manifest.thresholds))


def check_model(artifact: GuardArtifact, sha256: str) -> None:
    """Raise ModelMismatchError unless the guard was fitted to the model of this hash."""
    expected = artifact.manifest.model_sha256
    if expected != sha256:
        raise ModelMismatchError(
            f"the guard in {artifact.path} was fitted to the model with SHA-256 {expected[:16]}…, "
            f"this model has {sha256[:16]}…"
        )

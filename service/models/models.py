"""The models being served: each a name, a live version and a queue. Reload swaps one pointer.

A new version is loaded, verified and replayed beside the old one; requests finish on the version
that decoded them; a version that is refused leaves the last good one in place. A challenger that is
refused never holds its champion up: the champion goes live without one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import DetectorError
from reluguard.detector.looks.judging import Looks
from reluguard.detector.looks.thresholds import Thresholds, thresholds_at
from reluguard.detector.onnx_file.beside import beside
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.history import earlier, history
from reluguard.detector.shelf.versions import CHALLENGER, CURRENT, NAME, pointed
from reluguard.detector.verdict import Readings, Verdicts
from reluguard.service.errors import (
    NotFoundError,
    NotReadyError,
    ReloadError,
    RequestError,
    StartError,
)
from reluguard.service.models.batching import Batcher
from reluguard.service.monitoring.hour import SCORES
from reluguard.service.monitoring.live_guards import LiveGuard
from reluguard.service.monitoring.metrics import ModelMetrics
from reluguard.service.monitoring.shadow import Shadow

__all__ = ["VERSION", "Model", "Repository", "Source", "Version", "check_name", "sources_in"]

_log = logging.getLogger(__name__)
_UNLOADED = "unloaded"
_LONGEST_NAME = 128
VERSION = "1"  # of every model, as the Open Inference Protocol counts; the guard has its digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model and its guard lie."""

    name: str
    model: Path
    guard: Path
    challenger: Path | None = None
    public_key: Path | None = None
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    readings: bool = False  # let verdicts carry what the head read, for capture
    looks: Looks | None = None  # when a second look is taken; where the guard has one if None
    second_model: Path | None = None  # the network that looks again, of a guard fitted with one

    def guard_folder(self) -> Path:
        """Return the guard's folder, through a link or a `CURRENT` file that names it.

        Raises:
            ShelfError: `CURRENT` names something outside the folder it lies in.
        """
        folder = self.guard.resolve()
        return pointed(folder, CURRENT) or folder

    def challenger_folder(self) -> Path | None:
        """Return the challenger's folder: our own, or what the guard's `CHALLENGER` file names.

        Raises:
            ShelfError: `CHALLENGER` names something outside the folder it lies in.
        """
        if self.challenger is not None:
            return self.challenger.resolve()
        named = pointed(self.guard.resolve(), CHALLENGER)
        return None if named == self.guard_folder() else named

    def fingerprint(self) -> tuple[object, ...]:
        """Return a value that changes when any of the files does."""
        return (
            _stats(self.guard_folder),
            _stats(self.challenger_folder),
            _stats(lambda: self.model),
            _stats(lambda: self.public_key),
            _stats(lambda: self.second_model),
        )

    def open(self) -> "Version":
        """Return the verified version on disk.

        A challenger that is refused is left out; the version says why.

        Raises:
            DetectorError: the model or the guard is refused, or the pointer is broken.
        """
        folder = self.guard_folder()
        try:
            rival = self.challenger_folder()
            guard = self._open(folder, rival)
        except DetectorError as error:
            # of two that don't open together one alone tells whose fault it was
            return Version.of(self._open(folder, None), refused=str(error))
        return Version.of(guard)

    def open_earlier(self) -> "Version | None":
        """Return the newest version that served before the current one and opens, or None.

        Only a shelf knows: its history says what served.
        """
        shelf = self.guard.resolve()
        try:
            place = pointed(shelf, CURRENT)
            changes = history(shelf)
        except DetectorError:
            return None
        named = "" if place is None else place.name
        live = [change.guard for change in changes if named and change.guard.startswith(named)]
        for digest in reversed(earlier(changes, live[-1]) if live else []):
            try:
                return Version.of(self._open(shelf / digest[:NAME], None))
            except DetectorError as error:
                _log.error("model %s: refused too, %s: %s", self.name, digest[:NAME], error)
        return None

    def _open(self, folder: Path, rival: Path | None) -> Guard:
        return Guard.open(
            self.model,
            folder,
            providers=self.providers,
            threads=self.threads,
            readings=self.readings,
            challenger=rival,
            public_key=self.public_key,
            looks=self.looks,
            second_model=self.second_model,
        )


def _stats(place: Callable[[], Path | None]) -> tuple[object, ...]:
    """Return a value that changes when a file does, or any of a folder's."""
    try:
        path = place()
        if path is None:
            return ()
        files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except (OSError, DetectorError) as error:
        return (str(error),)
    return (
        str(path),
        *((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """One verified pair of model and guard, ready to run.

    Attributes:
        guard: the model with its guard, and its challenger if there is one.
        shadow: the challenger's tally since this version went live.
        refused: why there is no challenger though there should be one; else empty.
        since: when it went live, seconds since the epoch.
        thresholds: that it would flag by at each rate its manifest names.
    """

    guard: Guard
    shadow: Shadow | None = None
    refused: str = ""
    since: float = 0.0
    thresholds: tuple[Thresholds, ...] = ()

    @classmethod
    def of(cls, guard: Guard, *, refused: str = "") -> "Version":
        """Return a version that begins now."""
        rival = guard.challenger
        shadow = None if rival is None else Shadow(digest=rival.digest, bounds=SCORES)
        artifact = guard.artifact
        return cls(
            guard=guard,
            shadow=shadow,
            refused=refused,
            since=time.time(),
            # of many classes that takes a while, and callers ask on the event loop
            thresholds=thresholds_at(
                artifact.head,
                artifact.second,
                map(float, artifact.manifest.thresholds),
                guard.looks,
            ),
        )

    @property
    def digest(self) -> str:
        """The guard's digest."""
        return self.guard.artifact.digest

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the first look's verdicts on this checked tensor. Called from a worker thread."""
        return self.guard.verdicts(self.guard.run_checked(tensor))

    def wanted(self, first: Verdicts) -> NDArray[np.bool_]:
        """Return which rows are to be looked at again: bool, (N,)."""
        again = self.guard.again
        return np.zeros(len(first), np.bool_) if again is None else again.is_wanted(first)

    def again(self, tensor: NDArray[Any], first: Readings) -> NDArray[np.float32]:
        """Return second scores of these rows. Called from a worker thread."""
        again = self.guard.again
        assert again is not None  # otherwise no row is wanted
        return again.scores(tensor, first)

    def judged(
        self, first: Verdicts, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> Verdicts:
        """Return the verdicts of both looks, those of the first where there is no second."""
        return self.guard.judged(first, rows, scores)


@dataclass(slots=True, kw_only=True, eq=False)
class Model:
    """One served model.

    Attributes:
        name: what callers say.
        source: its files; None if it was handed over as an object and can't be reloaded.
        batcher: its queue.
        metrics: its metrics.
        reason: why it isn't ready, for RepositoryIndex; empty when it is.
    """

    name: str
    source: Source | None
    batcher: Batcher
    metrics: ModelMetrics
    reason: str = "loading"
    _version: Version | None = None
    _seen: tuple[object, ...] = ()
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._version is not None

    @property
    def version(self) -> Version:
        """The live version.

        Raises:
            NotReadyError: none is loaded.
        """
        if self._version is None:
            raise NotReadyError(f"the model {self.name!r} is not ready")
        return self._version

    def show(self, version: Version) -> None:
        """Make this version live: one pointer."""
        self._version = version
        self.reason = ""
        guard = version.guard
        manifest = guard.artifact.manifest
        self.metrics.guard(
            LiveGuard(
                digest=version.digest,
                model_sha256=manifest.model_sha256,
                created=_seconds(manifest.created_at),
                thresholds=guard.thresholds,
                looks=guard.looks,
                challenger="" if version.shadow is None else version.shadow.digest,
                challenger_thresholds=guard.challenger_thresholds,
                challenger_refused=bool(version.refused),
            )
        )

    async def load(self, loader: Executor) -> None:
        """Load what is on disk and make it live.

        Raises:
            ReloadError: it was refused, and what was live stays live.
        """
        if self.source is None:
            raise ReloadError(f"the model {self.name!r} has no files to load from")
        async with self._lock:
            # taken before reading: what changes meanwhile is seen as a change
            self._seen = self.source.fingerprint()
            loop = asyncio.get_running_loop()
            try:
                version = await loop.run_in_executor(loader, self.source.open)
            except (DetectorError, ReloadError, OSError) as error:
                self.metrics.reloaded("refused")
                kept = await self._fall_back(loader, error)
                if kept is None:
                    raise ReloadError(
                        f"the files of {self.name!r} were refused; the server's log says why"
                    ) from error
                version = kept
            self.show(version)
            self.metrics.reloaded("swapped")
            _log.info("model %s: guard %s is live", self.name, version.digest)
            if version.shadow is not None:
                _log.info("model %s: challenger %s in shadow", self.name, version.shadow.digest)
            if version.refused:
                self.metrics.reloaded("challenger_refused")
                _log.error(
                    "model %s: the challenger was refused, the guard serves without: %s",
                    self.name,
                    version.refused,
                )

    async def _fall_back(self, loader: Executor, error: Exception) -> Version | None:
        """Return what serves in place of what was refused, or None if nothing new does.

        A server that died while it refused a guard must come up with the last good one again.
        """
        if self._version is not None:
            _log.error("model %s: refused, the last good version stays: %s", self.name, error)
            return None
        assert self.source is not None  # nothing else can be refused
        work = asyncio.get_running_loop().run_in_executor(loader, self.source.open_earlier)
        version = await work
        kept = "not served" if version is None else "the version that served before it does again"
        _log.error("model %s: refused, %s: %s", self.name, kept, error)
        if version is None:
            self.reason = "refused"
        return version

    async def follow(self, loader: Executor, *, again: bool = False) -> None:
        """Load if the files changed since they were last looked at; a refusal is logged only.

        A model that was refused when the server started is tried again too, one that was unloaded
        on an admin's word is not.

        Args:
            loader: reads the files.
            again: try a model that is not ready although nothing changed.
        """
        if self.source is None or self.reason == _UNLOADED:
            return
        seen = await asyncio.get_running_loop().run_in_executor(loader, self.source.fingerprint)
        if seen == self._seen and not (again and self._version is None):
            return
        try:
            await self.load(loader)
        except ReloadError:
            _log.debug("model %s: refused", self.name)

    def unload(self) -> None:
        """Stop answering; requests already decoded finish."""
        self._version = None
        self.reason = _UNLOADED
        self.metrics.unloaded()


def check_name(name: str) -> None:
    """Raise StartError unless a model's name can be told to callers and to Prometheus."""
    if not name or not name.isprintable() or len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise StartError(
            f"expected a model name of at most {_LONGEST_NAME} printable characters, got {name!a}: "
            "rename the file or folder, or give one by --set name=NAME"
        )


class Repository:
    """All served models by name."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) != len(models):
            raise StartError("expected every model to have its own name")

    def __iter__(self) -> Iterator[Model]:
        return iter([*self._models.values()])  # one may be added while another is loaded

    def __len__(self) -> int:
        return len(self._models)

    def add(self, model: Model) -> None:
        """Add one more model."""
        self._models[model.name] = model

    def get(self, name: str) -> Model:
        """Return the model of this name; an empty name is the only model.

        Raises:
            NotFoundError: there is none.
            RequestError: the name is empty and there are several.
        """
        if not name:
            if len(self._models) != 1:
                raise RequestError(
                    f"expected the name of one of {len(self._models)} models, got none"
                )
            return next(iter(self._models.values()))
        model = self._models.get(name)
        if model is None:
            raise NotFoundError(f"unknown model {name[:64]!r}")
        return model


def sources_in(
    folder: Path,
    *,
    providers: tuple[str, ...] | None,
    threads: int | None,
    readings: bool = False,
    public_key: Path | None = None,
    looks: Looks | None = None,
) -> dict[str, Source]:
    """Return what a model folder holds: one `NAME/model.onnx` with `NAME/guard` per model.

    Where there is no such file, the export beside the guard is the model: `NAME/guard.onnx`. A
    folder `NAME/challenger` is that guard's challenger.

    Raises:
        StartError: the folder can't be read.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise StartError(f"the model folder {folder} can't be read: {error}") from error
    models = {name: _model_in(folder / name) for name in names}
    return {
        name: Source(
            name=name,
            model=model,
            guard=folder / name / "guard",
            challenger=_folder(folder / name / "challenger"),
            public_key=public_key,
            providers=providers,
            threads=threads,
            readings=readings,
            looks=looks,
        )
        for name, model in models.items()
        if model is not None
    }


def _model_in(folder: Path) -> Path | None:
    """Return the ONNX file in a folder of one model, None where there is none."""
    places = (folder / "model.onnx", beside(folder / "guard"))
    return next((place for place in places if place.is_file()), None)


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def _seconds(created_at: str) -> float:
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

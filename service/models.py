"""The models being served: each a name, a live version and a queue. Reload swaps one pointer.

A new version is loaded, verified and replayed beside the old one; requests finish on the version
that decoded them; a version that is refused leaves the last good one in place.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from detector.errors import DetectorError
from detector.runtime import Guard
from detector.verdict import Verdicts
from service.batching import Batcher
from service.errors import NotFoundError, NotReadyError, ReloadError, RequestError, StartError
from service.metrics import ModelMetrics

__all__ = ["VERSION", "Model", "Repository", "Source", "Version", "sources_in"]

_log = logging.getLogger(__name__)
VERSION = "1"  # of every model, as the Open Inference Protocol counts; the guard has its digest
_POINTER = "CURRENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model and its guard lie."""

    name: str
    model: Path
    guard: Path
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    readings: bool = False  # let verdicts carry what the head read, for capture

    def guard_folder(self) -> Path:
        """Return the guard's folder, through a link or a `CURRENT` file that names it.

        Raises:
            ReloadError: `CURRENT` names something outside the folder it lies in.
        """
        folder = self.guard.resolve()
        pointer = folder / _POINTER
        if not pointer.is_file():
            return folder
        name = pointer.read_text(encoding="utf-8").strip()
        if not name or Path(name).name != name or name in {".", ".."}:
            raise ReloadError(f"expected the name of one folder in {pointer}, got {name[:64]!r}")
        return folder / name

    def fingerprint(self) -> tuple[object, ...]:
        """Return a value that changes when any of the files does."""
        try:
            folder = self.guard_folder()
            files = sorted(file for file in folder.iterdir() if file.is_file())
            stats = [(file.name, file.stat()) for file in [*files, self.model]]
        except (OSError, ReloadError) as error:
            return (str(error),)
        return (
            str(folder),
            *((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats),
        )

    def open(self) -> "Version":
        """Return the verified version on disk.

        Raises:
            DetectorError: the model or the guard is refused.
            ReloadError: the pointer is broken.
        """
        guard = Guard.open(
            self.model,
            self.guard_folder(),
            providers=self.providers,
            threads=self.threads,
            readings=self.readings,
        )
        return Version(guard=guard)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """One verified pair of model and guard, ready to run."""

    guard: Guard

    @property
    def digest(self) -> str:
        """The guard's digest."""
        return self.guard.artifact.digest

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the verdicts on this tensor. Called from a worker thread."""
        return self.guard.verdicts(self.guard.run(tensor))


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
        artifact = version.guard.artifact
        self.metrics.guard(
            digest=artifact.digest,
            model_sha256=artifact.manifest.model_sha256,
            created=_seconds(artifact.manifest.created_at),
            threshold=float(version.guard.threshold),
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
                stays = "not served" if self._version is None else "the last good version stays"
                _log.error("model %s: refused, %s: %s", self.name, stays, error)
                if self._version is None:
                    self.reason = "refused"
                raise ReloadError(
                    f"the files of {self.name!r} were refused; the server's log says why"
                ) from error
            self.show(version)
            self.metrics.reloaded("swapped")
            _log.info("model %s: guard %s is live", self.name, version.digest)

    async def follow(self, loader: Executor) -> None:
        """Load if the files changed since they were last looked at; a refusal is logged only."""
        if self.source is None or self._version is None:
            return
        seen = await asyncio.get_running_loop().run_in_executor(loader, self.source.fingerprint)
        if seen == self._seen:
            return
        try:
            await self.load(loader)
        except ReloadError:
            _log.debug("model %s: refused", self.name)

    def unload(self) -> None:
        """Stop answering; requests already decoded finish."""
        self._version = None
        self.reason = "unloaded"
        self.metrics.unloaded()


class Repository:
    """All served models by name."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) != len(models):
            raise StartError("expected every model to have its own name")

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

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
) -> dict[str, Source]:
    """Return what a model folder holds: one `NAME/model.onnx` with `NAME/guard` per model.

    Raises:
        StartError: the folder can't be read.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise StartError(f"the model folder {folder} can't be read: {error}") from error
    return {
        name: Source(
            name=name,
            model=folder / name / "model.onnx",
            guard=folder / name / "guard",
            providers=providers,
            threads=threads,
            readings=readings,
        )
        for name in names
        if (folder / name / "model.onnx").is_file()
    }


def _seconds(created_at: str) -> float:
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

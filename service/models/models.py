"""The models being served: each a name, a live version and a queue. Reload swaps one pointer.

A new version is loaded, verified and replayed beside the old one; requests finish on the version
that decoded them; a version that is refused leaves the last good one in place. A challenger that is
refused never holds its champion up: the champion goes live without one.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reluguard.detector.errors import DetectorError
from reluguard.service.errors import (
    NotFoundError,
    NotReadyError,
    ReloadError,
    RequestError,
    StartError,
)
from reluguard.service.models.batching import Batcher
from reluguard.service.models.sources import Source
from reluguard.service.models.version import Version
from reluguard.service.monitoring.live_guards import LiveGuard
from reluguard.service.monitoring.metrics import ModelMetrics

__all__ = ["VERSION", "Model", "Repository", "check_name"]

_log = logging.getLogger(__name__)
_UNLOADED = "unloaded"
_LONGEST_NAME = 128
VERSION = "1"  # of every model, as the Open Inference Protocol counts; the guard has its digest


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


def _seconds(created_at: str) -> float:
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

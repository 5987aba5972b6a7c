"""What a server serves: the models its settings name, loaded, unloaded and followed."""

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import Executor

from reluguard.detector.runtime import Guard
from reluguard.service.errors import NotFoundError, ReloadError, StartError
from reluguard.service.models.batching import Batcher
from reluguard.service.models.models import Model, Repository, check_name
from reluguard.service.models.slots import Slots
from reluguard.service.models.sources import Source, sources_of
from reluguard.service.models.version import Version
from reluguard.service.monitoring.metrics import Metrics
from reluguard.service.settings import Settings

__all__ = ["Catalogue"]

_log = logging.getLogger(__name__)
_INLINE_S = 0.0003  # about what a thread and back costs
_INLINE_ON_ONE_S = 0.002  # where there is one processor nothing else could run meanwhile


class Catalogue:
    """All models of one server. Everything in it belongs to one event loop.

    Args:
        settings: which models, and how their queues work.
        cores: processors that this process may use.
        workers: runs models.
        loader: reads files.
        metrics: of the server.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        cores: int,
        workers: Executor,
        loader: Executor,
        metrics: Metrics,
    ) -> None:
        self._settings, self._cores = settings, cores
        self._workers, self._loader = workers, loader
        self._metrics = metrics
        self._slots = Slots(settings.workers)
        self._batchers: list[Batcher] = []
        self.repository = Repository([])

    def __iter__(self) -> Iterator[Model]:
        return iter(self.repository)

    @property
    def has_files(self) -> bool:
        """Whether any model can be loaded anew."""
        return any(model.source for model in self)

    @property
    def guards(self) -> dict[str, Guard]:
        """The live guards by name of their model."""
        return {model.name: model.version.guard for model in self if model.is_ready}

    def take(self, guard: Guard) -> None:
        """Serve a guard that was handed over as an object; nothing can load it anew."""
        model = self._model(self._settings.name or "model", None)
        model.show(Version.of(guard))
        self.repository = Repository([model])

    async def open(self) -> None:
        """Load what the settings name; a model that is refused stays away.

        Raises:
            StartError: there is none, or none could be loaded.
        """
        models = [self._model(source.name, source) for source in self._sources().values()]
        if not models:
            raise StartError("expected at least one model to serve, got none")
        refused: list[ReloadError] = []
        for model in models:
            try:
                await model.load(self._loader)
            except ReloadError as error:
                refused.append(error)
        if len(refused) == len(models):
            cause = refused[0].__cause__ or refused[0]
            raise StartError(str(cause)) from cause
        self.repository = Repository(models)

    async def load(self, name: str) -> None:
        """Load a model, one that lies in the folder of models too.

        Raises:
            NotFoundError: there is none of this name.
            ReloadError: its files were refused.
        """
        try:
            model = self.repository.get(name)
        except NotFoundError:
            sources = await asyncio.get_running_loop().run_in_executor(self._loader, self._sources)
            if name not in sources:  # only names that lie in the folder, never a path
                raise
            model = self._model(name, sources[name])
            try:
                await model.load(self._loader)
            except ReloadError:
                self._batchers.remove(model.batcher)  # what was refused leaves nothing running
                await model.batcher.close()
                raise
            self.repository.add(model)
        else:
            await model.load(self._loader)

    def unload(self, name: str) -> None:
        """Stop answering for a model.

        Raises:
            NotFoundError: there is none of this name.
        """
        self.repository.get(name).unload()

    async def follow(self) -> None:
        """Look whether any model's files changed, and take what did."""
        for model in self:
            try:
                await model.follow(self._loader)
            except Exception:  # noqa: BLE001 - one odd file must not end the watch
                _log.exception("looking for a new guard of %s failed", model.name)

    async def reload(self) -> None:
        """Look at every loaded model's files now and take what changed."""
        for model in self:
            await model.follow(self._loader, again=True)

    async def close(self) -> None:
        """Finish what the queues hold."""
        for batcher in reversed(self._batchers):
            await batcher.close()

    def _sources(self) -> dict[str, Source]:
        settings = self._settings
        threads = settings.threads or max(1, self._cores // settings.workers)
        return sources_of(settings, threads)

    def _model(self, name: str, source: Source | None) -> Model:
        check_name(name)
        settings = self._settings
        metrics = self._metrics.model(name, settings.policy)
        batcher = Batcher(
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_s,
            max_queue_rows=settings.max_queue_rows,
            max_wait_s=settings.max_wait_s,
            executor=self._workers,
            slots=self._slots,
            metrics=metrics,
            inline_s=_INLINE_S if self._cores > 1 else _INLINE_ON_ONE_S,
        )
        batcher.start()
        self._batchers.append(batcher)
        return Model(name=name, source=source, batcher=batcher, metrics=metrics)

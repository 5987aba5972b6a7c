"""The server: wires the parts, listens, follows guards, drains."""

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import threading
from collections.abc import Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from reluguard import service
from reluguard.detector.allowance import available_cores
from reluguard.detector.runtime import Guard
from reluguard.service.captures.capture import Capture
from reluguard.service.captures.reader import CaptureReader
from reluguard.service.decoding.decoders import Decoders
from reluguard.service.edge import Edge
from reluguard.service.errors import StartError
from reluguard.service.listening import (
    SERVICES,
    bind,
    certificate_files,
    certificates,
    probe_options,
    reflect,
    server_options,
)
from reluguard.service.models.catalogue import Catalogue
from reluguard.service.monitoring.decisions import open_decisions
from reluguard.service.monitoring.exported import open_export
from reluguard.service.monitoring.flagged import Flagged
from reluguard.service.monitoring.metrics import Metrics
from reluguard.service.monitoring.tracing import Tracing, open_tracing
from reluguard.service.protocols import open_inference, servicers
from reluguard.service.protocols.health import Health
from reluguard.service.protocols.inspection import Inspector, Limits
from reluguard.service.protocols.policy import Rules
from reluguard.service.quotas import Quota, Quotas
from reluguard.service.rest.listener import HttpServer
from reluguard.service.rest.routes import Routes
from reluguard.service.room import Room, room_of, row_bytes
from reluguard.service.security import Tokens
from reluguard.service.settings import Settings
from reluguard.service.share import ALONE, Share
from reluguard.service.watching.table import Table
from reluguard.service.watching.watch import Watch
from reluguard.service.web.http import WebServer
from reluguard.service.web.snapshot import ServerStatus, model_status

__all__ = ["Server"]

_log = logging.getLogger(__name__)
_LAST_GRACE_S = 0.3
_FEWEST_DECODERS = 2  # one caller may hold half of them
_SETTLE_S = 0.02
_KEY_BYTES = 32
_FORGET_S = 60.0
_WORKER_NICE = 10
_LOWEST = 19


class Server:
    """One server. Everything in it belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        guard: Guard | None = None,
        registry: CollectorRegistry | None = None,
        tracing: Tracing | None = None,
        share: Share = ALONE,
    ) -> None:
        self.settings = settings
        self._share = share
        self._tracing = tracing
        self.metrics = Metrics(registry or CollectorRegistry(), processes=share.of)
        self._given = guard
        # built on the loop, by start()
        self.address = ""
        self.flagged = Flagged()
        self.metrics_address: str | None = None
        self.http_address: str | None = None
        self.health_address: str | None = None
        self._stack = contextlib.AsyncExitStack()
        self._stopped = False
        self._decoder: ThreadPoolExecutor
        self._loader: ThreadPoolExecutor
        self._edge: Edge
        self._health: Health
        self._tokens: Tokens | None
        self._grpc: Any
        self._http: HttpServer | None = None
        self._questions: Watch | None = None
        self._captures: CaptureReader | None = None
        self.catalogue: Catalogue
        self.room: Room

    @property
    def in_flight(self) -> int:
        """Return how many calls are being handled."""
        return self._edge.in_flight

    @property
    def is_up(self) -> bool:
        """Whether it has started."""
        return bool(self.address)

    @property
    def reading(self) -> int:
        """Return how many messages are on their way."""
        return self._edge.intake.reading + self._edge.lobby.reading

    async def start(self) -> None:
        """Load every model, listen, and say SERVING.

        Raises:
            StartError: a port is in use, a file can't be used, or no model could be loaded.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        settings = self.settings
        workers = self._pool("model", settings.workers)
        self._decoder = self._pool("decode", self._cores)
        self._loader = self._pool("load", 1)
        self._tokens = None if settings.tokens is None else Tokens(settings.tokens)
        credentials = certificates(settings)
        if self._tracing is None:
            self._tracing = open_tracing(settings.tracing)
        if self._tracing is not None:
            self._stack.callback(self._tracing.close)
        await self._open_models(workers)
        inspector = self._way_in()
        servicer = self._by_grpc(inspector)
        await self._catch_up()
        self.address = settings.place.of_port(bind(self._grpc, settings.place, credentials))
        self._stack.callback(settings.place.remove)
        await self._answer_probes()
        self._http = self._by_http(servicer, inspector)
        web = self._web()
        await self._grpc.start()
        if self._http is not None:
            self._http.start()
        if web is not None:
            web.start()
            self._stack.callback(web.close)
            self.metrics_address = web.address
        await self._show_health()
        self._watch()
        _log.info("serving on %s, metrics on %s", self.address, self.metrics_address)
        if self.http_address is not None:
            _log.info("serving by HTTP on %s", self.http_address)
        if settings.is_open and not settings.place.is_private:
            _log.warning(
                "anybody who reaches %s may ask and sees raw scores: set tokens or tls_client_ca",
                self.address,
            )

    async def _open_models(self, workers: Executor) -> None:
        self.catalogue = Catalogue(
            self.settings,
            cores=self._cores,
            workers=workers,
            loader=self._loader,
            metrics=self.metrics,
        )
        self._stack.push_async_callback(self.catalogue.close)
        if self._given is None:
            await self.catalogue.open()
        else:
            self.catalogue.take(self._given)

    def _way_in(self) -> Inspector:
        """Make what every request passes, whatever its protocol: the edge, then the inspector."""
        settings = self.settings
        self.room = room_of(settings, self._largest_row())
        quotas = Quotas(
            Quota(
                calls=settings.caller_calls,
                calls_per_s=settings.caller_calls_per_s,
                rows_per_s=settings.caller_rows_per_s,
            ),
            self.metrics.call_refused,
            self._share.uses,
        )
        decisions = self._stack.enter_context(
            open_decisions(
                settings.decision_log,
                max_bytes=settings.decision_log_bytes,
                files=settings.decision_log_files,
                share=settings.decision_share,
                dropped=self.metrics.decision_dropped,
                write=self._share.decide,
                export=open_export(settings.decision_export),
            )
        )
        self._edge = Edge(
            metrics=self.metrics,
            tokens=self._tokens,
            decisions=decisions,
            quotas=quotas,
            room=self.room,
            receive_s=settings.receive_s,
            tracing=self._tracing,
        )
        self._health = Health([*SERVICES, *(model.name for model in self.catalogue)])
        limits = Limits(
            max_rows=settings.max_rows,
            max_message_bytes=self.room.max_message_bytes,
            max_pixels=settings.max_pixels,
        )
        decoders = Decoders(
            size=max(_FEWEST_DECODERS, self._cores),
            decode_s=settings.decode_s,
            max_pixels=settings.max_pixels,
            starter=self._pool("starter", 1),
            ended=self.metrics.decoder_ended,
        )
        self._stack.push_async_callback(decoders.close)
        self._questions = self._watch_over_questions()
        if settings.capture is not None:
            self._captures = CaptureReader(settings.capture, self._loader, self.metrics.drift)
        return Inspector(
            decoder=self._decoder,
            decoders=decoders,
            quotas=quotas,
            limits=limits,
            rules=Rules(
                policy=settings.policy,
                fail=settings.fail,
                likelihood_step=settings.likelihood_step,
            ),
            flagged=self.flagged,
            capture=self._capture(),
            watch=self._questions,
            decisions=decisions,
            tracing=self._tracing,
        )

    def _by_grpc(self, inspector: Inspector) -> open_inference.OpenInferenceServicer:
        """Make the gRPC server, which listens to nobody yet."""
        settings = self.settings
        self._grpc = grpc.aio.server(
            options=server_options(settings, inspector.limits, shared=not self._share.is_alone)
        )
        self._stack.push_async_callback(self._grpc.stop, None)
        control = open_inference.RepositoryControl(
            functools.partial(self._asked, "load"),
            functools.partial(self._asked, "unload"),
            enabled=settings.repository_control,
        )
        repository = self.catalogue.repository
        servicer = open_inference.OpenInferenceServicer(
            repository, inspector, self._health, control
        )
        self._grpc.add_generic_rpc_handlers(
            (
                servicers.GuardServicer(repository, inspector, self.room).handlers(self._edge),
                servicer.handlers(self._edge),
                self._health.handlers(self._edge.lobby),
            )
        )
        if settings.reflection:
            reflect(self._grpc)
        return servicer

    def _watch(self) -> None:
        settings = self.settings
        # one process tells the others when to look: all take a new guard at once
        if settings.reload_s and self.catalogue.has_files and self._share.is_alone:
            self._background(self._follow())
        if settings.capture is not None and self._share.leads:
            self._background(self._watch_captures())
        if self._questions is not None and self._share.leads:
            self._background(self._forget_questions(self._questions))

    @property
    def _cores(self) -> int:
        """Return this process's part of the processors."""
        return max(1, available_cores() // self._share.of)

    def _watch_over_questions(self) -> Watch | None:
        settings, share = self.settings, self._share
        if settings.watch == "off":
            return None
        if self._given is not None and not self._given.has_readings:
            raise StartError("expected a guard opened with readings=True, which watch needs")
        key = share.key or secrets.token_bytes(_KEY_BYTES)
        watch = Watch(
            Table(settings.watch_max_bytes, key=key, handle=share.watch),
            key=key,
            refuses=settings.watch == "refuse",
            near=settings.watch_near,
            distance=settings.watch_distance,
            half_life_s=settings.watch_s,
        )
        self.metrics.watch(watch)
        return watch

    @staticmethod
    async def _forget_questions(watch: Watch) -> None:
        while True:
            await asyncio.sleep(min(watch.half_life_s, _FORGET_S))
            watch.forget()

    def _capture(self) -> Capture | None:
        settings = self.settings
        if settings.capture is None:
            return None
        if self._given is not None and not self._given.has_readings:
            raise StartError("expected a guard opened with readings=True, which capture needs")
        capture = Capture(
            settings.capture,
            share=settings.capture_share,
            max_bytes=settings.capture_max_bytes,
            ttl_s=settings.capture_ttl_s,
            with_images=settings.capture_images,
            dropped=self.metrics.capture_dropped,
            kept=self.metrics.capture_kept,
            damaged=self.metrics.capture_damaged,
            alone=self._share.is_alone,
        )
        self._stack.callback(capture.close)
        return capture

    def _pool(self, name: str, size: int) -> ThreadPoolExecutor:
        executor = ThreadPoolExecutor(size, thread_name_prefix=name, initializer=_give_way)
        self._stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        return executor

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    def _largest_row(self) -> int:
        return max(row_bytes(guard.spec) for guard in self.catalogue.guards.values())

    def _web(self) -> WebServer | None:
        place = self.settings.metrics_place
        if place is None:
            return None
        return WebServer(
            place, self.metrics.registry, self.status, self.flagged.newest, self._tokens
        )

    async def _answer_probes(self) -> None:
        """Answer health, and nothing else, in plain text where that is wanted."""
        place = self.settings.health_place
        if place is None:
            return
        probes = grpc.aio.server(options=probe_options(shared=not self._share.is_alone))
        self._stack.push_async_callback(probes.stop, None)
        probes.add_generic_rpc_handlers((self._health.handlers(self._edge.lobby),))
        self.health_address = place.of_port(bind(probes, place, None))
        self._stack.callback(place.remove)
        await probes.start()

    def _by_http(
        self, servicer: open_inference.OpenInferenceServicer, inspector: Inspector
    ) -> HttpServer | None:
        """Return what serves the open protocol by HTTP, None where nobody wants it."""
        settings = self.settings
        place = settings.http_place
        if place is None:
            return None
        files = certificate_files(settings)
        listener = place.bound(share=not self._share.is_alone)
        self._stack.callback(place.release, listener)
        server = HttpServer(
            listener,
            Routes(self._edge, servicer, inspector, self.room).serve,
            tls=None if files is None else files.context(),
            max_connections=self.room.max_http_connections,
            max_body=self.room.max_message_bytes,
            idle_s=settings.max_connection_idle_s,
        )
        self._stack.push_async_callback(server.close, 0.0)
        self.http_address = place.bound_address(listener)
        return server

    def status(self) -> ServerStatus:
        """Return the picture of the server. Safe to call from any thread."""
        captures = self._captures
        return ServerStatus(
            state="serving" if self._health.is_serving else "not serving",
            version=service.version(),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            room=self.room,
            watch=None if self._questions is None else self._questions.status(),
            models=[
                model_status(
                    model,
                    self.settings.policy,
                    captured=None if captures is None else captures.captured.get(model.name),
                    drift=None if captures is None else captures.drift.get(model.name),
                )
                for model in self.catalogue
            ],
        )

    async def _show_health(self) -> None:
        ready = {model.name: model.is_ready for model in self.catalogue}
        for name, is_ready in ready.items():
            await self._health.set(name, serving=is_ready)
        for name in ("", *SERVICES):
            await self._health.set(name, serving=any(ready.values()))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.settings.reload_s)
            await self.follow()

    async def follow(self) -> None:
        """Look whether any model's files changed, and take what did."""
        await self.catalogue.follow()
        await self._show_health()

    async def _watch_captures(self) -> None:
        while True:
            await self.read_captures()
            await asyncio.sleep(self.settings.drift_s)

    async def read_captures(self) -> None:
        """Look at what was captured: how much waits for labels, and whether traffic drifted."""
        if self._captures is not None:
            await self._captures.read(self.catalogue.guards)

    async def reload(self) -> None:
        """Look at every loaded model's files now and take what changed."""
        await self.catalogue.reload()
        await self._show_health()

    async def _asked(self, what: str, name: str) -> None:
        """Load or unload a model in all processes."""
        await (self.change if self._share.change is None else self._share.change)(what, name)

    async def _catch_up(self) -> None:
        """Load and unload what other processes were told to before this one started."""
        for name in self._share.loaded:
            await self.change("load", name)
        for name in self._share.unloaded:
            await self.change("unload", name)

    async def change(self, what: str, name: str) -> None:
        """Load ("load") or unload ("unload") a model in this process.

        Raises:
            NotFoundError: there is none of this name.
            ReloadError: its files were refused.
        """
        if what == "load":
            await self.catalogue.load(name)
        else:
            self.catalogue.unload(name)
        await self._show_health()

    async def stop(self) -> None:
        """Say NOT_SERVING, wait for balancers to notice, finish what is in flight, close."""
        if self._stopped:
            return
        self._stopped = True
        settings = self.settings
        self.metrics.draining.set(1)
        await self._health.drain()
        _log.info("draining: %d calls in flight", self._edge.in_flight)
        await asyncio.sleep(settings.drain_delay_s)
        # Refuse by name first: calls that gRPC's own stop() finds unread end as CANCELLED, which
        # callers don't retry, and it may return before the last handler did (grpc #37239).
        self._edge.stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await self._edge.idle.wait()
        await self._settle()
        await self._health.close()
        if self._http is not None:
            await self._http.close(_LAST_GRACE_S)
        await self._grpc.stop(_LAST_GRACE_S)
        await self._stack.aclose()
        _log.info("stopped")

    async def _settle(self) -> None:
        """Refuse by name until callers stay away for a moment, or won't."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_GRACE_S):
                before = -1
                while before != self._edge.turned_away:
                    before = self._edge.turned_away
                    await asyncio.sleep(_SETTLE_S)


def _give_way() -> None:
    """Let the event loop go before this thread: it must refuse at once while models compute."""
    with contextlib.suppress(OSError):  # only Linux has it per thread
        thread = threading.get_native_id()
        # on top of what the whole server was started with, up to the lowest priority there is
        nice = min(os.getpriority(os.PRIO_PROCESS, thread) + _WORKER_NICE, _LOWEST)
        os.setpriority(os.PRIO_PROCESS, thread, nice)

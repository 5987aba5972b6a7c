"""The process that watches those that answer: starts them, and again when they end; adds them up.

It listens on no port for callers itself and loads no model. A child that ends is started again,
later each time it ends soon; one that does not answer for long is ended. What all have in common
goes through here: the port, the capture folder's lock, the decision log, the accounts of callers,
metrics and status page, and every word about which models and guards to serve.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
import socket
import sqlite3
import sys
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from reluguard.detector.captures import tidy
from reluguard.service.captures.claim import Claim
from reluguard.service.errors import NotReadyError, StartError
from reluguard.service.fleet.line import Line
from reluguard.service.fleet.picture import read_picture, together
from reluguard.service.fleet.ports import hold_port
from reluguard.service.fleet.table import Table
from reluguard.service.fleet.totals import Totals, families
from reluguard.service.monitoring.decisions import DecisionFile, Trouble, decisions_dropped
from reluguard.service.monitoring.flagged import Flag, read_flags
from reluguard.service.security import Tokens
from reluguard.service.settings import Settings
from reluguard.service.watching.table import Table as QuestionTable
from reluguard.service.web.http import WebServer
from reluguard.service.web.snapshot import ServerStatus

__all__ = ["Fleet"]

_log = logging.getLogger(__name__)
_LOOK_S = 2.0  # what a child that is killed had counted since is lost
_HUNG_S = 30.0
_SCRAPE_S = 4.0
_WRITE_S = 2.0
_FLAGS = 100
_FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.1, 30.0
_STEADY_S = 60.0  # a child that lived as long is started again at once
_CODE = """
import sys
sys.path[:] = {path!r}
from reluguard.service.fleet.child import main
main({handle})
"""
Report = Mapping[str, Any]


@dataclass(slots=True, eq=False)
class _Child:
    """One position: the process that is in it now, if any, and what it last reported."""

    number: int
    ready: asyncio.Future[None]
    process: asyncio.subprocess.Process | None = None
    line: Line | None = None
    report: Report | None = None
    failed: str = ""


@dataclass(slots=True)
class _Words:
    """Models that an admin loaded or unloaded, for children that start later."""

    loaded: dict[str, None] = field(default_factory=dict)
    unloaded: dict[str, None] = field(default_factory=dict)

    def take(self, what: str, name: str) -> None:
        """Remember the newest word on a model."""
        self.loaded.pop(name, None)
        self.unloaded.pop(name, None)
        (self.loaded if what == "load" else self.unloaded)[name] = None


class Fleet:
    """A server of several processes. Belongs to one event loop.

    Attributes:
        settings: of the server; each child has a copy.
        address: where its children listen, once started.
        metrics_address: where its metrics are.
        http_address: where they listen by HTTP, None where they don't.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self.metrics_address: str | None = None
        self.http_address: str | None = None
        self._stack = contextlib.AsyncExitStack()
        self._words = _Words()
        self._changing = asyncio.Lock()
        self._totals = Totals()
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library left it bare
        self._registry = CollectorRegistry()
        self._restarts = Counter(
            "reluguard_process_restarts_total",
            "Processes of the server that were started again because they had ended or hung.",
            registry=self._registry,
        )
        self._decisions_dropped, self._trouble = decisions_dropped(self._registry), Trouble()
        # built on the loop, by start()
        self._children: list[_Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop
        self._port = 0
        self._http_port: int | None = None
        self._health_port: int | None = None
        self._ending = asyncio.Event()
        self._handle = -1
        self._accounts: Table
        self._key = secrets.token_bytes(32)
        self._questions: int | None = None
        self._decisions: DecisionFile | None = None
        self._claim: Claim | None = None

    async def start(self) -> None:
        """Start all children and wait until each serves.

        Raises:
            StartError: a port is in use, a file can't be used, or a child could not start.
        """
        try:
            await self._start()
        except BaseException:
            self.end_now()
            await asyncio.gather(*self._keepers, return_exceptions=True)
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        settings, self._loop = self.settings, asyncio.get_running_loop()
        place, by_http = settings.place, settings.http_place
        held, self._port = hold_port(place)
        self._stack.enter_context(held)
        probes = settings.health_place
        if probes is not None:
            held, self._health_port = hold_port(probes)
            self._stack.enter_context(held)
        if by_http is not None:
            held, port = hold_port(by_http)
            self._stack.enter_context(held)
            self._http_port = port
            self.http_address = by_http.of_port(port)
        if settings.capture is not None:
            self._claim = Claim(settings.capture)
            self._stack.callback(self._claim.release)
        if settings.decision_log is not None:
            self._decisions = DecisionFile(
                settings.decision_log,
                max_bytes=settings.decision_log_bytes,
                files=settings.decision_log_files,
            )
            self._stack.callback(self._decisions.close)
        self._handle = Table.make(settings.processes)
        self._stack.callback(os.close, self._handle)
        self._accounts = Table(self._handle, number=0, of=settings.processes, key=self._key)
        if settings.watch != "off":
            self._questions = QuestionTable.make(settings.watch_max_bytes)
            self._stack.callback(os.close, self._questions)
        web = self._web()
        self._children = [
            _Child(number, self._loop.create_future()) for number in range(settings.processes)
        ]
        self._keepers = [self._loop.create_task(self._keep(child)) for child in self._children]
        await asyncio.gather(*(child.ready for child in self._children))
        self.address = place.of_port(self._port)
        if web is not None:
            web.start()
            self._stack.callback(web.close)
            self.metrics_address = web.address
        self._background(self._look())
        if settings.reload_s:
            self._background(self._follow())
        if self._claim is not None:
            self._background(self._keep_claim(self._claim))
        _log.info("%d processes are up", settings.processes)
        _log.info("serving on %s, metrics on %s", self.address, self.metrics_address)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    # ---- children

    async def _keep(self, child: _Child) -> None:
        """Have a process in this position until the server stops."""
        back_off = 0.0
        while not self._ending.is_set():
            began = self._loop.time()
            try:
                code = await self._run(child)
            except OSError as error:  # no processes or memory left just now
                child.failed, code = str(error), -1
            if child.report is not None:
                self._totals.keep(child.report["metrics"])
                child.report = None
            self._accounts.clear(child.number)
            if self._ending.is_set():
                return
            if not child.ready.done():
                why = child.failed or f"a process ended before it served, exit code {code}"
                child.ready.set_exception(StartError(why))
                return
            steady = self._loop.time() - began > _STEADY_S
            back_off = (
                0.0 if steady else min(2 * back_off or _FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S)
            )
            _log.error(
                "process %d ended, exit code %s%s; it is started again in %.1f s",
                child.number, code, f": {child.failed}" if child.failed else "", back_off,
            )  # fmt: skip
            self._restarts.inc()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(back_off):
                    await self._ending.wait()

    async def _run(self, child: _Child) -> int:
        """Start a process, hear it until it ends, and return its exit code."""
        ours, theirs = socket.socketpair()
        told, tells = socket.socketpair() if self._decisions is not None else (None, None)
        writer: threading.Thread | None = None
        with contextlib.ExitStack() as stack:
            stack.callback(theirs.close)
            handles = [theirs.fileno(), *self._shared_handles()]
            if told is not None and tells is not None:
                stack.callback(tells.close)
                handles.append(tells.fileno())
                writer = threading.Thread(target=self._write, args=(told,), daemon=True)
                writer.start()
            child.failed = ""
            child.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _CODE.format(path=sys.path, handle=theirs.fileno()),
                pass_fds=handles,
                start_new_session=True,  # Ctrl-C is for this process, which tells them
            )
            decisions = None if tells is None else tells.fileno()
        if self._ending.is_set():
            _signal(child.process, kill=False)

        async def answer(question: str, given: Mapping[str, Any]) -> Any:
            if question == "hello":
                return self._hello(child, decisions)
            if question == "ready":
                if not child.ready.done():
                    child.ready.set_result(None)
                return None
            if question == "refused":
                child.failed = given["why"]
                return None
            return await self._change(question, given["name"])

        child.line = await Line.on(ours, answer)
        hearing = self._loop.create_task(child.line.run())
        process = child.process
        try:
            return await process.wait()
        finally:
            child.process = child.line = None
            await hearing
            if writer is not None:
                await asyncio.to_thread(writer.join, _WRITE_S)
            await self._tidy(process.pid)

    def _shared_handles(self) -> list[int]:
        """Return what every process that starts now inherits."""
        handles = [self._handle]
        if self._questions is not None:
            handles.append(self._questions)
        if self._claim is not None and self._claim.handle >= 0:
            handles.append(self._claim.handle)
        return handles

    async def _tidy(self, pid: int) -> None:
        """Remove what a process that is gone left half written in the capture folder."""
        if self.settings.capture is not None:
            try:
                await asyncio.to_thread(tidy, self.settings.capture, writer=pid)
            except (sqlite3.Error, OSError) as error:
                _log.error("what process %d left can't be removed: %s", pid, error)

    async def _keep_claim(self, claim: Claim) -> None:
        """Hold the capture folder that is there, where somebody took the one that was away."""
        told = ""
        while True:
            await asyncio.sleep(_LOOK_S)
            if claim.is_current():
                continue
            try:
                claim.renew()  # on the loop, so that no child is started with a handle just closed
                told = ""
                _log.error("the capture folder %s was taken away and is made anew", claim.folder)
            except StartError as error:
                if str(error) != told:
                    _log.error("%s", error)
                told = str(error)

    def _hello(self, child: _Child, decisions: int | None) -> dict[str, Any]:
        place, by_http = self.settings.place, self.settings.http_place
        probes = self.settings.health_place
        settings = replace(
            self.settings,
            host=place.host,
            port=self._port,
            http_host=None if by_http is None else by_http.host,
            http_port=self._http_port,
            health_host=None if probes is None else probes.host,
            health_port=self._health_port,
            metrics_host=None,
            metrics_port=None,
        )
        return {
            "settings": settings.to_json(),
            "number": child.number,
            "of": settings.processes,
            "table": self._handle,
            "key": self._key.hex(),
            "watch": self._questions,
            "decisions": decisions,
            "loaded": list(self._words.loaded),
            "unloaded": list(self._words.unloaded),
        }

    def _write(self, told: socket.socket) -> None:
        """Write the lines of a child's decisions until it is gone, in a thread."""
        assert self._decisions is not None
        with told, told.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return  # it was killed within a line
                try:
                    self._decisions.write(line.rstrip("\n"))
                except Exception as error:  # noqa: BLE001 - a child that nobody reads would wait
                    self._decisions_dropped.inc()
                    self._trouble.tell(error)
                else:
                    self._trouble.end()

    async def _all(self, question: str, **given: Any) -> None:
        """Ask every child that serves, and raise what the first that refused raised."""
        lines = [child.line for child in self._children if child.line is not None]
        asked = (line.ask(question, **given) for line in lines)
        for told in await asyncio.gather(*asked, return_exceptions=True):
            # one that starts, or is gone, takes what is there when it comes
            if isinstance(told, BaseException) and not isinstance(told, NotReadyError):
                raise told

    async def _change(self, what: str, name: str) -> None:
        async with self._changing:
            await self._all(what, name=name)
            self._words.take(what, name)

    async def reload(self) -> None:
        """Look at every loaded model's files now, in all children at once."""
        async with self._changing:
            await self._all("reload")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.settings.reload_s)
            async with self._changing:
                await self._all("follow")

    # ---- what they show

    async def _look(self) -> None:
        """Ask every child how it is, now and then; one that never answers is ended."""
        while True:
            await asyncio.gather(*(self._ask(child, _HUNG_S) for child in self._children))
            await asyncio.sleep(_LOOK_S)

    async def _ask(self, child: _Child, patience_s: float) -> None:
        line, process = child.line, child.process
        if line is None or process is None:
            return
        try:
            async with asyncio.timeout(patience_s):
                report = await line.ask("report")
        except NotReadyError:
            return
        except TimeoutError:
            if patience_s >= _HUNG_S and process.returncode is None and child.ready.done():
                _log.error(
                    "process %d does not answer for %g s: it is ended", child.number, _HUNG_S
                )
                process.kill()
            return
        if child.line is line:
            child.report = report

    async def _reports(self) -> list[Report]:
        await asyncio.gather(*(self._ask(child, _SCRAPE_S) for child in self._children))
        return [child.report for child in self._children if child.report is not None]

    def _now(self) -> list[Report]:
        """Return what every child reports, from another thread than the loop's."""
        asked = asyncio.run_coroutine_threadsafe(self._reports(), self._loop)
        with contextlib.suppress(
            concurrent.futures.TimeoutError, concurrent.futures.CancelledError
        ):
            return asked.result(2 * _SCRAPE_S)
        return []

    def metrics(self) -> list[Metric]:
        """Return the series of all children added up. Call from another thread than the loop's."""
        reports = [report["metrics"] for report in self._now()]
        return self._totals.of([*reports, families(self._registry)])

    def status(self) -> ServerStatus:
        """Return the picture of the whole server. Call from another thread than the loop's.

        Raises:
            NotReadyError: no child answers.
        """
        pictures = [read_picture(report["picture"]) for report in self._now()]
        if not pictures:
            raise NotReadyError("no process of the server answers")
        return together(pictures)

    def flagged(self) -> list[Flag]:
        """Return the last flagged images of all children, newest first; from another thread."""
        asked = asyncio.run_coroutine_threadsafe(self._flags(), self._loop)
        with contextlib.suppress(
            concurrent.futures.TimeoutError, concurrent.futures.CancelledError
        ):
            return asked.result(_SCRAPE_S)
        raise NotReadyError("no process of the server answers")

    async def _flags(self) -> list[Flag]:
        lines = [child.line for child in self._children if child.line is not None]
        told = await asyncio.gather(
            *(line.ask("flagged") for line in lines), return_exceptions=True
        )
        flags = [flag for part in told if isinstance(part, list) for flag in read_flags(part)]
        return sorted(flags, key=lambda flag: -flag.time)[:_FLAGS]

    def _web(self) -> WebServer | None:
        place = self.settings.metrics_place
        if place is None:
            return None
        registry = CollectorRegistry()
        registry.register(_Merged(self))
        tokens = None if self.settings.tokens is None else Tokens(self.settings.tokens)
        return WebServer(place, registry, self.status, self.flagged, tokens)

    # ---- the end

    def end_now(self) -> None:
        """Kill all children."""
        self._ending.set()
        for child in self._children:
            _signal(child.process, kill=True)

    async def stop(self) -> None:
        """Let all children drain, then close."""
        self._ending.set()
        for child in self._children:
            _signal(child.process, kill=False)
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._stack.aclose()
        _log.info("all processes stopped")


class _Merged(Collector):
    """Asks the fleet whenever Prometheus does."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def describe(self) -> list[Metric]:
        """Return nothing: what there is is only known by asking."""
        return []

    def collect(self) -> list[Metric]:
        """Return the series of this moment."""
        return self._fleet.metrics()


def _signal(process: asyncio.subprocess.Process | None, *, kill: bool) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            (process.kill if kill else process.terminate)()

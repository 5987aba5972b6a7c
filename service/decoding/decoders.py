"""Processes that decode what is too much work for this one, each ended when it takes too long.

Nothing inside a process can stop a decoder of C. A job gets a process of its own and so much time;
then the process goes, and another comes when it is needed. One caller has at most half of them, so
whoever sends bombs waits behind their own.
"""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reluguard.detector import errors
from reluguard.detector.errors import ImageError, ImageTooLargeError
from reluguard.detector.images import Images, InputSpec
from reluguard.service.decoding.worker import HEAD
from reluguard.service.errors import NotReadyError, OverloadedError

__all__ = ["Decoders"]

_log = logging.getLogger(__name__)
_WAITING_EACH = 16  # jobs that may wait for each process
_START_S = 20.0
_CHUNK = 2**20
_CODE = """
import sys
sys.path[:] = {path!r}
from reluguard.service.decoding.worker import main
main({handle}, {max_pixels})
"""


class _LostError(Exception):
    """The process ended before it answered."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: socket.socket

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.connection.close()
        self.process.wait()  # it can't refuse, so this takes no time


@dataclass(slots=True, kw_only=True)
class Decoders:
    """Belongs to one event loop. Processes are started when there is work for them.

    Attributes:
        size: processes at once.
        decode_s: what one request's images may take.
        max_pixels: of one request's images.
        starter: runs what starts and ends processes.
        ended: told of each process that was ended.
    """

    size: int
    decode_s: float
    max_pixels: int
    starter: Executor
    ended: Callable[[], None]
    _idle: list[_Worker] = field(default_factory=list, init=False)
    _busy: set[_Worker] = field(default_factory=set, init=False)
    _running: Counter[str] = field(default_factory=Counter, init=False)
    _waiting: deque[tuple[str, asyncio.Future[None]]] = field(default_factory=deque, init=False)
    _jobs: set[asyncio.Task[Images]] = field(default_factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def processes(self) -> list[int]:
        """Return the numbers of those that are at work."""
        return [worker.process.pid for worker in self._busy]

    async def decode(self, who: str, files: Sequence[bytes], spec: InputSpec) -> Images:
        """Return these files' pixels, (N, H, W, C).

        When the caller leaves, what has begun goes on to its end or its time, and nobody else waits
        for it.

        Raises:
            ImageError: one does not decode.
            ImageTooLargeError: they take too long.
            OverloadedError: too many wait to be decoded.
            NotReadyError: the server is shutting down.
        """
        await self._turn(who)
        job = asyncio.get_running_loop().create_task(self._work(who, files, spec))
        self._jobs.add(job)
        job.add_done_callback(self._done)
        return await asyncio.shield(job)

    def _done(self, job: asyncio.Task[Images]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # seen: whoever asked may have gone

    async def _turn(self, who: str) -> None:
        if self._closed:
            raise NotReadyError("the server is shutting down")
        if self._may(who):
            self._running[who] += 1
            return
        if len(self._waiting) >= _WAITING_EACH * self.size:
            raise OverloadedError(
                f"expected at most {_WAITING_EACH * self.size} requests waiting to be decoded",
                retry_after_s=self.decode_s,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (who, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif turn.done() and not turn.cancelled():
                self._leave(who)
            raise

    def _may(self, who: str) -> bool:
        return self._running.total() < self.size and self._running[who] < max(1, self.size // 2)

    def _leave(self, who: str) -> None:
        self._running[who] -= 1
        self._running += Counter()  # forgets who has none
        for entry in list(self._waiting):
            if self._may(entry[0]):
                self._waiting.remove(entry)
                self._running[entry[0]] += 1
                entry[1].set_result(None)

    async def _work(self, who: str, files: Sequence[bytes], spec: InputSpec) -> Images:
        try:
            worker = await self._worker()
            try:
                async with asyncio.timeout(self.decode_s):
                    told, pixels = await _ask(worker.connection, self._asked(files, spec), files)
            except TimeoutError:
                await self._end(worker)
                raise ImageTooLargeError(
                    f"expected images that decode within {self.decode_s:g} s, they took longer"
                ) from None
            except (_LostError, OSError, ValueError):
                await self._end(worker)
                raise ImageError("expected images that decode, the decoder died of them") from None
            except BaseException:
                worker.end()
                self._busy.discard(worker)
                raise
            self._busy.discard(worker)
            self._idle.append(worker)
        finally:
            self._leave(who)
        if "error" in told:
            kind = getattr(errors, str(told["error"]), ImageError)
            raise kind(str(told["message"]))
        return np.frombuffer(pixels, np.uint8).reshape(
            len(files), spec.height, spec.width, spec.channels
        )

    def _asked(self, files: Sequence[bytes], spec: InputSpec) -> bytes:
        asked = {
            "spec": spec.to_json(),
            "max_pixels": self.max_pixels,
            "sizes": [len(file) for file in files],
        }
        return json.dumps(asked).encode()

    async def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                self._busy.add(worker)
                return worker
            worker.end()
        loop = asyncio.get_running_loop()
        worker = await loop.run_in_executor(self.starter, self._start)
        if self._closed:
            worker.end()
            raise NotReadyError("the server is shutting down")
        self._busy.add(worker)
        return worker

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            handle = theirs.fileno()
            code = _CODE.format(path=sys.path, handle=handle, max_pixels=self.max_pixels)
            process = subprocess.Popen(  # noqa: S603 - our own module by our own interpreter
                [sys.executable, "-c", code],
                pass_fds=[handle],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which ends us
            )
        ours.setblocking(False)
        return _Worker(process, ours)

    async def _end(self, worker: _Worker) -> None:
        self._busy.discard(worker)
        self.ended()
        _log.warning("a decoding process was ended: its images took too long or too much memory")
        await asyncio.get_running_loop().run_in_executor(self.starter, worker.end)

    async def close(self) -> None:
        """End every process and whatever it does."""
        self._closed = True
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(NotReadyError("the server is shutting down"))
        self._waiting.clear()
        for worker in [*self._idle, *self._busy]:
            with contextlib.suppress(OSError):
                worker.process.kill()
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for worker in [*self._idle, *self._busy]:
            worker.end()
        self._idle.clear()
        self._busy.clear()


async def _ask(
    connection: socket.socket, asked: bytes, files: Sequence[bytes]
) -> tuple[dict[str, Any], bytearray]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, HEAD.pack(len(asked)) + asked)
    for file in files:
        await loop.sock_sendall(connection, file)
    (size,) = HEAD.unpack(await _exactly(connection, HEAD.size))
    told: dict[str, Any] = json.loads(await _exactly(connection, size))
    return told, await _exactly(connection, sum(told["sizes"]))


async def _exactly(connection: socket.socket, size: int) -> bytearray:
    loop = asyncio.get_running_loop()
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = await loop.sock_recv_into(connection, view[at : at + _CHUNK])
        if not got:
            raise _LostError
        at += got
    return data

"""Bytes on their way in: how many messages may be half here, and how much may be held at once.

gRPC makes room for a whole message as soon as its length is known, so whoever begins messages and
never ends them holds memory. Each message being read takes a lane, and there are so many lanes as
fit the bytes that we allow. A message has a moment in a quick lane, which is more than a caller
needs who sends at once; when others wait, one that takes longer moves to a slow lane or, where
these are full too, is told to come again. Who came last is let in first: a crowd that only waits
keeps nobody out.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from reluguard.service.errors import OverloadedError, RequestError

__all__ = ["EvictedError", "Intake", "IntakeRefusal"]

Context = Any  # grpc.aio.ServicerContext is generic over messages that we parse ourselves
IntakeRefusal = Literal["slow_message", "too_many_bytes", "too_many_messages"]
_QUICK_S = 0.02  # what a message may take when others wait
_SLOW_BYTES_S = 2**20  # a second: what a slow lane allows
_MOST_WAITING = 4096
_PUSHBACK_S = 0.2


class EvictedError(Exception):
    """The message took too long to come; its caller has been told."""


@dataclass(slots=True, eq=False)
class _Reader:
    context: Context
    since: float
    evicted: bool = False


class Intake:
    """The lanes and the bytes of one event loop.

    Args:
        quick: messages in quick lanes.
        slow: messages in slow lanes, 0 for none.
        max_message_bytes: what one message may hold.
        max_bytes: of all messages being handled together.
        longest_s: after this a message that is not whole is given up.
        refused: told why one was.
    """

    def __init__(
        self,
        *,
        quick: int,
        slow: int,
        max_message_bytes: int,
        max_bytes: int,
        longest_s: float,
        refused: Callable[[IntakeRefusal], None],
    ) -> None:
        self._most_quick, self._most_slow, self._max_bytes = quick, slow, max_bytes
        self._slow_s = _QUICK_S + max_message_bytes / _SLOW_BYTES_S
        self._longest_s = longest_s
        self._refused = refused
        self._held = 0
        # dictionaries keep the order they were filled in: the first is the oldest
        self._quick: dict[_Reader, None] = {}
        self._slow: dict[_Reader, None] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._promised = 0  # quick lanes of those who were let in and have not run since
        self._mover: asyncio.TimerHandle | None = None
        self._evicting: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None  # one for all: a timer each would cost more

    @property
    def held(self) -> int:
        """Return how many bytes of messages are being handled."""
        return self._held

    @property
    def reading(self) -> int:
        """Return how many messages are on their way."""
        return len(self._quick) + len(self._slow)

    async def read(self, context: Context) -> bytes:
        """Return a call's one message.

        Raises:
            OverloadedError: too many wait to be read.
            EvictedError: it took too long; the caller knows.
            RequestError: the call has no message.
        """
        if self._waiting or self._taken >= self._most_quick:
            await self._turn()
        loop = asyncio.get_running_loop()
        reader = _Reader(context, loop.time())
        self._quick[reader] = None
        self._watch()
        if self._sweep is None:
            self._sweep = loop.call_later(self._longest_s, self._sweep_out)
        try:
            data = await context.read()
        except grpc.aio.AbortError as error:
            raise EvictedError from error
        finally:
            self._leave(reader)
        if data is grpc.aio.EOF:
            if reader.evicted:
                raise EvictedError
            raise RequestError("expected a message, got none")
        whole: bytes = data
        return whole

    def hold(self, size: int) -> None:
        """Count bytes that are being handled, until `let_go`.

        Raises:
            OverloadedError: there would be too many.
        """
        if self._held + size > self._max_bytes:
            self._refused("too_many_bytes")
            raise OverloadedError(
                f"expected at most {self._max_bytes} bytes of requests at once, got {self._held}"
                f" and {size} more",
                retry_after_s=_PUSHBACK_S,
            )
        self._held += size

    def let_go(self, size: int) -> None:
        """Undo `hold`."""
        self._held -= size

    def _sweep_out(self) -> None:
        """Give up what takes too long, and look again when the next one would."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        for lane in (self._quick, self._slow):
            for reader in list(lane):  # by when they came, or moved over
                if reader.since + self._longest_s <= loop.time():
                    self._evict(reader)
        left = [reader.since for lane in (self._quick, self._slow) for reader in lane]
        if left:
            self._sweep = loop.call_at(min(left) + self._longest_s, self._sweep_out)

    @property
    def _taken(self) -> int:
        return len(self._quick) + self._promised

    async def _turn(self) -> None:
        """Wait for a quick lane: who came last is let in first."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._watch()
        if len(self._waiting) > _MOST_WAITING:
            self._refused("too_many_messages")
            crowd = OverloadedError(
                f"expected at most {_MOST_WAITING} callers to begin at once",
                retry_after_s=_PUSHBACK_S,
            )
            self._waiting.popleft().set_exception(crowd)
        try:
            await turn
            self._promised -= 1
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:  # the lane goes to another
                self._promised -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        """Let in who came last, as far as there are quick lanes."""
        while self._waiting and self._taken < self._most_quick:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                self._promised += 1

    def _watch(self) -> None:
        """See to it that the oldest moves over in time, where others wait."""
        if self._waiting and self._quick and self._mover is None:
            oldest = next(iter(self._quick))
            loop = asyncio.get_running_loop()
            self._mover = loop.call_at(oldest.since + _QUICK_S, self._move)

    def _move(self) -> None:
        """Move over all who have had their moment, as long as others wait."""
        self._mover = None
        now = asyncio.get_running_loop().time()
        while self._waiting and self._quick:
            oldest = next(iter(self._quick))
            if oldest.since + _QUICK_S > now:
                break
            self._move_over(oldest)
            self._admit()
        self._watch()

    def _move_over(self, reader: _Reader) -> None:
        """Take a reader out of the quick lanes."""
        now = asyncio.get_running_loop().time()
        if len(self._slow) >= self._most_slow:
            first = next(iter(self._slow), reader)
            late = first is not reader and now - first.since > self._slow_s
            self._evict(first if late else reader)
            if not late:
                return
        del self._quick[reader]
        self._slow[reader] = None

    def _evict(self, reader: _Reader) -> None:
        """Tell a caller to come again; what was kept of its message goes."""
        reader.evicted = True
        self._leave(reader)
        self._refused("slow_message")
        task = asyncio.get_running_loop().create_task(_turn_away(reader.context))
        self._evicting.add(task)
        task.add_done_callback(self._evicting.discard)

    def _leave(self, reader: _Reader) -> None:
        self._quick.pop(reader, None)
        self._slow.pop(reader, None)
        self._admit()


async def _turn_away(context: Context) -> None:
    try:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the message took too long to come while others wait",
            (("grpc-retry-pushback-ms", str(int(_PUSHBACK_S * 1000))),),
        )
    except (grpc.aio.AbortError, grpc.aio.InternalError):
        return

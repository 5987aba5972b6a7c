"""The event loop of servers: everything arrives, in fewer turns."""

import asyncio
import socket
from typing import Any

import grpc

from reluguard.service.loop import Loop


def run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(work)


class PollerCompletionQueue:
    """Reads as gRPC's own does: one byte, and all events there are."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self.events: list[int] = []
        self.turns: list[int] = []

    def handle(self) -> None:
        """Take a byte and all events."""
        assert self._source.recv(1)
        self.turns.append(len(self.events))
        self.events.clear()


def test_one_turn_takes_all_events() -> None:
    """However many bytes woke it; and what comes later wakes it again."""

    async def work() -> list[int]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            queue, loop = PollerCompletionQueue(ours), asyncio.get_running_loop()
            loop.add_reader(ours, queue.handle)
            for count in (5, 1, 3):
                queue.events = list(range(count))
                theirs.sendall(bytes(count))
                before = len(queue.turns)
                while len(queue.turns) == before:  # noqa: ASYNC110 - it owes nobody an event
                    await asyncio.sleep(0)
                await asyncio.sleep(0.01)
            loop.remove_reader(ours)
            return queue.turns

    assert run(work()) == [5, 1, 3]


def test_other_readers_are_left_alone() -> None:
    """They read what they want."""

    async def work() -> list[bytes]:
        ours, theirs = socket.socketpair()
        got: list[bytes] = []
        with ours, theirs:
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, lambda: got.append(ours.recv(1)))
            theirs.sendall(b"abc")
            while len(got) < 3:  # noqa: ASYNC110 - nobody owes an event
                await asyncio.sleep(0)
            loop.remove_reader(ours)
        return got

    assert run(work()) == [b"a", b"b", b"c"]


def test_sockets_are_looked_at_however_busy_the_loop_is() -> None:
    """Work that never ends keeps nobody from being heard."""

    async def work() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            busy = True

            def again() -> None:
                if busy:
                    loop.call_soon(again)

            again()
            theirs.sendall(b"x")
            async with asyncio.timeout(5):
                heard = await loop.sock_recv(ours, 1)
            busy = False
            return heard

    assert run(work()) == b"x"


def test_it_is_grpcs_own_reader_that_is_meant() -> None:
    """The name that is looked for is the one that gRPC has."""
    seen: list[Any] = []

    class Seeing(Loop):
        def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override] # as Loop's
            """Keep what is made of gRPC's callback."""
            super().add_reader(fd, callback, *args)
            key = self._selector.get_key(fd)  # type: ignore[attr-defined]
            seen.append((callback, key.data[0]._callback))  # noqa: SLF001 - what the loop would call

    async def work() -> None:
        server = grpc.aio.server()
        await server.start()
        await server.stop(None)

    with asyncio.Runner(loop_factory=Seeing) as runner:
        runner.run(work())
    grpcs = [(given, kept) for given, kept in seen if "grpc" in repr(given)]
    assert len(grpcs) == 1
    assert grpcs[0][0] is not grpcs[0][1]

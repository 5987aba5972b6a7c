"""How a parent and a child ask each other: a line of JSON each way, over a socket of their own."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from reluguard.service import errors
from reluguard.service.errors import NotReadyError, ServiceError

__all__ = ["Line"]

_MOST_BYTES = 2**26  # of one line: a report with the metrics of many models
Answer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]


class Line:
    """One end. Either may ask at any time; questions are answered side by side.

    Args:
        reader: hears the other end.
        writer: speaks to it.
        answer: gives the answer to a question and what was given with it, as plain values; a
            `ServiceError` that it raises is raised again where the question was asked.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
    ) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    async def on(cls, connection: socket.socket, answer: Answer) -> "Line":
        """Return an end on a connected socket, which is its own from then on."""
        streams = await asyncio.open_unix_connection(sock=connection, limit=_MOST_BYTES)
        return cls(*streams, answer)

    async def run(self) -> None:
        """Hear the other end until it is gone; whoever still waits for an answer is told."""
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while line := await self._reader.readline():
                    self._heard(json.loads(line))
        finally:
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(NotReadyError("the other process is gone"))
            self._asked.clear()
            for task in self._answering:
                task.cancel()
            self._writer.close()

    async def ask(self, question: str, **given: Any) -> Any:
        """Return the other end's answer, as plain values.

        Raises:
            NotReadyError: it is gone.
            ServiceError: whatever it raised.
        """
        if self._writer.is_closing():
            raise NotReadyError("the other process is gone")
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self._say({"number": number, "ask": question, "given": given})
        try:
            return await asked
        finally:
            self._asked.pop(number, None)

    def _say(self, what: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(what).encode() + b"\n")

    def _heard(self, what: Mapping[str, Any]) -> None:
        if "ask" in what:
            task = asyncio.get_running_loop().create_task(self._answered(what))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        asked = self._asked.get(what["number"])
        if asked is None or asked.done():  # whoever asked does not wait any more
            return
        if "error" in what:
            kind = getattr(errors, what["error"], ServiceError)
            asked.set_exception(kind(what["message"]))
        else:
            asked.set_result(what["told"])

    async def _answered(self, what: Mapping[str, Any]) -> None:
        said: dict[str, Any] = {"number": what["number"]}
        try:
            said["told"] = await self._answer(what["ask"], what["given"])
        except ServiceError as error:
            said |= {"error": type(error).__name__, "message": str(error)}
        if not self._writer.is_closing():
            self._say(said)

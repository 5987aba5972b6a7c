"""A stream of requests, each answered in order."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from reluguard.service.errors import NotReadyError
from reluguard.service.monitoring.rpc_metrics import MethodMetrics

__all__ = ["pump"]

Context = Any  # grpc.aio.ServicerContext is generic over messages that we parse ourselves


async def pump(
    context: Context,
    counts: MethodMetrics,
    answer: Callable[[Context, bytes], Awaitable[bytes]],
    *,
    window: int,
    stopping: asyncio.Event,
) -> None:
    """Read a stream's messages and write what answers them, in order.

    Args:
        context: of the call.
        counts: where messages are counted.
        answer: answers one message.
        window: most messages being handled; reading stops beyond it.
        stopping: what has come is answered and no more read once it is set.

    Raises:
        NotReadyError: it is set; after the last answer.
    """
    loop = asyncio.get_running_loop()
    answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue(maxsize=window)
    tasks: set[asyncio.Future[bytes]] = set()

    async def read() -> None:
        ending = loop.create_task(stopping.wait())
        reading: asyncio.Future[Any] = loop.create_future()
        try:
            while not stopping.is_set():
                reading = loop.create_task(context.read())
                await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    break
                data = reading.result()
                if data is grpc.aio.EOF:
                    break
                counts.received.inc()
                task = asyncio.ensure_future(answer(context, data))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await answers.put(task)
        finally:
            ending.cancel()
            reading.cancel()  # what ends the call would end it with an error nobody looks at
            await answers.put(None)

    reader = loop.create_task(read())
    try:
        while (task := await answers.get()) is not None:
            await context.write(await task)
            counts.sent.inc()
    finally:
        reader.cancel()
        for task in list(tasks):
            task.cancel()
    if stopping.is_set():
        raise NotReadyError("the server is shutting down")

"""One of the processes that answer. It lives no longer than the one that started it."""

import asyncio
import socket
import sys
from collections.abc import Mapping
from typing import Any

from reluguard.service import logs
from reluguard.service.errors import NotReadyError, StartError
from reluguard.service.fleet.line import Line
from reluguard.service.fleet.picture import write_picture
from reluguard.service.fleet.table import Table
from reluguard.service.fleet.totals import families
from reluguard.service.lifetime import live
from reluguard.service.loop import Loop
from reluguard.service.monitoring.flagged import write_flags
from reluguard.service.server import Server
from reluguard.service.settings import Settings
from reluguard.service.share import Share

__all__ = ["main"]


def main(handle: int) -> None:
    """Serve as the other end of this socket says, and exit."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        sys.exit(runner.run(_main(socket.socket(fileno=handle))))


async def _main(connection: socket.socket) -> int:
    server: Server | None = None

    async def answer(question: str, given: Mapping[str, Any]) -> Any:
        if server is None or not server.is_up:
            raise NotReadyError("this process is starting")
        if question == "report":
            picture = write_picture(server.status())
            return {"metrics": families(server.metrics.registry), "picture": picture}
        if question == "flagged":
            return write_flags(server.flagged.newest())
        if question == "follow":
            return await server.follow()
        if question == "reload":
            return await server.reload()
        return await server.change(question, given["name"])

    line = await Line.on(connection, answer)
    heard = asyncio.create_task(line.run())
    told = await line.ask("hello")
    settings = Settings.from_json(told["settings"])
    logs.set_up(settings.log_level, told["number"])
    decide = _Decisions(told["decisions"]) if told["decisions"] is not None else None

    async def change(what: str, name: str) -> None:
        await line.ask(what, name=name)

    server = Server(
        settings,
        share=Share(
            number=told["number"],
            of=told["of"],
            key=bytes.fromhex(told["key"]),
            watch=told["watch"],
            uses=Table(
                told["table"], number=told["number"], of=told["of"], key=bytes.fromhex(told["key"])
            ),
            decide=decide,
            change=change,
            loaded=told["loaded"],
            unloaded=told["unloaded"],
        ),
    )
    ready: set[asyncio.Future[Any]] = set()

    def say(server: Server) -> None:
        ready.add(asyncio.ensure_future(line.ask("ready", address=server.address)))

    try:
        return await live(server, ready=say, over=heard)
    except StartError as error:
        await line.ask("refused", why=str(error))
        return 1


class _Decisions:
    """Takes lines of the decision log to the one who writes them."""

    def __init__(self, handle: int) -> None:
        self._socket = socket.socket(fileno=handle)

    def __call__(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

"""A server's life as its process sees it."""

import asyncio
import os
import signal

import pytest

from reluguard.service.lifetime import live
from reluguard.service.settings import Settings


class _Slow:
    """Is asked to reload before it serves."""

    def __init__(self) -> None:
        self.settings = Settings(drain_s=0.1, drain_delay_s=0.0)
        self.told: list[str] = []

    async def start(self) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        self.told.append("started")

    async def reload(self) -> None:
        self.told.append("reloaded")
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self) -> None:
        self.told.append("stopped")


def test_a_reload_asked_for_too_early_comes_after_the_start() -> None:
    """SIGHUP between "serving" and the first idle moment ended the process once."""
    strays: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: strays.append(number))
    server = _Slow()
    try:
        assert asyncio.run(asyncio.wait_for(live(server), 5)) == 0
    except TimeoutError:
        pytest.fail("nobody took the signal")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not strays
    assert server.told == ["started", "reloaded", "stopped"]

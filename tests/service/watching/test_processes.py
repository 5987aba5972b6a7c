"""The watch of a server of several processes, over real ports: one account of a caller in all."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from reluguard.detector.images import Images
from tests.service.fleet.test_parent import INSPECT, channels, fleet, pixels
from tests.waiting import until

NEAR = 12


@pytest.mark.slow
def test_processes_count_together(pair: Any, smooth: Callable[[int, int], Images]) -> None:
    """Questions that the kernel spreads over two processes are all of one caller's."""
    image = smooth(1, 50)
    with fleet(pair, WATCH="count", WATCH_NEAR=str(NEAR)) as server:
        with channels(server.address) as opened:
            for i in range(NEAR):
                image[0, 3 + i // 8, i % 8] ^= 8
                ask = opened[i % len(opened)].unary_unary(INSPECT)
                ask(pixels(image), timeout=30, wait_for_ready=True)
        until(lambda: server.metric("reluguard_watch_raised_total") == 1)
        assert server.metric("reluguard_watch_suspects") == 1
        assert server.metric("reluguard_watch_questions_total", question="near") == NEAR - 1
        watch = server.status()["watch"]
        (suspect,) = watch["suspects"]
        assert (suspect["asked"], watch["callers"]) == (NEAR, 1)
        assert re.fullmatch(r"127\.0\.0\.1", suspect["caller"])
        server.stop()

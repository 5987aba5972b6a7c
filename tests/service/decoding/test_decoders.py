"""A process decodes what a thread would, and is ended when it takes too long."""

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from reluguard.detector.errors import ImageError, ImageTooLargeError
from reluguard.detector.images import InputSpec, decode_image
from reluguard.service.background import on_loop
from reluguard.service.decoding.decoders import Decoders
from reluguard.service.errors import NotReadyError, OverloadedError

SPEC = InputSpec(name="image", height=12, width=12, channels=3)


def jpeg(side: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()


def bomb(side: int = 6000, scans: int = 60) -> bytes:
    """Return a progressive JPEG that takes seconds."""
    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    begin = data.rindex(b"\xff\xda")
    return data[:begin] + data[begin:-2] * scans + b"\xff\xd9"


BOMB = bomb()


@asynccontextmanager
async def decoders(**changes: Any) -> AsyncIterator[tuple[Decoders, list[int]]]:
    ended: list[int] = []
    settings: dict[str, Any] = {"size": 2, "decode_s": 30.0, "max_pixels": 40_000_000} | changes
    with ThreadPoolExecutor(1) as starter:
        made = Decoders(starter=starter, ended=lambda: ended.append(1), **settings)
        try:
            yield made, ended
        finally:
            await made.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await work()

    on_loop(whole())


def test_a_process_decodes_as_this_one_does() -> None:
    """The same pixels in the same order, from one process again and again."""
    files = [jpeg(30 + i, i) for i in range(4)]

    async def work() -> None:
        async with decoders(size=1) as (made, ended):
            for _ in range(3):
                pixels = await made.decode("me", files, SPEC)
                assert_array_equal(pixels, [decode_image(file, SPEC) for file in files])
            with pytest.raises(ImageError, match="bytes that don't decode"):
                await made.decode("me", [files[0][:200]], SPEC)
            with pytest.raises(ImageTooLargeError, match="expected at most 40000000 pixels"):
                await made.decode("me", [jpeg_of_claim(9000)], SPEC)
            assert ended == []

    run(work)


def jpeg_of_claim(side: int) -> bytes:
    """Return a JPEG that claims to be larger than it is."""
    data = bytearray(jpeg(16))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = side.to_bytes(2) * 2
    return bytes(data)


def test_what_takes_too_long_is_ended_and_the_next_is_decoded() -> None:
    """In words for whoever sent it; nobody else notices but by the count."""

    async def work() -> None:
        async with decoders(size=2, decode_s=0.3) as (made, ended):
            started = time.monotonic()
            with pytest.raises(ImageTooLargeError, match=r"within 0\.3 s, they took longer"):
                await made.decode("me", [BOMB], SPEC)
            assert time.monotonic() - started < 20
            assert ended == [1]
            made.decode_s = 30.0
            assert len(await made.decode("me", [jpeg(40)], SPEC)) == 1

    run(work)


def test_one_caller_has_half_of_the_processes() -> None:
    """Whoever sends bombs waits behind their own; so many wait, and no more."""

    async def work() -> None:
        async with decoders(size=2, decode_s=60.0) as (made, _):
            bombs = [asyncio.ensure_future(made.decode("eve", [BOMB], SPEC)) for _ in range(33)]
            assert len(await made.decode("ann", [jpeg(40)], SPEC)) == 1
            assert not any(one.done() for one in bombs)
            with pytest.raises(OverloadedError, match="requests waiting to be decoded"):
                await made.decode("eve", [BOMB], SPEC)
            bombs[-1].cancel()
            await made.close()
            ends = await asyncio.gather(*bombs, return_exceptions=True)
            assert any(isinstance(end, NotReadyError) for end in ends)
            assert all(isinstance(end, BaseException) for end in ends)
            with pytest.raises(NotReadyError, match="shutting down"):
                await made.decode("ann", [jpeg(40)], SPEC)

    run(work)


def test_a_process_that_dies_is_replaced() -> None:
    """Whatever killed it, the request is refused in words and the next one is answered."""

    async def work() -> None:
        async with decoders(size=1, decode_s=60.0) as (made, ended):
            doomed = asyncio.ensure_future(made.decode("me", [BOMB], SPEC))
            while not made.processes:  # noqa: ASYNC110 - nobody tells when a process began
                await asyncio.sleep(0)
            (number,) = made.processes
            os.kill(number, signal.SIGKILL)
            with pytest.raises(ImageError, match="the decoder died of them"):
                await doomed
            assert ended == [1]
            assert len(await made.decode("me", [jpeg(40)], SPEC)) == 1

    run(work)

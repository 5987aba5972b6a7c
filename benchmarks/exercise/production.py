"""Production as callers make it: requests over gRPC, one image each, and a load that goes on."""

import asyncio
import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.security import Scope, token_entry

__all__ = [
    "CALLERS",
    "STRANGER",
    "Load",
    "Traffic",
    "drift_of",
    "live_guard",
    "loaded",
    "send",
    "write_tokens",
]

CALLERS = ("camera-1", "camera-2", "upload-1", "upload-2")
STRANGER = "stranger"  # sends the attacks, and nothing else
BOSS = "boss"
_AT_ONCE = 8
_INSPECT = "/reluguard.v1.Guard/Inspect"
_PAUSE_S = 0.005
_DEADLINE_S = 600.0  # whoever stops us meanwhile has not lost a request


def write_tokens(file: Path) -> None:
    """Write the token file of the callers and of one admin; a token is its holder's name."""
    callers = (*CALLERS, STRANGER)
    entries = [token_entry(name, name=name, scopes=[Scope.INFER]) for name in callers]
    entries.append(token_entry(BOSS, name=BOSS, scopes=[Scope.ADMIN]))
    file.write_text("\n".join(entries))


def as_boss() -> tuple[tuple[str, str], ...]:
    """Return the admin's metadata."""
    return (("authorization", f"Bearer {BOSS}"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests in the order they come: images (N, H, W, C), whether attacked (N,), ids, callers."""

    images: Images
    attacked: NDArray[np.bool_]
    ids: Sequence[str]
    callers: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    def shown(self) -> dict[str, bytes]:
        """Return a digest of the image by request id: the same image, the same digest."""
        return {
            name: hashlib.sha256(image.tobytes()).digest()
            for name, image in zip(self.ids, self.images, strict=True)
        }

    def part(self, start: int, stop: int) -> "Traffic":
        """Return some of the requests."""
        rows = slice(start, stop)
        return Traffic(
            images=self.images[rows],
            attacked=self.attacked[rows],
            ids=self.ids[rows],
            callers=self.callers[rows],
        )

    @classmethod
    def mixed(
        cls, clean: Images, attacked: Images, *, requests: int, share: float, name: str, seed: int
    ) -> "Traffic":
        """Return clean images, again from the first when they run out, with a share attacked."""
        rng = np.random.default_rng(seed)
        count = min(round(share * requests), len(attacked)) if share else 0
        order = np.concatenate(
            [rng.permutation(len(clean)) for _ in range(-(-requests // len(clean)))]
        )
        images = clean[order[:requests]].copy()
        at = np.sort(rng.permutation(requests)[:count])
        images[at] = attacked[:count]
        which = np.zeros(requests, np.bool_)
        which[at] = True
        callers = [CALLERS[i % len(CALLERS)] for i in range(requests)]
        for i in at:
            callers[i] = STRANGER
        ids = [f"{name}-{i}" for i in range(requests)]
        return cls(images=images, attacked=which, ids=ids, callers=callers)


def request_of(images: Images) -> bytes:
    """Return one serialised request."""
    n, h, w, c = images.shape
    pixels = pb.Pixels(count=n, height=h, width=w, channels=c, data=images.tobytes())
    return pb.InspectRequest(pixels=pixels).SerializeToString()


def send(address: str, traffic: Traffic) -> int:
    """Send every request, one image each, and return how many failed."""

    async def run() -> int:
        failed = 0
        left = iter(range(len(traffic)))
        async with grpc.aio.insecure_channel(address) as channel:
            ask = channel.unary_unary(_INSPECT, None, None)

            async def caller() -> None:
                nonlocal failed
                for i in left:
                    metadata = (
                        ("authorization", f"Bearer {traffic.callers[i]}"),
                        ("x-request-id", traffic.ids[i]),
                    )
                    try:
                        data = request_of(traffic.images[i : i + 1])
                        await ask(data, metadata=metadata, timeout=_DEADLINE_S)
                    except grpc.aio.AioRpcError:
                        failed += 1

            await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))
        return failed

    return asyncio.run(run())


@dataclass(slots=True)
class Load:
    """What callers that never stop got: answered and failed calls, by guard that answered."""

    answered: int = 0
    failed: int = 0
    guards: dict[str, int] = field(default_factory=dict)


@contextmanager
def loaded(address: str, images: Images, callers: int = 2) -> Iterator[Load]:
    """Keep so many callers asking until the block ends."""
    load, stop, lock = Load(), threading.Event(), threading.Lock()

    def ask_on(start: int) -> None:
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary(_INSPECT, None, pb.InspectResponse.FromString)
            i = start
            while not stop.is_set():
                data = request_of(images[i % len(images) :][:1])
                i += callers
                try:
                    reply = ask(
                        data,
                        metadata=(("authorization", f"Bearer {CALLERS[0]}"),),
                        timeout=_DEADLINE_S,
                    )
                except grpc.RpcError:
                    with lock:
                        load.failed += 1
                else:
                    with lock:
                        load.answered += 1
                        load.guards[reply.guard] = load.guards.get(reply.guard, 0) + 1
                time.sleep(_PAUSE_S)

    threads = [threading.Thread(target=ask_on, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def live_guard(address: str) -> str:
    """Return the digest of the guard that answers."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/reluguard.v1.Guard/Describe", None, pb.DescribeResponse.FromString
        )
        reply = ask(
            pb.DescribeRequest().SerializeToString(), metadata=as_boss(), timeout=_DEADLINE_S
        )
        digest: str = reply.guard
        return digest


def drift_of(metrics: str) -> dict[str, Any]:
    """Return what the server's status says of drift: advice, statistics, sizes and suspect."""
    with urllib.request.urlopen(f"http://{metrics}/status.json", timeout=_DEADLINE_S) as reply:
        (model,) = json.load(reply)["models"]
    found: dict[str, Any] = model["drift"] or {"advice": "wait", "statistics": {}, "suspect": ""}
    return found

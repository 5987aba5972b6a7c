"""Serialised requests of random tensors, and the bare loop that serving is measured against."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import spread
from benchmarks.networks import Network
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as own

__all__ = [
    "bare",
    "export",
    "inspect_request",
    "on_cores",
    "open_inference_request",
    "share_of",
    "tensor_of",
]

_WARM_UP = 3


def export(network: Network, folder: Path) -> tuple[Path, str, tuple[int, ...]]:
    """Write the guarded model as one ONNX file; return it, its input's name and image shape."""
    guard = Guard.open(network.model, network.guard, threads=1)
    path = folder / f"{network.name}-guarded.onnx"
    path.write_bytes(guard.compiled.SerializeToString())
    return path, guard.spec.name, guard.spec.tensor_shape


def tensor_of(rows: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return random values in [0, 1): float32, (rows, *shape)."""
    return np.random.default_rng(0).random((rows, *shape), np.float32)


def open_inference_request(
    tensor: NDArray[np.float32], *, name: str, outputs: tuple[str, ...]
) -> bytes:
    """Return a serialised ModelInfer request to the model named "model"."""
    request = oip.ModelInferRequest(
        model_name="model",
        inputs=[
            oip.ModelInferRequest.InferInputTensor(name=name, datatype="FP32", shape=tensor.shape)
        ],
        outputs=[
            oip.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in outputs
        ],
        raw_input_contents=[tensor.tobytes()],
    )
    encoded: bytes = request.SerializeToString()
    return encoded


def inspect_request(tensor: NDArray[np.float32], *, name: str) -> bytes:
    """Return a serialised Inspect request to the only model."""
    inside = own.Tensor(name=name, datatype="FP32", shape=tensor.shape, data=tensor.tobytes())
    encoded: bytes = own.InspectRequest(tensor=inside).SerializeToString()
    return encoded


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and what it starts, on these cores until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bare(
    guarded: Path,
    tensor: NDArray[np.float32],
    *,
    name: str,
    outputs: tuple[str, ...],
    seconds: float,
    cores: set[int],
) -> dict[str, Any]:
    """Return images/s, p50 and p99 of `session.run` alone, one thread, in this process.

    `share` is how much of its time the thread had its core: less than 1 where others want it too.
    """
    with on_cores(cores):
        session = open_session(guarded.read_bytes(), threads=1)
        fetch, feeds = list(outputs), {name: tensor}
        for _ in range(_WARM_UP):
            session.run(fetch, feeds)
        latencies: list[float] = []
        had, started = time.thread_time(), time.perf_counter()
        now = started
        while now < started + seconds:
            session.run(fetch, feeds)
            before, now = now, time.perf_counter()
            latencies.append(now - before)
        share = (time.thread_time() - had) / (now - started)
    rate = len(latencies) * len(tensor) / (now - started)
    return {
        "rows": len(tensor),
        "images_per_s": round(rate, 1),
        "share": round(share, 3),
        **spread(latencies),
    }


def share_of(cores: set[int], *, seconds: float = 0.3) -> float:
    """Return how much of its time a busy thread gets on these cores: 1 on idle ones."""
    with on_cores(cores):
        had, started = time.thread_time(), time.perf_counter()
        while time.perf_counter() < started + seconds:
            pass
        return round((time.thread_time() - had) / (time.perf_counter() - started), 3)

"""Requests of every shape and protocol, and callers that send them. N images.

Everything goes out as raw bytes on plain gRPC channels without retries: what fails, fails.
"""

import asyncio
import io
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import numpy as np
from PIL import Image

from benchmarks.faults.pair import Pair
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.protocols.wire import datatype_of, write_tensor

__all__ = ["INFER", "INSPECT", "NO_RETRIES", "Ask", "Callers", "Kit", "code_of"]

INSPECT = "/reluguard.v1.Guard/Inspect"
INFER = "/inference.GRPCInferenceService/ModelInfer"
NO_RETRIES = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: where it goes, its bytes, and how many images it brings."""

    method: str
    data: bytes
    rows: int = 0


class Kit:
    """Makes requests for one pair, and knows the right answers."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.guard: Guard = pair.open()
        self.spec = self.guard.spec
        self._rng = np.random.default_rng(0)

    def images(self, rows: int) -> Images:
        """Return random images, uint8 (rows, H, W, C)."""
        spec = self.spec
        shape = (rows, spec.height, spec.width, spec.channels)
        return self._rng.integers(0, 256, shape, np.uint8)

    def inspect_pixels(self, images: Images) -> Ask:
        """Ask our own protocol about pixels."""
        n, h, w, c = images.shape
        pixels = pb.Pixels(count=n, height=h, width=w, channels=c, data=images.tobytes())
        return _inspect(pb.InspectRequest(pixels=pixels, all_outputs=True), n)

    def inspect_tensor(self, images: Images) -> Ask:
        """Ask our own protocol about the model's tensor."""
        x = self.spec.to_tensor(images)
        tensor = pb.Tensor(datatype=datatype_of(x.dtype), shape=x.shape, data=write_tensor(x))
        return _inspect(pb.InspectRequest(tensor=tensor), len(x))

    def inspect_encoded(self, images: Images, *, kind: str = "PNG") -> Ask:
        """Ask our own protocol about files."""
        files = [encode(image, kind) for image in images]
        return _inspect(pb.InspectRequest(encoded=pb.EncodedImages(images=files)), len(files))

    def infer_raw(self, images: Images, *, outputs: Sequence[str] = ()) -> Ask:
        """Ask the Open Inference Protocol about the model's tensor, raw."""
        x = self.spec.to_tensor(images)
        return self._infer(
            datatype_of(x.dtype), x.shape, raw=write_tensor(x), outputs=outputs, rows=len(x)
        )

    def infer_typed(self, images: Images) -> Ask:
        """The same in typed contents."""
        x = self.spec.to_tensor(images)
        contents = oip.InferTensorContents(fp32_contents=x.ravel().tolist())
        return self._infer(datatype_of(x.dtype), x.shape, contents=contents, rows=len(x))

    def infer_pixels(self, images: Images) -> Ask:
        """The same as UINT8 pixels."""
        return self._infer("UINT8", images.shape, raw=images.tobytes(), rows=len(images))

    def infer_files(self, images: Images, *, kind: str = "JPEG") -> Ask:
        """The same as BYTES of files."""
        files = [encode(image, kind) for image in images]
        raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        return self._infer("BYTES", (len(files),), raw=raw, rows=len(files))

    def _infer(
        self,
        datatype: str,
        shape: Sequence[int],
        *,
        raw: bytes | None = None,
        contents: Any = None,
        outputs: Sequence[str] = (),
        rows: int,
    ) -> Ask:
        tensor = oip.ModelInferRequest.InferInputTensor(
            name=self.spec.name, datatype=datatype, shape=shape, contents=contents
        )
        request = oip.ModelInferRequest(
            model_name="small",
            id="42",
            inputs=[tensor],
            raw_input_contents=[] if raw is None else [raw],
            outputs=[
                oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs
            ],
        )
        return Ask(method=INFER, data=request.SerializeToString(), rows=rows)

    def valid(self, most_rows: int = 16) -> list[Ask]:
        """Return valid requests of every kind and several sizes."""
        makers: list[Callable[[Images], Ask]] = [
            self.inspect_pixels, self.inspect_tensor, self.inspect_encoded, self.infer_raw,
            self.infer_pixels, self.infer_files,
        ]  # fmt: skip
        if self.spec.dtype == "float32":
            makers.append(self.infer_typed)
        sizes = [rows for rows in (1, 2, 3, 7, 16, 40) if rows <= most_rows]
        return [
            *(make(self.images(rows)) for make in makers for rows in sizes),
            Ask(method="/reluguard.v1.Guard/Describe", data=b""),
            Ask(
                method="/inference.GRPCInferenceService/ModelMetadata",
                data=oip.ModelMetadataRequest(name="small").SerializeToString(),
            ),
            Ask(
                method="/inference.GRPCInferenceService/ModelReady",
                data=oip.ModelReadyRequest(name="small").SerializeToString(),
            ),
            Ask(method="/inference.GRPCInferenceService/ServerMetadata", data=b""),
            Ask(method="/inference.GRPCInferenceService/RepositoryIndex", data=b""),
        ]


def encode(image: Images, kind: str) -> bytes:
    """Return one image as a file."""
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, kind)
    return out.getvalue()


def _inspect(request: pb.InspectRequest, rows: int) -> Ask:
    return Ask(method=INSPECT, data=request.SerializeToString(), rows=rows)


def code_of(error: grpc.RpcError) -> str:
    """Return the name of the status an RPC ended with."""
    failed: Any = error
    return str(failed.code().name)


@dataclass(slots=True, kw_only=True)
class Callers:
    """Callers in a closed loop, each asking again as soon as it is answered.

    Attributes:
        ask: sends one request and returns its answer's bytes; gRPC errors are counted by name.
        check: looks at each answer and raises AssertionError on a wrong one.
        count: how many.
    """

    ask: Callable[[], Awaitable[bytes]]
    check: Callable[[bytes], None] = lambda _: None
    count: int = 8
    answered: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    _stop: bool = field(default=False, init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self.count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        while not self._stop:
            started = time.perf_counter()
            try:
                answer = await self.ask()
            except grpc.aio.AioRpcError as error:
                self.errors[f"{code_of(error)}: {error.details()}"] += 1
                await asyncio.sleep(0.01)
                continue
            self.latencies.append(time.perf_counter() - started)
            self.answered += 1
            try:
                self.check(answer)
            except AssertionError:
                self.wrong += 1

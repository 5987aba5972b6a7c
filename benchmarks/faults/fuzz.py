"""Two hundred thousand requests that nobody would write, through real gRPC.

Hypothesis draws requests field by field; each is then mutated: bytes flipped, cut, repeated,
spliced with another request's, lengths changed, images in them broken; metadata and deadlines are
odd too. After each thousand the known good requests must be answered as at the start, byte for
byte.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding
from benchmarks.faults.traffic import INFER, INSPECT, NO_RETRIES, Ask, Kit, code_of
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb

__all__ = ["run"]

_BATCH = 1000
_AT_ONCE = 24
_HANG_S = 20.0
_GROWTH = 0.05
_FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED",
         "UNIMPLEMENTED", "PERMISSION_DENIED", "FAILED_PRECONDITION"}  # fmt: skip
_METHODS = [
    INSPECT, INFER, "/reluguard.v1.Guard/Describe", "/reluguard.v1.Guard/Feedback",
    *(f"/inference.GRPCInferenceService/{name}" for name in (
        "ModelMetadata", "ModelReady", "ServerMetadata", "RepositoryIndex", "RepositoryModelLoad",
        "RepositoryModelUnload")),
]  # fmt: skip
_big = st.integers(-(2**63), 2**63 - 1)
_names = st.sampled_from(["", "image", "small", "logits", "reluguard_score"]) | st.text(max_size=9)
_kinds = st.sampled_from(["FP32", "UINT8", "BYTES", "FP16", "FP64", "INT64", "BOOL", "", "x"])
_tables = st.dictionaries(
    st.sampled_from(
        ["policy", "timeout", "priority", "classification", "shared_memory_region", "x"]
    )
    | st.text(max_size=200),
    st.builds(oip.InferParameter, int64_param=_big)
    | st.builds(oip.InferParameter, string_param=st.text(max_size=2000))
    | st.builds(oip.InferParameter, double_param=st.floats())
    | st.builds(oip.InferParameter, bool_param=st.booleans()),
    max_size=3,
)


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Fuzz one server."""
    total = 10_000 if short else 200_000
    pair = pair or make_pair(folder / "pair")
    kit = Kit(pair)
    corpus = [ask.data for ask in kit.valid(most_rows=3)]
    drawn = _drawn(kit, corpus, count=total // 20)
    with served(pair, settings={"max_pixels": 1_000_000}) as server:
        fuzz = _Fuzz(server, kit, [*corpus, *drawn], total=total)
        asyncio.run(fuzz.run())
        return [fuzz.finding(drawn=len(drawn))]


def _drawn(kit: Kit, corpus: Sequence[bytes], *, count: int) -> list[bytes]:
    """Return requests that Hypothesis drew field by field."""
    spec = kit.spec
    one = spec.height * spec.width * spec.channels
    files = [bytes(ask.data) for ask in (kit.inspect_encoded(kit.images(1)),)]
    blobs = (
        st.sampled_from([bytes(one), bytes(4 * one), b"\x89PNG\r\n\x1a\n" + bytes(64), *files])
        | st.sampled_from(corpus)
        | st.binary(max_size=600)
    )
    sizes = st.lists(
        st.sampled_from([0, 1, 2, spec.channels, spec.height, spec.width, one]) | _big, max_size=9
    )
    tensors = st.builds(pb.Tensor, name=_names, datatype=_kinds, shape=sizes, data=blobs)
    number = st.sampled_from([1, spec.channels, spec.height]) | _big
    pixels = st.builds(
        pb.Pixels, count=number, height=number, width=number, channels=number, data=blobs
    )
    encoded = st.builds(pb.EncodedImages, images=st.lists(blobs, max_size=4))
    asked = st.lists(_names, max_size=3)
    inspects = st.one_of(
        st.builds(pb.InspectRequest, model=_names, outputs=asked, id=_names, tensor=tensors),
        st.builds(pb.InspectRequest, model=_names, outputs=asked, id=_names, pixels=pixels),
        st.builds(pb.InspectRequest, model=_names, outputs=asked, id=_names, encoded=encoded),
    )
    contents = st.none() | st.builds(
        oip.InferTensorContents,
        fp32_contents=st.lists(st.floats(width=32), max_size=4),
        fp64_contents=st.lists(st.floats(), max_size=2),
        int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=4),
        bytes_contents=st.lists(blobs, max_size=2),
    )
    inputs = st.builds(
        oip.ModelInferRequest.InferInputTensor,
        name=_names, datatype=_kinds, shape=sizes, contents=contents, parameters=_tables,
    )  # fmt: skip
    infers = st.builds(
        oip.ModelInferRequest,
        model_name=_names,
        model_version=st.sampled_from(["", "1", "9", "x", "1" * 300]),
        id=st.text(max_size=100),
        parameters=_tables,
        inputs=st.lists(inputs, max_size=2),
        outputs=st.lists(
            st.builds(
                oip.ModelInferRequest.InferRequestedOutputTensor, name=_names, parameters=_tables
            ),
            max_size=2,
        ),
        raw_input_contents=st.lists(blobs, max_size=2),
    )
    requests: list[bytes] = []

    @seeded(0)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inspects | infers)
    def keep(request: Any) -> None:
        requests.append(request.SerializeToString())

    keep()
    return requests


def mutate(data: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """Return the bytes after a few random changes."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(spoiled) + 1)
        match rng.randrange(7):
            case 0 if spoiled:
                spoiled[at - 1] ^= 1 << rng.randrange(8)
            case 1 if spoiled:
                spoiled[at - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del spoiled[at : at + rng.choice((1, 2, 9, 500))]
            case 3:
                spoiled[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
            case 4:
                other = rng.choice(corpus)
                start = rng.randrange(len(other) + 1)
                spoiled[at : at + 32] = other[start : start + rng.choice((4, 32, 400))]
            case 5:
                spoiled[at:at] = spoiled[at : at + rng.choice((2, 16, 200))]
            case _:
                del spoiled[at:]
    return bytes(spoiled)


class _Fuzz:
    def __init__(self, server: Process, kit: Kit, corpus: list[bytes], *, total: int) -> None:
        self._server, self._corpus, self._total = server, corpus, total
        self._rng = random.Random(0)
        images = kit.images(3)
        self._good = [
            kit.inspect_pixels(images), kit.inspect_encoded(images), kit.infer_raw(images),
            kit.infer_files(images, kind="PNG"),
        ]  # fmt: skip
        self._codes: Counter[str] = Counter()
        self._odd: list[str] = []
        self._wrong = self._checks = self._hangs = 0
        self._rss: list[float] = []
        self._took = 0.0
        self._stopped_at = 0.0  # when this process last ran on after a pause

    async def run(self) -> None:
        """Send everything, checking the good requests after each thousand."""
        started = time.monotonic()
        watching = asyncio.create_task(self._watch())
        async with grpc.aio.insecure_channel(
            self._server.address,
            options=[*NO_RETRIES, ("grpc.max_metadata_size", 2**20)],
        ) as channel:
            expected = [await self._plain(channel, ask) for ask in self._good]
            gate = asyncio.Semaphore(_AT_ONCE)

            async def one(data: bytes) -> None:
                async with gate:
                    await self._send(channel, data)

            for _ in range(self._total // _BATCH):
                await asyncio.gather(*(one(self._next()) for _ in range(_BATCH)))
                for ask, right in zip(self._good, expected, strict=True):
                    self._checks += 1
                    self._wrong += await self._plain(channel, ask) != right
                self._rss.append(self._server.usage().rss_mib)
        watching.cancel()
        self._took = time.monotonic() - started

    async def _watch(self) -> None:
        """Notice when this process was stopped for long: no call's fault."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.2)
            if time.perf_counter() - before > 2:
                self._stopped_at = time.perf_counter()

    def _next(self) -> bytes:
        data = self._rng.choice(self._corpus)
        return data if self._rng.random() < 0.1 else mutate(data, self._corpus, self._rng)

    @staticmethod
    async def _plain(channel: grpc.aio.Channel, ask: Ask) -> bytes:
        answer: bytes = await channel.unary_unary(ask.method)(ask.data, timeout=_HANG_S)
        if ask.method == INSPECT:  # the only part that may differ is the time it took
            reply = pb.InspectResponse.FromString(answer)
            reply.ClearField("timing")
            answer = reply.SerializeToString(deterministic=True)
        return answer

    async def _send(self, channel: grpc.aio.Channel, data: bytes) -> None:
        rng = self._rng
        method = rng.choice((INSPECT, INFER)) if rng.random() < 0.8 else rng.choice(_METHODS)
        dice = rng.random()
        timeout = rng.choice((0.001, 0.01)) if dice < 0.02 else _HANG_S
        metadata = _metadata(rng) if dice > 0.9 else None
        started = time.perf_counter()
        code, details = "OK", ""
        try:
            await channel.unary_unary(method)(data, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code, details = code_of(error), error.details() or ""
        if timeout == _HANG_S and time.perf_counter() - started >= _HANG_S:
            await asyncio.sleep(0.3)
            self._hangs += self._stopped_at < started
        self._codes[code] += 1
        if code not in _FINE or "Traceback" in details or 'File "' in details:
            self._odd.append(f"{method} {code}: {details[:200]} {data[:200].hex()}")

    def finding(self, *, drawn: int) -> Finding:
        """Look at how memory went and at the server's log."""
        loud = [line for line in self._server.messages() if line["level"] in {"ERROR", "TEXT"}]
        # gRPC's own word for a caller that hung up while it was being refused
        gone = [line for line in loud if line["message"].startswith("ExecuteBatchError")]
        errors = [line for line in loud if line not in gone]
        warm = self._rss[max(0, len(self._rss) // 10 - 1)]
        growth = self._rss[-1] / warm - 1
        alive = self._server.popen.poll() is None
        return Finding(
            exercise="fuzz",
            goal="no crash, no hang, no wrong answer afterwards, no memory growth (<= 5 %)",
            figures={
                "requests": sum(self._codes.values()),
                "drawn_by_hypothesis": drawn,
                "seconds": round(self._took),
                "codes": dict(self._codes.most_common()),
                "odd_answers": self._odd[:5],
                "hangs": self._hangs,
                "good_requests_checked": self._checks,
                "wrong_answers": self._wrong,
                "rss_mib_at_10_50_100_percent": [
                    round(self._rss[max(0, len(self._rss) * part // 100 - 1)], 1)
                    for part in (10, 50, 100)
                ],
                "rss_growth": f"{growth:+.1%}",
                "errors_in_log": [line["message"][:200] for line in errors[:5]],
                "callers_gone_while_told": len(gone),
                "alive": alive,
            },
            met=alive
            and not (self._odd or self._hangs or self._wrong or errors)
            and growth <= _GROWTH,
        )


def _metadata(rng: random.Random) -> list[tuple[str, str | bytes]]:
    """Return headers that a client may send: odd names, ids, encodings, long and binary values."""
    rows: list[tuple[str, str | bytes]] = []
    for _ in range(rng.randrange(1, 5)):
        match rng.randrange(6):
            case 0:
                rows.append(("x-request-id", "".join(rng.choices("ab.-_/\\ %\"'", k=70))))
            case 1:
                rows.append(("authorization", rng.choice(("", "Bearer", "Bearer x", "Basic ==="))))
            case 2:
                rows.append(
                    (f"x-{rng.randrange(10**6)}-bin", rng.randbytes(rng.choice((0, 9, 900))))
                )
            case 3:
                rows.append(("x-long", "a" * rng.choice((10, 5000, 20_000, 60_000))))
            case 4:
                rows.append(("traceparent", "00-" + "f" * rng.randrange(70)))
            case _:
                rows.append(("user-agent", "x" * rng.randrange(300)))
    return rows

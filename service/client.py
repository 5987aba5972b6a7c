"""Asks a reluguard server from Python, sync and async. N images, L taps.

The methods are those of `detector.runtime.Guard`, so code moves between in process and served by
changing one line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from detector.errors import ImageError
from detector.images import Images, InputSpec, check_images
from detector.verdict import Verdicts
from service.errors import CallError
from service.inspection import Limits
from service.pb import reluguard_v1 as pb
from service.rows import join
from service.wire import DATATYPES, datatype_of, read_tensor, write_tensor

__all__ = ["AsyncClient", "Client", "Description", "is_healthy"]

_SERVICE = "/reluguard.v1.Guard/"
_ATTEMPTS = 5  # gRPC allows no more
_FRAME_BYTES = 64 * 1024  # room for everything in a request that is no pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a server says of one of its models.

    Attributes:
        model: its name.
        models: all names the server has.
        model_sha256: of the production model.
        guard: the live guard's digest.
        created_at: when that guard was fitted.
        input: how images go in.
        outputs: the production outputs' names.
        thresholds: score by target false-positive rate; NaN where it is not ours to see.
        taps: the ONNX tensors that are read.
        policy: annotate, reject or shadow.
        limits: of one request.
        version: of the server.
    """

    model: str
    models: tuple[str, ...]
    model_sha256: str
    guard: str
    created_at: str
    input: InputSpec
    outputs: tuple[str, ...]
    thresholds: Mapping[float, float]
    taps: tuple[str, ...]
    policy: str
    limits: Limits
    version: str


class Client:
    """Asks one server, or several replicas behind one name. Safe to call from several threads.

    Args:
        address: host:port; with `dns:///name:port` every address behind the name gets its turn.
        model: which model to ask; empty if the server has one.
        deadline_s: longest time for a call, retries included.
        token: sent as a bearer token. Needs TLS, or a loopback address.
        ca: PEM file of the certificates to trust; turns TLS on. True: the system's.
        certificate: PEM file of our own certificate, for mTLS; goes with `key`.
        key: PEM file of our private key.
        server_name: the name to expect in the server's certificate, if not the address.

    Example:
        >>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
        ...     client.inspect(images)[0].is_adversarial
        False
    """

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        deadline_s: float = 10.0,
        token: str | None = None,
        ca: Path | str | bool | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        server_name: str | None = None,
    ) -> None:
        credentials = _credentials(ca, certificate, key)
        options = _options(server_name)
        self._channel = (
            grpc.insecure_channel(address, options=options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=options)
        )
        self._asking = _Asking(model=model, deadline_s=deadline_s, token=token)
        self._calls = _calls(self._channel)
        self._known: Description | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def inspect(self, images: Images, *, outputs: bool = False) -> Verdicts:
        """Return verdicts on uint8 images (N, H, W, C); the server does the preprocessing.

        Batches above the server's limits go in several requests.

        Args:
            images: RGB or grey, in the size the model wants.
            outputs: whether to bring the model's own outputs along.

        Raises:
            ImageError: not uint8 or not four dimensions.
            CallError: the server refused, or can't be reached.
        """
        check_images(images)
        return self._ask(_pixels(images, self._limits(len(images))), outputs=outputs)

    def inspect_tensor(self, tensor: NDArray[Any], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on the model's own input tensor.

        Raises:
            ImageError: not a numeric array with at least one row.
            CallError: the server refused, or can't be reached.
        """
        _check_sendable(tensor)
        return self._ask(_tensors(tensor, self._limits(len(tensor))), outputs=outputs)

    def inspect_encoded(self, images: Sequence[bytes], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on whole JPEG or PNG files.

        Raises:
            ImageError: there is none.
            CallError: the server refused, or can't be reached.
        """
        _check_some(images)
        return self._ask(_encoded(images, self._limits(len(images))), outputs=outputs)

    __call__ = inspect

    def stream(
        self, batches: Iterator[Images], *, outputs: bool = False
    ) -> Iterator[Verdicts | CallError]:
        """Yield one answer per batch, in order; a batch that was refused yields its error.

        Raises:
            CallError: the stream as a whole broke.
        """
        requests = (
            self._asking.fill(pb.InspectRequest(pixels=_pixel_block(images)), outputs=outputs)
            for images in batches
        )
        try:
            for reply in self._calls["InspectStream"](
                requests, metadata=self._asking.metadata, timeout=None
            ):
                yield _stream_reply(reply)
        except grpc.RpcError as error:
            raise _call_error(error) from error

    def describe(self) -> Description:
        """Return what the server says of the model.

        Raises:
            CallError: the server refused, or can't be reached.
        """
        self._known = _description(
            self._send("Describe", pb.DescribeRequest(model=self._asking.model))
        )
        return self._known

    def _limits(self, rows: int) -> Limits | None:
        """Return the server's limits; one image always goes in one request."""
        if rows <= 1:
            return None
        return (self._known or self.describe()).limits

    def _ask(self, requests: Iterator[pb.InspectRequest], *, outputs: bool) -> Verdicts:
        parts = [
            _verdicts(self._send("Inspect", self._asking.fill(request, outputs=outputs)))
            for request in requests
        ]
        return parts[0] if len(parts) == 1 else join(parts)

    def _send(self, method: str, request: Message) -> Any:
        try:
            return self._calls[method](
                request, timeout=self._asking.deadline_s, metadata=self._asking.metadata
            )
        except grpc.RpcError as error:
            raise _call_error(error) from error


class AsyncClient:
    """`Client` for asyncio: the same arguments, the same methods, awaited."""

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        deadline_s: float = 10.0,
        token: str | None = None,
        ca: Path | str | bool | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        server_name: str | None = None,
    ) -> None:
        credentials = _credentials(ca, certificate, key)
        options = _options(server_name)
        self._channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        self._asking = _Asking(model=model, deadline_s=deadline_s, token=token)
        self._calls = _calls(self._channel)
        self._known: Description | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close(None)

    async def inspect(self, images: Images, *, outputs: bool = False) -> Verdicts:
        """Return verdicts on uint8 images, as `Client.inspect`."""
        check_images(images)
        limits = await self._limits(len(images))
        return await self._ask(_pixels(images, limits), outputs=outputs)

    async def inspect_tensor(self, tensor: NDArray[Any], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on the model's own input tensor, as `Client.inspect_tensor`."""
        _check_sendable(tensor)
        limits = await self._limits(len(tensor))
        return await self._ask(_tensors(tensor, limits), outputs=outputs)

    async def inspect_encoded(self, images: Sequence[bytes], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on whole JPEG or PNG files, as `Client.inspect_encoded`."""
        _check_some(images)
        limits = await self._limits(len(images))
        return await self._ask(_encoded(images, limits), outputs=outputs)

    __call__ = inspect

    async def describe(self) -> Description:
        """Return what the server says of the model, as `Client.describe`."""
        request = pb.DescribeRequest(model=self._asking.model)
        self._known = _description(await self._send("Describe", request))
        return self._known

    async def _limits(self, rows: int) -> Limits | None:
        if rows <= 1:
            return None
        return (self._known or await self.describe()).limits

    async def _ask(self, requests: Iterator[pb.InspectRequest], *, outputs: bool) -> Verdicts:
        parts = [
            _verdicts(await self._send("Inspect", self._asking.fill(request, outputs=outputs)))
            for request in requests
        ]
        return parts[0] if len(parts) == 1 else join(parts)

    async def _send(self, method: str, request: Message) -> Any:
        try:
            return await self._calls[method](
                request, timeout=self._asking.deadline_s, metadata=self._asking.metadata
            )
        except grpc.RpcError as error:
            raise _call_error(error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """What every call of one client carries."""

    model: str
    deadline_s: float
    token: str | None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def fill(self, request: pb.InspectRequest, *, outputs: bool) -> pb.InspectRequest:
        request.model = self.model
        request.all_outputs = outputs
        return request


def is_healthy(
    address: str,
    *,
    service: str = "",
    deadline_s: float = 3.0,
    ca: Path | str | bool | None = None,
    certificate: Path | str | None = None,
    key: Path | str | None = None,
    server_name: str | None = None,
) -> bool:
    """Return whether the server says SERVING: for `reluguard health` and container probes.

    Args:
        address: host:port.
        service: empty for the server as a whole, or a service's or model's name.
        deadline_s: longest time to wait.
        ca: as `Client`.
        certificate: as `Client`.
        key: as `Client`.
        server_name: as `Client`.
    """
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    credentials = _credentials(ca, certificate, key)
    # no retries and no balancing: this asks one server, once
    options = [] if server_name is None else [("grpc.ssl_target_name_override", server_name)]
    channel = (
        grpc.insecure_channel(address, options=options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options=options)
    )
    with channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=deadline_s
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _credentials(
    ca: Path | str | bool | None, certificate: Path | str | None, key: Path | str | None
) -> grpc.ChannelCredentials | None:
    if not ca and certificate is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=Path(ca).read_bytes() if isinstance(ca, str | Path) else None,
        private_key=None if key is None else Path(key).read_bytes(),
        certificate_chain=None if certificate is None else Path(certificate).read_bytes(),
    )


def _options(server_name: str | None) -> list[tuple[str, Any]]:
    # gRPC's own retries: they keep the deadline and honour the server's pushback
    policy = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # leave a server that says NOT_SERVING before it hangs up
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{"service": "reluguard.v1.Guard"}],
                "retryPolicy": {
                    "maxAttempts": _ATTEMPTS,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 3,
                    # CANCELLED is how a stopping gRPC server drops a call it never read
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
                },
            }
        ],
    }
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(policy)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # by default a request over 256 KiB is forgotten once sent, and so never retried
        ("grpc.per_rpc_retry_buffer_size", 2**30),
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def _calls(channel: Any) -> dict[str, Any]:
    calls = {
        name: channel.unary_unary(
            _SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        for name, reply in (("Inspect", pb.InspectResponse), ("Describe", pb.DescribeResponse))
    }
    calls["InspectStream"] = channel.stream_stream(
        _SERVICE + "InspectStream",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.InspectStreamResponse.FromString,
    )
    return calls


def _check_sendable(tensor: NDArray[Any]) -> None:
    known = sorted(dtype.name for dtype in DATATYPES.values())
    if not isinstance(tensor, np.ndarray) or tensor.dtype.name not in known:
        what = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise ImageError(f"expected an array of {', '.join(known)}, got {what}")
    if tensor.ndim == 0 or len(tensor) == 0:
        raise ImageError("expected at least one image, got an empty batch")


def _check_some(images: Sequence[bytes]) -> None:
    if len(images) == 0:
        raise ImageError("expected at least one image, got an empty batch")


def _pixel_block(images: Images) -> pb.Pixels:
    n, h, w, c = images.shape
    return pb.Pixels(count=n, height=h, width=w, channels=c, data=write_tensor(images))


def _pixels(images: Images, limits: Limits | None) -> Iterator[pb.InspectRequest]:
    for rows in _blocks([images[0].nbytes] * len(images), limits):
        yield pb.InspectRequest(pixels=_pixel_block(images[rows]))


def _tensors(tensor: NDArray[Any], limits: Limits | None) -> Iterator[pb.InspectRequest]:
    for rows in _blocks([tensor[0].nbytes] * len(tensor), limits):
        part = tensor[rows]
        yield pb.InspectRequest(
            tensor=pb.Tensor(
                datatype=datatype_of(part.dtype), shape=part.shape, data=write_tensor(part)
            )
        )


def _encoded(images: Sequence[bytes], limits: Limits | None) -> Iterator[pb.InspectRequest]:
    for rows in _blocks([len(image) for image in images], limits):
        yield pb.InspectRequest(encoded=pb.EncodedImages(images=images[rows]))


def _blocks(sizes: Sequence[int], limits: Limits | None) -> Iterator[slice]:
    """Yield runs of rows that keep the server's limits; a row over them goes alone."""
    if limits is None:
        yield slice(0, len(sizes))
        return
    most = limits.max_message_bytes - _FRAME_BYTES
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (i - start >= limits.max_rows or held + size > most):
            yield slice(start, i)
            start, held = i, 0
        held += size
    yield slice(start, len(sizes))


def _verdicts(reply: pb.InspectResponse) -> Verdicts:
    n = len(reply.prediction)
    full = reply.detail == pb.DETAIL_FULL
    shown = reply.detail != pb.DETAIL_NONE
    unseen = np.full(n, np.nan)
    return Verdicts(
        prediction=np.array(reply.prediction, np.int64),
        score=np.array(reply.score if full else unseen, np.float32),
        likelihood=np.array(reply.likelihood if shown else unseen, np.float32),
        p_value=np.array(reply.p_value if full else unseen, np.float64),
        is_adversarial=np.array(reply.is_adversarial if shown else np.zeros(n), np.bool_),
        evidence=_array(reply.evidence) if full else np.zeros((n, 0), np.float32),
        outputs={tensor.name: _array(tensor) for tensor in reply.outputs},
    )


def _stream_reply(reply: pb.InspectStreamResponse) -> Verdicts | CallError:
    if reply.WhichOneof("answer") == "response":
        return _verdicts(reply.response)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    code = codes.get(reply.error.code, grpc.StatusCode.UNKNOWN)
    return CallError(code, reply.error.message)


def _array(tensor: pb.Tensor) -> NDArray[Any]:
    return read_tensor(tensor.data, name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _description(reply: pb.DescribeResponse) -> Description:
    given = reply.input
    return Description(
        model=reply.model,
        models=tuple(reply.models),
        model_sha256=reply.model_sha256,
        guard=reply.guard,
        created_at=reply.guard_created_at,
        input=InputSpec(
            name=given.name,
            height=given.height,
            width=given.width,
            channels=given.channels,
            layout=given.layout,  # type: ignore[arg-type] # InputSpec checks the word
            dtype=DATATYPES[given.datatype].name,
            batch=None if reply.inputs[0].shape[0] < 0 else reply.inputs[0].shape[0],
            scale=given.scale,
            mean=tuple(given.mean),
            std=tuple(given.std),
            bgr=given.bgr,
        ),
        outputs=tuple(info.name for info in reply.outputs),
        thresholds={
            row.target_fpr: row.score if row.HasField("score") else float("nan")
            for row in reply.thresholds
        },
        taps=tuple(reply.taps),
        policy=reply.policy,
        limits=Limits(
            max_rows=reply.limits.max_rows,
            max_message_bytes=reply.limits.max_message_bytes,
            max_pixels=reply.limits.max_pixels,
        ),
        version=reply.server_version,
    )


def _call_error(error: Any) -> CallError:
    trailing = error.trailing_metadata() or ()
    request_id = next((value for key, value in trailing if key == "x-request-id"), "")
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.CANCELLED:  # we never cancel, so the server hung up
        code, details = grpc.StatusCode.UNAVAILABLE, "the server hung up before it read the call"
    return CallError(code, details, request_id=str(request_id))

"""Asks a reluguard server from Python, sync and async. N images, L taps.

The methods are those of `reluguard.Guard`, so code moves between in process and served by changing
one line.
"""

import asyncio
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from numpy.typing import NDArray

from reluguard.detector.images import Images, check_images
from reluguard.detector.verdict import Verdicts
from reluguard.service.client.channel import check_address, guard_calls, open_channel
from reluguard.service.client.greeting import Greeting
from reluguard.service.client.replies import (
    Description,
    call_error,
    description_of,
    stream_answer,
    verdicts_of,
)
from reluguard.service.client.requests import (
    ALWAYS_FITS,
    check_sendable,
    check_some,
    encoded_requests,
    pixel_block,
    pixel_requests,
    tensor_requests,
)
from reluguard.service.errors import CallError
from reluguard.service.models.rows import join
from reluguard.service.protocols.inspection import Limits
from reluguard.service.protocols.pb import reluguard_v1 as pb

__all__ = ["AsyncClient", "Client", "Description"]


class Client:
    """Asks one server, or several replicas behind one name. Safe to call from several threads.

    Args:
        address: host:port, or `unix:PATH`; with `dns:///name:port` every address behind the name
            gets its turn.
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
        check_address(address)
        self._greeting = Greeting(address, secure=bool(ca or certificate))
        self._channel = open_channel(
            grpc, address, ca=ca, certificate=certificate, key=key, server_name=server_name
        )
        self._asking = _Asking(model=model, deadline_s=deadline_s, token=token)
        self._calls = guard_calls(self._channel)
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
            ImageError: not uint8 or not four dimensions, or too large for the server.
            CallError: the server refused, or can't be reached.
        """
        check_images(images)
        return self._ask(
            pixel_requests(images, self._limits(len(images), images[0].nbytes)), outputs=outputs
        )

    def inspect_tensor(self, tensor: NDArray[Any], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on the model's own input tensor.

        Raises:
            ImageError: not a numeric array with at least one row.
            CallError: the server refused, or can't be reached.
        """
        check_sendable(tensor)
        return self._ask(
            tensor_requests(tensor, self._limits(len(tensor), tensor[0].nbytes)), outputs=outputs
        )

    def inspect_encoded(self, images: Sequence[bytes], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on whole JPEG, PNG or WebP files.

        Raises:
            ImageError: there is none.
            CallError: the server refused, or can't be reached.
        """
        check_some(images)
        return self._ask(
            encoded_requests(images, self._limits(len(images), max(map(len, images)))),
            outputs=outputs,
        )

    __call__ = inspect

    def stream(
        self, batches: Iterator[Images], *, outputs: bool = False
    ) -> Iterator[Verdicts | CallError]:
        """Yield one answer per batch, in order; a batch that was refused yields its error.

        Raises:
            CallError: the stream as a whole broke.
        """
        requests = (
            self._asking.fill(pb.InspectRequest(pixels=pixel_block(images)), outputs=outputs)
            for images in batches
        )
        self._greeting.speak()
        try:
            for reply in self._calls["InspectStream"](
                requests, metadata=self._asking.metadata, timeout=None
            ):
                yield stream_answer(reply)
        except grpc.RpcError as error:
            raise call_error(error) from error

    def describe(self) -> Description:
        """Return what the server says of the model.

        Raises:
            CallError: the server refused, or can't be reached.
        """
        self._known = description_of(
            self._send("Describe", pb.DescribeRequest(model=self._asking.model))
        )
        return self._known

    def _limits(self, rows: int, row_bytes: int) -> Limits | None:
        """Return the server's limits; one small image always goes in one request."""
        if rows <= 1 and row_bytes <= ALWAYS_FITS:
            return None
        return (self._known or self.describe()).limits

    def _ask(self, requests: Iterator[pb.InspectRequest], *, outputs: bool) -> Verdicts:
        parts = [
            verdicts_of(self._send("Inspect", self._asking.fill(request, outputs=outputs)))
            for request in requests
        ]
        return parts[0] if len(parts) == 1 else join(parts)

    def _send(self, method: str, request: Message) -> Any:
        self._greeting.speak()
        try:
            return self._calls[method](
                request, timeout=self._asking.deadline_s, metadata=self._asking.metadata
            )
        except grpc.RpcError as error:
            raise call_error(error) from error


class AsyncClient:
    """`Client` for asyncio: the same arguments, the same methods, awaited.

    It connects when it is first asked, so it may be made before there is a loop.
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
        check_address(address)
        self._greeting = Greeting(address, secure=bool(ca or certificate))
        self._open = functools.partial(
            open_channel,
            grpc.aio,
            address,
            ca=ca,
            certificate=certificate,
            key=key,
            server_name=server_name,
        )
        self._asking = _Asking(model=model, deadline_s=deadline_s, token=token)
        self._channel: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[str, Any] = {}
        self._known: Description | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close(None)
        self._channel = None

    async def inspect(self, images: Images, *, outputs: bool = False) -> Verdicts:
        """Return verdicts on uint8 images, as `Client.inspect`."""
        check_images(images)
        limits = await self._limits(len(images), images[0].nbytes)
        return await self._ask(pixel_requests(images, limits), outputs=outputs)

    async def inspect_tensor(self, tensor: NDArray[Any], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on the model's own input tensor, as `Client.inspect_tensor`."""
        check_sendable(tensor)
        limits = await self._limits(len(tensor), tensor[0].nbytes)
        return await self._ask(tensor_requests(tensor, limits), outputs=outputs)

    async def inspect_encoded(self, images: Sequence[bytes], *, outputs: bool = False) -> Verdicts:
        """Return verdicts on whole JPEG, PNG or WebP files, as `Client.inspect_encoded`."""
        check_some(images)
        limits = await self._limits(len(images), max(map(len, images)))
        return await self._ask(encoded_requests(images, limits), outputs=outputs)

    __call__ = inspect

    async def describe(self) -> Description:
        """Return what the server says of the model, as `Client.describe`."""
        request = pb.DescribeRequest(model=self._asking.model)
        self._known = description_of(await self._send("Describe", request))
        return self._known

    async def _limits(self, rows: int, row_bytes: int) -> Limits | None:
        if rows <= 1 and row_bytes <= ALWAYS_FITS:
            return None
        return (self._known or await self.describe()).limits

    async def _ask(self, requests: Iterator[pb.InspectRequest], *, outputs: bool) -> Verdicts:
        parts = [
            verdicts_of(await self._send("Inspect", self._asking.fill(request, outputs=outputs)))
            for request in requests
        ]
        return parts[0] if len(parts) == 1 else join(parts)

    async def _send(self, method: str, request: Message) -> Any:
        await self._connect()
        try:
            return await self._calls[method](
                request, timeout=self._asking.deadline_s, metadata=self._asking.metadata
            )
        except grpc.RpcError as error:
            raise call_error(error) from error

    async def _connect(self) -> None:
        """Open the channel on the loop that asks: one of gRPC's belongs to one loop for good."""
        loop = asyncio.get_running_loop()
        if self._channel is None or self._loop is not loop:
            await self._greeting.speak_async()
            self._loop, self._channel = loop, self._open()
            self._calls = guard_calls(self._channel)


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

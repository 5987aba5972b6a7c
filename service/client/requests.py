"""Images as requests of our own protocol, as many as the server's limits ask for. N images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import ImageError, ImageTooLargeError
from reluguard.detector.images import Images
from reluguard.service.protocols.inspection import Limits
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.protocols.wire import DATATYPES, datatype_of, write_tensor

__all__ = [
    "ALWAYS_FITS",
    "check_sendable",
    "check_some",
    "encoded_requests",
    "pixel_block",
    "pixel_requests",
    "row_runs",
    "tensor_requests",
]

ALWAYS_FITS = 64 * 1024  # bytes of one image for which no server's limits are asked first
_LEAST_FRAME_BYTES = 64
_FRAME_BYTES = 64 * 1024  # room for everything in a request that is no pixel


def check_sendable(tensor: NDArray[Any]) -> None:
    """Raise ImageError unless it is a numeric array of at least one row."""
    known = sorted(dtype.name for dtype in DATATYPES.values())
    if not isinstance(tensor, np.ndarray) or tensor.dtype.name not in known:
        what = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise ImageError(f"expected an array of {', '.join(known)}, got {what}")
    if tensor.ndim == 0 or len(tensor) == 0:
        raise ImageError("expected at least one image, got an empty batch")


def check_some(images: Sequence[bytes]) -> None:
    """Raise ImageError if there is no image."""
    if len(images) == 0:
        raise ImageError("expected at least one image, got an empty batch")


def pixel_block(images: Images) -> pb.Pixels:
    """Return uint8 images (N, H, W, C) as a message."""
    n, h, w, c = images.shape
    return pb.Pixels(count=n, height=h, width=w, channels=c, data=write_tensor(images))


def pixel_requests(images: Images, limits: Limits | None) -> Iterator[pb.InspectRequest]:
    """Yield requests with uint8 images (N, H, W, C), in one if there are no limits to keep."""
    for rows in row_runs([images[0].nbytes] * len(images), limits):
        yield pb.InspectRequest(pixels=pixel_block(images[rows]))


def tensor_requests(tensor: NDArray[Any], limits: Limits | None) -> Iterator[pb.InspectRequest]:
    """Yield requests with the model's own input tensor, N rows of it."""
    for rows in row_runs([tensor[0].nbytes] * len(tensor), limits):
        part = tensor[rows]
        yield pb.InspectRequest(
            tensor=pb.Tensor(
                datatype=datatype_of(part.dtype), shape=part.shape, data=write_tensor(part)
            )
        )


def encoded_requests(images: Sequence[bytes], limits: Limits | None) -> Iterator[pb.InspectRequest]:
    """Yield requests with whole JPEG, PNG or WebP files."""
    for rows in row_runs([len(image) for image in images], limits):
        yield pb.InspectRequest(encoded=pb.EncodedImages(images=images[rows]))


def row_runs(sizes: Sequence[int], limits: Limits | None) -> Iterator[slice]:
    """Yield runs of rows that keep the server's limits.

    Raises:
        ImageTooLargeError: a row alone is over them, however often it is sent.
    """
    if limits is None:
        yield slice(0, len(sizes))
        return
    for i, size in enumerate(sizes):
        if size + _LEAST_FRAME_BYTES > limits.max_message_bytes:
            raise ImageTooLargeError(
                f"expected images of less than {limits.max_message_bytes} bytes, what this server"
                f" takes in a request, image {i} has {size}"
            )
    most = limits.max_message_bytes - _FRAME_BYTES
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (i - start >= limits.max_rows or held + size > most):
            yield slice(start, i)
            start, held = i, 0
        held += size
    yield slice(start, len(sizes))

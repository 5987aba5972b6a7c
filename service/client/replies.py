"""What a server answers, as values of Python. N images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import InputSpec
from reluguard.detector.verdict import Verdicts
from reluguard.service.errors import CallError
from reluguard.service.protocols.inspection import Limits
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.protocols.wire import DATATYPES, read_strings, read_tensor

__all__ = ["Description", "call_error", "description_of", "stream_answer", "verdicts_of"]


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
        thresholds: score by target false-positive rate; NaN where it is not ours to see, or where
            there is no single one.
        thresholds_by_class: float32, (K,), by target false-positive rate, of a guard with a
            threshold for each class that the model answers; of images the first look decides.
        second_thresholds: score of images that the second look decides, of one that looks twice:
            float32, (1,), or (K,) by class.
        taps: the ONNX tensors that are read.
        policy: annotate, reject or shadow.
        limits: of one request.
        version: of the server.
        target_fpr: the share of clean images that verdicts may flag; NaN of an older server.
        is_by_class: whether that holds within each class, by a threshold of its own.
        looks: when a second look is taken: "first" for never, "suspicious" or "always".
    """

    model: str
    models: tuple[str, ...]
    model_sha256: str
    guard: str
    created_at: str
    input: InputSpec
    outputs: tuple[str, ...]
    thresholds: Mapping[float, float]
    thresholds_by_class: Mapping[float, NDArray[np.float32]]
    second_thresholds: Mapping[float, NDArray[np.float32]]
    taps: tuple[str, ...]
    policy: str
    limits: Limits
    version: str
    target_fpr: float
    is_by_class: bool
    looks: str


def verdicts_of(reply: pb.InspectResponse) -> Verdicts:
    """Return the verdicts in a reply; NaN, and nothing flagged, where they are not ours to see."""
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
        # an older server says nothing of it
        unscored=np.array(reply.unscored or np.zeros(n), np.bool_),
        look=np.array(reply.look or np.ones(n), np.uint8),
    )


def stream_answer(reply: pb.InspectStreamResponse) -> Verdicts | CallError:
    """Return the answer to one batch of a stream, which may be its error."""
    if reply.WhichOneof("answer") == "response":
        return verdicts_of(reply.response)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    code = codes.get(reply.error.code, grpc.StatusCode.UNKNOWN)
    return CallError(code, reply.error.message)


def _array(tensor: pb.Tensor) -> NDArray[Any]:
    if tensor.datatype == "BYTES":
        return read_strings(tensor.data, name=tensor.name, shape=tensor.shape)
    return read_tensor(tensor.data, name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def description_of(reply: pb.DescribeResponse) -> Description:
    """Return what the server says of its model."""
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
        thresholds_by_class={
            row.target_fpr: np.array(row.by_class, np.float32)
            for row in reply.thresholds
            if row.by_class
        },
        second_thresholds={
            row.target_fpr: np.array(row.second_by_class or [row.second_score], np.float32)
            for row in reply.thresholds
            if row.second_by_class or row.HasField("second_score")
        },
        taps=tuple(reply.taps),
        policy=reply.policy,
        limits=Limits(
            max_rows=reply.limits.max_rows,
            max_message_bytes=reply.limits.max_message_bytes,
            max_pixels=reply.limits.max_pixels,
        ),
        version=reply.server_version,
        target_fpr=reply.target_fpr or float("nan"),
        is_by_class=reply.thresholds_by_class,
        looks=reply.looks or "first",
    )


def call_error(error: Any) -> CallError:
    """Return a failed call of either family of gRPC as our own error."""
    trailing = error.trailing_metadata() or ()
    request_id = next((value for key, value in trailing if key == "x-request-id"), "")
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.CANCELLED:  # we never cancel, so the server hung up
        code, details = grpc.StatusCode.UNAVAILABLE, "the server hung up before it read the call"
    return CallError(code, details, request_id=str(request_id))

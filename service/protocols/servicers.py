"""Our own protocol, `reluguard.v1.Guard`. N images, L taps."""

import asyncio
import functools
import math
import time
from collections.abc import Iterable

import grpc
import numpy as np

from reluguard import service
from reluguard.detector.looks.thresholds import Thresholds
from reluguard.detector.model import TensorInfo
from reluguard.service.captures.label import set_label
from reluguard.service.edge import Call, Edge
from reluguard.service.errors import DisabledError, RequestError
from reluguard.service.models.models import Model, Repository
from reluguard.service.protocols.inspection import (
    Encoded,
    Input,
    Inspection,
    Inspector,
    PixelArray,
    TensorArray,
)
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.protocols.policy import Detail
from reluguard.service.protocols.wire import datatype_of, read_tensor, write_tensor
from reluguard.service.room import Room
from reluguard.service.security import Scope
from reluguard.service.status import Status

__all__ = ["SERVICE", "GuardServicer"]

SERVICE = "reluguard.v1.Guard"
_MOST_CLASSES = 1024  # whose thresholds are told one by one: some 8 kB a rate and look
_LARGE = {
    pb.InspectRequest.TENSOR_FIELD_NUMBER: pb.Tensor.DATA_FIELD_NUMBER,
    pb.InspectRequest.PIXELS_FIELD_NUMBER: pb.Pixels.DATA_FIELD_NUMBER,
}


class GuardServicer:
    """Answers Inspect, InspectStream, Describe and Feedback."""

    def __init__(self, repository: Repository, inspector: Inspector, room: Room) -> None:
        self._repository = repository
        self._inspector = inspector
        self._room = room

    def handlers(self, edge: Edge) -> grpc.GenericRpcHandler:
        """Return this service for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Inspect": edge.unary(
                    (SERVICE, "Inspect"), pb.InspectRequest, self.inspect, large=_LARGE
                ),
                "InspectStream": edge.stream(
                    (SERVICE, "InspectStream"),
                    pb.InspectRequest,
                    self._streamed,
                    _failed,
                    large=_LARGE,
                ),
                "Describe": edge.unary((SERVICE, "Describe"), pb.DescribeRequest, self.describe),
                "Feedback": edge.unary(
                    (SERVICE, "Feedback"), pb.FeedbackRequest, self.feedback, scope=Scope.ADMIN
                ),
            },
        )

    async def inspect(
        self, call: Call, request: pb.InspectRequest, payload: memoryview | None = None
    ) -> pb.InspectResponse:
        """Answer one batch, whose data may lie beside the request."""
        model = self._repository.get(request.model)
        wanted = _wanted(request, model)
        given = _read_input(request, payload)
        inspection = await self._inspector.inspect(model, call, given)
        started = time.perf_counter()
        response = _response(request, model, inspection, wanted)
        model.metrics.stage("encode", time.perf_counter() - started)
        return response

    async def _streamed(
        self, call: Call, request: pb.InspectRequest, payload: memoryview | None = None
    ) -> pb.InspectStreamResponse:
        response = await self.inspect(call, request, payload)
        return pb.InspectStreamResponse(response=response, id=request.id)

    async def describe(self, call: Call, request: pb.DescribeRequest) -> pb.DescribeResponse:
        """Answer what is served."""
        model = self._repository.get(request.model)
        version = model.version
        guard = version.guard
        manifest = guard.artifact.manifest
        spec = guard.spec
        rules, limits = self._inspector.rules, self._inspector.limits
        privileged = call.caller.may(Scope.PRIVILEGED)
        return pb.DescribeResponse(
            model=model.name,
            models=[other.name for other in self._repository],
            model_sha256=manifest.model_sha256,
            guard=guard.artifact.digest,
            guard_created_at=manifest.created_at,
            input=pb.Input(
                name=spec.name,
                height=spec.height,
                width=spec.width,
                channels=spec.channels,
                layout=spec.layout,
                datatype=datatype_of(spec.dtype),
                scale=spec.scale,
                mean=spec.mean,
                std=spec.std,
                bgr=spec.bgr,
            ),
            inputs=_infos(guard.production_inputs),
            outputs=_infos(guard.production_outputs),
            thresholds=[_threshold(one, privileged=privileged) for one in version.thresholds],
            target_fpr=guard.fpr,
            thresholds_by_class=guard.thresholds.is_by_class,
            looks=guard.looks,
            taps=[tap.name for tap in manifest.taps],
            policy=rules.policy,
            detail=_detail(rules.detail(privileged=privileged)),
            limits=pb.Limits(
                max_rows=limits.max_rows,
                max_message_bytes=limits.max_message_bytes,
                max_pixels=limits.max_pixels,
                max_connections=self._room.max_connections,
                max_streams=self._room.max_streams,
                max_open_streams=self._room.max_open_streams,
                max_calls=self._room.max_in_flight,
                max_bytes_in_flight=self._room.max_bytes_in_flight,
                memory_bytes=self._room.memory_bytes,
                watch_bytes=self._room.watch_bytes,
            ),
            server_version=service.version(),
        )

    async def feedback(self, call: Call, request: pb.FeedbackRequest) -> pb.FeedbackResponse:
        """Label captured images."""
        capture = self._inspector.capture
        if capture is None:
            raise DisabledError("this server captures nothing that could be labelled")
        labels = [(row.id, row.label) for row in request.labels]
        name = call.caller.name
        take = functools.partial(set_label, capture.folder, labels, labeller=name)
        loop = asyncio.get_running_loop()
        return pb.FeedbackResponse(
            labelled=await loop.run_in_executor(self._inspector.decoder, take)
        )


def _threshold(thresholds: Thresholds, *, privileged: bool) -> pb.Threshold:
    """Return thresholds at one rate as this caller may see them."""
    if not privileged:
        return pb.Threshold(target_fpr=thresholds.fpr)
    first, second = thresholds.first, thresholds.second
    by_class = thresholds.is_by_class and len(first) <= _MOST_CLASSES
    single = thresholds.single
    return pb.Threshold(
        target_fpr=thresholds.fpr,
        score=None if math.isnan(single) else single,
        by_class=first.tolist() if by_class else (),
        second_score=None if second is None or thresholds.is_by_class else float(second[0]),
        second_by_class=second.tolist() if by_class and second is not None else (),
        lowest=thresholds.lowest,
        highest=thresholds.highest,
    )


def _wanted(request: pb.InspectRequest, model: Model) -> list[str]:
    """Return the outputs to send along, before any work is done for an unknown one."""
    if not request.outputs and not request.all_outputs:
        return []
    known = [info.name for info in model.version.guard.production_outputs]
    if request.all_outputs:
        return known
    unknown = sorted(set(request.outputs) - set(known))
    if unknown:
        raise RequestError(f"expected outputs of {', '.join(known)}, got {unknown[0][:64]!r}")
    return list(dict.fromkeys(request.outputs))


def _read_input(request: pb.InspectRequest, payload: memoryview | None) -> Input:
    which = request.WhichOneof("input")
    if which == "tensor":
        tensor = request.tensor
        name = tensor.name[:64] or "tensor"
        data = tensor.data if payload is None else payload
        array = read_tensor(data, name=name, datatype=tensor.datatype, shape=tensor.shape)
        return TensorArray(array)
    if which == "pixels":
        pixels = request.pixels
        shape = (pixels.count, pixels.height, pixels.width, pixels.channels)
        data = pixels.data if payload is None else payload
        return PixelArray(read_tensor(data, name="pixels", datatype="UINT8", shape=shape))
    if which == "encoded":
        return Encoded(request.encoded.images)
    raise RequestError("expected one of tensor, pixels or encoded images, got none")


def _response(
    request: pb.InspectRequest, model: Model, inspection: Inspection, wanted: Iterable[str]
) -> pb.InspectResponse:
    view = inspection.view
    verdicts = view.verdicts
    response = pb.InspectResponse(
        id=request.id,
        model=model.name,
        guard=inspection.version.digest,
        detail=_detail(view.detail),
        prediction=verdicts.prediction.tolist(),
        withheld=view.withheld.tolist(),
        capture=inspection.capture,
        outputs=[_tensor(name, verdicts.outputs[name]) for name in wanted],
        timing=pb.Timing(
            decode_ms=inspection.decode_s * 1000,
            queue_ms=inspection.queue_s * 1000,
            model_ms=inspection.model_s * 1000,
        ),
    )
    if view.detail is not Detail.NONE:
        response.is_adversarial.extend(verdicts.is_adversarial.tolist())
        response.likelihood.extend(verdicts.likelihood.tolist())
        response.unscored.extend(verdicts.unscored.tolist())
    if view.detail is Detail.FULL:
        response.score.extend(verdicts.score.tolist())
        response.p_value.extend(verdicts.p_value.tolist())
        response.evidence.CopyFrom(_tensor("evidence", verdicts.evidence))
        if (verdicts.look != 1).any():
            response.look.extend(verdicts.look.tolist())
    return response


def _tensor(name: str, array: np.ndarray) -> pb.Tensor:
    return pb.Tensor(
        name=name,
        datatype=datatype_of(array.dtype),
        shape=array.shape,
        data=write_tensor(array),
    )


def _infos(tensors: Iterable[TensorInfo]) -> list[pb.TensorInfo]:
    return [
        pb.TensorInfo(
            name=info.name,
            datatype=datatype_of(info.dtype),
            shape=[-1 if size is None else size for size in info.shape],
        )
        for info in tensors
    ]


def _detail(detail: Detail) -> "pb.Detail":
    return {
        Detail.FULL: pb.DETAIL_FULL,
        Detail.COARSE: pb.DETAIL_COARSE,
        Detail.NONE: pb.DETAIL_NONE,
    }[detail]


def _failed(request: pb.InspectRequest, status: Status) -> pb.InspectStreamResponse:
    code = status.code.value[0]
    return pb.InspectStreamResponse(
        error=pb.Error(code=code, message=status.message), id=request.id
    )

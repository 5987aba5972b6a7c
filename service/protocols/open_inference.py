"""The Open Inference Protocol: an existing caller changes the address and nothing else.

A request that lists no outputs gets the production outputs only, so no caller is surprised by a
tensor it doesn't know; the verdict rides along as response parameters. `reluguard_is_adversarial`,
`reluguard_likelihood`, `reluguard_unscored` and, for privileged callers, `reluguard_score`,
`reluguard_p_value`, `reluguard_evidence` and `reluguard_look` are outputs a request may list.

Where the protocol leaves room: a model has one version, "1"; a version that is a number but another
one is NOT_FOUND, one that is no number is INVALID_ARGUMENT; an empty batch is INVALID_ARGUMENT.
Answers are always raw, because clients read nothing else. N images, L taps.
"""

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from reluguard import service
from reluguard.detector.images import InputSpec, check_images
from reluguard.service.edge import Call, Edge
from reluguard.service.errors import (
    DisabledError,
    ForbiddenError,
    NotFoundError,
    RejectedError,
    RequestError,
)
from reluguard.service.models.models import VERSION, Model, Repository
from reluguard.service.protocols.health import Health
from reluguard.service.protocols.inspection import (
    Encoded,
    Input,
    Inspection,
    Inspector,
    Limits,
    PixelArray,
    TensorArray,
    check_rows,
)
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.protocols.policy import Detail, Rules
from reluguard.service.protocols.wire import (
    DATATYPES,
    Data,
    check_shape,
    datatype_of,
    read_bytes_elements,
    read_numbers,
    read_tensor,
    write_tensor,
)
from reluguard.service.security import Scope

__all__ = [
    "SERVICE",
    "Answer",
    "OpenInferenceServicer",
    "RepositoryControl",
    "check_sizes",
]

SERVICE = "inference.GRPCInferenceService"
_PLATFORM = "onnx_onnxv1"
_LARGE = {pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER: None}
_MAX_INPUTS = 64
_FRAMES = 256  # kinds of answer whose beginning is kept
_TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# what each detail allows to be asked for, with datatype and the shape after N
_EXTRAS: dict[Detail, dict[str, tuple[str, tuple[int, ...]]]] = {
    Detail.NONE: {},
    Detail.COARSE: {
        "reluguard_is_adversarial": ("BOOL", ()),
        "reluguard_likelihood": ("FP32", ()),
        "reluguard_unscored": ("BOOL", ()),
    },
    Detail.FULL: {
        "reluguard_is_adversarial": ("BOOL", ()),
        "reluguard_likelihood": ("FP32", ()),
        "reluguard_unscored": ("BOOL", ()),
        "reluguard_score": ("FP32", ()),
        "reluguard_p_value": ("FP64", ()),
        "reluguard_evidence": ("FP32", (-1,)),
        "reluguard_look": ("UINT8", ()),
    },
}


class RepositoryControl:
    """Loads and unloads models on an admin's word."""

    def __init__(
        self,
        load: Callable[[str], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
        *,
        enabled: bool,
    ) -> None:
        self.load = load
        self.unload = unload
        self.enabled = enabled


class OpenInferenceServicer:
    """Answers `inference.GRPCInferenceService`."""

    def __init__(
        self,
        repository: Repository,
        inspector: Inspector,
        health: Health,
        control: RepositoryControl,
    ) -> None:
        self._repository = repository
        self._inspector = inspector
        self._health = health
        self._control = control

    def handlers(self, edge: Edge) -> grpc.GenericRpcHandler:
        """Return this service for a gRPC server."""
        rows: list[tuple[str, Any, Any, Scope | None]] = [
            ("ServerLive", None, self.server_live, None),
            ("ServerReady", None, self.server_ready, None),
            ("ModelReady", pb.ModelReadyRequest, self.model_ready, Scope.INFER),
            ("ServerMetadata", pb.ServerMetadataRequest, self.server_metadata, Scope.INFER),
            ("ModelMetadata", pb.ModelMetadataRequest, self.model_metadata, Scope.INFER),
            ("ModelInfer", pb.ModelInferRequest, self._infer_raw, Scope.INFER),
            ("RepositoryIndex", pb.RepositoryIndexRequest, self.index, Scope.INFER),
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest, self.load, Scope.INFER),
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self.unload, Scope.INFER),
        ]
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: edge.unary(
                    (SERVICE, name),
                    request,
                    method,
                    scope=scope,
                    large=_LARGE if name == "ModelInfer" else None,
                )
                for name, request, method, scope in rows
            },
        )

    async def server_live(self, _: Call) -> pb.ServerLiveResponse:
        """Answer that the server lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: Call) -> pb.ServerReadyResponse:
        """Answer whether the server is ready."""
        return pb.ServerReadyResponse(ready=self._health.is_serving)

    async def model_ready(self, _: Call, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Answer whether a model is ready."""
        try:
            model = self.model(request.name, request.version)
        except NotFoundError:  # as Triton answers: not an error, just not ready
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=model.is_ready and self._health.is_serving)

    async def server_metadata(
        self, _: Call, __: pb.ServerMetadataRequest
    ) -> pb.ServerMetadataResponse:
        """Answer what the server is."""
        return pb.ServerMetadataResponse(
            name="reluguard", version=service.version(), extensions=["model_repository"]
        )

    async def model_metadata(
        self, call: Call, request: pb.ModelMetadataRequest
    ) -> pb.ModelMetadataResponse:
        """Answer what a model takes and gives."""
        model = self.model(request.name, request.version)
        guard = model.version.guard
        tensor = pb.ModelMetadataResponse.TensorMetadata
        extras = self._extras(call, self._inspector.rules)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[VERSION],
            platform=_PLATFORM,
            inputs=[
                tensor(name=info.name, datatype=datatype_of(info.dtype), shape=_open(info.shape))
                for info in guard.production_inputs
            ],
            outputs=[
                *(
                    tensor(
                        name=info.name, datatype=datatype_of(info.dtype), shape=_open(info.shape)
                    )
                    for info in guard.production_outputs
                ),
                *(
                    tensor(name=name, datatype=datatype, shape=[-1, *rest])
                    for name, (datatype, rest) in extras.items()
                ),
            ],
            properties={
                "reluguard_guard": guard.artifact.digest,
                "reluguard_model_sha256": guard.artifact.manifest.model_sha256,
                "reluguard_policy": self._inspector.rules.policy,
            },
        )

    async def index(
        self, _: Call, request: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        """Answer which models there are."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=model.name,
                    version=VERSION,
                    state="READY" if model.is_ready else "UNAVAILABLE",
                    reason=model.reason,
                )
                for model in self._repository
                if model.is_ready or not request.ready
            ]
        )

    async def load(
        self, call: Call, request: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model, if an admin asks."""
        self._may_control(call)
        if request.parameters:
            raise RequestError("expected no parameters: files and settings don't come from callers")
        await self._control.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(
        self, call: Call, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model, if an admin asks."""
        self._may_control(call)
        await self._control.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _may_control(self, call: Call) -> None:
        if not self._control.enabled:
            raise DisabledError("this server does not load or unload models on request")
        call.caller.require(Scope.ADMIN)

    def model(self, name: str, version: str) -> Model:
        """Return the model of this name, in its one version."""
        if not name:
            raise RequestError("expected the name of a model, got none")
        model = self._repository.get(name)
        if version and not (version.isascii() and version.isdigit()):
            raise RequestError(f"expected a version number, got {version[:32]!r}")
        if version not in {"", VERSION}:
            raise NotFoundError(
                f"unknown version {version[:32]!r} of the model {name!r}: it has {VERSION!r}"
            )
        return model

    @staticmethod
    def _extras(call: Call, rules: Rules) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        return _EXTRAS[rules.detail(privileged=call.caller.may(Scope.PRIVILEGED))]

    async def _infer_raw(
        self, call: Call, request: pb.ModelInferRequest, payload: memoryview | None = None
    ) -> bytes:
        answer = await self.infer(call, request, payload)
        started = time.perf_counter()
        response = _response(answer)
        answer.model.metrics.stage("encode", time.perf_counter() - started)
        return response

    async def infer(
        self, call: Call, request: pb.ModelInferRequest, payload: memoryview | None = None
    ) -> "Answer":
        """Return the answer to one request, whose data may lie beside it."""
        model = self.model(request.model_name, request.model_version)
        guard = model.version.guard
        rules = self._rules(request.parameters)
        production = [info.name for info in guard.production_outputs]
        wanted = self._wanted(call, request.outputs, production, rules)
        raw = request.raw_input_contents if payload is None else [payload]
        given = _read_input(request, raw, guard.spec, self._inspector.limits)
        inspection = await self._inspector.inspect(
            model, _sooner(call, request.parameters), given, rules=rules
        )
        view = inspection.view
        if view.withheld.any():
            rows = np.flatnonzero(view.withheld)
            some = ", ".join(map(str, rows[:8].tolist())) + (", ..." if len(rows) > 8 else "")
            raise RejectedError(f"{len(rows)} of {len(view.withheld)} images look adversarial:"
                                f" rows {some}")  # fmt: skip
        return _answer(request.id, model, inspection, wanted or production)

    def _wanted(
        self, call: Call, outputs: Iterable[Any], production: list[str], rules: Rules
    ) -> list[str]:
        allowed = [*production, *self._extras(call, rules)]
        names = []
        for output in outputs:
            if output.name not in allowed:
                if rules.policy != "shadow" and output.name in _EXTRAS[Detail.FULL]:
                    raise ForbiddenError(
                        f"the output {output.name!r} needs a token with the scope"
                        f" {Scope.PRIVILEGED.value!r}"
                    )
                raise RequestError(
                    f"expected outputs of {', '.join(allowed)}, got {output.name[:64]!r}"
                )
            if output.name in names:
                raise RequestError(f"the output {output.name!r} is asked for twice")
            _refuse(output.parameters, f"output {output.name!r}")
            names.append(output.name)
        return names

    def _rules(self, parameters: Mapping[str, Any]) -> Rules:
        """Return the server's rules, made stricter if the request says so."""
        rules = self._inspector.rules
        if "policy" not in parameters:
            return rules
        policy = parameters["policy"].string_param
        if policy == rules.policy:
            return rules
        if policy != "reject" or rules.policy == "shadow":
            raise RequestError(
                f"expected the parameter 'policy' to be {rules.policy!r}"
                f"{'' if rules.policy == 'shadow' else ' or reject'}, got {policy[:32]!r}"
            )
        return dataclasses.replace(rules, policy="reject")


def _sooner(call: Call, parameters: Mapping[str, Any]) -> Call:
    """Return the call with the request's own `timeout`, in microseconds, if that ends sooner."""
    if "timeout" not in parameters:
        return call
    parameter = parameters["timeout"]
    microseconds = parameter.int64_param or parameter.uint64_param
    if microseconds <= 0:
        return call
    ends = asyncio.get_running_loop().time() + microseconds / 1e6
    return dataclasses.replace(call, deadline=min(ends, call.deadline or math.inf))


def _read_input(
    request: pb.ModelInferRequest, raw: Sequence[Data], spec: InputSpec, limits: Limits
) -> Input:
    name, datatype = spec.name, datatype_of(spec.dtype)
    names = [tensor.name for tensor in request.inputs[:_MAX_INPUTS]]
    if len(names) > 1 and len(set(names)) < len(names):
        raise RequestError("the same input is given twice")
    if names != [name]:
        got = ", ".join(repr(other[:64]) for other in names[:4]) or "none"
        raise RequestError(f"expected one input named {name!r}, got {got}")
    (tensor,) = request.inputs
    typed = tensor.HasField("contents") and tensor.contents.ByteSize() > 0
    _refuse(tensor.parameters, f"input {name!r}")
    if raw and typed:
        raise RequestError(f"expected raw or typed contents for {name!r}, got both")
    if raw and len(raw) != 1:
        raise RequestError(f"expected one raw entry for one input, got {len(raw)}")
    count = check_shape(tensor.shape, name=name)
    shape = tuple(tensor.shape)
    if tensor.datatype not in {datatype, "UINT8", "BYTES"}:
        raise RequestError(
            f"expected {datatype} for {name!r} (or UINT8 pixels, or BYTES of encoded images),"
            f" got {tensor.datatype[:32]!r}"
        )
    if tensor.datatype == "BYTES":
        if len(shape) not in {1, 2} or (len(shape) == 2 and shape[1] != 1):
            raise RequestError(
                f"expected shape [N] or [N, 1] for encoded images, got {list(shape)}"
            )
        check_rows(count, limits)
        return Encoded(_elements(tensor, raw, name=name, count=count))
    if raw:
        array = read_tensor(raw[0], name=name, datatype=tensor.datatype, shape=shape)
    elif typed:
        check_sizes(shape, spec, tensor.datatype)
        array = _read_typed(tensor.contents, name=name, datatype=tensor.datatype, shape=shape)
    else:
        raise RequestError(f"expected data for the input {name!r}, got none")
    return TensorArray(array) if tensor.datatype == datatype else PixelArray(array)


def check_sizes(shape: tuple[int, ...], spec: InputSpec, datatype: str) -> None:
    """Raise ImageError unless numbers of this shape are worth reading one by one."""
    claimed = np.broadcast_to(np.zeros((), DATATYPES[datatype]), shape)
    if datatype == datatype_of(spec.dtype):
        if shape[1:] != spec.tensor_shape:
            spec.check_tensor(claimed)
    elif shape[1:] != (spec.height, spec.width, spec.channels):
        check_images(claimed, height=spec.height, width=spec.width, channels=spec.channels)


def _elements(tensor: Any, raw: Sequence[Data], *, name: str, count: int) -> list[bytes]:
    if raw:
        return read_bytes_elements(raw[0], name=name, count=count)
    elements = list(tensor.contents.bytes_contents)
    if len(elements) != count:
        raise RequestError(f"expected {count} elements for {name!r}, got {len(elements)}")
    return elements


def _read_typed(contents: Any, *, name: str, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    field = _TYPED.get(datatype)
    if field is None:
        raise RequestError(f"expected raw contents for {datatype}, got typed")
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if filled != [field]:
        raise RequestError(f"expected {field} for {name!r}, got {', '.join(filled)}")
    count = check_shape(shape, name=name)
    got = len(getattr(contents, field))
    if got != count:
        raise RequestError(f"expected {count} elements for {name!r}, got {got}")
    dtype = np.dtype(_numpy_name(datatype))
    packed = _packed(contents)
    if dtype.kind == "f":
        return np.frombuffer(packed, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    numbers = read_numbers(packed)
    values = numbers if dtype.kind == "u" or dtype == np.bool_ else numbers.view(np.int64)
    if dtype != np.bool_ and count:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise RequestError(f"expected values of {datatype} for {name!r}, got others")
    return values.astype(dtype).reshape(shape)


def _packed(contents: Any) -> bytes:
    """Return the numbers of the one field that is filled, as they lie on the wire."""
    contents.DiscardUnknownFields()
    data: bytes = contents.SerializeToString()
    at = 1  # of a tag below 16
    while data[at] >= 0x80:
        at += 1
    return data[at + 1 :]


def _numpy_name(datatype: str) -> str:
    return {"FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())


def _refuse(parameters: Mapping[str, Any], what: str) -> None:
    """Refuse what would change the answer's meaning if it were passed over."""
    for key in parameters:
        if key.startswith("shared_memory") or key == "classification":
            raise RequestError(f"the parameter {key!r} of the {what} is not offered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, before it is written.

    Attributes:
        id: as the caller gave it.
        model: who answered.
        guard: the digest of the guard that judged.
        parameters: of the answer, but for the guard's.
        tensors: the outputs by name, in the order they were asked for.
    """

    id: str
    model: Model
    guard: str
    parameters: Mapping[str, int | str]
    tensors: Mapping[str, NDArray[Any]]


def _answer(name: str, model: Model, inspection: Inspection, wanted: list[str]) -> Answer:
    view = inspection.view
    verdicts = view.verdicts
    arrays: dict[str, NDArray[Any]] = {
        **verdicts.outputs,
        "reluguard_is_adversarial": verdicts.is_adversarial,
        "reluguard_likelihood": verdicts.likelihood,
        "reluguard_unscored": verdicts.unscored,
        "reluguard_score": verdicts.score,
        "reluguard_p_value": verdicts.p_value,
        "reluguard_evidence": verdicts.evidence,
        "reluguard_look": verdicts.look,
    }
    parameters: dict[str, int | str] = {}
    if view.detail is not Detail.NONE:
        parameters["reluguard_adversarial"] = int(np.count_nonzero(verdicts.is_adversarial))
        parameters["reluguard_unscored"] = int(np.count_nonzero(verdicts.unscored))
    if inspection.capture:
        parameters["reluguard_capture"] = inspection.capture
    return Answer(
        id=name,
        model=model,
        guard=inspection.version.digest,
        parameters=parameters,
        tensors={output: arrays[output] for output in wanted},
    )


def _response(answer: Answer) -> bytes:
    """Return the serialised answer.

    Serialised messages put one behind the other are one message, so what one kind of request always
    gets is serialised once.
    """
    tensors = tuple(
        (name, datatype_of(array.dtype), array.shape) for name, array in answer.tensors.items()
    )
    own = pb.ModelInferResponse(
        id=answer.id,
        parameters={
            name: pb.InferParameter(int64_param=value)
            if isinstance(value, int)
            else pb.InferParameter(string_param=value)
            for name, value in answer.parameters.items()
        },
        raw_output_contents=[write_tensor(array) for array in answer.tensors.values()],
    )
    return _frame(answer.model.name, answer.guard, tensors) + own.SerializeToString()


@lru_cache(maxsize=_FRAMES)
def _frame(model: str, digest: str, tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """Return what all answers with these tensors begin with: name, datatype and shape of each."""
    message = pb.ModelInferResponse(
        model_name=model,
        model_version=VERSION,
        parameters={"reluguard_guard": pb.InferParameter(string_param=digest)},
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
            for name, datatype, shape in tensors
        ],
    )
    encoded: bytes = message.SerializeToString()
    return encoded


def _open(shape: tuple[int | None, ...]) -> list[int]:
    return [-1 if size is None else size for size in shape]

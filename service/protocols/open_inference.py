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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc
import numpy as np

from reluguard import service
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
from reluguard.service.protocols.infer_answer import Answer, answer_of, encoded
from reluguard.service.protocols.infer_input import check_parameters, read_input
from reluguard.service.protocols.inspection import (
    Inspector,
)
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.protocols.policy import Detail, Rules
from reluguard.service.protocols.wire import (
    datatype_of,
)
from reluguard.service.security import Scope

__all__ = [
    "SERVICE",
    "OpenInferenceServicer",
    "RepositoryControl",
]

SERVICE = "inference.GRPCInferenceService"
_PLATFORM = "onnx_onnxv1"
_LARGE = {pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER: None}
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
        response = encoded(answer)
        answer.model.metrics.stage("encode", time.perf_counter() - started)
        return response

    async def infer(
        self, call: Call, request: pb.ModelInferRequest, payload: memoryview | None = None
    ) -> Answer:
        """Return the answer to one request, whose data may lie beside it."""
        model = self.model(request.model_name, request.model_version)
        guard = model.version.guard
        rules = self._rules(request.parameters)
        production = [info.name for info in guard.production_outputs]
        wanted = self._wanted(call, request.outputs, production, rules)
        raw = request.raw_input_contents if payload is None else [payload]
        given = read_input(request, raw, guard.spec, self._inspector.limits)
        inspection = await self._inspector.inspect(
            model, _sooner(call, request.parameters), given, rules=rules
        )
        view = inspection.view
        if view.withheld.any():
            rows = np.flatnonzero(view.withheld)
            some = ", ".join(map(str, rows[:8].tolist())) + (", ..." if len(rows) > 8 else "")
            raise RejectedError(f"{len(rows)} of {len(view.withheld)} images look adversarial:"
                                f" rows {some}")  # fmt: skip
        return answer_of(request.id, model, inspection, wanted or production)

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
            check_parameters(output.parameters, f"output {output.name!r}")
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


def _open(shape: tuple[int | None, ...]) -> list[int]:
    return [-1 if size is None else size for size in shape]

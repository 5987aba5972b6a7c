import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, running
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.security import Scope, token_entry
from reluguard.service.settings import Settings

Request = pb.ModelInferRequest
Tensor = NDArray[np.float32]


def call(address: str, method: str, request: Any, *, token: str | None = None) -> Any:
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    reply = getattr(pb, type(request).__name__.replace("Request", "Response"))
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )(request, timeout=10, metadata=metadata)


def infer(address: str, request: Any, **options: Any) -> Any:
    return call(address, "ModelInfer", request, **options)


def code_of(address: str, method: str, request: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(address, method, request, **options)
    error: Any = caught.value
    return error.code().name, error.details()


def raw_request(array: Tensor, **changes: Any) -> Any:
    fields = {
        "model_name": "tiny",
        "inputs": [
            Request.InferInputTensor(name="image", datatype="FP32", shape=list(array.shape))
        ],
        "raw_input_contents": [array.tobytes()],
    }
    return Request(**(fields | changes))


def outputs(*names: str) -> list[Any]:
    return [Request.InferRequestedOutputTensor(name=name) for name in names]


def arrays(reply: Any) -> dict[str, NDArray[Any]]:
    kinds = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_, "FP64": np.float64}
    assert len(reply.outputs) == len(reply.raw_output_contents)
    assert not any(output.HasField("contents") for output in reply.outputs)
    return {
        output.name: np.frombuffer(data, kinds[output.datatype]).reshape(output.shape)
        for output, data in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def test_a_caller_gets_its_own_outputs_unchanged(
    server: Running, guard: Guard, tensor: Tensor
) -> None:
    """Without asking for more, nothing is added but parameters; the id is echoed."""
    reply = infer(server.address, raw_request(tensor[:16], id="7"))
    own = guard.inspect_tensor(tensor[:16])
    assert (reply.model_name, reply.model_version, reply.id) == ("tiny", "1", "7")
    assert list(arrays(reply)) == ["logits", "label"]
    for name, output in arrays(reply).items():
        assert_array_equal(output, own.outputs[name])
    assert reply.parameters["reluguard_guard"].string_param == guard.artifact.digest
    flagged = int(np.count_nonzero(own.is_adversarial))
    assert reply.parameters["reluguard_adversarial"].int64_param == flagged
    assert reply.parameters["reluguard_unscored"].int64_param == 0


def test_requested_outputs_come_in_the_order_asked(
    server: Running, guard: Guard, tensor: Tensor
) -> None:
    """Ours beside the model's own, exactly those listed."""
    names = ("reluguard_is_adversarial", "label", "reluguard_score", "reluguard_likelihood")
    more = ("reluguard_evidence", "reluguard_p_value")
    reply = infer(server.address, raw_request(tensor[:16], outputs=outputs(*names, *more)))
    own = guard.inspect_tensor(tensor[:16])
    got = arrays(reply)
    assert list(got) == [*names, *more]
    assert_array_equal(got["reluguard_is_adversarial"], own.is_adversarial)
    assert_array_equal(got["reluguard_score"], own.score)
    assert_array_equal(got["reluguard_likelihood"], own.likelihood)
    assert_array_equal(got["reluguard_evidence"], own.evidence)
    assert_array_equal(got["reluguard_p_value"], own.p_value)


def test_typed_contents_equal_raw(server: Running, tensor: Tensor) -> None:
    """The same numbers, the same answer, always raw."""
    rows = tensor[:2]
    typed = Request.InferInputTensor(
        name="image", datatype="FP32", shape=list(rows.shape),
        contents=pb.InferTensorContents(fp32_contents=rows.ravel().tolist()),
    )  # fmt: skip
    by_type = infer(server.address, Request(model_name="tiny", inputs=[typed]))
    by_bytes = infer(server.address, raw_request(rows))
    assert list(by_type.raw_output_contents) == list(by_bytes.raw_output_contents)


def test_pixels_and_files_equal_the_tensor(server: Running, guard: Guard, mixed: Images) -> None:
    """UINT8 pixels and BYTES of PNG files, raw or typed, give what the tensor gives."""
    images = mixed[:4]
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    packed = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    column = Request.InferInputTensor(name="image", datatype="BYTES", shape=[4])
    requests = [
        raw_request(guard.spec.to_tensor(images)),
        Request(
            model_name="tiny",
            inputs=[Request.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)],
            raw_input_contents=[images.tobytes()],
        ),
        Request(model_name="tiny", inputs=[column], raw_input_contents=[packed]),
        Request(
            model_name="tiny",
            inputs=[
                Request.InferInputTensor(
                    name="image", datatype="BYTES", shape=[4, 1],
                    contents=pb.InferTensorContents(bytes_contents=files),
                )
            ],
        ),
    ]  # fmt: skip
    answers = [infer(server.address, request) for request in requests]
    first, *others = [list(answer.raw_output_contents) for answer in answers]
    assert all(other == first for other in others)


ROWS = np.zeros((2, 3, 12, 12), np.float32)
INPUT = Request.InferInputTensor


def given(**changes: Any) -> list[Any]:
    return [INPUT(**({"name": "image", "datatype": "FP32", "shape": [2, 3, 12, 12]} | changes))]


def typed(**contents: Any) -> Any:
    return pb.InferTensorContents(**contents)


BAD: dict[str, tuple[Any, str, str]] = {
    "unknown model": (raw_request(ROWS, model_name="x"), "NOT_FOUND", "unknown model 'x'"),
    "no model": (raw_request(ROWS, model_name=""), "INVALID_ARGUMENT", "the name of a model"),
    "version 9": (raw_request(ROWS, model_version="9"), "NOT_FOUND", "unknown version '9'"),
    "version abc": (
        raw_request(ROWS, model_version="abc"),
        "INVALID_ARGUMENT",
        "expected a version number, got 'abc'",
    ),
    "short": (
        raw_request(ROWS, raw_input_contents=[bytes(3455)]),
        "INVALID_ARGUMENT",
        "byte size mismatch for 'image': expected 3456, got 3455",
    ),
    "long": (
        raw_request(ROWS, raw_input_contents=[bytes(3457)]),
        "INVALID_ARGUMENT",
        "byte size mismatch for 'image': expected 3456, got 3457",
    ),
    "no data": (
        raw_request(ROWS, raw_input_contents=[]),
        "INVALID_ARGUMENT",
        "expected data for the input 'image', got none",
    ),
    "no inputs": (
        Request(model_name="tiny"),
        "INVALID_ARGUMENT",
        "expected one input named 'image', got none",
    ),
    "duplicate input": (
        raw_request(ROWS, inputs=given() * 2, raw_input_contents=[ROWS.tobytes()] * 2),
        "INVALID_ARGUMENT",
        "the same input is given twice",
    ),
    "wrong name": (
        raw_request(ROWS, inputs=given(name="img")),
        "INVALID_ARGUMENT",
        "expected one input named 'image', got 'img'",
    ),
    "one more input": (
        raw_request(ROWS, inputs=[*given(), *given(name="mask")]),
        "INVALID_ARGUMENT",
        "expected one input named 'image', got 'image', 'mask'",
    ),
    "wrong dtype": (
        raw_request(ROWS, inputs=given(datatype="FP64")),
        "INVALID_ARGUMENT",
        "expected FP32 for 'image' (or UINT8 pixels, or BYTES of encoded images), got 'FP64'",
    ),
    "wrong shape": (
        raw_request(ROWS, inputs=given(shape=[2, 12, 12, 3])),
        "INVALID_ARGUMENT",
        "expected a float32 tensor of shape (N, 3, 12, 12), got (2, 12, 12, 3)",
    ),
    "unknown output": (
        raw_request(ROWS, outputs=outputs("logit")),
        "INVALID_ARGUMENT",
        "expected outputs of logits, label, reluguard_is_adversarial",
    ),
    "output twice": (
        raw_request(ROWS, outputs=outputs("label", "label")),
        "INVALID_ARGUMENT",
        "the output 'label' is asked for twice",
    ),
    "too many rows": (
        raw_request(np.zeros((65, 3, 12, 12), np.float32)),
        "INVALID_ARGUMENT",
        "expected at most 64 images in one request, got 65",
    ),
    "raw and typed": (
        raw_request(ROWS, inputs=given(contents=typed(fp32_contents=[0.0]))),
        "INVALID_ARGUMENT",
        "expected raw or typed contents for 'image', got both",
    ),
    "two raw entries": (  # Triton accepts it
        raw_request(ROWS, raw_input_contents=[ROWS.tobytes()] * 2),
        "INVALID_ARGUMENT",
        "expected one raw entry for one input, got 2",
    ),
    "negative shape": (  # Triton prints a wrapped size
        raw_request(ROWS, inputs=given(shape=[-1, 3, 12, 12])),
        "INVALID_ARGUMENT",
        "expected sizes of 0 or more for 'image', got [-1, 3, 12, 12]",
    ),
    "wrapping shape": (  # Triton expects 12 bytes
        raw_request(ROWS, inputs=given(shape=[2**40, 3])),
        "INVALID_ARGUMENT",
        "byte size mismatch for 'image': expected 13194139533312, got 3456",
    ),
    "zero rows": (
        raw_request(ROWS[:0]),
        "INVALID_ARGUMENT",
        "expected ",
    ),
    "typed in the wrong field": (
        raw_request(
            ROWS, inputs=given(contents=typed(fp64_contents=[0.0] * 864)), raw_input_contents=[]
        ),
        "INVALID_ARGUMENT",
        "expected fp32_contents for 'image', got fp64_contents",
    ),
    "typed too few": (
        raw_request(
            ROWS, inputs=given(contents=typed(fp32_contents=[0.0] * 863)), raw_input_contents=[]
        ),
        "INVALID_ARGUMENT",
        "expected 864 elements for 'image', got 863",
    ),
    "typed of another size": (
        raw_request(
            ROWS,
            inputs=given(
                datatype="UINT8", shape=[1, 1, 1, 1], contents=typed(uint_contents=[255])
            ),
            raw_input_contents=[],
        ),
        "INVALID_ARGUMENT",
        "expected uint8 images of shape (N, 12, 12, 3), got (1, 1, 1, 1)",
    ),
    "too many files": (
        raw_request(
            ROWS,
            inputs=given(datatype="BYTES", shape=[2**20]),
            raw_input_contents=[bytes(2**16)],
        ),
        "INVALID_ARGUMENT",
        "images in one request, got 1048576",
    ),
    "typed out of range": (
        raw_request(
            ROWS,
            inputs=given(
                datatype="UINT8", shape=[1, 12, 12, 3], contents=typed(uint_contents=[256] * 432)
            ),
            raw_input_contents=[],
        ),
        "INVALID_ARGUMENT",
        "expected values of UINT8 for 'image'",
    ),
    "typed half": (
        raw_request(
            ROWS, inputs=given(datatype="FP16", contents=typed(fp32_contents=[0.0])),
            raw_input_contents=[],
        ),
        "INVALID_ARGUMENT",
        "expected FP32 for 'image'",
    ),
    "files in a matrix": (
        raw_request(ROWS, inputs=given(datatype="BYTES", shape=[2, 2])),
        "INVALID_ARGUMENT",
        "expected shape [N] or [N, 1] for encoded images, got [2, 2]",
    ),
    "files that lie": (
        raw_request(
            ROWS, inputs=given(datatype="BYTES", shape=[1]),
            raw_input_contents=[b"\xff\xff\xff\xff1234"],
        ),
        "INVALID_ARGUMENT",
        "element 0 claims 4294967295 bytes, got 4",
    ),
    "classification": (
        raw_request(
            ROWS,
            outputs=[
                Request.InferRequestedOutputTensor(
                    name="logits",
                    parameters={"classification": pb.InferParameter(int64_param=3)},
                )
            ],
        ),
        "INVALID_ARGUMENT",
        "the parameter 'classification' of the output 'logits' is not offered",
    ),
    "shared memory": (
        raw_request(
            ROWS,
            inputs=given(
                parameters={"shared_memory_region": pb.InferParameter(string_param="x")}
            ),
        ),
        "INVALID_ARGUMENT",
        "the parameter 'shared_memory_region' of the input 'image' is not offered",
    ),
    "odd policy": (
        raw_request(ROWS, parameters={"policy": pb.InferParameter(string_param="shadow")}),
        "INVALID_ARGUMENT",
        "expected the parameter 'policy' to be 'annotate' or reject, got 'shadow'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_what_came(server: Running, name: str) -> None:
    """Triton's code, or a better one where Triton accepts what the protocol forbids."""
    request, code, message = BAD[name]
    got, details = code_of(server.address, "ModelInfer", request)
    assert got == code
    assert message in details


def test_server_and_model_answer_for_themselves(server: Running, guard: Guard) -> None:
    """Live, ready, metadata: an unknown model is not ready, and has no metadata."""
    address = server.address
    assert call(address, "ServerLive", pb.ServerLiveRequest()).live
    assert call(address, "ServerReady", pb.ServerReadyRequest()).ready
    assert call(address, "ModelReady", pb.ModelReadyRequest(name="tiny")).ready
    assert call(address, "ModelReady", pb.ModelReadyRequest(name="tiny", version="1")).ready
    assert not call(address, "ModelReady", pb.ModelReadyRequest(name="tiny", version="2")).ready
    assert not call(address, "ModelReady", pb.ModelReadyRequest(name="other")).ready
    metadata = call(address, "ServerMetadata", pb.ServerMetadataRequest())
    assert (metadata.name, list(metadata.extensions)) == ("reluguard", ["model_repository"])
    request = pb.ModelMetadataRequest(name="other")
    assert code_of(address, "ModelMetadata", request)[0] == "NOT_FOUND"
    model = call(address, "ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
    assert model.platform == "onnx_onnxv1"
    assert list(model.versions) == ["1"]
    (first,) = model.inputs
    assert (first.name, first.datatype, list(first.shape)) == ("image", "FP32", [-1, 3, 12, 12])
    assert [output.name for output in model.outputs] == [
        "logits", "label", "reluguard_is_adversarial", "reluguard_likelihood",
        "reluguard_unscored", "reluguard_score", "reluguard_p_value", "reluguard_evidence",
            "reluguard_look",
    ]  # fmt: skip
    assert model.properties["reluguard_guard"] == guard.artifact.digest


def test_a_request_may_be_stricter_than_the_server(
    server: Running, tensor: Tensor, guard: Guard
) -> None:
    """`policy` = reject refuses the whole request and names the rows."""
    rows = guard.inspect_tensor(tensor[:16]).is_adversarial
    parameters = {"policy": pb.InferParameter(string_param="reject")}
    code, details = code_of(
        server.address, "ModelInfer", raw_request(tensor[:16], parameters=parameters)
    )
    first = int(np.flatnonzero(rows)[0])
    assert code == "FAILED_PRECONDITION"
    assert details.startswith(f"{rows.sum()} of 16 images look adversarial: rows {first}")
    clean = tensor[:16][~rows]
    assert arrays(infer(server.address, raw_request(clean, parameters=parameters)))


def test_a_timeout_parameter_is_a_deadline(server: Running) -> None:
    """In microseconds; one that already passed never reaches the model."""
    parameters = {"timeout": pb.InferParameter(int64_param=1)}
    request = raw_request(np.zeros((64, 3, 12, 12), np.float32), parameters=parameters)
    assert code_of(server.address, "ModelInfer", request)[0] in {
        "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED",
    }


def test_shadow_leaves_no_trace(guard: Guard, tensor: Tensor) -> None:
    """Outputs as ever, no verdict to be had, and the metric counts."""
    with running(guard, name="tiny", policy="shadow") as shadow:
        reply = infer(shadow.address, raw_request(tensor[:8]))
        assert list(reply.parameters) == ["reluguard_guard"]
        request = raw_request(tensor[:8], outputs=outputs("reluguard_is_adversarial"))
        assert code_of(shadow.address, "ModelInfer", request)[0] == "INVALID_ARGUMENT"
        model = call(shadow.address, "ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
        assert [output.name for output in model.outputs] == ["logits", "label"]
        labels = {"model": "tiny", "verdict": "adversarial", "policy": "shadow"}
        registry = shadow.server.metrics.registry
        assert registry.get_sample_value("reluguard_verdicts_total", labels)


def test_the_unprivileged_may_not_ask_for_the_score(
    guard: Guard, tensor: Tensor, tmp_path: Path
) -> None:
    """PERMISSION_DENIED for what guides an attack; verdict and coarse likelihood are theirs."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("t", name="t", scopes=[Scope.INFER]))
    with running(guard, name="tiny", tokens=tokens) as server:
        for name in ("reluguard_score", "reluguard_evidence", "reluguard_p_value"):
            request = raw_request(tensor[:2], outputs=outputs(name))
            code, details = code_of(server.address, "ModelInfer", request, token="t")
            assert code == "PERMISSION_DENIED"
            assert "'privileged'" in details
        names = ("reluguard_likelihood", "reluguard_is_adversarial")
        request = raw_request(tensor[:8], outputs=outputs(*names))
        got = arrays(infer(server.address, request, token="t"))
        assert set(got["reluguard_likelihood"].tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
        assert code_of(server.address, "ModelInfer", request)[0] == "UNAUTHENTICATED"
        assert call(server.address, "ServerLive", pb.ServerLiveRequest()).live
        assert call(server.address, "ServerReady", pb.ServerReadyRequest()).ready


@pytest.fixture
def shelf(tmp_path: Path, pairs: Callable[..., Any]) -> Path:
    """A model folder with two models."""
    for seed, name in enumerate(("cats", "dogs")):
        pairs(tmp_path / "models" / name, seed=seed)
    return tmp_path / "models"


@pytest.fixture
def controlled(shelf: Path, tmp_path: Path) -> Iterator[Running]:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        token_entry("admin", name="a", scopes=[Scope.ADMIN])
        + token_entry("user", name="u", scopes=[Scope.PRIVILEGED])
    )
    settings = Settings(
        models=shelf, port=0, metrics_port=None, threads=1, tokens=tokens, repository_control=True
    )
    with running(settings) as server:
        yield server


def index(address: str, *, ready: bool = False) -> dict[str, str]:
    reply = call(address, "RepositoryIndex", pb.RepositoryIndexRequest(ready=ready), token="user")
    return {model.name: model.state for model in reply.models}


def test_an_admin_loads_and_unloads(
    controlled: Running, shelf: Path, pairs: Callable[..., Any], tensor: Tensor
) -> None:
    """The index follows; an unloaded model is UNAVAILABLE; a new folder can be loaded by name."""
    address = controlled.address
    assert index(address) == {"cats": "READY", "dogs": "READY"}
    call(
        address, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="cats"),
        token="admin",
    )  # fmt: skip
    assert index(address) == {"cats": "UNAVAILABLE", "dogs": "READY"}
    assert index(address, ready=True) == {"dogs": "READY"}
    request = raw_request(tensor[:1], model_name="cats")
    assert code_of(address, "ModelInfer", request, token="user")[0] == "UNAVAILABLE"
    infer(address, raw_request(tensor[:1], model_name="dogs"), token="user")
    load = pb.RepositoryModelLoadRequest(model_name="cats")
    call(address, "RepositoryModelLoad", load, token="admin")
    infer(address, request, token="user")
    pairs(shelf / "birds", seed=2)
    load = pb.RepositoryModelLoadRequest(model_name="birds")
    call(address, "RepositoryModelLoad", load, token="admin")
    infer(address, raw_request(tensor[:1], model_name="birds"), token="user")


@pytest.mark.parametrize(
    ("request_", "token", "code"),
    [
        (pb.RepositoryModelLoadRequest(model_name="cats"), "user", "PERMISSION_DENIED"),
        (pb.RepositoryModelLoadRequest(model_name="cats"), None, "UNAUTHENTICATED"),
        (pb.RepositoryModelLoadRequest(model_name="../cats"), "admin", "NOT_FOUND"),
        (
            pb.RepositoryModelLoadRequest(
                model_name="cats",
                parameters={"config": pb.ModelRepositoryParameter(string_param="{}")},
            ),
            "admin",
            "INVALID_ARGUMENT",
        ),
    ],
)
def test_loading_is_for_admins_and_names_only(
    controlled: Running, request_: Any, token: str | None, code: str
) -> None:
    """No path, file or setting comes from a caller."""
    assert code_of(controlled.address, "RepositoryModelLoad", request_, token=token)[0] == code


def test_control_is_off_unless_asked_for(server: Running) -> None:
    """UNIMPLEMENTED, whoever asks."""
    for method, request in (
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="tiny")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="tiny")),
    ):
        assert code_of(server.address, method, request)[0] == "UNIMPLEMENTED"

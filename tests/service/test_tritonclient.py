"""Conformance with the real client: it changes the address and nothing else."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running

triton = pytest.importorskip("tritonclient.grpc")


@pytest.fixture
def client(server: Running) -> Any:
    with triton.InferenceServerClient(server.address) as client:
        yield client


def as_input(array: NDArray[Any], datatype: str = "FP32") -> Any:
    given = triton.InferInput("image", list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def test_life_signs_and_metadata(client: Any) -> None:
    """What a pipeline asks before its first request."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata().name == "reluguard"
    metadata = client.get_model_metadata("tiny", as_json=True)
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": ["-1", "3", "12", "12"]}
    ]
    index = client.get_model_repository_index(as_json=True)
    assert index["models"] == [{"name": "tiny", "version": "1", "state": "READY"}]


def test_infer(client: Any, guard: Guard, tensor: NDArray[np.float32]) -> None:
    """The model's own outputs, bit for bit, and the id."""
    result = client.infer("tiny", [as_input(tensor[:16])], request_id="7")
    own = guard.inspect_tensor(tensor[:16])
    assert_array_equal(result.as_numpy("logits"), own.outputs["logits"])
    assert_array_equal(result.as_numpy("label"), own.outputs["label"])
    assert result.as_numpy("reluguard_score") is None
    assert result.get_response().id == "7"


def test_infer_with_verdicts(client: Any, guard: Guard, tensor: NDArray[np.float32]) -> None:
    """The verdict comes as further outputs of the same call."""
    names = ["logits", "reluguard_is_adversarial", "reluguard_likelihood", "reluguard_score"]
    wanted = [triton.InferRequestedOutput(name) for name in names]
    result = client.infer(
        "tiny", [as_input(tensor[:16])], outputs=wanted, client_timeout=10,
        priority=1, timeout=5_000_000, parameters={"detector": "on"},
    )  # fmt: skip
    own = guard.inspect_tensor(tensor[:16])
    assert_array_equal(result.as_numpy("reluguard_is_adversarial"), own.is_adversarial)
    assert_array_equal(result.as_numpy("reluguard_likelihood"), own.likelihood)
    assert_array_equal(result.as_numpy("reluguard_score"), own.score)
    assert_array_equal(result.as_numpy("logits"), own.outputs["logits"])


def test_encoded_images(client: Any, guard: Guard, mixed: Images) -> None:
    """An object array of PNG files, as the client packs it."""
    files = []
    for image in mixed[:4]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    result = client.infer("tiny", [as_input(np.array(files, dtype=object), "BYTES")])
    assert_array_equal(result.as_numpy("label"), guard.inspect(mixed[:4]).outputs["label"])


def test_policy_by_parameter(client: Any, tensor: NDArray[np.float32]) -> None:
    """A caller may ask for rejection."""
    with pytest.raises(triton.InferenceServerException, match="look adversarial") as caught:
        client.infer("tiny", [as_input(tensor[:16])], parameters={"policy": "reject"})
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("model", "version", "shape", "status"),
    [
        ("other", "", (1, 3, 12, 12), "StatusCode.NOT_FOUND"),
        ("tiny", "9", (1, 3, 12, 12), "StatusCode.NOT_FOUND"),
        ("tiny", "abc", (1, 3, 12, 12), "StatusCode.INVALID_ARGUMENT"),
        ("tiny", "", (1, 3, 12, 13), "StatusCode.INVALID_ARGUMENT"),
        ("tiny", "", (65, 3, 12, 12), "StatusCode.INVALID_ARGUMENT"),
    ],
)
def test_errors_arrive_as_the_client_knows_them(
    client: Any, model: str, version: str, shape: tuple[int, ...], status: str
) -> None:
    """Each with the status that Triton gives."""
    given = as_input(np.zeros(shape, np.float32))
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, [given], model_version=version)
    assert caught.value.status() == status


def test_what_we_do_not_offer(client: Any) -> None:
    """UNIMPLEMENTED, as the client expects of a server without the extension."""
    for ask in (
        client.get_inference_statistics,
        lambda: client.get_model_config("tiny"),
        lambda: client.load_model("tiny"),
        lambda: client.unload_model("tiny"),
        client.get_trace_settings,
    ):
        with pytest.raises(triton.InferenceServerException) as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_async_infer(client: Any, guard: Guard, tensor: NDArray[np.float32]) -> None:
    """Callbacks work; twenty calls under way at once."""
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    for i in range(20):
        client.async_infer(
            "tiny",
            [as_input(tensor[i : i + 1])],
            lambda result, error, i=i: answers.put((i, result, error)),
        )
    own = guard.inspect_tensor(tensor[:20])
    for _ in range(20):
        i, result, error = answers.get(timeout=20)
        assert error is None
        assert result.as_numpy("label")[0] == own.outputs["label"][i]

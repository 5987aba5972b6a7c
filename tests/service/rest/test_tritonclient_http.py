"""Conformance with the real client by HTTP: it changes the address and nothing else."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, running

try:
    import tritonclient.http as triton
except (ImportError, RuntimeError) as error:  # the client raises the second without its extra
    pytest.skip(f"needs tritonclient[http]: {error}", allow_module_level=True)


@pytest.fixture(scope="module")
def rest(guard: Guard) -> Iterator[Running]:
    with running(guard, name="tiny", max_batch=16, max_rows=64, http_port=0) as server:
        yield server


@pytest.fixture
def client(rest: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(rest.http_address) as client:
        yield client


def as_input(
    array: NDArray[Any], datatype: str = "FP32", *, binary: bool = True, name: str = "image"
) -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def test_life_signs_and_metadata(client: Any) -> None:
    """What a pipeline asks before its first request."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    about = client.get_server_metadata()
    assert about["name"] == "reluguard"
    assert set(about["extensions"]) == {"model_repository", "binary_tensor_data"}
    metadata = client.get_model_metadata("tiny", "1")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 12, 12]}]
    assert client.get_model_repository_index() == [
        {"name": "tiny", "version": "1", "state": "READY"}
    ]


@pytest.mark.parametrize("sent", [True, False], ids=["binary input", "JSON input"])
@pytest.mark.parametrize("back", [True, False], ids=["binary output", "JSON output"])
def test_infer(client: Any, guard: Guard, tensor: NDArray[np.float32], sent: bool, back: bool
               ) -> None:  # fmt: skip
    """Outputs and verdicts, bit for bit, whichever way tensors travel."""
    names = ["logits", "label", "reluguard_is_adversarial", "reluguard_score", "reluguard_p_value"]
    wanted = [triton.InferRequestedOutput(name, binary_data=back) for name in names]
    result = client.infer(
        "tiny", [as_input(tensor[:16], binary=sent)], outputs=wanted, request_id="7",
        priority=1, timeout=5_000_000, parameters={"detector": "on"},
    )  # fmt: skip
    own = guard.inspect_tensor(tensor[:16])
    assert_array_equal(result.as_numpy("logits"), own.outputs["logits"])
    assert_array_equal(result.as_numpy("label"), own.outputs["label"])
    assert_array_equal(result.as_numpy("reluguard_is_adversarial"), own.is_adversarial)
    assert_array_equal(result.as_numpy("reluguard_score"), own.score)
    assert_array_equal(result.as_numpy("reluguard_p_value"), own.p_value)
    assert result.get_response()["id"] == "7"
    assert result.get_response()["parameters"]["reluguard_adversarial"] == own.is_adversarial.sum()


def test_infer_without_outputs_named(
    client: Any, guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """The model's own outputs only, in binary."""
    result = client.infer("tiny", [as_input(tensor[:3])])
    assert_array_equal(
        result.as_numpy("logits"), guard.inspect_tensor(tensor[:3]).outputs["logits"]
    )
    assert result.as_numpy("reluguard_score") is None


def test_pixels_and_encoded_images(client: Any, guard: Guard, mixed: Images) -> None:
    """Whole pixels, and an object array of PNG files as the client packs it."""
    own = guard.inspect(mixed[:4]).outputs["label"]
    for binary in (True, False):
        result = client.infer("tiny", [as_input(mixed[:4], "UINT8", binary=binary)])
        assert_array_equal(result.as_numpy("label"), own)
    files = []
    for image in mixed[:4]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    result = client.infer("tiny", [as_input(np.array(files, dtype=object), "BYTES")])
    assert_array_equal(result.as_numpy("label"), own)


def test_policy_by_parameter(client: Any, tensor: NDArray[np.float32]) -> None:
    """A caller may ask for rejection."""
    with pytest.raises(triton.InferenceServerException, match="look adversarial") as caught:
        client.infer("tiny", [as_input(tensor[:16])], parameters={"policy": "reject"})
    assert caught.value.status() == "422"


@pytest.mark.parametrize(
    ("model", "version", "shape", "status"),
    [
        ("other", "", (1, 3, 12, 12), "404"),
        ("tiny", "9", (1, 3, 12, 12), "404"),
        ("tiny", "abc", (1, 3, 12, 12), "400"),
        ("tiny", "", (1, 3, 12, 13), "400"),
        ("tiny", "", (65, 3, 12, 12), "400"),
    ],
)
def test_errors_arrive_as_the_client_knows_them(
    client: Any, model: str, version: str, shape: tuple[int, ...], status: str
) -> None:
    """Each with a status and a sentence."""
    given = as_input(np.zeros(shape, np.float32))
    with pytest.raises(triton.InferenceServerException, match=r"\w+ ") as caught:
        client.infer(model, [given], model_version=version)
    assert caught.value.status() == status


def test_what_we_do_not_offer(client: Any) -> None:
    """Refused in words, as the client expects of a server without the extension."""
    for ask in (
        client.get_inference_statistics,
        lambda: client.get_model_config("tiny"),
        lambda: client.load_model("tiny"),
        lambda: client.unload_model("tiny"),
        client.get_trace_settings,
    ):
        with pytest.raises(triton.InferenceServerException) as caught:
            ask()
        assert caught.value.status() in {"404", "501"}


def test_many_at_once(rest: Running, guard: Guard, tensor: NDArray[np.float32]) -> None:
    """Twenty calls under way on eight connections."""
    own = guard.inspect_tensor(tensor[:20])
    with triton.InferenceServerClient(rest.http_address, concurrency=8) as client:
        asked = [client.async_infer("tiny", [as_input(tensor[i : i + 1])]) for i in range(20)]
        for i, answer in enumerate(asked):
            assert answer.get_result().as_numpy("label")[0] == own.outputs["label"][i]

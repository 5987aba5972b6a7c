"""Whatever comes over the wire, the server answers, refuses by name, and goes on."""

import struct
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb

FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
METHODS = [
    "/reluguard.v1.Guard/Inspect",
    "/reluguard.v1.Guard/Describe",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelReady",
]
big = st.integers(-(2**63), 2**63 - 1)
sizes = st.lists(st.sampled_from([0, 1, 2, 3, 12, 432]) | big, max_size=9)
names = st.sampled_from(["", "image", "tiny", "logits", "label", "reluguard_score"]) | st.text(
    max_size=8
)
kinds = st.sampled_from(["FP32", "UINT8", "BYTES", "FP16", "INT64", "BOOL", "x"])
blobs = st.sampled_from([bytes(432), bytes(1728), b"\x89PNG\r\n\x1a\n" + bytes(64)]) | st.binary(
    max_size=512
)


@st.composite
def inspect_requests(draw: st.DrawFn) -> bytes:
    which = draw(st.sampled_from(["tensor", "pixels", "encoded", "none"]))
    request = pb.InspectRequest(model=draw(names), outputs=draw(st.lists(names, max_size=3)))
    if which == "tensor":
        request.tensor.CopyFrom(
            pb.Tensor(name=draw(names), datatype=draw(kinds), shape=draw(sizes), data=draw(blobs))
        )
    if which == "pixels":
        count, height, width, channels = (draw(st.sampled_from([1, 3, 12]) | big) for _ in "NHWC")
        request.pixels.CopyFrom(
            pb.Pixels(count=count, height=height, width=width, channels=channels, data=draw(blobs))
        )
    if which == "encoded":
        request.encoded.CopyFrom(pb.EncodedImages(images=draw(st.lists(blobs, max_size=4))))
    data: bytes = request.SerializeToString()
    return data


@st.composite
def infer_requests(draw: st.DrawFn) -> bytes:
    parameter = st.builds(oip.InferParameter, int64_param=big) | st.builds(
        oip.InferParameter, string_param=names
    )
    contents = st.none() | st.builds(
        oip.InferTensorContents,
        fp32_contents=st.lists(st.floats(width=32), max_size=4),
        uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=4),
        bytes_contents=st.lists(blobs, max_size=2),
    )
    request = oip.ModelInferRequest(
        model_name=draw(names),
        model_version=draw(st.sampled_from(["", "1", "9", "x"])),
        inputs=[
            oip.ModelInferRequest.InferInputTensor(
                name=draw(names), datatype=draw(kinds), shape=draw(sizes), contents=draw(contents)
            )
            for _ in range(draw(st.integers(0, 2)))
        ],
        raw_input_contents=draw(st.lists(blobs, max_size=2)),
        outputs=[
            oip.ModelInferRequest.InferRequestedOutputTensor(name=draw(names))
            for _ in range(draw(st.integers(0, 2)))
        ],
        parameters=draw(
            st.dictionaries(st.sampled_from(["policy", "timeout", "x"]), parameter, max_size=2)
        ),
    )
    data: bytes = request.SerializeToString()
    return data


@st.composite
def spoiled(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A request with some bytes changed, cut or repeated."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=4))


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def code_of(channel: grpc.Channel, method: str, data: bytes) -> str:
    try:
        channel.unary_unary(method)(data, timeout=20)
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"


requests = inspect_requests() | infer_requests()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=st.sampled_from(METHODS), data=requests | spoiled(requests) | st.binary(max_size=64))
def test_any_bytes_are_answered_or_refused(channel: grpc.Channel, method: str, data: bytes) -> None:
    """Never INTERNAL, never a hang, whatever the bytes."""
    assert code_of(channel, method, data) in FINE


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=st.sampled_from(METHODS), data=requests | spoiled(requests) | st.binary(max_size=64))
def test_very_many_bytes_are_answered_or_refused(
    channel: grpc.Channel, method: str, data: bytes
) -> None:
    """The same, for long."""
    assert code_of(channel, method, data) in FINE


def test_the_server_is_right_afterwards(server: Running, guard: Guard, mixed: Images) -> None:
    """What came before left no trace in the answers."""
    with grpc.insecure_channel(server.address) as channel:
        for data in (b"", b"\xff" * 64, struct.pack("<I", 2**31) * 8):
            for method in METHODS:
                assert code_of(channel, method, data) in FINE
    with Client(server.address) as client:
        assert_array_equal(client.inspect(mixed[:16]).score, guard.inspect(mixed[:16]).score)


def test_odd_floats_do_not_stop_the_server(server: Running) -> None:
    """Denormals and negative zero are numbers; what no pixel can give is refused in words."""
    odd = np.array([1e-45, 9.0, -8.0, -0.0], np.float32)
    with Client(server.address) as client:
        assert len(client.inspect_tensor(np.resize(odd, (4, 3, 12, 12)))) == 4
        for value in (3.4e38, -3.4e38, 9.1, -8.1):
            tensor = np.zeros((2, 3, 12, 12), np.float32)
            tensor[1, 0, 0, 0] = value
            with pytest.raises(CallError, match=r"INVALID_ARGUMENT: expected values near \[0, 1\]"):
                client.inspect_tensor(tensor)

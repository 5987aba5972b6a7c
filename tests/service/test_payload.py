"""The large field of a request is a view of what came, and nothing else changes."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from reluguard.service.payload import AT_LEAST, lift
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb

RAW = {7: None}
INSPECT = {3: 4, 4: 5}
blobs = st.binary(max_size=300)


@st.composite
def infer_requests(draw: st.DrawFn) -> bytes:
    request = oip.ModelInferRequest(
        model_name=draw(st.text(max_size=5)),
        id=draw(st.text(max_size=5)),
        parameters={"priority": oip.InferParameter(uint64_param=draw(st.integers(0, 2**64 - 1)))},
        raw_input_contents=draw(st.lists(blobs, max_size=2)),
    )
    parts = [request.SerializeToString(), draw(st.sampled_from([b"", b"\x09" + bytes(8)]))]
    data: bytes = b"".join(draw(st.permutations(parts)))
    return data


@st.composite
def inspect_requests(draw: st.DrawFn) -> bytes:
    tensor = pb.Tensor(name=draw(st.text(max_size=5)), shape=[1, 2], data=draw(blobs))
    parts = [
        pb.InspectRequest(tensor=tensor).SerializeToString(),
        pb.InspectRequest(pixels=pb.Pixels(count=3, data=draw(blobs))).SerializeToString(),
        pb.InspectRequest(encoded=pb.EncodedImages(images=[b"x"])).SerializeToString(),
        pb.InspectRequest(id="a", all_outputs=True).SerializeToString(),
    ]
    return b"".join(draw(st.lists(st.sampled_from(parts), max_size=4)))


def parsed(kind: Any, data: bytes) -> Any:
    """Return the message, or None where protobuf finds none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


@given(infer_requests() | blobs)
def test_taking_raw_contents_out_and_putting_them_back_changes_nothing(data: bytes) -> None:
    """The rest with the payload appended is the message; what is no message stays none."""
    rest, payload = lift(data, RAW, at_least=0)
    whole, back = parsed(oip.ModelInferRequest, data), parsed(oip.ModelInferRequest, rest)
    if payload is not None and back is not None:
        assert not back.raw_input_contents
        back.raw_input_contents.append(bytes(payload))
    assert back == whole


@given(inspect_requests() | blobs)
def test_taking_data_out_of_a_tensor_and_putting_it_back_changes_nothing(data: bytes) -> None:
    """The same one message further in, whichever of the inputs comes last."""
    rest, payload = lift(data, INSPECT, at_least=0)
    whole, back = parsed(pb.InspectRequest, data), parsed(pb.InspectRequest, rest)
    if payload is not None and back is not None and back.WhichOneof("input") != "encoded":
        holder = getattr(back, back.WhichOneof("input"))
        assert not holder.data
        holder.data = bytes(payload)
    assert back == whole


def test_the_payload_is_a_view_of_what_came() -> None:
    """Nothing of the tensor is copied, and the rest is small."""
    tensor = pb.Tensor(name="image", datatype="FP32", shape=[1, 2**18], data=bytes(2**20))
    data = pb.InspectRequest(tensor=tensor, id="a").SerializeToString()
    rest, payload = lift(data, INSPECT)
    assert payload is not None
    assert np.shares_memory(np.frombuffer(payload, np.uint8), np.frombuffer(data, np.uint8))
    assert len(payload) == 2**20
    assert len(rest) < 64


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(oip.ModelInferRequest(id="a" * 99).SerializeToString(), id="no such field"),
        pytest.param(
            oip.ModelInferRequest(raw_input_contents=[b"a", b"b"]).SerializeToString(), id="two"
        ),
        pytest.param(b"\x3a\x05abcd", id="shorter than it says"),
        pytest.param(b"\x3b\x3c", id="a group"),
        pytest.param(b"\xba\x80\x80\x80\x80\x00\x01a", id="a tag of six bytes"),
    ],
)
def test_what_is_unusual_is_left_to_protobuf(data: bytes) -> None:
    """The very same bytes come back."""
    assert lift(data, RAW, at_least=0) == (data, None)


def test_small_messages_stay_whole() -> None:
    """Below the limit a copy is cheaper than a search."""
    data = oip.ModelInferRequest(raw_input_contents=[bytes(AT_LEAST - 100)]).SerializeToString()
    assert lift(data, RAW) == (data, None)

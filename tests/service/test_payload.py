"""The large field of a request is a view of what came, and nothing else changes."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from reluguard.service.errors import RequestError
from reluguard.service.payload import AT_LEAST, check_parts, lift
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


def fields_of(message: Any) -> int:
    """Count the fields of a message that protobuf made, at all depths, as they lie on the wire."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = [value[key] for key in value]
            holds = field.message_type.fields_by_name["value"].message_type
            count += sum(3 + (fields_of(entry) if holds else 0) for entry in entries)
        elif field.message_type is not None:
            count += sum(1 + fields_of(one) for one in (value if field.is_repeated else [value]))
        else:
            packed = field.is_repeated and field.type not in {field.TYPE_STRING, field.TYPE_BYTES}
            count += len(value) if field.is_repeated and not packed else 1
    return count


@given(infer_requests() | inspect_requests())
def test_what_has_no_more_fields_than_allowed_passes(data: bytes) -> None:
    """The count is that of the wire, to the one."""
    kind = oip.ModelInferRequest
    whole = parsed(kind, data)
    if whole is None:
        return
    whole.DiscardUnknownFields()
    data = whole.SerializeToString()
    most = fields_of(whole)
    check_parts(data, kind.DESCRIPTOR, most=most, at_least=0)
    if most:
        with pytest.raises(RequestError, match=f"expected at most {most - 1} fields in a infer"):
            check_parts(data, kind.DESCRIPTOR, most=most - 1, at_least=0)


MANY = 2**22
CROWDS: dict[str, tuple[Any, bytes]] = {
    "empty outputs": (oip.ModelInferRequest, b"\x32\x00" * MANY),
    "empty names": (pb.InspectRequest, b"\x32\x00" * MANY),
    "empty inputs": (oip.ModelInferRequest, b"\x2a\x00" * MANY),
    "empty raw contents": (oip.ModelInferRequest, b"\x3a\x00" * MANY),
    "empty files": (pb.InspectRequest, b"\x2a\x80\x80\x80\x04" + b"\x0a\x00" * MANY),
    "unknown numbers": (pb.InspectRequest, b"\x78\x00" * MANY),
    "groups in groups": (pb.InspectRequest, b"\x7b" * MANY),
    "a long shape": (
        pb.InspectRequest,
        b"\x1a\x85\x80\x80\x02" + b"\x1a\x80\x80\x80\x02" + bytes(MANY),
    ),
    "numbers": (
        oip.ModelInferRequest,
        oip.ModelInferRequest(
            inputs=[{"contents": oip.InferTensorContents(int_contents=[1]*MANY)}]
        ).SerializeToString(),
    ),
    "parameters": (
        oip.ModelInferRequest,
        b"\x22\x00" * MANY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CROWDS)
def test_a_crowd_of_parts_is_refused_before_it_is_made(name: str) -> None:
    """Eight million bytes of nothing cost some thousand steps."""
    kind, data = CROWDS[name]
    with pytest.raises(RequestError, match="expected"):
        check_parts(data, kind.DESCRIPTOR, most=2048)


@pytest.mark.parametrize("data", [b"\x3a\x05abcd", b"\x0f", b"\xff" * 11])
def test_what_is_no_message_is_no_message(data: bytes) -> None:
    """The same words as protobuf's failure gets."""
    with pytest.raises(RequestError, match="bytes that are none"):
        check_parts(data, oip.ModelInferRequest.DESCRIPTOR, most=99, at_least=0)

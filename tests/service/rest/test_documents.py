"""JSON from strangers: what is right is read as Python does, what is not is refused in words."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from reluguard.service.errors import RequestError
from reluguard.service.rest.documents import cut_numbers, read_document, read_numbers_text
from reluguard.service.rest.inference import read_infer

FP32 = np.dtype("float32")
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "inputs", "outputs", "name", "shape", "parameters", "id"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def read(document: Any, behind: bytes = b"", header: int | None = None) -> Any:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    if header is None and behind:
        header = len(head)
    return read_infer(head + behind, header, most_parts=300, most_bytes=10_000)


@settings(max_examples=60)
@given(st.lists(numbers, min_size=1, max_size=50), st.sampled_from([None, 1, 4]))
def test_numbers_come_back(values: list[float], indent: int | None) -> None:
    """However they are laid out, as Python's own reader reads them."""
    text = json.dumps({"inputs": [{"data": values, "name": "x"}]}, indent=indent).encode()
    cut = cut_numbers(text, most=300)
    assert json.loads(cut.rest) == {"inputs": [{"data": [0], "name": "x"}]}
    got = read_numbers_text(cut.arrays[0], FP32, count=len(values))
    assert_array_equal(got, np.array(values, np.float64).astype(np.float32))


def test_nested_arrays_are_flat() -> None:
    """Brackets may follow the shape; what is no array of numbers stays."""
    text = b'{"a":{"data":[[1, 2],[3,4.5e0]]},"b":{"data":["x","y"]},"c":{"data" : []}}'
    cut = cut_numbers(text, most=300)
    assert json.loads(cut.rest) == {
        "a": {"data": [0]}, "b": {"data": ["x", "y"]}, "c": {"data": [1]}
    }  # fmt: skip
    assert_array_equal(read_numbers_text(cut.arrays[0], FP32, count=4), [1, 2, 3, 4.5])
    assert len(read_numbers_text(cut.arrays[1], FP32, count=0)) == 0


@settings(max_examples=60)
@given(anything)
def test_any_document_is_read_or_refused(document: Any) -> None:
    """Nothing but our own refusal leaves the reader."""
    try:
        read(document)
    except RequestError as error:
        assert str(error).startswith(("expected", "byte size mismatch"))  # noqa: PT017 - or none


@settings(max_examples=60)
@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_any_bytes_are_read_or_refused(body: bytes, header: int | None) -> None:
    """Not only those that are JSON."""
    try:
        read_infer(body, header, most_parts=300, most_bytes=10_000)
    except RequestError as error:
        assert str(error).startswith(("expected", "byte size mismatch"))  # noqa: PT017 - or none


ONE = {"name": "x", "datatype": "FP32", "shape": [2]}
BINARY = ONE | {"parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("document", "behind", "message"),
    [
        (b"", b"", "expected a JSON document, got none: Expecting value at 0"),
        (b'\xff{"a": 1}', b"", "it is not UTF-8"),
        (b"[]", b"", "expected a JSON object as the document, got list"),
        (b'{"id": NaN}', b"", "expected JSON, which has no NaN"),
        (b'{"id": -Infinity}', b"", "expected JSON, which has no -Infinity"),
        (b'{"id": "a", "id": "b"}', b"", "each key of a JSON object once"),
        (b'{"id": ' + b"9" * 5000 + b"}", b"", "numbers of at most 64 digits"),
        (b'{"id": 0.' + b"9" * 5000 + b"}", b"", "numbers of at most 64 digits"),
        (b'{"id": "\\ud800"}', b"", "got half characters"),
        (b'{"id": 7}', b"", "expected a text as id, got int"),
        ({"inputs": {}}, b"", "expected a list as inputs, got dict"),
        ({"inputs": [7]}, b"", "expected a JSON object as one of the inputs, got int"),
        ({"inputs": [{}] * 65}, b"", "at most 64 inputs, got 65"),
        ({"outputs": [{"name": None}]}, b"", "expected a text as name of an output"),
        ({"parameters": {"a": [1]}}, b"", "as parameter 'a' of the request"),
        ({"parameters": {"a": 2**64}}, b"", "as parameter 'a' of the request"),
        ({"parameters": {"binary_data_output": 1}}, b"", "binary_data_output to be a bool"),
        ({"inputs": [ONE | {"shape": [2.0]}]}, b"", "expected a list of sizes as shape"),
        ({"inputs": [ONE | {"shape": [True]}]}, b"", "expected a list of sizes as shape"),
        ({"inputs": [ONE | {"shape": [2**70]}]}, b"", "expected a list of sizes as shape"),
        ({"inputs": [ONE | {"shape": [-1], "data": [1]}]}, b"", "expected sizes of 0 or more"),
        ({"inputs": [ONE | {"shape": [2**40], "data": [1]}]}, b"", "at most 10000 bytes"),
        ({"inputs": [ONE | {"data": [1]}]}, b"", "expected 2 numbers as data, got 1"),
        ({"inputs": [ONE | {"data": [1, 2, 3]}]}, b"", "expected 2 numbers as data, got 3"),
        ({"inputs": [ONE | {"data": 7}]}, b"", "expected an array of numbers as data of 'x'"),
        ({"inputs": [ONE | {"data": ["1", "2"]}]}, b"", "expected an array of numbers as data"),
        ({"inputs": [ONE | {"data": [1, None]}]}, b"", "got 'null'"),
        ({"inputs": [ONE | {"datatype": "FP8", "data": [1, 2]}]}, b"", "expected a datatype of"),
        ({"inputs": [ONE | {"datatype": "UINT8", "data": [1, 256]}]}, b"", "numbers in 0..255"),
        ({"inputs": [ONE | {"datatype": "INT64", "data": [1, 2.5]}]}, b"", "got '2.5'"),
        ({"inputs": [ONE | {"datatype": "INT64", "data": [1, 2**63]}]}, b"", "that int64 holds"),
        ({"inputs": [ONE | {"datatype": "BYTES", "data": ["!", "a"]}]}, b"", "expected base64"),
        ({"inputs": [ONE | {"datatype": "BYTES", "data": [1]}]}, b"", "expected base64 texts"),
        ({"inputs": [ONE | {"datatype": "BYTES", "data": ["YQ=="]}]}, b"", "expected 2 base64"),
        ({"inputs": [BINARY | {"data": [1, 2]}]}, bytes(8), "data or binary_data_size"),
        ({"inputs": [BINARY]}, bytes(7), "binary_data_size is 8, got 7 bytes"),
        ({"inputs": [BINARY]}, bytes(9), "add up to 8, got 9 bytes"),
        ({"inputs": [ONE | {"parameters": {"binary_data_size": -1}}]}, bytes(8), "size is -1"),
        ({"inputs": [ONE | {"parameters": {"binary_data_size": True}}]}, bytes(8), "to be a int"),
        ({"inputs": [ONE | {"parameters": {"binary_data_size": 2**63}}]}, bytes(8), "mismatch"),
    ],
)  # fmt: skip
def test_what_is_no_request(document: Any, behind: bytes, message: str) -> None:
    """Each with what was expected and what came."""
    with pytest.raises(RequestError, match=message):
        read(document, behind)


def test_a_header_longer_than_the_body() -> None:
    """A lie about the JSON document's own size."""
    with pytest.raises(RequestError, match="at most the body's 2 bytes, got 3"):
        read(b"{}", header=3)


def test_data_that_is_right() -> None:
    """The payload is what gRPC would have brought, the message all else."""
    asked = read({"id": "7", "parameters": {"timeout": 5, "binary_data_output": True},
                  "inputs": [BINARY], "outputs": [{"name": "y", "parameters": {
                      "binary_data": False}}]}, b"12345678")  # fmt: skip
    assert bytes(asked.payload) == b"12345678"
    assert (asked.message.id, asked.message.parameters["timeout"].int64_param) == ("7", 5)
    assert list(asked.message.parameters) == ["timeout"]
    assert not asked.message.outputs[0].parameters
    assert (asked.binary, asked.all_binary) == ({"y": False}, True)
    asked = read({"inputs": [ONE | {"data": [[1], [2.5]]}]})
    assert_array_equal(np.frombuffer(asked.payload, "<f4"), [1, 2.5])
    asked = read({"inputs": [ONE | {"datatype": "BYTES", "data": ["YQ==", "YmM="]}]})
    assert bytes(asked.payload) == b"\x01\0\0\0a\x02\0\0\0bc"


MIB = 2**20


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MIB,
        b'{"a":' * (MIB // 5),
        b"[" + b"[]," * (MIB // 3) + b"[]]",
        b"[" + b"{}," * (MIB // 3) + b"{}]",
        b"[" + b"1," * (MIB // 2) + b"1]",
        b'"' + b"\\n" * (MIB // 2) + b'"',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b"1," * MIB + b"1]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b"[" * MIB + b"]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b" " * MIB + b"]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[' + b"1" * MIB + b"]}]}",
        b'{"data":[1],' * (MIB // 12),
        b'"data":[' * (MIB // 8),
        b'{"data":' + b" " * MIB,
        b'"data"' + b" " * MIB + b'"data"',
    ],
    ids=lambda body: body[:20].decode() + "…" + body[-6:].decode(),
)  # fmt: skip
def test_a_bomb_is_refused_before_it_costs(body: bytes) -> None:
    """A megabyte of the worst we can think of takes no longer than reading a megabyte should."""
    limits: dict[str, Any] = {"most_parts": 768, "most_bytes": 16 * MIB}
    started = time.thread_time()
    with pytest.raises(RequestError):
        read_infer(body, None, **limits)
    assert time.thread_time() - started < 0.15
    assert isinstance(read_document(b"{}", most=1), dict)

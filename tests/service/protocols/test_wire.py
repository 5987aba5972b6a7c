import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from reluguard.service.errors import RequestError
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.wire import (
    DATATYPES,
    check_shape,
    datatype_of,
    read_bytes_elements,
    read_numbers,
    read_strings,
    read_tensor,
    write_tensor,
)

arrays = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda name: hnp.arrays(DATATYPES[name], hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(arrays)
def test_read_undoes_write(array: NDArray[np.generic]) -> None:
    """Whatever was written comes back bit for bit, empty arrays and scalars too."""
    name = datatype_of(array.dtype)
    back = read_tensor(write_tensor(array), name="x", datatype=name, shape=array.shape)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(arrays)
def test_byte_order_of_the_machine_does_not_matter(array: NDArray[np.generic]) -> None:
    """A big-endian array is written little-endian."""
    swapped = array.astype(array.dtype.newbyteorder(">"))
    assert write_tensor(swapped) == write_tensor(array)


@given(
    st.binary(max_size=64),
    st.text(max_size=8) | st.sampled_from(sorted(DATATYPES)),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=10),
)
def test_any_claim_is_read_or_refused(data: bytes, datatype: str, shape: list[int]) -> None:
    """Bytes with any claim about them give that array or a RequestError, and nothing else."""
    try:
        array = read_tensor(data, name="x", datatype=datatype, shape=shape)
    except RequestError:
        return
    assert array.nbytes == len(data)
    assert len(data) == 0 or list(array.shape) == shape


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_bytes_elements_round_trip(elements: list[bytes]) -> None:
    """Elements with their lengths before them come back as they were."""
    data = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    assert read_bytes_elements(data, name="x", count=len(elements)) == elements


@given(st.binary(max_size=64), st.integers(0, 2**70))
def test_any_bytes_elements_are_read_or_refused(data: bytes, count: int) -> None:
    """Bytes that lie about their lengths are refused."""
    try:
        elements = read_bytes_elements(data, name="x", count=count)
    except RequestError:
        return
    assert len(elements) == count
    assert sum(map(len, elements)) + 4 * count == len(data)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        (b"", "FP32", [2**40, 3], "byte size mismatch for 'x': expected 13194139533312, got 0"),
        (b"", "FP32", [-1, 3], r"expected sizes of 0 or more for 'x', got \[-1, 3\]"),
        (b"", "FP32", [-(2**62), -4], "expected sizes of 0 or more"),
        (bytes(23), "FP32", [2, 3], "byte size mismatch for 'x': expected 24, got 23"),
        (bytes(25), "FP32", [2, 3], "byte size mismatch for 'x': expected 24, got 25"),
        (bytes(24), "FP31", [2, 3], "expected a datatype of BOOL, .* for 'x', got 'FP31'"),
        (bytes(24), "BYTES", [2, 3], "expected a datatype of"),
        (b"", "FP32", [0] * 9, "expected at most 8 dimensions for 'x', got 9"),
    ],
)
def test_a_wrong_tensor_is_named(
    data: bytes, datatype: str, shape: list[int], message: str
) -> None:
    """Each refusal says what was expected and what came."""
    with pytest.raises(RequestError, match=message):
        read_tensor(data, name="x", datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"\x05\x00\x00\x00abc", 1, "element 0 claims 5 bytes, got 3"),
        (b"\x01\x00\x00\x00ab", 1, "1 elements take 5 bytes, got 6"),
        (b"\x01\x00\x00\x00a", 2, "5 bytes hold less than 2 elements"),
        (b"", 2**62, "0 bytes hold less than 4611686018427387904 elements"),
    ],
)
def test_wrong_bytes_elements_are_named(data: bytes, count: int, message: str) -> None:
    """Each refusal says what was expected and what came."""
    with pytest.raises(RequestError, match=message):
        read_bytes_elements(data, name="x", count=count)


def test_shapes_are_multiplied_without_wrapping() -> None:
    """A product beyond 64 bits is that product."""
    assert check_shape([2**40, 2**40], name="x") == 2**80


def test_reading_does_not_copy() -> None:
    """The array is a view of the message's bytes."""
    data = np.arange(6, dtype=np.float32).tobytes()
    array = read_tensor(data, name="x", datatype="FP32", shape=[2, 3])
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert_array_equal(array, np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("shape", [[0, *[2**62] * 7], [2**40, 0, 2**40], [2**15] * 7 + [0]])
def test_an_empty_tensor_of_any_claim_is_empty(shape: list[int]) -> None:
    """Found by the coverage-guided fuzzer: numpy refuses some shapes although they hold nothing."""
    tensor = read_tensor(b"", name="x", datatype="FP64", shape=shape)
    assert tensor.size == 0
    assert tensor.ndim == len(shape)


@given(st.lists(st.integers(-(2**63), 2**64 - 1) | st.integers(0, 255), max_size=40))
def test_packed_numbers_are_read_as_protobuf_reads_them(numbers: list[int]) -> None:
    """All at once, negative ones modulo 2**64."""
    modulo = [number % 2**64 for number in numbers]
    packed = oip.InferTensorContents(uint64_contents=modulo).SerializeToString()
    start = next((i + 1 for i, byte in enumerate(packed) if i and byte < 0x80), 0)
    assert read_numbers(packed[start:]).tolist() == modulo


def test_strings_come_back() -> None:
    """Class names of a model go over the wire as elements of bytes, and come back as they were."""
    names = np.array([["digit 1", ""], ["größer", "x" * 300]], object)
    assert datatype_of(names.dtype) == datatype_of("object") == "BYTES"
    back = read_strings(write_tensor(names), name="label", shape=names.shape)
    assert back.dtype == names.dtype
    assert (back == names).all()

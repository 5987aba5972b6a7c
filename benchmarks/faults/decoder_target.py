"""What the coverage-guided fuzzer calls: bytes into every decoder. Run it through `decoders`.

Whatever the bytes, a decoder returns what it promises or raises one of our two errors. N images.
"""

import sys
from collections.abc import Callable

import atheris
import numpy as np

with atheris.instrument_imports(include=["reluguard", "PIL"]):
    from reluguard.detector.errors import ImageError
    from reluguard.detector.images import InputSpec, decode_image
    from reluguard.service.edge import parse
    from reluguard.service.errors import RequestError
    from reluguard.service.payload import Fields, lift
    from reluguard.service.protocols.infer_input import read_input as read_infer
    from reluguard.service.protocols.inspection import Encoded, Input, Limits
    from reluguard.service.protocols.open_inference import _LARGE as LARGE_INFER
    from reluguard.service.protocols.pb import open_inference as oip
    from reluguard.service.protocols.pb import reluguard_v1 as pb
    from reluguard.service.protocols.servicers import _LARGE as LARGE_INSPECT
    from reluguard.service.protocols.servicers import (
        _read_input as read_inspect,
    )  # what Inspect decodes with
    from reluguard.service.protocols.wire import (
        DATATYPES,
        read_bytes_elements,
        read_tensor,
        write_tensor,
    )

_REFUSED = (RequestError, ImageError)
_SPEC = InputSpec(name="image", height=12, width=12, channels=3)
_LIMITS = Limits(max_rows=64, max_message_bytes=2**24, max_pixels=10_000)
_KINDS = [*DATATYPES, "BYTES", "", "x"]


def _tensor(given: atheris.FuzzedDataProvider) -> None:
    datatype = given.PickValueInList(_KINDS)
    shape = [given.ConsumeInt(8) for _ in range(given.ConsumeIntInRange(0, 9))]
    if given.ConsumeBool():  # sizes that can be right
        shape = [size % 5 for size in shape]
    data = given.ConsumeBytes(2**16)
    array = read_tensor(data, name="x", datatype=datatype, shape=shape)
    assert array.dtype == DATATYPES[datatype]
    assert array.size == 0 or (list(array.shape) == shape and write_tensor(array) == data)


def _elements(given: atheris.FuzzedDataProvider) -> None:
    count = given.ConsumeInt(8) if given.ConsumeBool() else given.ConsumeIntInRange(0, 9)
    data = given.ConsumeBytes(2**16)
    elements = read_bytes_elements(data, name="x", count=count)
    assert b"".join(len(e).to_bytes(4, "little") + e for e in elements) == data
    assert len(elements) == max(count, 0)


def _image(given: atheris.FuzzedDataProvider) -> None:
    image = decode_image(given.ConsumeBytes(2**16), _SPEC, max_pixels=10_000)
    assert image.shape == (12, 12, 3)
    assert image.dtype == np.uint8


def _inspect(given: atheris.FuzzedDataProvider) -> None:
    data = given.ConsumeBytes(2**16)

    def read(data: bytes, payload: memoryview | None) -> Input:
        return read_inspect(parse(pb.InspectRequest, data), payload)

    _both_ways(read, data, LARGE_INSPECT)


def _infer(given: atheris.FuzzedDataProvider) -> None:
    data = given.ConsumeBytes(2**16)

    def read(data: bytes, payload: memoryview | None) -> Input:
        request = parse(oip.ModelInferRequest, data)
        raw = request.raw_input_contents if payload is None else [payload]
        return read_infer(request, raw, _SPEC, _LIMITS)

    _both_ways(read, data, LARGE_INFER)


def _both_ways(
    read: Callable[[bytes, memoryview | None], Input], data: bytes, large: Fields
) -> None:
    """Hold what is read of a lifted payload against what protobuf reads of the whole."""
    whole, lifted = _read(read, data, None), _read(read, *lift(data, large, at_least=0))
    if isinstance(whole, _REFUSED) or isinstance(lifted, _REFUSED):
        assert str(whole) == str(lifted), (whole, lifted)
        return
    assert type(whole) is type(lifted)
    if isinstance(whole, Encoded):
        assert isinstance(lifted, Encoded)
        assert [bytes(image) for image in whole.images] == [bytes(i) for i in lifted.images]
    else:
        assert not isinstance(lifted, Encoded)
        assert whole.array.shape == lifted.array.shape
        assert whole.array.tobytes() == lifted.array.tobytes()
    _to_tensor(lifted)


def _read(
    read: Callable[[bytes, memoryview | None], Input], data: bytes, payload: memoryview | None
) -> Input | RequestError | ImageError:
    try:
        return read(data, payload)
    except _REFUSED as error:
        return error


def _to_tensor(read: Input) -> None:
    if isinstance(read, Encoded):
        if not read.rows:
            return  # refused before decoding
        read = read.decode(_SPEC, _LIMITS)
    tensor = read.tensor(_SPEC)
    assert tensor.dtype == np.float32
    assert tensor.shape == (read.rows, 3, 12, 12)
    assert np.isfinite(tensor).all()


_TARGETS = [_tensor, _elements, _image, _inspect, _infer]


def one(data: bytes) -> None:
    """Give the bytes to the decoder that the first of them names."""
    if not data:
        return
    target = _TARGETS[data[0] % len(_TARGETS)]
    try:
        target(atheris.FuzzedDataProvider(data[1:]))
    except (RequestError, ImageError):
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

"""An ONNX file and the weight files it names, read and hashed as one."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from reluguard.detector.errors import ModelError

__all__ = ["read_model", "tensors"]

_MAX_BYTES = 2**31 - 1


def read_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """Return the model with all of its weights inside, and the SHA-256 of everything it is.

    Weights in other files belong to it wherever they are named: in the graph, in the body of a
    branch or a loop, in a function, in a Constant.

    Raises:
        ModelError: missing, unparsable, too large, or without its external weights.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"expected a model of at most 2 GiB, {path} is larger")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read the model {path}: {error.strerror}") from error
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"expected an ONNX model, {path} does not parse as one{_hint(data)}"
        ) from error
    if not proto.graph.node:
        raise ModelError(f"expected an ONNX model, {path} holds no graph")
    digest = hashlib.sha256(data)
    outside = [tensor for tensor in tensors(proto) if uses_external_data(tensor)]
    size = len(data)
    for name in sorted({_location(tensor) for tensor in outside}):
        file = path.parent / name
        if not file.is_file() or not file.resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(f"{path} keeps weights in {name!r}, which is missing beside it")
        size += file.stat().st_size
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    if size > _MAX_BYTES:
        raise ModelError(f"expected a model of at most 2 GiB with its weights, got {size} bytes")
    try:
        for tensor in outside:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"the external weights of {path} can't be read") from error
    return proto, digest.hexdigest()


def _hint(data: bytes) -> str:
    """Return what to do about a file of torch's."""
    if not data.startswith((b"PK", b"\x80\x02")):
        return ""
    return (
        ": it looks like a file of PyTorch's. `reluguard fit` takes a .pt2 or TorchScript file and "
        "writes its ONNX export beside the guard, as GUARD.onnx: give that one"
    )


def tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor a model holds, those of bodies, functions and attributes among them."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)


def _location(tensor: TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")

"""An ONNX file and the weight files it names, read and hashed as one."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from reluguard.detector.errors import ModelError, near_path

__all__ = ["read_model", "tensors"]

_MAX_BYTES = 2**31 - 1
_TORCH = (
    "a file of PyTorch's. `reluguard fit` takes a .pt2 or TorchScript file and writes its ONNX "
    "export beside the guard, as GUARD.onnx: give that one; of weights alone torch.onnx.export "
    "makes one, in your own code that knows the network"
)
_KERAS = "a file of Keras, from which tf2onnx makes an ONNX model"
_KINDS = (  # how a file begins, what stands in it, what it is then
    (b"PK", b"data.pkl", _TORCH),
    (b"PK", b"serialized_exported_program", _TORCH),
    (b"\x80\x02", b"torch", _TORCH),
    (b"PK", b"config.json", _KERAS),
    (b"\x89HDF", b"", _KERAS),
    (b"PK", b".npy", "arrays of images, an .npz, which go to --data"),
    (b"", b"TFL3", "a TensorFlow Lite file, from which tf2onnx makes an ONNX model"),
    (b"version https://git-lfs", b"", "a pointer of Git LFS: git lfs pull gets the file itself"),
)


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
        raise ModelError(f"can't read the model {path}: {error.strerror}{_hint(path)}") from error
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"expected an ONNX model, {path} does not parse as one{_kind(data)}"
        ) from error
    if not proto.graph.node:
        raise ModelError(f"expected an ONNX model, {path} holds no graph{_kind(data)}")
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


def _hint(path: Path) -> str:
    """Return what else is there, or by a name like it."""
    if (path / "manifest.json").is_file():
        return ": that is a guard's folder, and the model is the ONNX file it was fitted to"
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.onnx"))
        return f": name the file in it, like {path / files[0]}" if files else ""
    return "" if path.exists() else near_path(path)


def _kind(data: bytes) -> str:
    """Return what a file is instead of an ONNX model, and what to do with it, by its content."""
    for start, inside, what in _KINDS:
        if data.startswith(start) and (not inside or inside in data):
            return f": it looks like {what}"
    return "" if data else ": it is empty"


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

"""Weights in other files belong to the model, wherever they are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from reluguard.detector.errors import ModelError
from reluguard.detector.onnx_file.weights import read_model, tensors

Network = Callable[..., onnx.ModelProto]
OUTER = np.arange(16, dtype=np.float32).reshape(4, 4)


def outside(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(OUTER, name)
    set_external_data(tensor, location="w.bin", offset=0, length=OUTER.nbytes)
    tensor.ClearField("raw_data")
    return tensor


def in_branch(model: onnx.ModelProto) -> None:
    info = helper.make_tensor_value_info
    branches: dict[str, Any] = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["scores", "outer"], [side])],
            side,
            [],
            [info(side, TensorProto.FLOAT, ["N", 4])],
            [outside("outer")],
        )
        for side in ("then", "else")
    }
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["logits"], **branches))


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["outer"], value=outside("outer")))
    model.graph.node.append(helper.make_node("MatMul", ["scores", "outer"], ["logits"]))


def in_function(model: onnx.ModelProto) -> None:
    body = [
        helper.make_node("Constant", [], ["outer"], value=outside("outer")),
        helper.make_node("MatMul", ["x", "outer"], ["y"]),
    ]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Last", ["x"], ["y"], body, opset))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node.append(helper.make_node("Last", ["scores"], ["logits"], domain="mine"))


@pytest.mark.parametrize("place", [in_branch, in_constant, in_function])
def test_weights_are_read_and_hashed_wherever_they_are(
    make_network: Network, tmp_path: Path, place: Callable[[onnx.ModelProto], None]
) -> None:
    """In a branch, an attribute, a function: another byte is another model."""
    model = make_network()
    model.graph.node[-1].output[0] = "scores"
    place(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(OUTER.tobytes())
    proto, digest = read_model(path)
    read = [numpy_helper.to_array(t) for t in tensors(proto) if t.name == "outer"]
    assert read
    assert all(np.array_equal(value, OUTER) for value in read)
    (tmp_path / "w.bin").write_bytes((OUTER * np.float32(1.001)).tobytes())
    assert read_model(path)[1] != digest
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps weights in 'w\.bin', which is missing"):
        read_model(path)

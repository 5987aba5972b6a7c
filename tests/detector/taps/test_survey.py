"""The survey of a model: which gates can be read, why the others can't, and nothing changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.compile.guarded import RATES, compile_reader
from reluguard.detector.errors import ModelError, NoTapsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import Survey, find_taps, survey

SPEC = InputSpec(name="image", height=8, width=8, channels=1)


def opened(model: onnx.ModelProto, folder: Path) -> Production:
    onnx.save(model, folder / "model.onnx")
    return load_production(folder / "model.onnx")


def surveyed(model: onnx.ModelProto, folder: Path) -> Survey:
    return survey(opened(model, folder), SPEC)


def with_functions(model: onnx.ModelProto, version: int, *nodes: onnx.NodeProto) -> None:
    """Make each Relu a call of a function of the user's, nested in another."""
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Layer", "user.ops"
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("user.ops", 1)]
    inner = helper.make_function("user.ops", "Gate", ["x"], ["y"], list(nodes), opsets)
    call = helper.make_node("Gate", ["x"], ["y"], domain="user.ops")
    outer = helper.make_function("user.ops", "Layer", ["x"], ["y"], [call], opsets)
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("user.ops", 1))


RELU = helper.make_node("Relu", ["x"], ["y"])
SILU = (
    helper.make_node("Sigmoid", ["x"], ["s"]),
    helper.make_node("Mul", ["x", "s"], ["y"]),
)


@pytest.mark.parametrize("nodes", [(RELU,), SILU], ids=["relu", "silu"])
@pytest.mark.parametrize("version", [17, 13])
def test_gates_in_functions_are_read(
    nodes: tuple[onnx.NodeProto, ...],
    version: int,
    make_network: Callable[..., onnx.ModelProto],
    tmp_path: Path,
) -> None:
    """Nested, and of another version than the model; not one bit changes."""
    model = make_network()
    with_functions(model, version, *nodes)
    production = opened(model, tmp_path)
    found = survey(production, SPEC)
    assert [tap.shape for tap in found.taps] == [(8, 8, 8), (12, 3, 3)]
    assert found.unread == ()
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    (plain,) = run_session(open_session(model, threads=1), {"image": x}, ["logits"])
    reader = compile_reader(production, found.taps)
    answer, rates = run_session(open_session(reader, threads=1), {"image": x}, ["logits", RATES])
    assert plain.tobytes() == answer.tobytes()
    assert rates.shape == (3, 20)
    assert 0.05 < rates.mean() < 0.95


def in_a_branch(model: onnx.ModelProto) -> None:
    """Put the first Relu into both branches of an If."""
    kind = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", ["c1"], ["inner"])], "then", [], [kind])
    branch = helper.make_node("If", ["yes"], ["r1"], then_branch=body, else_branch=body, name="if")
    model.graph.node[1].CopyFrom(branch)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


def test_gates_in_the_body_of_an_if_are_counted(
    make_network: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    """What can't be read is told beside what can."""
    model = make_network()
    in_a_branch(model)
    assert surveyed(model, tmp_path).counts.lines == [
        "read 1 of 3 gates",
        "2 x Relu not read: it lies in the body of the If 'if'",
    ]


def test_gates_without_a_row_per_image_are_counted(
    make_network: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    """A Relu over swapped axes is left out, the others are read."""
    model = make_network()
    swap = helper.make_node("Transpose", ["c1"], ["t"], perm=[1, 0, 2, 3])
    relu = helper.make_node("Relu", ["t"], ["u"])
    back = helper.make_node("Transpose", ["u"], ["r1"], perm=[1, 0, 2, 3])
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[0], swap, relu, back, *nodes[2:]])
    found = surveyed(model, tmp_path)
    assert (len(found.taps), len(found.unread)) == (1, 1)
    assert found.unread[0].reason == "its tensor has not one row per image"


def test_what_follows_the_answer_is_no_gate(
    make_network: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    """A Clip of the probabilities is not part of the network."""
    model = make_network()
    model.graph.node[-1].output[0] = "scores"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    model.graph.node.extend(
        [
            helper.make_node("Softmax", ["scores"], ["p"], axis=1),
            helper.make_node("Clip", ["p", "zero"], ["logits"]),
        ]
    )
    assert [tap.op for tap in surveyed(model, tmp_path).taps] == ["Relu", "Relu"]


@pytest.mark.parametrize("level", ["extended", "all"])
def test_a_file_that_onnx_runtime_optimised_is_read_whole_or_refused(
    level: str, make_network: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    """What runs anywhere is read in its fused operators; what one processor runs, is refused."""
    levels: dict[str, Any] = {
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = levels[level]
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    data = make_network().SerializeToString()
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    production = load_production(tmp_path / "optimised.onnx")
    if level == "extended":
        found = survey(production, SPEC)
        assert [tap.op for tap in found.taps] == ["FusedConv", "FusedConv"]
        assert found.unread == ()
    elif any("nchwc" in node.domain for node in production.proto.graph.node):
        with pytest.raises(ModelError, match="optimised by ONNX Runtime for one kind of processor"):
            find_taps(production, SPEC)


def test_a_model_of_hidden_gates_alone_is_refused_with_the_reason(
    make_network: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    """It is said what was found and why it can't be read."""
    model = make_network()
    in_a_branch(model)
    model.graph.node[3].CopyFrom(helper.make_node("Tanh", ["c2"], ["r2"]))
    with pytest.raises(NoTapsError, match="found Relu but it lies in the body of the If 'if'"):
        surveyed(model, tmp_path)

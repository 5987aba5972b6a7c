"""ONNX's own node cases: what the twin claims is as the standard says, or refused."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from reluguard.training.errors import TwinError
from reluguard.training.twin.onnx_torch import OnnxModule, supported_operators
from reluguard.training.twin.onnx_torch.node import tensor_of

# by the name of the case, or of the case and output: forms that are refused, each for its reason
REFUSED = {
    r"attention_.*(past|present|nonpad|qk_matmul|window|softmax_precision)": "of text generators",
    r"attention_.*(with_qk|ext_cache|padded_kv)": "of text generators",
    r"cast(like)?_.*(FLOAT8|FLOAT4|INT4|INT2|STRING)": "no number type that torch computes in",
    r"dequantizelinear_blocked|quantizelinear_(blocked|e4m3|e5m2|float4|u?int2)": "of 4 and 8 bits",
    r"training_dropout": "answers by chance",
    r"maxpool_with_argmax": "indices have no gradient",
    r"reduce_(max|min)_empty_set": "nothing to take the largest of",
    r"scan_sum$": "opset 8",
    r"equal_string": "strings",
    r"(if|loop\d*|identity)_(seq|opt)|loop16_seq_none|identity_sequence": "sequences",
}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
FEWER_DIGITS: dict[int, float] = {
    TensorProto.FLOAT16: 1e-2,
    TensorProto.BFLOAT16: 1e-1,
}  # computed in float32


def claimed() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their cases divide by zero, and so on
        cases = collect_testcases(None)
    known = supported_operators()
    for case in cases:
        model: Any = case.model
        nodes = model.graph.node
        ours = all(node.domain in {"", "ai.onnx"} for node in nodes) or model.functions
        if ours and {node.op_type for node in nodes} <= known and case.data_sets:
            yield case


def proto_of(value: Any) -> TensorProto:
    return value if isinstance(value, TensorProto) else numpy_helper.from_array(value)


def with_one_input(
    model: onnx.ModelProto, values: list[Any]
) -> tuple[onnx.ModelProto, TensorProto]:
    """Return the model with all but its first input of floats as weights, and that one's value."""
    given = dict(zip([value.name for value in model.graph.input], map(proto_of, values)))  # noqa: B905 - optional ones may be left out
    free = next((n for n, v in given.items() if v.data_type in FLOATS), next(iter(given)))
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for name, value in given.items():
        if name != free:
            bound.graph.initializer.add().CopyFrom(value)
            bound.graph.initializer[-1].name = name
    kept = [value for value in bound.graph.input if value.name == free]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    return bound, given[free]


def judge(case: Any, name: str, model: onnx.ModelProto, x: TensorProto, wanted: Any) -> str:
    """Return what is wrong with one output, empty if nothing is, `refused` if it is refused."""
    try:
        tensor = tensor_of(x)
        module = OnnxModule(model, name)
        for gradient in (False, tensor.is_floating_point()):
            found = module(tensor.clone().requires_grad_(gradient)).detach()
            aim = tensor_of(proto_of(wanted))
            if found.shape != aim.shape:
                return f"shape {tuple(found.shape)} instead of {tuple(aim.shape)}"
            slack = FEWER_DIGITS.get(proto_of(wanted).data_type, 0.0)
            rtol, atol = max(case.rtol, slack), max(case.atol, slack / 10)
            if not torch.allclose(found.double(), aim.double(), rtol, atol, equal_nan=True):
                return f"largest difference {(found.double() - aim.double()).abs().max()}"
    except TwinError as error:
        return "constant" if "depend on one input" in str(error) else "refused"
    except NotImplementedError:
        return "refused"  # by the test's own reading of a string
    return ""


@pytest.mark.slow  # 1,500 cases in 15 s
def test_claimed_operators_answer_as_the_standard_says() -> None:
    """Each case gives the standard's values, with a gradient asked for and without, or a refusal.

    What is refused is named here with its reason, so that nothing is by accident.
    """
    wrong: list[str] = []
    right = 0
    torch.set_grad_enabled(True)
    for case in claimed():
        refusable = any(re.search(pattern, case.name) for pattern in REFUSED)
        for inputs, outputs in case.data_sets:
            if not inputs or any(isinstance(v, list) or v is None for v in (*inputs, *outputs)):
                continue
            model, x = with_one_input(case.model, inputs)
            for value, wanted in zip(model.graph.output, outputs):  # noqa: B905 - optional ones
                found = judge(case, value.name, model, x, wanted)
                right += not found
                if found and found != "constant" and not (found == "refused" and refusable):
                    wrong.append(f"{case.name} {value.name}: {found}")
    assert not wrong, "\n".join(wrong)
    assert right > 1000

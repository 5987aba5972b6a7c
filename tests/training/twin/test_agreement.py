"""A twin of a model that rounds is told from rounding, and from another network."""

import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.images import Images, InputSpec
from reluguard.training.errors import TwinError
from reluguard.training.twin.agreement import difference, unit_of
from reluguard.training.twin.onnx_torch import OnnxModule
from reluguard.training.twin.twin import load_twin

SPEC = InputSpec(name="image", height=8, width=8, channels=3)
KINDS = ("float32", "float16", "8 bits", "8 bits, whole", "dynamic")
Weights = dict[str, np.ndarray]


def weights() -> Weights:
    rng = np.random.default_rng(3)
    return {
        "w1": rng.normal(0, 0.4, (12, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.2, 12).astype(np.float32),
        "w2": rng.normal(0, 0.15, (16, 12, 3, 3)).astype(np.float32),
        "b2": rng.normal(0, 0.2, 16).astype(np.float32),
        "w3": rng.normal(0, 0.3, (144, 6)).astype(np.float32),
    }


def pictures(count: int = 32) -> Images:
    """Return smooth pictures: neighbours are alike, as in photographs."""
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.float32)
    fine = np.repeat(np.repeat(coarse, 2, axis=1), 2, axis=2)
    return np.clip(fine + rng.normal(0, 20, fine.shape), 0, 255).astype(np.uint8)


def plain(values: Weights, *, act: str = "Relu") -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node(act, ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2]),
        helper.make_node(act, ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [info("logits", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def build(kind: str, values: Weights, path: Path) -> Path:
    """Write the network in a number type, by ONNX Runtime's own tools."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.transformers.float16 import convert_float_to_float16

    class Reader(CalibrationDataReader):  # type: ignore[misc] # untyped
        def __init__(self) -> None:
            self.rows = iter([{"image": SPEC.to_tensor(pictures())}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    source = path.with_name("float.onnx")
    onnx.save(plain(values), source)
    match kind:
        case "float32":
            return source
        case "float16":
            onnx.save(convert_float_to_float16(plain(values)), path)
        case "dynamic":
            quantize_dynamic(source, path, weight_type=QuantType.QUInt8)
        case _:
            form = QuantFormat.QDQ if kind == "8 bits" else QuantFormat.QOperator
            quantize_static(
                str(source),
                str(path),
                Reader(),
                quant_format=form,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    return path


def spec_of(path: Path) -> InputSpec:
    kind = onnx.load(path).graph.input[0].type.tensor_type.elem_type
    dtype = "float16" if kind == TensorProto.FLOAT16 else "float32"
    return InputSpec(name="image", height=8, width=8, channels=3, dtype=dtype)


@pytest.mark.filterwarnings("ignore")  # the quantiser's own
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_fewer_bits_has_a_twin(tmp_path: Path, kind: str) -> None:
    """The twin answers as the model does, and its gradient leads the model astray."""
    path = build(kind, weights(), tmp_path / "model.onnx")
    assert load_twin(path, spec_of(path), images=pictures(), device="cpu") is not None


def perturbed(values: Weights) -> Weights:
    changed = dict(values, w3=values["w3"].copy())
    changed["w3"][:, 2] *= 1.1
    return changed


def swapped(values: Weights) -> Weights:
    return dict(values, w2=values["w2"][:, [1, 0, *range(2, 12)]])


def shifted(values: Weights) -> Weights:
    changed = dict(values, b2=values["b2"].copy())
    changed["b2"][5] += 1.0
    return changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mistake", [perturbed, swapped, shifted])
def test_another_network_is_no_twin_in_any_number_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mistake: Callable[..., Weights]
) -> None:
    """One class a tenth off, two channels swapped, one bias: rounding allows none of them."""
    path = build(kind, weights(), tmp_path / "model.onnx")
    other = tmp_path / "other.onnx"
    onnx.save(plain(mistake(weights())), other)
    (tmp_path / "others_twin.py").write_text(
        "import onnx\nfrom reluguard.training.twin.onnx_torch import OnnxModule\n"
        f"def build():\n    return OnnxModule(onnx.load({str(other)!r}), 'logits')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "others_twin", raising=False)
    with pytest.raises(TwinError, match=r"to answer as the model within .* got a difference of"):
        load_twin(path, spec_of(path), "others_twin:build", images=pictures(), device="cpu")


def test_another_gate_is_no_twin() -> None:
    """A wrong operator is told from rounding by a wide margin."""
    x = torch.from_numpy(SPEC.to_tensor(pictures()))
    wanted, other = (
        OnnxModule(plain(weights(), act=act), "logits")(x).numpy() for act in ("Relu", "LeakyRelu")
    )
    for unit in (2.0**-8, 2.0**-11):
        assert not difference(other, wanted, unit=unit, tolerance=1e-3).is_small


def test_scores_that_are_not_numbers_are_no_twin() -> None:
    """NaN never passes."""
    scores = np.eye(4, dtype=np.float32)
    for unit in (0.0, 2.0**-8):
        assert difference(scores, scores, unit=unit, tolerance=1e-3).is_small
        assert not difference(scores * np.nan, scores, unit=unit, tolerance=1e-3).is_small


def test_weights_kept_in_fewer_bits_are_no_rounding() -> None:
    """What is turned to float32 before anything is done with it leaves float32's own tolerance."""
    model = plain(weights())
    assert unit_of(model) == 0
    for item in list(model.graph.initializer):
        if item.name == "w2":
            value = numpy_helper.to_array(item)
            model.graph.initializer.remove(item)
            kept = numpy_helper.from_array(value.astype(ml_dtypes.bfloat16), "kept")
            model.graph.initializer.append(kept)
            model.graph.node.insert(0, helper.make_node("Cast", ["kept"], ["w2"], to=1))
    assert unit_of(model) == 0
    model.graph.node[0].attribute[0].i = TensorProto.BFLOAT16
    assert unit_of(model) == 2.0**-8


def test_one_image_that_a_tie_turned_over_does_not_count() -> None:
    """A tenth of the images may come out otherwise where the model rounds; more may not."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 3, (32, 6)).astype(np.float32)
    for others, fine in ((3, True), (8, False)):
        found = wanted + rng.normal(0, 1e-3, wanted.shape).astype(np.float32)
        found[:others] = np.roll(wanted[:others], 1, axis=1)
        assert difference(found, wanted, unit=2.0**-8, tolerance=1e-3).is_small is fine
        assert not difference(found, wanted, unit=0.0, tolerance=1e-3).is_small


def test_exact_scores_of_most_images_make_up_for_ties_in_the_rest() -> None:
    """Of whole-number arithmetic the half or more are the model's own scores, or it is another."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 3, (32, 6)).astype(np.float32)
    for others, fine in ((9, True), (12, False), (17, False)):
        found = wanted.copy()
        found[:others] = np.roll(wanted[:others], 1, axis=1)
        assert difference(found, wanted, unit=2.0**-8, tolerance=1e-3).is_small is fine
        assert not difference(found, wanted, unit=0.0, tolerance=1e-3).is_small


def test_the_models_own_two_ways_are_the_measure() -> None:
    """Where it differs with itself without ONNX Runtime's rewriting, the twin may differ so too."""
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 3, (32, 6)).astype(np.float32)

    def off(by: float) -> np.ndarray:
        noise: np.ndarray = wanted + rng.normal(0, by, wanted.shape).astype(np.float32)
        return noise

    found, own = off(0.08), off(0.04)
    assert not difference(found, wanted, unit=2.0**-8, tolerance=1e-3).is_small
    assert difference(found, wanted, unit=2.0**-8, tolerance=1e-3, unoptimised=own).is_small
    far = off(0.5)
    assert not difference(far, wanted, unit=2.0**-8, tolerance=1e-3, unoptimised=own).is_small
    assert not difference(found, wanted, unit=0.0, tolerance=1e-3, unoptimised=own).is_small

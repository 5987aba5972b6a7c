"""Quantised networks: read in integers, answered in the same integers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from reluguard.detector.compile.guarded import LOGITS, RATES, SCORE, compile_guard, compile_reader
from reluguard.detector.head import Head
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import Tap, find_taps
from reluguard.detector.taps.quantised import with_unsigned_pairs

INTEGER_OPERATORS = ("QLinearConv", "QLinearAdd", "QGemm", "QLinearGlobalAveragePool")


class _Images(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    def __init__(self, tensors: list[NDArray[np.float32]]) -> None:
        self._tensors = iter(tensors)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        tensor = next(self._tensors, None)
        return None if tensor is None else {"image": tensor}


KINDS: dict[str, dict[str, Any]] = {
    "unsigned": {"activation_type": QuantType.QUInt8},
    "signed": {"activation_type": QuantType.QInt8},
    "signed symmetric": {
        "activation_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "per channel": {"activation_type": QuantType.QUInt8, "per_channel": True},
    "operators": {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8},
    "signed operators": {
        "quant_format": QuantFormat.QOperator,
        "activation_type": QuantType.QInt8,
    },
}


def quantise(source: Path, target: Path, images: Images, kind: str) -> Path:
    tensors = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    options = {"quant_format": QuantFormat.QDQ, **KINDS[kind]}
    quantize_static(source, target, _Images([tensors]), **options)
    return target


def operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return which operators ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(folder / "optimised.onnx")
    return Counter(n.op_type for n in optimised.graph.node if n.op_type in INTEGER_OPERATORS)


def hold_the_laws(path: Path, images: Images, make_head: Callable[..., Head]) -> int:
    """Outputs bit for bit, score as the reference says; return the number of taps."""
    production = load_production(path)
    spec = infer_spec(production, images.shape[1:])
    taps = find_taps(production, spec)
    reader = compile_reader(production, taps)
    tensor = spec.to_tensor(images)
    rates, logits = run_session(
        open_session(reader, threads=1), {spec.name: tensor}, [RATES, LOGITS]
    )
    head = make_head(taps, rates, logits)
    guarded = compile_guard(production, taps, head, fpr=0.2)
    assert 0.02 < rates.mean() < 0.98
    for optimise in (True, False):
        plain, read, guard = (
            open_session(model, threads=1, optimise=optimise)
            for model in (production.proto, reader, guarded)
        )
        for rows in (1, 6, len(images)):
            feeds = {spec.name: tensor[:rows]}
            (expected,) = run_session(plain, feeds, [production.answer])
            rates, logits, again = run_session(read, feeds, [RATES, LOGITS, production.answer])
            answer, score = run_session(guard, feeds, [production.answer, SCORE])
            np.testing.assert_array_equal(answer, expected)
            np.testing.assert_array_equal(again, expected)
            np.testing.assert_allclose(score, head.score(rates, logits).score, atol=1e-4)
    return len(taps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_network_keeps_its_outputs(
    kind: str,
    make_network: Callable[..., onnx.ModelProto],
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """However it was quantised, guarded and plain answers are the same bits."""
    onnx.save(make_network(channels=3, size=16), tmp_path / "float.onnx")
    images = make_images(24, size=16, channels=3)
    path = quantise(tmp_path / "float.onnx", tmp_path / "model.onnx", images, kind)
    assert hold_the_laws(path, images, make_head) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_ran_in_integers_still_does(
    kind: str,
    make_network: Callable[..., onnx.ModelProto],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """Reading stops none of ONNX Runtime's fusions into integer operators."""
    onnx.save(make_network(channels=3, size=16), tmp_path / "float.onnx")
    images = make_images(8, size=16, channels=3)
    path = quantise(tmp_path / "float.onnx", tmp_path / "model.onnx", images, kind)
    production = load_production(path)
    taps = find_taps(production, infer_spec(production, (16, 16, 3)))
    plain = operators(production.proto, tmp_path)
    assert plain["QLinearConv"] == 2
    assert operators(compile_reader(production, taps), tmp_path) == plain


@pytest.mark.parametrize(
    "kind",
    [
        "signed",
        *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "signed"),
    ],
)
def test_a_quantised_resnet_keeps_its_outputs(
    kind: str,
    shared: Path,
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """Residual sums read a tensor twice, which ONNX Runtime treats in another way."""
    images = make_images(20, size=32, channels=3)
    source = shared / "models" / "resnet20-cifar10.onnx"
    path = quantise(source, tmp_path / "model.onnx", images, kind)
    assert hold_the_laws(path, images, make_head) == 19


def with_gates(model: onnx.ModelProto, op: str) -> onnx.ModelProto:
    """Return a network with LeakyRelu or SiLU where it had Relu."""
    nodes = []
    for node in model.graph.node:
        x, y = node.input[:1], node.output[:1]
        if node.op_type != "Relu":
            nodes.append(node)
        elif op == "LeakyRelu":
            nodes.append(helper.make_node("LeakyRelu", x, y, alpha=0.1))
        else:
            nodes.append(helper.make_node("Sigmoid", x, [f"{y[0]}/step"]))
            nodes.append(helper.make_node("Mul", [*x, f"{y[0]}/step"], y))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


@pytest.mark.parametrize("kind", ["operators", "signed operators"])
@pytest.mark.parametrize("op", ["LeakyRelu", "Silu"])
def test_gates_with_zero_inside_the_range_are_read_from_there(
    op: str,
    kind: str,
    make_network: Callable[..., onnx.ModelProto],
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """What lies below zero is let through in part, so the zero of the integers says what is on."""
    onnx.save(with_gates(make_network(channels=3, size=16), op), tmp_path / "float.onnx")
    images = make_images(24, size=16, channels=3)
    path = quantise(tmp_path / "float.onnx", tmp_path / "model.onnx", images, kind)
    assert hold_the_laws(path, images, make_head) == 2
    production = load_production(path)
    spec = infer_spec(production, (16, 16, 3))
    taps = find_taps(production, spec)
    least = 0 if kind == "operators" else -128
    assert all(tap.zero is not None and tap.zero > least for tap in taps)
    assert all(Tap.from_json(tap.to_json()) == tap for tap in taps)
    feeds = {spec.name: spec.to_tensor(images)}
    rates = run_session(open_session(compile_reader(production, taps)), feeds, [RATES])[0]
    probe = onnx.load(path)
    probe.graph.output.extend(onnx.ValueInfoProto(name=tap.name) for tap in taps)
    values = run_session(open_session(probe), feeds, [tap.name for tap in taps])
    on = [(value > tap.off).mean(axis=(2, 3)) for tap, value in zip(taps, values, strict=True)]
    np.testing.assert_allclose(rates, np.concatenate(on, axis=1), atol=1e-6)


def test_unsigned_pairs_mean_the_same_numbers(
    make_network: Callable[..., onnx.ModelProto],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """The integers are shifted and the real values stay, without any optimisation to hide it."""
    onnx.save(make_network(channels=3, size=16), tmp_path / "float.onnx")
    images = make_images(8, size=16, channels=3)
    path = quantise(tmp_path / "float.onnx", tmp_path / "model.onnx", images, "signed")
    signed = onnx.load(path)
    unsigned = onnx.load(path)
    with_unsigned_pairs(unsigned)
    assert signed != unsigned
    feeds = {"image": images.transpose(0, 3, 1, 2).astype(np.float32) / 255}
    a, b = (
        run_session(open_session(model, threads=1, optimise=False), feeds, ["logits"])[0]
        for model in (signed, unsigned)
    )
    np.testing.assert_array_equal(a, b)


def test_a_network_without_signed_pairs_is_left_alone(
    make_network: Callable[..., onnx.ModelProto],
) -> None:
    """A float network stays as it is, to the byte."""
    model = make_network()
    with_unsigned_pairs(model)
    assert model == make_network()

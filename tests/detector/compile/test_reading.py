"""Reading in the graph: rates are what NumPy counts, and what is added is counted too."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.compile.guarded import RATES, compile_guard, compile_reader
from reluguard.detector.errors import SettingsError
from reluguard.detector.head import Head
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import Tap, find_taps, in_blocks

SHAPE = (3, 18, 18)
WIDTHS = (16, 32, 32, 24)


def network() -> onnx.ModelProto:
    """Four convolutions with a Relu each, the third halving the size, and a linear layer."""
    rng = np.random.default_rng(0)
    nodes, weights, x, inputs = [], [], "image", SHAPE[0]
    for i, width in enumerate(WIDTHS):
        kernel = rng.normal(0, 1.4 / np.sqrt(9 * inputs), (width, inputs, 3, 3))
        bias = rng.normal(0, 0.2, width)
        weights += [
            numpy_helper.from_array(kernel.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(bias.astype(np.float32), f"b{i}"),
        ]
        stride = 2 if i == 2 else 1
        nodes += [
            helper.make_node(
                "Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1] * 4, strides=[stride] * 2
            ),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        x, inputs = f"r{i}", width
    weights.append(numpy_helper.from_array(rng.normal(0, 1, (inputs, 5)).astype(np.float32), "w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "four",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's file."""
    path = tmp_path_factory.mktemp("four") / "four.onnx"
    onnx.save(network(), path)
    return path


def counted(tap: Tap, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a tap's rates as NumPy counts them."""
    down, right = tap.strides
    if tap.pooled:
        rows, columns = tap.sampled
        n, c, h, w = values.shape
        padded = np.full((n, c, rows * down, columns * right), -np.inf, np.float32)
        padded[:, :, :h, :w] = values
        values = padded.reshape(n, c, rows, down, columns, right).max(axis=(3, 5))
    else:
        values = values[:, :, ::down, ::right]
    shares = [(values > np.float32(level)).mean(axis=(2, 3)) for level in tap.levels]
    return np.concatenate(shares, axis=1)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize(
    "levels",
    [
        [(0.0,)] * 4,
        [(0.5,)] * 4,
        [(0.0, 0.5)] * 4,
        [(0.0, level) for level in (0.2, 0.5, 0.7, 0.3)],
        [(0.1, level, 0.8) for level in (0.2, 0.5, 0.7, 0.3)],
        [(0.0, 0.5), (0.0,), (0.0, 0.5), (0.3,)],
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "reading",
    [
        {"stride": 1},
        {"stride": 3},
        {"stride": 2, "row_stride": 5},
        {"stride": 1, "row_stride": 4},
        {"stride": 4, "row_stride": 5, "pooled": True},
    ],
    ids=str,
)
def test_rates_are_what_numpy_counts(
    model: Path,
    make_images: Callable[..., Images],
    reading: dict[str, Any],
    levels: list[tuple[float, ...]],
    optimise: bool,
) -> None:
    """Whole, in strides or in blocks, with one level, with several or without."""
    production = load_production(model)
    spec = infer_spec(production, (18, 18, 3))
    found = find_taps(production, spec)
    taps = [replace(t, levels=v, **reading) for t, v in zip(found, levels, strict=True)]
    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    probe.graph.output.extend(onnx.ValueInfoProto(name=tap.name) for tap in taps)
    feeds = {spec.name: spec.to_tensor(make_images(3, size=18, channels=3))}
    values = run_session(
        open_session(probe, threads=1, optimise=optimise), feeds, [tap.name for tap in taps]
    )
    session = open_session(compile_reader(production, taps), threads=1, optimise=optimise)
    (rates,) = run_session(session, feeds, [RATES])
    wanted = np.concatenate([counted(t, v) for t, v in zip(taps, values, strict=True)], axis=1)
    np.testing.assert_allclose(rates, wanted, atol=1e-6)
    assert 0.05 < rates.mean() < 0.95


def test_blocks_leave_small_taps_whole() -> None:
    """Rows and columns are cut down where there are more; a dense tap stays as it is."""
    large = Tap(name="a", op="Relu", shape=(16, 32, 20))
    small = Tap(name="b", op="Relu", shape=(64, 7, 8))
    dense = Tap(name="c", op="Relu", shape=(100,))
    cut, same, other = in_blocks([large, small, dense])
    assert (cut.strides, cut.sampled, cut.pooled) == ((4, 3), (8, 7), True)
    assert (same.strides, same.sampled, same.pooled) == ((1, 1), (7, 8), False)
    assert other == dense


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"row_stride": -1}, "expected a row stride of tap 'a' of 0 or more, got -1"),
        ({"pooled": True}, "expected strides of the pooled tap 'a', got (1, 1)"),
        ({"pooled": 1, "stride": 2}, "expected strides of the pooled tap 'a', got (2, 2)"),
        ({"levels": ()}, "expected ascending levels of tap 'a' in [0, 1e+06), got ()"),
        (
            {"levels": (0.5, 0.5)},
            "expected ascending levels of tap 'a' in [0, 1e+06), got (0.5, 0.5)",
        ),
        ({"row_stride": 2, "shape": (9,)}, "tap 'a' of shape (9,) can't be read in strides"),
    ],
)
def test_a_reading_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    """Each with what came."""
    with pytest.raises(SettingsError) as caught:
        Tap(**{"name": "a", "op": "Relu", "shape": (4, 8, 8), **fields})
    assert str(caught.value) == message


def operators(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("levels", [(0.0,), (0.0, 0.5), (0.2, 0.5, 0.7)], ids=str)
def test_a_tap_in_blocks_costs_one_operator_and_no_reorder(
    model: Path, make_head: Callable[..., Head], tmp_path: Path, levels: tuple[float, ...]
) -> None:
    """Two taps more are two pools more; no tensor of the network changes its layout for us."""
    production = load_production(model)
    spec = infer_spec(production, (18, 18, 3))
    # the last has half blocks, which no processor keeps in that layout
    found = [replace(tap, levels=levels) for tap in find_taps(production, spec)][:3]
    taps = in_blocks(found, 3, 3)
    rates = sum(tap.rates for tap in taps)
    rng = np.random.default_rng(0)
    head = make_head(
        taps, rng.random((40, rates), np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    )
    plain = operators(production.proto, tmp_path)
    one = operators(compile_reader(production, taps[:1]), tmp_path)
    three = operators(compile_reader(production, taps), tmp_path)
    guarded = operators(compile_guard(production, taps, head, fpr=0.1), tmp_path)
    # the reader alone puts rates of several levels in order, tap by tap
    assert three - one - Counter(Gather=1) == Counter(MaxPool=2, Concat=1)
    assert not one - three
    added = guarded - plain
    assert added["MaxPool"] == len(taps)
    assert added["HardSigmoid"] == added["GlobalAveragePool"] == len(levels)
    assert added["ReorderInput"] == added["Transpose"] == 0
    assert added["ReorderOutput"] <= 1  # of the rates, at the very end
    assert not plain - guarded  # nothing of the network is split up
    assert added.total() <= 41 + 2 * len(levels)


def test_a_guard_is_one_session_and_no_copy(
    tiny_model: Path,
    tiny_guard: Path,
    make_images: Callable[..., Images],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Opening a guard opens one session; it is fed the very tensor that the caller gave."""
    fed = []
    real = ort.InferenceSession

    class Counted(real):  # type: ignore[misc, valid-type]  # counts what the real one does
        opened = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            type(self).opened += 1
            super().__init__(*args, **kwargs)

        def run(self, names: Any, feeds: Any, *args: Any) -> Any:
            fed.append(next(iter(feeds.values())))
            return super().run(names, feeds, *args)

    monkeypatch.setattr(ort, "InferenceSession", Counted)
    guard = Guard.open(tiny_model, tiny_guard, threads=1)
    tensor = guard.spec.to_tensor(make_images(4))
    guard.run(tensor)
    assert Counted.opened == 1
    assert np.shares_memory(fed[-1], tensor)

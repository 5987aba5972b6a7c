"""Shared fixtures: a real tiny network as an ONNX file and a real guard made for it."""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import reluguard
from benchmarks.drawn import Drawing, draw_head, write_drawn_guard
from reluguard.detector.head import Head
from reluguard.detector.images import Images
from reluguard.detector.taps import Tap
from tests.commanding import Ended, Run

# no test may hang on how fast the machine is
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

SIZE = 8
CLASSES = 4
FPR = 0.05
DRAWING = Drawing(code=6, probe_gain=3, slope=1.5, intercept=-0.5)


def network(
    *,
    channels: int = 1,
    size: int = SIZE,
    classes: int = CLASSES,
    batch: int | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a CNN of two convolutions, each with a Relu, and a linear layer, opset 17."""
    rng = np.random.default_rng(seed)

    def weights(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
        values = rng.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    def bias(name: str, units: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.3, units).astype(np.float32), name)

    rows = batch or "N"
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2]),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [rows, channels, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, classes])],
        [
            weights("w1", (8, channels, 3, 3)),
            bias("b1", 8),
            weights("w2", (12, 8, 3, 3)),
            bias("b2", 12),
            weights("w3", (classes, 12)),
            bias("b3", classes),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int, *, size: int = SIZE, channels: int = 1, seed: int = 0) -> Images:
    """Return random images with some structure: uint8, (count, size, size, channels)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (count, -(-size // 4), -(-size // 4), channels))
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    return (smooth + rng.integers(0, 56, (count, size, size, channels))).astype(np.uint8)


def random_head(
    taps: Sequence[Tap],
    rates: NDArray[np.float32],
    logits: NDArray[np.float32],
    *,
    seed: int = 0,
    profile: bool = True,
) -> Head:
    """Return a head of random weights, standardised and calibrated on these readings.

    Args:
        taps: L of them.
        rates: (N, D).
        logits: (N, K).
        seed: of every weight.
        profile: whether it has probes and the identity of the answer, or its code where there are
            more than 64 classes.
    """
    drawing = replace(DRAWING, seed=seed)
    if not profile:
        drawing = replace(drawing, most_classes=0, code=0)
    return draw_head(taps, rates, logits, drawing)


def guard_for(
    model: Path | str,
    folder: Path | str,
    *,
    image_shape: tuple[int, int, int] = (SIZE, SIZE, 1),
    seed: int = 0,
    fpr: float = FPR,
) -> Path:
    """Write a guard with a random head for this model and return its folder."""
    size, _, channels = image_shape
    return write_drawn_guard(
        model,
        folder,
        clean=images(199, size=size, channels=channels, seed=seed + 1),
        golden=images(5, size=size, channels=channels, seed=seed + 2),
        rates=(0.01, fpr),
        provenance={"recipe": "random", "seed": seed},
        drawing=replace(DRAWING, seed=seed),
        reports={"report.json": b"{}", "report.html": b"<html></html>"},
    )


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> None:
    """Leave what lives already, torch above all, out of every garbage collection from here on.

    A fit collects four times, to give memory back. Among the half million objects that imports
    leave behind that took as long as all the rest of a fit of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `reluguard` with these arguments in this process."""

    def run_with(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["reluguard", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            reluguard.main()
        told = capfd.readouterr()
        code = stop.value.code
        assert isinstance(code, int)
        return Ended(code=code, out=told.out, err=told.err)

    return run_with


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a tiny CNN on 8 x 8 grey images, batch free."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture(scope="session")
def tiny_guard(tiny_model: Path) -> Path:
    """The folder of a guard made for `tiny_model`."""
    return guard_for(tiny_model, tiny_model.parent / "guard")


@pytest.fixture(scope="session")
def make_network() -> Callable[..., onnx.ModelProto]:
    """`network`: builds a tiny CNN of another size, batch or seed."""
    return network


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Images]:
    """`images`: draws random images."""
    return images


@pytest.fixture(scope="session")
def make_head() -> Callable[..., Head]:
    """`random_head`: a head of random weights over given taps."""
    return random_head


@pytest.fixture(scope="session")
def make_guard() -> Callable[..., Path]:
    """`guard_for`: writes a guard with a random head for a model file."""
    return guard_for


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared models and data, outside the repository."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared with its models and data, which is not here")
    return path

"""A real two-layer network, a real guard fitted to it, and a real server on port 0."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.artifact import Golden, read_guard, write_guard
from reluguard.detector.head import threshold_at
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.service.background import Running, running

SIZE = 12
CLASSES = 5
FPR = 0.1


def _network(seed: int, batch: int | None = None) -> onnx.ModelProto:
    """Two convolutions with Relu, pooled, and a linear layer: logits (N, 5), label (N,)."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    rows = batch or "N"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [rows, 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, CLASSES]),
            helper.make_tensor_value_info("label", TensorProto.INT64, [rows]),
        ],
        [
            weight("w1", 8, 3, 3, 3), weight("b1", 8, 4),
            weight("w2", 16, 8, 3, 3), weight("b2", 16, 4),
            weight("w3", CLASSES, 16), weight("b3", CLASSES, 4),
        ],
    )  # fmt: skip
    for tensor in graph.initializer:
        if tensor.name.startswith("b"):
            bias = numpy_helper.to_array(tensor)[:, 0] * 0.2
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(bias), tensor.name))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def smooth_images(count: int, seed: int) -> Images:
    """Slow colour waves: what this network calls clean."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(0, 1, SIZE)
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    a, b, phase = rng.uniform(-3, 3, (3, count, 1, 1, 3))
    wave = np.sin(a * rows[None, :, :, None] + b * columns[None, :, :, None] + phase)
    return np.asarray(np.clip(127 + 100 * wave, 0, 255), np.uint8)


def rough_images(count: int, seed: int) -> Images:
    """The same with pixel noise on top: what this guard calls adversarial."""
    rng = np.random.default_rng(seed + 1)
    images = smooth_images(count, seed)
    noise = rng.integers(-60, 61, images.shape)
    return np.asarray(np.clip(images + noise, 0, 255), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A model file and a guard folder that belong together."""

    model: Path
    guard: Path

    def open(self) -> Guard:
        """Return the guarded model."""
        return Guard.open(self.model, self.guard, threads=1)


class Maker:
    """Makes pairs of a model and a guard that tells smooth images from rough ones.

    The features are those of `tests/conftest.py`; the head on them is the difference of means.
    """

    def __init__(self, random_guard: Callable[..., Path]) -> None:
        self._random_guard = random_guard

    def pair(
        self, folder: Path, *, seed: int = 0, batch: int | None = None, tag: str = "a"
    ) -> Pair:
        """Write a model and a guard for it."""
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model.onnx"
        model.write_bytes(_network(seed, batch).SerializeToString())
        pair = Pair(model=model, guard=folder / "guard")
        self.guard(pair, tag=tag)
        return pair

    def guard(self, pair: Pair, *, tag: str, shift: float = 0.0, path: Path | None = None) -> Path:
        """Write a guard for the pair's model, there or at `path`, its scores raised by `shift`."""
        path = path or pair.guard
        drawn = pair.model.with_name("drawn")
        start = read_guard(
            self._random_guard(pair.model, drawn, image_shape=(SIZE, SIZE, 3), fpr=FPR)
        )
        production = load_production(pair.model, output=start.manifest.answer)
        reader = Reader(production, start.manifest.input, start.manifest.taps, threads=1)
        features = start.head.features
        clean = features.transform(*reader.read(smooth_images(200, 1)))
        rough = features.transform(*reader.read(rough_images(200, 2)))
        spread = (clean.var(axis=0) + rough.var(axis=0)) / 2 + 0.1
        weights = ((rough.mean(axis=0) - clean.mean(axis=0)) / spread).astype(np.float32)
        weights /= np.abs(weights).sum() / 10
        middle = (clean.mean(axis=0) + rough.mean(axis=0)) @ weights / 2
        head = replace(
            start.head,
            weights=(weights[:, None],),
            biases=(np.array([shift - middle], np.float32),),
            evidence_weights=weights,
        )
        calibration = np.sort(head.score(*reader.read(smooth_images(500, 3))).score)
        head = replace(head, clean_scores=calibration)
        probe = np.concatenate([smooth_images(4, 4), rough_images(4, 5)])
        rates, logits = reader.read(probe)
        write_guard(
            path,
            manifest=replace(
                start.manifest,
                thresholds={str(fpr): threshold_at(fpr, calibration) for fpr in (0.01, 0.05, FPR)},
                calibration_images=len(calibration),
                provenance={"tag": tag},
            ),
            head=head,
            golden=Golden(
                images=probe,
                rates=rates,
                score=head.score(rates, logits).score,
                prediction=logits.argmax(axis=1),
            ),
        )
        return path


@pytest.fixture(scope="session")
def maker(make_guard: Callable[..., Path]) -> Maker:
    return Maker(make_guard)


@pytest.fixture(scope="session")
def pair(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return maker.pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def pairs(maker: Maker) -> Callable[..., Pair]:
    return maker.pair


@pytest.fixture(scope="session")
def new_guard(maker: Maker) -> Callable[..., Path]:
    return maker.guard


@pytest.fixture(scope="session")
def guard(pair: Pair) -> Guard:
    return pair.open()


@pytest.fixture(scope="session")
def smooth() -> Callable[[int, int], Images]:
    """`smooth_images`: draws so many clean images from a seed."""
    return smooth_images


@pytest.fixture(scope="session")
def clean() -> Images:
    return smooth_images(40, 10)


@pytest.fixture(scope="session")
def rough() -> Images:
    return rough_images(40, 11)


@pytest.fixture(scope="session")
def mixed(clean: Images, rough: Images) -> Images:
    """Clean and rough images in turn."""
    return np.stack([clean, rough], axis=1).reshape(-1, *clean.shape[1:])


@pytest.fixture(scope="session")
def tensor(guard: Guard, mixed: Images) -> NDArray[np.float32]:
    return guard.spec.to_tensor(mixed)


@pytest.fixture(scope="session")
def server(guard: Guard) -> Iterator[Running]:
    """One server for the tests that only ask."""
    with running(guard, name="tiny", max_batch=16, max_rows=64, max_pixels=1_000_000) as server:
        yield server


class Gate:
    """A real guard behind a door: lets a test hold a run and open it when it has seen enough."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.rows: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._guard, name)

    def run_checked(self, tensor: NDArray[np.float32]) -> object:
        """Run the real guard once the door is open."""
        self.rows.append(len(tensor))
        self.entered.release()
        assert self.opened.wait(30)
        return self._guard.run_checked(tensor)


@pytest.fixture
def gate(guard: Guard) -> Iterator[Gate]:
    gate = Gate(guard)
    yield gate
    gate.opened.set()

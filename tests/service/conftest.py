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

from detector.artifact import Golden, Manifest, write_guard
from detector.features import CONFIDENCE, FeatureMap
from detector.head import Head, threshold_at
from detector.images import Images
from detector.model import infer_spec, load_production
from detector.runtime import Guard, Reader
from detector.taps import find_taps
from service.server import Running, running

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


def make_pair(folder: Path, *, seed: int = 0, batch: int | None = None, tag: str = "a") -> Pair:
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    model.write_bytes(_network(seed, batch).SerializeToString())
    pair = Pair(model=model, guard=folder / "guard")
    make_guard(pair, tag=tag)
    return pair


def make_guard(pair: Pair, *, tag: str, shift: float = 0.0, path: Path | None = None) -> Path:
    """Fit the difference of means between smooth and rough images, and write the guard."""
    production = load_production(pair.model, output="logits")
    spec = infer_spec(production, (SIZE, SIZE, 3))
    taps = find_taps(production, spec)
    reader = Reader(production, spec, taps, threads=1)
    rates, logits = reader.read(smooth_images(200, 1))
    rough_rates, rough_logits = reader.read(rough_images(200, 2))
    columns = np.arange(rates.shape[1])
    width = len(columns) + len(CONFIDENCE)
    features = FeatureMap(
        columns=columns,
        column_taps=np.repeat(np.arange(len(taps)), [tap.channels for tap in taps]),
        taps=len(taps),
        classes=0,
        identities=0,
        whiten=np.zeros((len(columns), 0), np.float32),
        whiten_bias=np.zeros(0, np.float32),
        whiten_taps=np.zeros(0, np.int64),
        class_means=np.zeros((0, 0), np.float32),
        center=np.zeros(width, np.float32),
        spread=np.ones(width, np.float32),
    )
    clean, rough = features.transform(rates, logits), features.transform(rough_rates, rough_logits)
    spread = (clean.std(axis=0) + rough.std(axis=0)) / 2 + 0.05
    center = (clean.mean(axis=0) + rough.mean(axis=0)) / 2
    features = replace(features, center=center.astype(np.float32), spread=spread.astype(np.float32))
    weights = ((rough.mean(axis=0) - clean.mean(axis=0)) / spread).astype(np.float32)
    head = Head(
        features=features,
        weights=(weights[:, None],),
        biases=(np.array([shift], np.float32),),
        slope=1.0,
        intercept=0.0,
        evidence_weights=weights,
        evidence_bias=np.zeros(len(taps), np.float32),
        clean_scores=np.zeros(0, np.float32),
    )
    calibration = np.sort(head.score(*reader.read(smooth_images(500, 3))).score)
    head = replace(head, clean_scores=calibration)
    probe = np.concatenate([smooth_images(4, 4), rough_images(4, 5)])
    golden_rates, golden_logits = reader.read(probe)
    path = path or pair.guard
    write_guard(
        path,
        manifest=Manifest(
            model_sha256=production.sha256,
            input=spec,
            answer="logits",
            taps=taps,
            fpr=FPR,
            thresholds={str(fpr): threshold_at(fpr, calibration) for fpr in (0.01, 0.05, FPR)},
            calibration_images=len(calibration),
            created_at="2026-01-02T03:04:05+00:00",
            provenance={"tag": tag},
        ),
        head=head,
        golden=Golden(
            images=probe,
            rates=golden_rates,
            score=head.score(golden_rates, golden_logits).score,
            prediction=golden_logits.argmax(axis=1),
        ),
    )
    return path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def pairs() -> Callable[..., Pair]:
    return make_pair


@pytest.fixture(scope="session")
def new_guard() -> Callable[..., Path]:
    return make_guard


@pytest.fixture(scope="session")
def guard(pair: Pair) -> Guard:
    return pair.open()


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

    def run(self, tensor: NDArray[np.float32]) -> object:
        """Run the real guard once the door is open."""
        self.rows.append(len(tensor))
        self.entered.release()
        assert self.opened.wait(30)
        return self._guard.run(tensor)


@pytest.fixture
def gate(guard: Guard) -> Iterator[Gate]:
    gate = Gate(guard)
    yield gate
    gate.opened.set()

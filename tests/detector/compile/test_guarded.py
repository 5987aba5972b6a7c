"""Compiling a guard in: the model's own outputs stay, and the guard says what its reference says.

Tolerances: none for production outputs. The score of the graph is within SCORE_TOLERANCE log-odds
of `Head.score` on what the reader gives under the same optimisation; half precision rounds logits
at other places, so HALF_TOLERANCE there.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from reluguard.detector.compile.guarded import (
    CHALLENGER_SCORE,
    EVIDENCE,
    IS_ADVERSARIAL,
    LIKELIHOOD,
    LOGITS,
    RATES,
    SCORE,
    compile_guard,
    compile_reader,
)
from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.head import Head, threshold_at
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production, infer_spec, load_production
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import Tap, find_taps
from reluguard.training.analysis.pattern import pack, unpack

SCORE_TOLERANCE = 1e-4
HALF_TOLERANCE = 0.02
FPR = 0.1

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network with everything compiled from it."""

    production: Production
    spec: InputSpec
    taps: tuple[Tap, ...]
    head: Head
    guarded: onnx.ModelProto
    reader: onnx.ModelProto
    images: Images

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes to try: the fixed one, or one image and six."""
        return (self.spec.batch,) if self.spec.batch else (1, 6)

    def run(
        self, model: onnx.ModelProto, fetch: list[str], *, rows: int, optimise: bool = True
    ) -> list[NDArray[Any]]:
        """Return these outputs of a model on the first images."""
        session = open_session(model, threads=1, optimise=optimise)
        tensor = self.spec.to_tensor(self.images[:rows])
        return run_session(session, {self.spec.name: tensor}, fetch)


def _linear(inputs: int, outputs: int) -> Any:
    import torch

    return torch.nn.Linear(inputs, outputs)


def _convolutions(first: Any, second: Any) -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), first, nn.Conv2d(8, 12, 3, 2), second,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def leaky() -> Any:
    from torch import nn

    return _convolutions(nn.LeakyReLU(0.1), nn.LeakyReLU(0.2))


def prelu() -> Any:
    from torch import nn

    return _convolutions(nn.PReLU(8), nn.PReLU())


def prelu_of_negative_slopes() -> Any:
    from torch import nn

    first, second = nn.PReLU(8), nn.PReLU(init=-0.5)
    nn.init.normal_(first.weight)
    return _convolutions(first, second)


def relu6() -> Any:
    from torch import nn

    return _convolutions(nn.ReLU6(), nn.Hardtanh(0, 2))


def mlp() -> Any:
    from torch import nn

    return nn.Sequential(nn.Flatten(), _linear(192, 32), nn.ReLU(), _linear(32, 16), nn.ReLU(),
                         _linear(16, 4))  # fmt: skip


def softmax_last() -> Any:
    from torch import nn

    return nn.Sequential(_convolutions(nn.ReLU(), nn.ReLU()), nn.Softmax(1))


def conv1d() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(24, 16, 3), nn.ReLU(), nn.Conv1d(16, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def tokens() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Flatten(1, 2), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 12, 3),
    )  # fmt: skip


def one_class_more_than_one() -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def many_classes() -> Any:
    from torch import nn

    network = _convolutions(nn.ReLU(), nn.ReLU())
    network[-1] = nn.Linear(12, 200)
    return network


def vision(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import torch
        from torchvision import models

        network = getattr(models, name)(num_classes=10)
        if name == "vgg16_bn":  # its own pooling needs 224 pixels for torch's older exporter
            network.avgpool = torch.nn.Identity()
            network.classifier[0] = torch.nn.Linear(512, 256)
            network.classifier[3] = torch.nn.Linear(256, 256)
            network.classifier[6] = torch.nn.Linear(256, 10)
        return network

    return build


SMALL: dict[str, tuple[Callable[[], Any], Shape]] = {
    "leaky": (leaky, (16, 16, 3)),
    "prelu": (prelu, (16, 16, 3)),
    "prelu of negative slopes": (prelu_of_negative_slopes, (16, 16, 3)),
    "relu6": (relu6, (16, 16, 3)),
    "mlp": (mlp, (8, 8, 3)),
    "softmax last": (softmax_last, (16, 16, 3)),
    "conv1d": (conv1d, (8, 8, 3)),
    "tokens": (tokens, (8, 8, 3)),
    "many classes": (many_classes, (16, 16, 3)),
    "two classes": (one_class_more_than_one, (8, 8, 3)),
}
LARGE: dict[str, tuple[Callable[[], Any], Shape]] = {
    "resnet18": (vision("resnet18"), (64, 64, 3)),
    "resnet50": (vision("resnet50"), (64, 64, 3)),
    "mobilenet_v2": (vision("mobilenet_v2"), (64, 64, 3)),
    "vgg16_bn": (vision("vgg16_bn"), (32, 32, 3)),
}


def built(make: Callable[[], Any]) -> Any:
    """Return a network of random weights and random BatchNorm statistics."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.3)
                torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def export(network: Any, path: Path, shape: Shape, *, batch: int | None, current: bool) -> None:
    """Write the ONNX file by torch's current exporter, or by the older one at opset 17."""
    import torch

    h, w, c = shape
    x = torch.rand(batch or 2, c, h, w, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own future
        if current:
            free = None if batch else ({0: torch.export.Dim("N")},)
            torch.onnx.export(
                network, (x,), path, dynamo=True, dynamic_shapes=free, verbose=False, **names
            )
        else:
            free_axes = None if batch else {"image": {0: "N"}, "logits": {0: "N"}}
            torch.onnx.export(
                network, (x,), path, dynamo=False, opset_version=17, dynamic_axes=free_axes, **names
            )


def subject_of(
    path: Path, shape: Shape, make_head: Callable[..., Head], make_images: Callable[..., Images]
) -> Subject:
    production = load_production(path)
    spec = infer_spec(production, shape)
    taps = find_taps(production, spec)
    reader = compile_reader(production, taps)
    images = make_images(36, size=shape[0], channels=shape[2], seed=1)
    session = open_session(reader, threads=1)
    parts = [
        run_session(session, {spec.name: spec.to_tensor(images[i : i + rows])}, [RATES, LOGITS])
        for rows in [spec.batch or 6]
        for i in range(0, len(images), rows)
    ]
    rates, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    head = make_head(taps, rates, logits)
    return Subject(
        production=production,
        spec=spec,
        taps=taps,
        head=head,
        guarded=compile_guard(production, taps, head, fpr=FPR),
        reader=reader,
        images=images,
    )


def hold_outputs_identical(subject: Subject) -> None:
    names = [info.name for info in subject.production.outputs]
    for optimise in (True, False):
        for rows in subject.batches:
            plain = subject.run(subject.production.proto, names, rows=rows, optimise=optimise)
            for model in (subject.guarded, subject.reader):
                guarded = subject.run(model, names, rows=rows, optimise=optimise)
                for name, a, b in zip(names, plain, guarded, strict=True):
                    assert np.array_equal(a, b), (name, rows, optimise, np.abs(a - b).max())
                    assert a.dtype == b.dtype


def hold_to_the_reference(subject: Subject, tolerance: float) -> None:
    for optimise in (True, False):
        for rows in subject.batches:
            rates, logits = subject.run(
                subject.reader, [RATES, LOGITS], rows=rows, optimise=optimise
            )
            wanted = subject.head.score(rates, logits)
            score, likelihood, evidence, adversarial = subject.run(
                subject.guarded,
                [SCORE, LIKELIHOOD, EVIDENCE, IS_ADVERSARIAL],
                rows=rows,
                optimise=optimise,
            )
            np.testing.assert_allclose(score, wanted.score, atol=tolerance)
            np.testing.assert_allclose(likelihood, wanted.likelihood, atol=tolerance)
            np.testing.assert_allclose(evidence, wanted.evidence, atol=tolerance)
            assert evidence.shape == (rows, len(subject.taps))
            limit = np.float32(threshold_at(FPR, subject.head.clean_scores))
            np.testing.assert_array_equal(adversarial, score > limit)


def hold_rates_to_bits(subject: Subject) -> None:
    """The firing rate is the mean of the unpacked bits of the tap's own tensor."""
    rows = subject.batches[-1]
    probe = onnx.ModelProto()
    probe.CopyFrom(subject.production.proto)
    known = {value.name for value in probe.graph.output}
    names = [tap.name for tap in subject.taps]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    values = subject.run(probe, names, rows=rows, optimise=False)
    (rates,) = subject.run(subject.reader, [RATES], rows=rows, optimise=False)
    start = 0
    for tap, value in zip(subject.taps, values, strict=True):
        least = np.iinfo(value.dtype).min if value.dtype.kind in "iu" else 0
        active = (value > least).reshape(rows, -1)
        bits = unpack(pack(active), tap.bits).reshape(rows, *tap.shape)
        others = tuple(i + 1 for i in range(len(tap.shape)) if i != tap.channel_axis)
        stop = start + tap.channels
        np.testing.assert_allclose(rates[:, start:stop], bits.mean(axis=others), atol=1e-6)
        start = stop
    assert rates.shape == (rows, start)
    assert 0.05 < rates.mean() < 0.95  # a network that is all on or all off proves nothing


def small_cases() -> list[Any]:
    cases: list[Any] = [pytest.param((name, False, None), id=f"{name}-opset 17") for name in SMALL]
    cases += [pytest.param((name, True, None), id=f"{name}-current") for name in SMALL]
    cases += [
        pytest.param(("leaky", current, batch), id=f"leaky-{current}-{batch}")
        for current in (False, True)
        for batch in (1, 6)
    ]
    cases += [
        pytest.param((name, current, batch), id=f"{name}-{current}-{batch}", marks=pytest.mark.slow)
        for name in LARGE
        for current in (False, True)
        for batch in (None, 6)
    ]
    return cases


@pytest.fixture(scope="module", params=small_cases())
def subject(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
) -> Subject:
    """A torch network exported one way."""
    name, current, batch = request.param
    make, shape = (SMALL | LARGE)[name]
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(built(make), path, shape, batch=batch, current=current)
    return subject_of(path, shape, make_head, make_images)


def test_production_outputs_stay_bit_identical(subject: Subject) -> None:
    """With and without the guard, optimised or not, one image or six: the same bits."""
    hold_outputs_identical(subject)


def test_the_graph_says_what_the_reference_says(subject: Subject) -> None:
    """Score, likelihood and evidence are those of the NumPy head."""
    hold_to_the_reference(subject, SCORE_TOLERANCE)


def test_a_firing_rate_is_the_mean_of_the_bits(subject: Subject) -> None:
    """What the graph counts is what the tap's tensor shows."""
    hold_rates_to_bits(subject)


def test_the_guarded_file_is_a_legal_model(subject: Subject) -> None:
    """The ONNX checker accepts it, and nodes of the production graph come first, unchanged."""
    onnx.checker.check_model(subject.guarded)
    own = subject.production.proto.graph.node
    assert list(subject.guarded.graph.node)[: len(own)] == list(own)


@pytest.mark.parametrize(
    "depth", [20, pytest.param(44, marks=pytest.mark.slow)], ids=["resnet20", "resnet44"]
)
def test_the_laws_hold_for_the_shared_networks(
    shared: Path, depth: int, make_head: Callable[..., Head], make_images: Callable[..., Images]
) -> None:
    """Trained networks, as they come: all three laws."""
    path = shared / "models" / f"resnet{depth}-cifar10.onnx"
    subject = subject_of(path, (32, 32, 3), make_head, make_images)
    assert len(subject.taps) == depth - 1
    hold_outputs_identical(subject)
    hold_to_the_reference(subject, SCORE_TOLERANCE)
    hold_rates_to_bits(subject)


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 18, 21])
def test_the_laws_hold_at_every_opset(
    opset: int,
    make_network: Callable[..., onnx.ModelProto],
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """The guard's own operators are written as the model's opset has them."""
    model = make_network()
    model.opset_import[0].version = opset  # its operators mean the same in all of these
    onnx.save(model, tmp_path / "model.onnx")
    subject = subject_of(tmp_path / "model.onnx", (8, 8, 1), make_head, make_images)
    hold_outputs_identical(subject)
    hold_to_the_reference(subject, SCORE_TOLERANCE)
    hold_rates_to_bits(subject)


def named_like_ours(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name all inner tensors and weights as the guard names its own, two as its outputs."""
    graph = model.graph
    inner = [item.name for item in graph.initializer]
    inner += [node.output[0] for node in graph.node[:-1]]
    names = {name: f"reluguard/constant_{i}" for i, name in enumerate(inner, 1)}
    names |= {"r1": SCORE, "w1": RATES, "c2": "reluguard/HardSigmoid_1"}
    for item in graph.initializer:
        item.name = names[item.name]
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    return model


def test_tensors_named_like_ours_do_no_harm(
    make_network: Callable[..., onnx.ModelProto],
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """Whatever the model's inner tensors are called, all three laws hold."""
    onnx.save(named_like_ours(make_network()), tmp_path / "model.onnx")
    subject = subject_of(tmp_path / "model.onnx", (8, 8, 1), make_head, make_images)
    onnx.checker.check_model(subject.guarded)
    hold_outputs_identical(subject)
    hold_to_the_reference(subject, SCORE_TOLERANCE)
    hold_rates_to_bits(subject)


def test_a_guarded_model_of_ir_version_3_is_legal(
    make_network: Callable[..., onnx.ModelProto],
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """There weights are inputs too; the guard's own are none, so it is lifted to version 4."""
    model = make_network()
    model.ir_version, model.opset_import[0].version = 3, 11
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims)
        for item in model.graph.initializer
    )
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    subject = subject_of(tmp_path / "model.onnx", (8, 8, 1), make_head, make_images)
    onnx.checker.check_model(subject.guarded)
    assert [value.name for value in subject.guarded.graph.input] == ["image"]
    hold_outputs_identical(subject)
    hold_to_the_reference(subject, SCORE_TOLERANCE)


def channels_last() -> onnx.ModelProto:
    """A network that takes NHWC images and keeps that layout through two dense layers per pixel."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.7, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["image", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"]),
        helper.make_node("Relu", ["m2"], ["r2"]),
        helper.make_node("ReduceMean", ["r2"], ["pooled"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "channels last",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [weight("w1", 3, 10), weight("b1", 10), weight("w2", 10, 6), weight("w3", 6, 4)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_the_laws_hold_with_channels_last(
    make_head: Callable[..., Head], make_images: Callable[..., Images], tmp_path: Path
) -> None:
    """Rates are kept per last axis where that holds the channels."""
    onnx.save(channels_last(), tmp_path / "model.onnx")
    subject = subject_of(tmp_path / "model.onnx", (8, 8, 3), make_head, make_images)
    assert subject.spec.layout == "NHWC"
    assert [(tap.shape, tap.channels) for tap in subject.taps] == [((8, 8, 10), 10), ((8, 8, 6), 6)]
    hold_outputs_identical(subject)
    hold_to_the_reference(subject, SCORE_TOLERANCE)
    hold_rates_to_bits(subject)


def test_the_laws_hold_in_half_precision(
    make_network: Callable[..., onnx.ModelProto],
    make_head: Callable[..., Head],
    make_images: Callable[..., Images],
    tmp_path: Path,
) -> None:
    """A float16 model keeps its outputs; the score is a little further from the reference."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(make_network(channels=3, size=16), keep_io_types=False)
    onnx.save(half, tmp_path / "model.onnx")
    subject = subject_of(tmp_path / "model.onnx", (16, 16, 3), make_head, make_images)
    assert (subject.spec.dtype, subject.taps[0].dtype) == ("float16", "float16")
    hold_outputs_identical(subject)
    hold_to_the_reference(subject, HALF_TOLERANCE)
    hold_rates_to_bits(subject)


def test_a_stride_reads_every_so_many_rows_and_columns(
    tiny_model: Path, make_images: Callable[..., Images]
) -> None:
    """A tap of stride 2 counts the even rows and columns only."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    tap = Tap(name="r1", op="Relu", shape=(8, 8, 8), stride=2)
    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    probe.graph.output.append(onnx.ValueInfoProto(name="r1"))
    feeds = {spec.name: spec.to_tensor(make_images(6))}
    (value,) = run_session(open_session(probe, threads=1), feeds, ["r1"])
    reader = open_session(compile_reader(production, [tap]), threads=1)
    (rates,) = run_session(reader, feeds, [RATES])
    np.testing.assert_allclose(rates, (value[:, :, ::2, ::2] > 0).mean(axis=(2, 3)), atol=1e-6)


@pytest.mark.parametrize("levels", [(0.0, 1e-3), (0.1, 0.37), (0.0, 0.1, 0.37)])
def test_levels_give_each_channel_a_rate_each(
    tiny_model: Path, make_images: Callable[..., Images], levels: tuple[float, ...]
) -> None:
    """Level by level the share of values above it, channel by channel."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    tap = Tap(name="r1", op="Relu", shape=(8, 8, 8), levels=levels)
    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    probe.graph.output.append(onnx.ValueInfoProto(name="r1"))
    feeds = {spec.name: spec.to_tensor(make_images(6))}
    (value,) = run_session(open_session(probe, threads=1), feeds, ["r1"])
    reader = open_session(compile_reader(production, [tap]), threads=1)
    (rates,) = run_session(reader, feeds, [RATES])
    wanted = [(value > np.float32(level)).mean(axis=(2, 3)) for level in levels]
    np.testing.assert_allclose(rates, np.concatenate(wanted, axis=1), atol=1e-6)
    assert wanted[-1].mean() < wanted[0].mean() or levels[-1] < 0.01


def test_a_head_that_reads_some_rates_only(
    tiny_model: Path, make_head: Callable[..., Head], make_images: Callable[..., Images]
) -> None:
    """Columns that a head leaves out change nothing in it: it scores as its reference does."""
    from dataclasses import replace

    subject = subject_of(tiny_model, (8, 8, 1), make_head, make_images)
    f = subject.head.features
    keep = np.array([0, 2, 3, 7, 9, 19])
    of_feature = np.concatenate([keep, np.arange(len(f.columns), f.width)])
    fewer = replace(
        f,
        columns=keep,
        column_taps=f.column_taps[keep],
        probe_weights=f.probe_weights[keep],
        center=f.center[of_feature],
        spread=f.spread[of_feature],
    )
    head = replace(
        subject.head,
        features=fewer,
        weights=(subject.head.weights[0][of_feature], subject.head.weights[1]),
        evidence_weights=subject.head.evidence_weights[of_feature],
    )
    guarded = compile_guard(subject.production, subject.taps, head, fpr=FPR)
    hold_to_the_reference(replace(subject, head=head, guarded=guarded), SCORE_TOLERANCE)


def test_a_pass_that_overflows_counts_as_adversarial(
    tiny_model: Path, make_head: Callable[..., Head], make_images: Callable[..., Images]
) -> None:
    """Finite but enormous inputs that end in NaN can't slip through the exported file."""
    subject = subject_of(tiny_model, (8, 8, 1), make_head, make_images)
    tensor = np.full((2, 1, 8, 8), 3e38, np.float32)
    tensor[1] = 0.5
    logits, score, likelihood, adversarial, evidence = run_session(
        open_session(subject.guarded, threads=1),
        {"image": tensor},
        ["logits", SCORE, LIKELIHOOD, IS_ADVERSARIAL, EVIDENCE],
    )
    assert np.isnan(logits[0]).any()
    assert adversarial[0]
    assert likelihood[0] == 1
    assert np.isfinite(score).all()
    assert np.isfinite(evidence).all()


def test_a_head_for_other_taps_is_refused(
    tiny_model: Path, make_head: Callable[..., Head], make_images: Callable[..., Images]
) -> None:
    """The message gives the taps and rates of both."""
    subject = subject_of(tiny_model, (8, 8, 1), make_head, make_images)
    with pytest.raises(ModelError, match="expected a head for 1 taps of 8 rates, got one for 2"):
        compile_guard(subject.production, subject.taps[:1], subject.head, fpr=FPR)


def test_too_low_a_rate_is_refused(
    tiny_model: Path, make_head: Callable[..., Head], make_images: Callable[..., Images]
) -> None:
    """36 calibration images can't promise one in a thousand; the message says what can."""
    subject = subject_of(tiny_model, (8, 8, 1), make_head, make_images)
    with pytest.raises(SettingsError, match=r"0\.001 needs 999 clean .* this guard has 36"):
        compile_guard(subject.production, subject.taps, subject.head, fpr=0.001)


def challenger_of(subject: Subject, make_head: Callable[..., Head]) -> tuple[tuple[Tap, ...], Head]:
    """Taps and head of a second guard: one tap less, one of them read at levels of its own."""
    taps = list(subject.taps[1:] or subject.taps)
    levels = (0.0, 0.5) if taps[-1].dtype == "float32" else (0.0,)
    taps[-1] = replace(taps[-1], levels=levels)
    reader = compile_reader(subject.production, taps)
    rates, logits = subject.run(reader, [RATES, LOGITS], rows=subject.batches[-1])
    head = make_head(taps, rates, logits, seed=7)
    return tuple(taps), replace(head, clean_scores=subject.head.clean_scores)


def test_a_challenger_changes_nothing_else(
    subject: Subject, make_head: Callable[..., Head]
) -> None:
    """Production and champion outputs stay bit for bit; its score is what it says alone."""
    taps, head = challenger_of(subject, make_head)
    both = compile_guard(subject.production, subject.taps, subject.head, fpr=FPR, readings=True,
                         challenger=(taps, head))  # fmt: skip
    alone = compile_guard(subject.production, subject.taps, subject.head, fpr=FPR, readings=True)
    theirs = compile_guard(subject.production, taps, head, fpr=FPR)
    names = [value.name for value in alone.graph.output]
    assert [value.name for value in both.graph.output] == [*names, CHALLENGER_SCORE]
    for optimise in (True, False):
        for rows in subject.batches:
            before = subject.run(alone, names, rows=rows, optimise=optimise)
            *after, score = subject.run(
                both, [*names, CHALLENGER_SCORE], rows=rows, optimise=optimise
            )
            for name, a, b in zip(names, before, after, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
            (wanted,) = subject.run(theirs, [SCORE], rows=rows, optimise=optimise)
            np.testing.assert_array_equal(score, wanted, strict=True)


def test_what_both_read_is_read_once(subject: Subject, make_head: Callable[..., Head]) -> None:
    """A challenger with the champion's taps adds a head and no reading.

    One with other taps adds readings, at most what it reads alone: taps read side by side are read
    again where their neighbours differ.
    """

    def bits(challenger: tuple[Sequence[Tap], Head] | None) -> int:
        model = compile_guard(
            subject.production, subject.taps, subject.head, fpr=FPR, challenger=challenger
        )
        return sum(n.op_type == "HardSigmoid" for n in model.graph.node)

    rates, logits = subject.run(subject.reader, [RATES, LOGITS], rows=subject.batches[-1])
    same = make_head(subject.taps, rates, logits, seed=9)
    assert bits((subject.taps, same)) == bits(None)
    taps, head = challenger_of(subject, make_head)
    alone = compile_guard(subject.production, taps, head, fpr=FPR)
    own = sum(n.op_type == "HardSigmoid" for n in alone.graph.node)
    assert bits((taps, head)) <= bits(None) + own

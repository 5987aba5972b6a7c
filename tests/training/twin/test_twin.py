"""The twin answers as the model does, or training refuses to start."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from reluguard.detector.images import Images, InputSpec
from reluguard.detector.session import open_session
from reluguard.training.attacks import open_victim
from reluguard.training.errors import TwinError
from reluguard.training.twin.twin import Twin, from_pixels, in_order, load_twin, to_pixels

SPECS = {
    "NCHW": InputSpec(name="image", height=4, width=5, channels=3),
    "normalised": InputSpec(
        name="image", height=4, width=5, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    ),
    "bgr": InputSpec(
        name="image", height=4, width=5, channels=3, scale=1.0, mean=(104, 117, 123), bgr=True
    ),
    "NHWC": InputSpec(name="image", height=4, width=5, channels=3, layout="NHWC"),
    "flat": InputSpec(name="image", height=4, width=5, channels=1, layout="flat", scale=2 / 255),
    "fixed batch": InputSpec(name="image", height=4, width=5, channels=3, batch=4),
    "uint8": InputSpec(
        name="image", height=4, width=5, channels=3, layout="NHWC", dtype="uint8", scale=1.0
    ),
}


def linear_model(spec: InputSpec, path: Path, *, end: str | None = None) -> Path:
    """Write a model of one layer over the flattened input, 6 classes."""
    rng = np.random.default_rng(0)
    values = int(np.prod(spec.tensor_shape))
    last = "scores" if end else "logits"
    kind = onnx.TensorProto.UINT8 if spec.dtype == "uint8" else onnx.TensorProto.FLOAT
    rows = spec.batch or "N"
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], [last]),
            *([helper.make_node(end, ["scores"], ["logits"])] if end else []),
        ],
        "linear",
        [helper.make_tensor_value_info("image", kind, [rows, *spec.tensor_shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [rows, 6])],
        [
            onnx.numpy_helper.from_array(rng.normal(0, 0.1, (values, 6)).astype("f4"), "w"),
            onnx.numpy_helper.from_array(rng.normal(0, 1, 6).astype("f4"), "b"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def pictures(spec: InputSpec, count: int = 5) -> Images:
    shape = (count, spec.height, spec.width, spec.channels)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def twin_of(model: Path, spec: InputSpec, how: str = "auto", *, tolerance: float = 1e-3) -> Twin:
    images = pictures(spec)
    twin = load_twin(model, spec, how, images=images, device="cpu", tolerance=tolerance)
    assert twin is not None
    return twin


def slopes(twin: Twin, images: Images) -> torch.Tensor:
    """Return each image's sum of absolute gradients of its scores."""
    pixels = to_pixels(images).requires_grad_()
    (gradient,) = torch.autograd.grad(twin.logits(pixels).square().sum(), pixels)
    return gradient.abs().sum(dim=(1, 2, 3))


@pytest.mark.parametrize("name", SPECS)
def test_twin_answers_from_pixels_as_the_model_from_its_tensor(tmp_path: Path, name: str) -> None:
    """Layout, range, normalisation, colour order and fixed batch are applied inside."""
    spec = SPECS[name]
    model = linear_model(spec, tmp_path / "m.onnx")
    images = pictures(spec)
    twin = twin_of(model, spec, tolerance=1e-5)
    victim = open_victim(model, spec, twin=twin, threads=1)
    np.testing.assert_allclose(twin.predict(images), victim.predict(images), rtol=1e-4, atol=1e-4)
    assert slopes(twin, images).min() > 0


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
def test_twin_of_probabilities_gives_logits(tmp_path: Path, end: str) -> None:
    """Where the model ends in a softmax the twin stops before it, and the victim reads logs."""
    spec = SPECS["NCHW"]
    model = linear_model(spec, tmp_path / "m.onnx", end=end)
    images = pictures(spec)
    twin = twin_of(model, spec)
    logits = torch.from_numpy(twin.predict(images))
    assert (logits.exp().sum(1) - 1).abs().min() > 0.1
    wanted = open_session(onnx.load(model)).run(None, {"image": spec.to_tensor(images)})[0]
    ending = torch.softmax if end == "Softmax" else torch.log_softmax
    np.testing.assert_allclose(ending(logits, 1).numpy(), wanted, atol=1e-5)
    read = open_victim(model, spec, threads=1).predict(images)
    np.testing.assert_allclose(read, torch.log_softmax(logits, 1).numpy(), atol=1e-4)


def test_pixels_go_there_and_back() -> None:
    """Images become pixels in [0, 1], channels first, and whole pixels become images again."""
    images = pictures(SPECS["NCHW"])
    pixels = to_pixels(images)
    assert pixels.shape == (5, 3, 4, 5)
    assert np.array_equal(from_pixels((pixels * 255).round().to(torch.uint8)), images)


def test_twin_is_frozen_and_in_evaluation_mode() -> None:
    """Dropout and batch norm do not act, and no parameter takes a gradient."""
    norm = torch.nn.BatchNorm2d(4)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), norm, torch.nn.Dropout(), torch.nn.Flatten()
    )
    twin = Twin(net.train(), SPECS["NCHW"], device="cpu")
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    pixels = torch.rand(6, 3, 4, 5)
    assert torch.equal(twin.logits(pixels), twin.logits(pixels))
    torch.testing.assert_close(twin.logits(pixels)[:1], twin.logits(pixels[:1]))
    assert torch.equal(norm.running_mean, before)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_no_twin_on_request(tmp_path: Path) -> None:
    """`none` goes without."""
    spec = SPECS["NCHW"]
    model = linear_model(spec, tmp_path / "m.onnx")
    assert load_twin(model, spec, "none", images=pictures(spec)) is None


LENT = """
import numpy as np, onnx, torch
from onnx import numpy_helper
def weights():
    graph = onnx.load({path!r}).graph
    return [torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer]
def right():
    w, b = weights()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 6))
    net[1].weight.data, net[1].bias.data = w.T.contiguous(), b
    return net
def wrong():
    net = right()
    net[1].bias.data[2] += 0.5
    return net
def narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 5))
def broken():
    return torch.nn.Linear(7, 6)
def number():
    return 3
"""


@pytest.fixture
def lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model, and a module in the working folder that lends its code."""
    model = linear_model(SPECS["NCHW"], tmp_path / "m.onnx")
    (tmp_path / "lent_twins.py").write_text(LENT.format(path=str(model)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield model
    sys.modules.pop("lent_twins", None)


class Viewing(torch.nn.Module):
    """Takes a view of what a convolution gives, which fails where the channels lie last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(channels, 2, 1)

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return each image in a row."""
        return self.first(tensor).view(tensor.size(0), -1)  # type: ignore[no-any-return] # torch's


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lent_module_may_take_views(channels: int) -> None:
    """A twin runs channels last in memory; a module that can't gets the usual order."""
    spec = replace(SPECS["NCHW"], channels=channels)
    given = torch.rand(3, 4, 5, channels).permute(0, 3, 1, 2)
    module = Viewing(channels)
    flat = torch.nn.Sequential(module.first, torch.nn.Flatten())
    assert in_order(flat, spec) is flat
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        module(given)
    torch.testing.assert_close(in_order(module, spec)(given), flat(given))


def test_a_lent_module_is_used(lent: Path) -> None:
    """A function of the user's, importable from the working folder, lends the module."""
    spec = SPECS["NCHW"]
    twin = twin_of(lent, spec, "lent_twins:right")
    assert isinstance(list(twin.module.children())[1], torch.nn.Linear)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "lent_twins:wrong",
            r"within 0.001 of its largest score, got a difference of 0.\d+: check",
        ),
        ("lent_twins:narrow", r"to return scores of shape \(5, 6\), got \(5, 5\)"),
        ("lent_twins:broken", r"the twin lent_twins:broken failed in .*, line \d+: \w+Error: "),
        ("lent_twins:number", "expected lent_twins:number to return a torch module, got int"),
        ("lent_twins:missing", "can't find the twin lent_twins:missing"),
        ("no_such_module:f", "can't find the twin no_such_module:f"),
        ("anything", "expected a twin of auto, none or package.module:function, got 'anything'"),
    ],
)
def test_other_twins_are_refused(lent: Path, how: str, message: str) -> None:
    """A twin that differs, does not fit or is not there stops training with what to do."""
    spec = SPECS["NCHW"]
    with pytest.raises(TwinError, match=message):
        load_twin(lent, spec, how, images=pictures(spec), device="cpu")


def test_tolerance_is_the_users(lent: Path) -> None:
    """The largest difference allowed can be set."""
    spec = SPECS["NCHW"]
    assert load_twin(lent, spec, "lent_twins:wrong", images=pictures(spec), tolerance=0.9)


@pytest.mark.parametrize("depth", [20, 44])
def test_real_networks_have_twins(shared: Path, depth: int) -> None:
    """The pretrained ResNets come back with the same answers and a gradient."""
    spec = InputSpec(name="image", height=32, width=32, channels=3)
    with np.load(shared / "data" / "cifar10" / "heldout.npz") as data:
        images = data["images"][:32]
    model = shared / "models" / f"resnet{depth}-cifar10.onnx"
    twin = load_twin(model, spec, images=images, tolerance=1e-5, device="cpu")
    assert twin is not None
    assert slopes(twin, images[:4]).min() > 0


def test_rough_scores_are_close_and_exact_ones_untouched(tmp_path: Path) -> None:
    """In half precision scores move by a percent, their gradients hardly turn; without, not at all.

    Whether a processor's own bfloat16 is used is found out, so both are asked for here.
    """
    spec = SPECS["NCHW"]
    twin = twin_of(linear_model(spec, tmp_path / "m.onnx"), spec)
    pixels = to_pixels(pictures(spec))
    exact = twin.logits(pixels)
    twin.half = False
    assert torch.equal(twin.rough_logits(pixels), exact)
    twin.half = True
    rough = twin.rough_logits(pixels)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.02 * exact.abs().max()
    assert torch.equal(twin.logits(pixels), exact)


def test_a_twin_whose_rough_gradients_mislead_stays_exact(tmp_path: Path) -> None:
    """Large opposite weights cancel in float32 and not in bfloat16: such a twin is not rough."""
    spec = SPECS["NCHW"]
    path = linear_model(spec, tmp_path / "m.onnx")
    steep = onnx.load(path)
    weights = next(w for w in steep.graph.initializer if w.name == "w")
    values = onnx.numpy_helper.to_array(weights) + np.float32(300)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(steep, path)
    assert not twin_of(path, spec, tolerance=0.1).half


def test_images_that_can_not_be_written_to_are_taken_as_others() -> None:
    """Arrays mapped from a file are such, and torch would warn of them."""
    images = pictures(SPECS["NCHW"])
    images.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise the first of a process alone is told
    try:
        pixels = to_pixels(images)
    finally:
        torch.set_warn_always(before)
    np.testing.assert_array_equal(from_pixels((pixels * 255).round().byte()), images)

"""Views: what the graph shows the network is the view of the pixels."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.looks.views import SAME, VIEWS, view_named, viewed
from reluguard.detector.model import Production, TensorInfo
from reluguard.detector.session import open_session
from tests.conftest import images, network

SPEC = InputSpec(name="image", height=6, width=10, channels=3)


def echo(spec: InputSpec) -> Production:
    """A network that gives out what it sees."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    shape: list[str | int | None] = ["N", *spec.tensor_shape]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["seen"])],
        "echo",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("seen", kind, shape)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    info = TensorInfo(name="image", dtype=spec.dtype, shape=(None, *spec.tensor_shape))
    return Production(
        proto=proto, sha256="", input=info, outputs=(), answer="seen", logits="seen", opset=17
    )


def seen(spec: InputSpec, name: str, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    production = viewed(echo(spec), spec, name)
    onnx.checker.check_model(production.proto, full_check=True)
    found: NDArray[Any] = open_session(production.proto).run(
        None, {"image": spec.to_tensor(pixels)}
    )[0]
    return found


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "flat"])
def test_the_graph_shows_the_view(name: str, layout: Any) -> None:
    """In every layout, whatever is subtracted and divided by."""
    spec = replace(SPEC, layout=layout, mean=(0.1, 0.4, 0.7), std=(0.5, 0.2, 0.3))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 10, 3), dtype=np.uint8)
    wanted = view_named(name, 6, 10).apply(pixels) / 255
    wanted = (wanted - np.array(spec.mean)) / np.array(spec.std)
    if layout != "NHWC":
        wanted = wanted.transpose(0, 3, 1, 2)
    found = seen(spec, name, pixels)
    np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=2e-6)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
def test_a_view_keeps_the_type_of_the_input(name: str, dtype: str) -> None:
    """Of whole pixels it makes whole pixels."""
    spec = replace(SPEC, dtype=dtype, scale=1.0)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 6, 10, 3), dtype=np.uint8)
    found = seen(spec, name, pixels)
    assert found.dtype == dtype
    wanted = view_named(name, 6, 10).apply(pixels).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, np.rint(wanted) if dtype == "uint8" else wanted, atol=0.13)


def test_a_mirror_is_a_mirror() -> None:
    """Every pixel is one of the picture's, and twice mirrored is the picture."""
    pixels = images(2, size=6, channels=3)
    view = view_named("mirror", 6, 6)
    np.testing.assert_array_equal(view.apply(pixels), pixels[:, :, ::-1])
    np.testing.assert_array_equal(view.apply(view.apply(pixels)), pixels)


@pytest.mark.parametrize("name", VIEWS)
def test_a_grey_wall_looks_the_same(name: str) -> None:
    """No view darkens, lightens or brings in anything from outside."""
    for side in (1, 2, 32, 224):
        wall = np.full((1, side, side, 1), 77, np.uint8)
        np.testing.assert_allclose(view_named(name, side, side).apply(wall), 77, atol=1e-4)


def test_what_a_branch_reads_is_the_view_too() -> None:
    """The input is replaced inside the bodies of an If as well."""
    model = network()
    inner = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    model.graph.node.insert(
        0, helper.make_node("If", ["yes"], ["x"], then_branch=inner, else_branch=inner)
    )
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node[1].input[0] = "x"
    info = TensorInfo(name="image", dtype="float32", shape=(None, 1, 8, 8))
    production = Production(
        proto=model,
        sha256="",
        input=info,
        outputs=(),
        answer="logits",
        logits="logits",
        opset=17,
    )
    spec = InputSpec(name="image", height=8, width=8, channels=1)
    pixels = images(3)
    feed = {"image": spec.to_tensor(np.ascontiguousarray(pixels[:, :, ::-1]))}
    wanted = open_session(model).run(["logits"], feed)[0]
    mirrored = viewed(production, spec, "mirror")
    found = open_session(mirrored.proto).run(["logits"], {"image": spec.to_tensor(pixels)})[0]
    np.testing.assert_array_equal(found, wanted)
    assert viewed(production, spec, SAME) is production


def test_an_unknown_view_is_refused() -> None:
    """The message lists what there is."""
    expected = "expected a view of mirror, shift, smaller, blur, got 'upside-down'"
    with pytest.raises(SettingsError, match=re.escape(expected)):
        view_named("upside-down", 8, 8)

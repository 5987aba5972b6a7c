"""The production model: read whole, never changed, and refused in clear words."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.compile.guarded import compile_reader
from reluguard.detector.errors import ModelError
from reluguard.detector.model import constants, infer_spec, load_production
from reluguard.detector.taps import find_taps

Network = Callable[..., onnx.ModelProto]


def save(model: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, **options)
    return path


def with_weights_outside(model: onnx.ModelProto, folder: Path) -> Path:
    return save(
        model,
        folder,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )


def set_location(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def add_output(model: onnx.ModelProto, name: str, op: str, kind: int, shape: list[Any]) -> None:
    attributes: dict[str, Any] = {"axis": 1, "keepdims": 0} if op == "ArgMax" else {}
    model.graph.node.append(helper.make_node(op, ["logits"], [name], **attributes))
    model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def test_reading_changes_nothing(make_network: Network, tmp_path: Path) -> None:
    """What is read is the file's graph, and its hash is the file's hash."""
    model = make_network()
    path = save(model, tmp_path)
    production = load_production(path)
    assert production.proto == model
    assert production.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_compiling_leaves_the_model_as_it_was(make_network: Network, tmp_path: Path) -> None:
    """The reader is a copy: the production graph is the same before and after."""
    production = load_production(save(make_network(), tmp_path))
    before = production.proto.SerializeToString()
    spec = infer_spec(production, (8, 8, 1))
    compile_reader(production, find_taps(production, spec))
    assert production.proto.SerializeToString() == before


def test_the_tiny_network_is_described(tiny_model: Path) -> None:
    """Input, output and opset are those of the file."""
    production = load_production(tiny_model)
    assert (production.input.name, production.input.dtype) == ("image", "float32")
    assert production.input.shape == (None, 1, 8, 8)
    assert [info.name for info in production.outputs] == ["logits"]
    assert (production.answer, production.logits, production.opset) == ("logits", "logits", 17)


def test_class_scores_are_read_before_a_final_softmax(
    make_network: Network, tmp_path: Path
) -> None:
    """A network that ends in probabilities is read at its logits."""
    model = make_network()
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model.graph.output[0].name = "probabilities"
    production = load_production(save(model, tmp_path))
    assert (production.answer, production.logits) == ("probabilities", "logits")


def test_weights_outside_the_file_are_read_and_hashed(
    make_network: Network, tmp_path: Path
) -> None:
    """External weights make the same network, and another byte in them another hash."""
    path = with_weights_outside(make_network(), tmp_path)
    production = load_production(path)
    inside = {item.name: numpy_helper.to_array(item) for item in make_network().graph.initializer}
    for item in production.proto.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(item), inside[item.name])
    weights = tmp_path / "weights.bin"
    changed = bytearray(weights.read_bytes())
    changed[0] ^= 1
    weights.write_bytes(changed)
    assert load_production(path).sha256 != production.sha256


def test_a_missing_weight_file_is_named(make_network: Network, tmp_path: Path) -> None:
    """The error says which file has to lie beside the model."""
    path = with_weights_outside(make_network(), tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps weights in 'weights\.bin', which is missing"):
        load_production(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_weights_are_only_read_beside_the_model(
    make_network: Network, tmp_path: Path, location: str
) -> None:
    """A path out of the model's folder, by dots, root or link, is refused."""
    (tmp_path / "secret").write_bytes(bytes(10_000))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    path = with_weights_outside(make_network(), folder)
    set_location(path, location)
    with pytest.raises(ModelError, match="which is missing beside it"):
        load_production(path)


def test_cut_weights_are_refused(make_network: Network, tmp_path: Path) -> None:
    """A weight file that ends early is a ModelError, at reading or at the first session."""
    path = with_weights_outside(make_network(), tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"external weights of .* can't be read|can't load"):
        infer_spec(load_production(path), (8, 8, 1))


FILES = {
    "empty": (b"", "holds no graph"),
    "garbage": (bytes(range(256)) * 4, "does not parse as one|holds no graph"),
    "text": (b"import torch\nprint('this is no model')\n", "does not parse as one|holds no graph"),
    "zip": (b"PK\x03\x04" + bytes(100), "does not parse as one|holds no graph"),
}


@pytest.mark.parametrize(("data", "message"), FILES.values(), ids=FILES)
def test_another_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """Whatever is no ONNX model is said to be none."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_production(path)


def test_every_cut_of_a_model_is_refused(make_network: Network, tmp_path: Path) -> None:
    """A model that ends early is a ModelError, wherever it was cut."""
    data = make_network().SerializeToString()
    path = tmp_path / "model.onnx"
    for end in range(0, len(data) - 1, len(data) // 40):
        path.write_bytes(data[:end])
        with pytest.raises(ModelError):
            infer_spec(load_production(path), (8, 8, 1))


def test_no_file_is_said(tmp_path: Path) -> None:
    """A missing file and a folder can't be read, and the system's reason is given."""
    with pytest.raises(ModelError, match=r"can't read the model .*: No such file"):
        load_production(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"can't read the model .*: Is a directory"):
        load_production(tmp_path)


def test_a_guarded_model_is_not_guarded_twice(tiny_model: Path, tmp_path: Path) -> None:
    """A model that already has our outputs is refused."""
    production = load_production(tiny_model)
    taps = find_taps(production, infer_spec(production, (8, 8, 1)))
    path = save(compile_reader(production, taps), tmp_path)
    with pytest.raises(ModelError, match="is already guarded: reluguard_rates"):
        load_production(path)


def test_several_inputs_are_named(make_network: Network, tmp_path: Path) -> None:
    """A guard reads images only: a second input is refused by name."""
    model = make_network()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 4]))
    with pytest.raises(ModelError, match=r"exactly one input, .* has image, mask"):
        load_production(save(model, tmp_path))


def test_weights_listed_as_inputs_are_no_inputs(make_network: Network, tmp_path: Path) -> None:
    """Old exporters list every weight as an input too."""
    model = make_network()
    model.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [8]))
    assert load_production(save(model, tmp_path)).input.name == "image"


def test_of_several_outputs_one_is_chosen(make_network: Network, tmp_path: Path) -> None:
    """Two candidates are named; `output` chooses; the only float matrix needs no choice."""
    model = make_network()
    add_output(model, "label", "ArgMax", TensorProto.INT64, ["N"])
    assert load_production(save(model, tmp_path)).answer == "logits"
    add_output(model, "probability", "Softmax", TensorProto.FLOAT, ["N", 4])
    path = save(model, tmp_path)
    with pytest.raises(ModelError, match=r"has logits float32 .*, label int64 .*, probability .*"):
        load_production(path)
    production = load_production(path, output="probability")
    assert (production.answer, production.logits) == ("probability", "logits")


def test_an_output_that_holds_no_class_scores_is_refused(
    make_network: Network, tmp_path: Path
) -> None:
    """A label and an unknown name are no class scores."""
    model = make_network()
    add_output(model, "label", "ArgMax", TensorProto.INT64, ["N"])
    path = save(model, tmp_path)
    with pytest.raises(ModelError, match=r"float output of shape \(N, classes\), .* label int64"):
        load_production(path, output="label")
    with pytest.raises(ModelError, match="expected an output named 'nonsense'"):
        load_production(path, output="nonsense")


@pytest.mark.parametrize("batch", [None, 1, 6])
def test_the_specification_follows_the_model(
    make_network: Network, tmp_path: Path, batch: int | None
) -> None:
    """Size, layout and batch are the model's; pixels are scaled to [0, 1] unless told."""
    production = load_production(save(make_network(channels=3, batch=batch), tmp_path))
    spec = infer_spec(production, (8, 8, 3))
    assert (spec.name, spec.layout, spec.batch) == ("image", "NCHW", batch)
    assert spec.scale == 1 / 255
    assert infer_spec(production, (8, 8, 3), scale=1.0).scale == 1.0


def test_a_batch_baked_into_the_graph_is_found_out(make_network: Network, tmp_path: Path) -> None:
    """A model that says any batch but reshapes to one row is run one by one."""
    model = make_network()
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    shape = numpy_helper.from_array(np.array([1, 12]), "baked")
    model.graph.initializer.append(shape)
    baked = helper.make_node("Reshape", [flatten.input[0], "baked"], [flatten.output[0]])
    flatten.CopyFrom(baked)
    assert infer_spec(load_production(save(model, tmp_path)), (8, 8, 1)).batch == 1


def test_images_of_another_size_are_refused(tiny_model: Path) -> None:
    """The message gives the model's input and the images' size."""
    with pytest.raises(ModelError, match=r"takes float32 \(\?, 1, 8, 8\), .* 9 x 8 .* 1 channels"):
        infer_spec(load_production(tiny_model), (9, 8, 1))


def test_an_output_without_a_row_per_image_is_named(make_network: Network, tmp_path: Path) -> None:
    """A version number beside the scores can't be given out image by image, so it is refused."""
    model = make_network()
    version = numpy_helper.from_array(np.array([3], np.int64), "version")
    model.graph.initializer.append(version)
    model.graph.output.append(helper.make_tensor_value_info("version", TensorProto.INT64, [1]))
    production = load_production(save(model, tmp_path))
    with pytest.raises(ModelError, match=r"'version' has shape \(1,\) for 2 images: a batch"):
        infer_spec(production, (8, 8, 1))


def test_an_output_that_is_no_tensor_is_named(make_network: Network, tmp_path: Path) -> None:
    """What scikit-learn's converter adds by default is refused with how to leave it out."""
    model = make_network()
    element = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    kind = helper.make_sequence_type_proto(element)
    model.graph.output.append(helper.make_value_info("probabilities", kind))
    with pytest.raises(ModelError, match=r"'probabilities' is something else; skl2onnx leaves"):
        load_production(save(model, tmp_path))


def test_constants_are_found_wherever_they_are() -> None:
    """Initializers, Constant nodes of both kinds, and copies of them."""
    nodes = [
        helper.make_node("Constant", [], ["node"], value=numpy_helper.from_array(np.arange(3))),
        helper.make_node("Constant", [], ["float"], value_float=1.5),
        helper.make_node("Identity", ["weight"], ["copy"]),
    ]
    weight = numpy_helper.from_array(np.ones(2, np.float32), "weight")
    found = constants(helper.make_graph(nodes, "g", [], [], [weight]))
    assert set(found) == {"weight", "node", "float", "copy"}
    assert len(found) == 4
    np.testing.assert_array_equal(found["copy"], found["weight"])
    np.testing.assert_array_equal(found["node"], [0, 1, 2])
    assert found["float"] == 1.5


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, 3, 32, 48), (32, 48)),
        ((1, 1, 8, 8), (8, 8)),
        ((None, 32, 48, 3), (32, 48)),
        ((None, 3, None, 48), None),
        ((None, 64), None),
    ],
)
def test_a_model_tells_the_image_size_it_fixes(
    tiny_model: Path, shape: tuple[int | None, ...], expected: tuple[int, int] | None
) -> None:
    """Height and width are read wherever the channels stand; an open one fixes none."""
    production = load_production(tiny_model)
    taken = replace(production.input, shape=shape)
    assert replace(production, input=taken).image_size == expected

"""Opening the user's case: splits, levels, mirror images and refusals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import helper

from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Reader
from reluguard.detector.session import open_session
from reluguard.detector.taps import Tap, find_taps
from reluguard.training.data.case import (
    Case,
    open_case,
    predict,
    source_images,
    with_blocks,
    with_levels,
)
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.data.preprocessing import Preprocessing
from reluguard.training.errors import DataError
from reluguard.training.recipes import Recipe

AS_TRAINED = Preprocessing()
Open = Callable[..., tuple[Case, Reader]]


@pytest.fixture
def opened(digits_model: Path, digits_file: Path, brief_recipe: Recipe) -> Open:
    """Open the digits case, some of its arguments replaced."""

    def open_with(
        *,
        model: Path = digits_model,
        data: Path = digits_file,
        recipe: Recipe = brief_recipe,
        preprocessing: Preprocessing = AS_TRAINED,
        fpr: float = 0.05,
        seed: int = 0,
    ) -> tuple[Case, Reader]:
        return open_case(
            model,
            str(data),
            levels=recipe.levels,
            shares=recipe.shares,
            preprocessing=preprocessing,
            output=None,
            fpr=fpr,
            seed=seed,
            threads=1,
        )

    return open_with


def test_no_image_is_in_two_parts(opened: Open) -> None:
    """The parts are disjoint, hold every image once, and the seed decides who goes where."""
    case, _ = opened()
    together = np.concatenate(list(case.splits.values()))
    assert_array_equal(np.sort(together), np.arange(300))
    assert {name: len(rows) for name, rows in case.splits.items()} == pytest.approx(
        {"fit": 150, "calibrate": 90, "test": 60}, abs=6
    )
    again, other = opened()[0], opened(seed=1)[0]
    assert_array_equal(again.splits["fit"], case.splits["fit"])
    assert not np.array_equal(other.splits["fit"], case.splits["fit"])


def test_the_model_is_asked_about_every_image(opened: Open, digits: Dataset) -> None:
    """Which answers are right, of images and of mirror images, and their share."""
    case, reader = opened()
    answers = predict(reader, digits.images[:300]).argmax(axis=1)
    assert_array_equal(case.right[:300], answers == digits.labels[:300])
    assert case.accuracy == pytest.approx(case.right[:300].mean())
    assert case.accuracy > 0.85
    mirrored = np.ascontiguousarray(digits.images[:300, :, ::-1])
    answers = predict(reader, mirrored).argmax(axis=1)
    assert_array_equal(case.right[300:], answers == digits.labels[:300])
    assert case.right[300:].mean() < case.accuracy - 0.2


def test_mirror_images_are_used_where_the_model_takes_them(
    opened: Open, digits: Dataset, tmp_path: Path
) -> None:
    """Images that are their own mirror image double the fitting part, and that part alone."""
    left = digits.images[:300, :, :4]
    both = np.concatenate([left, left[:, :, ::-1]], axis=2)
    _, reader = opened()
    labels = predict(reader, both).argmax(axis=1)
    save_dataset(Dataset(images=both, labels=labels, source="mirror"), tmp_path / "m.npz")
    case, _ = opened(data=tmp_path / "m.npz")
    half = len(case.splits["fit"]) // 2
    assert_array_equal(case.splits["fit"][half:], case.splits["fit"][:half] + 300)
    for part in ("calibrate", "test"):
        assert case.splits[part].max() < 300
        assert not set(case.splits[part]) & set(case.splits["fit"] % 300)


def test_source_images_mirror_back(digits: Dataset) -> None:
    """Row N + i is the mirror image of row i, under the same label and source."""
    data = digits.take(np.arange(10))
    before = data.images.copy()
    images, labels, rows = source_images(data, np.array([3, 13, 0]))
    assert_array_equal(images[0], data.images[3])
    assert_array_equal(images[1], data.images[3][:, ::-1])
    assert_array_equal(labels, data.labels[[3, 3, 0]])
    assert_array_equal(rows, [3, 3, 0])
    assert_array_equal(data.images, before)


def test_prediction_does_not_depend_on_chunks(opened: Open, digits: Dataset) -> None:
    """More images than one chunk get one row of logits each, in order."""
    _, reader = opened()
    images = np.concatenate([digits.images[:300], digits.images[:3]])
    logits = predict(reader, images)
    assert logits.shape == (303, 10)
    np.testing.assert_allclose(logits[300:], logits[:3], atol=1e-5)


def positive_mean(path: Path, images: Images, tap: str) -> float:
    """Return the mean positive value of a tensor, by plain ONNX Runtime."""
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name=tap))
    tensor = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    values = open_session(model, threads=1).run([tap], {"image": tensor})[0]
    return float(values[values > 0].mean())


def test_levels_are_of_the_values_that_fired(
    opened: Open, digits: Dataset, digits_model: Path, brief_recipe: Recipe
) -> None:
    """Levels are fixed multiples of the mean positive value; a recipe may go without."""
    case, _ = opened()
    assert brief_recipe.levels == (0.5, 1.5, 3.0)
    for tap in case.taps:
        mean = positive_mean(digits_model, digits.images[:64], tap.name)
        assert tap.levels == pytest.approx([0.5 * mean, 1.5 * mean, 3 * mean], rel=1e-3)
    case, _ = opened(recipe=replace(brief_recipe, levels=()))
    assert [tap.levels for tap in case.taps] == [(0.0,)] * len(case.taps)


def test_levels_of_a_large_fixed_batch(
    make_network: Callable[..., onnx.ModelProto], make_images: Callable[..., Images], tmp_path: Path
) -> None:
    """A batch baked into the model that is larger than the sample changes no level."""
    images = make_images(64)
    levels = []
    for batch in (None, 100):
        onnx.save(make_network(batch=batch), tmp_path / "m.onnx")
        production = load_production(tmp_path / "m.onnx")
        spec = infer_spec(production, (8, 8, 1))
        taps = with_levels(production, spec, find_taps(production, spec), images, [0.5, 2.0])
        levels.append([level for tap in taps for level in tap.levels])
    assert min(levels[0]) > 0
    # 36 of the 64 images come twice in a batch of 100
    assert levels[1] == pytest.approx(levels[0], rel=0.05)


def save(tmp_path: Path, data: Dataset) -> Path:
    save_dataset(data, tmp_path / "bad.npz")
    return tmp_path / "bad.npz"


def test_one_class_is_refused(opened: Open, digits: Dataset, tmp_path: Path) -> None:
    """Images of one class alone can't tell attacked from clean."""
    some = digits.take(digits.labels == 3)
    with pytest.raises(DataError, match="at least 2 classes, got only class 3"):
        opened(data=save(tmp_path, some))


def test_labels_out_of_range_are_refused(opened: Open, digits: Dataset, tmp_path: Path) -> None:
    """A label that the model has no class for is an error before any attack."""
    labels = digits.labels[:300].copy()
    labels[5] = 10
    bad = Dataset(images=digits.images[:300], labels=labels, source="bad")
    with pytest.raises(DataError, match=r"labels below 10, .* got 10"):
        opened(data=save(tmp_path, bad))


@pytest.mark.parametrize(("fpr", "needed", "total"), [(0.01, 99, 330), (0.001, 999, 3330)])
def test_too_few_images_says_how_many(opened: Open, fpr: float, needed: int, total: int) -> None:
    """The message counts calibration images, and images in all at the recipe's share."""
    message = f"needs {needed} calibration images, which is {total} images in all; .* has 300"
    with pytest.raises(DataError, match=message):
        opened(fpr=fpr)


def test_as_many_images_as_were_asked_for_suffice(
    opened: Open, digits: Dataset, tmp_path: Path
) -> None:
    """The number in the message is enough."""
    case, _ = opened(data=save(tmp_path, digits.take(np.arange(345))), fpr=0.01)
    assert len(case.splits["calibrate"]) >= 99


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(opened: Open, fpr: float) -> None:
    """A false-positive rate lies between 0 and 1."""
    with pytest.raises(SettingsError, match="between 0 and 1"):
        opened(fpr=fpr)


@pytest.mark.parametrize("wrong", [Preprocessing(scale=1 / 25500), Preprocessing(mean=(3.0,))])
def test_wrong_preprocessing_is_found_out(opened: Open, wrong: Preprocessing) -> None:
    """A model that all but guesses is fed pixels it does not know, and the message says so."""
    with pytest.raises(DataError, match=r"and 100\.0% with none of --scale, --mean, --std and"):
        opened(preprocessing=wrong)


def test_shuffled_labels_are_found_out(opened: Open, digits: Dataset, tmp_path: Path) -> None:
    """Labels of another data set leave the model at chance."""
    labels = np.random.default_rng(0).permutation(digits.labels[:300])
    bad = Dataset(images=digits.images[:300], labels=labels, source="bad")
    with pytest.raises(DataError, match="labels or pixels are not what it was trained on"):
        opened(data=save(tmp_path, bad))


def test_colour_images_do_not_fit_a_grey_model(
    opened: Open, digits: Dataset, tmp_path: Path
) -> None:
    """The number of channels is the model's."""
    colour = Dataset(
        images=digits.images[:300].repeat(3, axis=3), labels=digits.labels[:300], source="bad"
    )
    with pytest.raises(ModelError, match="channel"):
        opened(data=save(tmp_path, colour))


def test_images_are_resized_to_the_model(opened: Open, digits: Dataset, tmp_path: Path) -> None:
    """Images of another size are brought to the size that the model fixes."""
    large = digits.images[:300].repeat(2, axis=1).repeat(2, axis=2)
    case, _ = opened(
        data=save(tmp_path, Dataset(images=large, labels=digits.labels[:300], source="large"))
    )
    assert case.dataset.images.shape == (300, 8, 8, 1)
    assert case.accuracy > 0.8


def test_a_model_of_one_output_knows_two_classes(
    opened: Open, make_network: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    """A single score per image chooses between two classes, so ten are too many."""
    onnx.save(make_network(classes=1), tmp_path / "one.onnx")
    with pytest.raises(DataError, match="expected labels below 2"):
        opened(model=tmp_path / "one.onnx")


def test_a_model_without_gates_is_refused(opened: Open, tmp_path: Path) -> None:
    """A linear model has no ReLU to read."""
    weights = helper.make_tensor("w", onnx.TensorProto.FLOAT, [64, 10], np.zeros(640))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 10])],
        [weights],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "l.onnx")
    with pytest.raises(ModelError, match="Flatten"):
        opened(model=tmp_path / "l.onnx")


@pytest.mark.parametrize(
    ("shape", "block", "blocks"),
    [
        ((16, 32, 32), (4, 4), (8, 8)),
        ((8, 33, 9), (4, 2), (9, 5)),
        ((64, 112, 112), (4, 4), (28, 28)),
        ((256, 14, 14), (2, 2), (7, 7)),
    ],
)
def test_large_maps_are_read_in_blocks(
    shape: tuple[int, int, int], block: tuple[int, int], blocks: tuple[int, int]
) -> None:
    """Blocks are as large as eight a side make them, and no larger than four."""
    (tap,) = with_blocks([Tap(name="x", op="Relu", shape=shape)])
    assert tap.pooled
    assert tap.strides == block
    assert tap.sampled == blocks


def test_small_maps_and_taps_without_a_map_are_read_whole() -> None:
    """Vectors and channels-last tensors have no rows and columns to put together."""
    taps = (
        Tap(name="small", op="Relu", shape=(64, 8, 8)),
        Tap(name="vector", op="Relu", shape=(4096,)),
        Tap(name="tokens", op="Relu", shape=(64, 64, 8), channel_axis=2),
    )
    assert with_blocks(taps) == taps


def test_other_labels_are_not_taken_for_other_pixels(
    opened: Open, digits: Dataset, digits_model: Path, tmp_path: Path
) -> None:
    """Labels that count from elsewhere, and scores of which the lowest wins, are called that."""
    given = digits.take(np.arange(300))
    shifted = np.minimum(given.labels + 1, 9)
    save_dataset(Dataset(images=given.images, labels=shifted, source="s"), tmp_path / "s.npz")
    with pytest.raises(DataError, match="as they are labelled, and would"):
        opened(data=tmp_path / "s.npz")
    model = onnx.load(digits_model)
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits"], ["distances"]))
    model.graph.output[0].name = "distances"
    onnx.save(model, tmp_path / "far.onnx")
    with pytest.raises(DataError, match="the lowest score is mostly that of the right class"):
        opened(model=tmp_path / "far.onnx")

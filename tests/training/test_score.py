"""Offline verdicts on a data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.errors import ImageError, ModelMismatchError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import DataError
from reluguard.training.progress import Progress
from reluguard.training.score import BATCH, score_data

COUNT = 2 * BATCH + 3


@pytest.fixture
def data(make_images: Callable[..., Images], tmp_path: Path) -> Dataset:
    """Images in more than two batches, saved as data.npz."""
    images = make_images(COUNT, seed=7)
    made = Dataset(images=images, labels=np.arange(COUNT) % 4, source="test")
    save_dataset(made, tmp_path / "data.npz")
    return made


def score(model: Path, guard: Path, folder: Path) -> dict[str, int]:
    return score_data(
        model,
        guard,
        str(folder / "data.npz"),
        folder / "s.npz",
        threads=1,
        progress=Progress(),
    )


def test_verdicts_are_the_guards_own(
    tiny_model: Path, tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """Row i is what the guard says of image i, whole batches or not."""
    summary = score(tiny_model, tiny_guard, tmp_path)
    verdicts = Guard.open(tiny_model, tiny_guard, threads=1).inspect(data.images)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert_array_equal(arrays["prediction"], verdicts.prediction)
        assert_array_equal(arrays["labels"], data.labels)
        assert_array_equal(arrays["is_adversarial"], verdicts.is_adversarial)
        for name in ("score", "likelihood", "p_value", "evidence"):
            np.testing.assert_allclose(arrays[name], getattr(verdicts, name), atol=1e-4)
        flagged = int(arrays["is_adversarial"].sum())
    assert summary == {"images": COUNT, "flagged": flagged}


def test_arrays_are_of_the_stated_types(
    tiny_model: Path, tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """Names, dtypes and ranges are a contract."""
    del data
    score(tiny_model, tiny_guard, tmp_path)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        found = {name: (str(arrays[name].dtype), arrays[name].shape[:1]) for name in arrays.files}
        assert found == {
            "prediction": ("int64", (COUNT,)),
            "score": ("float32", (COUNT,)),
            "likelihood": ("float32", (COUNT,)),
            "p_value": ("float64", (COUNT,)),
            "is_adversarial": ("bool", (COUNT,)),
            "evidence": ("float32", (COUNT,)),
            "labels": ("int64", (COUNT,)),
        }
        assert 0 <= arrays["likelihood"].min() <= arrays["likelihood"].max() <= 1
        assert 0 < arrays["p_value"].min() <= arrays["p_value"].max() <= 1
        assert_array_equal(arrays["is_adversarial"], arrays["p_value"] <= 0.05)


def test_a_guard_of_another_model_is_refused(
    make_network: Callable[..., onnx.ModelProto], tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """Nothing is written."""
    del data
    onnx.save(make_network(seed=5), tmp_path / "other.onnx")
    with pytest.raises(ModelMismatchError, match="was fitted to the model with SHA-256"):
        score(tmp_path / "other.onnx", tiny_guard, tmp_path)
    assert not (tmp_path / "s.npz").exists()


def test_images_of_other_channels_are_refused(
    tiny_model: Path, tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """Colour images do not go into a grey model."""
    colour = Dataset(images=data.images.repeat(3, axis=3), labels=data.labels, source="test")
    save_dataset(colour, tmp_path / "data.npz")
    with pytest.raises(ImageError, match="expected uint8 images"):
        score(tiny_model, tiny_guard, tmp_path)


def test_missing_data_is_told(tiny_model: Path, tiny_guard: Path, tmp_path: Path) -> None:
    """The place that was named comes back in the message."""
    with pytest.raises(DataError, match=r"data\.npz"):
        score(tiny_model, tiny_guard, tmp_path)

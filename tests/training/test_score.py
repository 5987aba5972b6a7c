"""Offline verdicts on a data set."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.errors import ImageError, ModelMismatchError, SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.training.data.case import chunk_of_values
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import DataError
from reluguard.training.progress import Progress
from reluguard.training.score import score as columns
from reluguard.training.score import score_data

COUNT = 2 * chunk_of_values(64) + 3  # digits of 8 x 8


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
            "unscored": ("bool", (COUNT,)),
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


def test_every_table_says_the_same(
    tiny_model: Path, tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """npz, CSV, JSON lines, Parquet and a data frame: each holds the verdicts, digit by digit."""
    pandas = pytest.importorskip("pandas", reason="tables of this kind need pandas")
    found = columns(tiny_model, tiny_guard, str(tmp_path / "data.npz"), threads=1)
    for ending in ("npz", "csv", "jsonl", "parquet"):
        score_data(
            tiny_model,
            tiny_guard,
            str(tmp_path / "data.npz"),
            tmp_path / f"t.{ending}",
            threads=1,
            progress=Progress(),
        )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    parquet = pandas.read_parquet(tmp_path / "t.parquet")
    assert len(rows) == len(lines) == len(parquet) == COUNT
    for name in ("score", "likelihood", "p_value", "prediction"):
        kind = found[name].dtype
        assert_array_equal(np.array([row[name] for row in rows]).astype(kind), found[name])
        assert_array_equal(np.array([line[name] for line in lines]).astype(kind), found[name])
        assert_array_equal(parquet[name].to_numpy(), found[name])
    assert [row["is_adversarial"] == "true" for row in rows] == found["is_adversarial"].tolist()
    evidence = np.array([line["evidence"] for line in lines], np.float32)
    assert_array_equal(evidence, found["evidence"])
    assert_array_equal(np.stack(parquet["evidence"]), found["evidence"])
    places = [float(row["evidence_0"]) for row in rows]
    assert_array_equal(np.array(places, np.float32), found["evidence"][:, 0])
    frame = Guard.open(tiny_model, tiny_guard, threads=1).inspect(data.images[:5]).to_pandas()
    np.testing.assert_allclose(frame["score"], found["score"][:5], atol=1e-4)


def test_pictures_without_labels_are_scored_by_name(
    tiny_model: Path, tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """A file, a folder of files and a pattern; each verdict stands beside its file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for row in range(5):
        image = data.images[row]
        flat = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(flat).save(folder / f"{row}.png")
    (folder / "notes.txt").write_text("no picture")
    expected = Guard.open(tiny_model, tiny_guard, threads=1).inspect(data.images[:5])
    for place in (folder, tmp_path / "photos" / "*", f"{tmp_path}/**/[0-9].png"):
        found = columns(tiny_model, tiny_guard, str(place), threads=1)
        assert [Path(name).name for name in found["file"]] == [f"{row}.png" for row in range(5)]
        assert "labels" not in found
        np.testing.assert_allclose(found["score"], expected.score, atol=1e-4)
    assert len(columns(tiny_model, tiny_guard, folder / "3.png", threads=1)["score"]) == 1


def test_a_table_goes_to_standard_output(
    tiny_model: Path, tiny_guard: Path, data: Dataset, tmp_path: Path
) -> None:
    """Only the table: what people are told goes elsewhere."""
    del data
    words = ["score", "--model", tiny_model, "--guard", tiny_guard, "--out", "-"]
    words += ["--data", tmp_path / "data.npz", "--threads", 1]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == COUNT
    words += ["--format", "jsonl"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert [json.loads(line)["labels"] for line in done.stdout.splitlines()][:4] == [0, 1, 2, 3]


def test_a_table_of_another_kind_is_refused_before_any_work(
    tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """The four endings are named, and data that are not there are never looked for."""
    with pytest.raises(SettingsError, match=r"\.npz, \.csv, \.jsonl, \.parquet, got 's\.xlsx'"):
        score_data(
            tiny_model,
            tiny_guard,
            "nowhere",
            tmp_path / "s.xlsx",
            threads=1,
            progress=Progress(),
        )
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="found 1 files that are no images"):
        columns(tiny_model, tiny_guard, f"{tmp_path}/*.txt", threads=1)

"""A tiny network with images it answers right, for the analyses that need one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.recording import Recorder
from reluguard.training.data.dataset import Dataset, save_dataset


@pytest.fixture(scope="session")
def lively_model(
    make_network: Callable[..., onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An ONNX file of a tiny network."""
    path = tmp_path_factory.mktemp("lively") / "lively.onnx"
    onnx.save(make_network(classes=3, seed=12), path)
    return path


@pytest.fixture(scope="session")
def lively_data(lively_model: Path, make_images: Callable[..., Images]) -> Path:
    """An .npz of images for `lively_model`, labelled by what it answers: 60 per class."""
    images = make_images(1500, seed=3)
    production = load_production(lively_model)
    spec = infer_spec(production, (8, 8, 1))
    logits = Recorder(production, spec, find_taps(production, spec)).record(images).logits
    answers = logits.argmax(axis=1)
    classes, counts = np.unique(answers, return_counts=True)
    assert len(classes) > 1, f"choose another seed: answers {classes} {counts}"
    rows = np.concatenate([np.flatnonzero(answers == c)[:60] for c in classes])
    path = lively_model.parent / "lively.npz"
    save_dataset(
        Dataset(images=images[rows], labels=answers[rows].astype(np.int64), source="lively"), path
    )
    return path

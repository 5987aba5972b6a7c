"""Folders named as ImageNet names them: what `fit` is told of classes, all later commands know."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.data.classes import guard_data, known_classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError
from reluguard.training.explain import explain
from reluguard.training.fit import fit
from reluguard.training.models.given import Given
from reluguard.training.models.network import open_network
from reluguard.training.recipes import Recipe
from reluguard.training.red_team.target import open_target
from reluguard.training.retraining.attacked import read_attacked
from reluguard.training.retraining.original import Original

SYNSETS = tuple(f"n{90 - 7 * label:08}" for label in range(10))  # not in the order of the classes
NAMES = tuple(f"{synset} digit {label}" for label, synset in enumerate(SYNSETS))
FITTED = 7  # classes that the guard is fitted on


@dataclass(frozen=True, kw_only=True)
class Named:
    """A guard fitted on some of the classes, and images of others too."""

    model: Path
    fitted_on: Path
    others: Path
    classes: Path
    guard: GuardArtifact
    unseen: Dataset


def written(data: Dataset, root: Path, labels: range, *, prefix: str = "") -> Path:
    """Write a folder of PNG files per class, named by its synset."""
    for row, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        if label in labels:
            folder = root / f"{prefix}{SYNSETS[label]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(folder / f"{row:03}.png")
    return root


@pytest.fixture(scope="module")
def named(
    digits: Dataset,
    digits_model: Path,
    brief_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Named:
    folder = tmp_path_factory.mktemp("named")
    classes = folder / "names.txt"
    classes.write_text("\n".join(NAMES))
    unseen = digits.take(np.arange(240, 300))
    root = written(digits.take(np.arange(240)), folder / "data", range(FITTED))
    guard = fit(
        digits_model, root, out=folder / "guard", recipe=brief_recipe, classes=classes,
        threads=1, workers=1,
    )  # fmt: skip
    return Named(
        model=digits_model,
        fitted_on=root,
        others=written(unseen, folder / "others", range(2, 10)),
        classes=classes,
        guard=guard.artifact,
        unseen=unseen,
    )


def run(*words: object) -> dict[str, object]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_guard_labels_folders_that_it_was_not_fitted_on(named: Named) -> None:
    """Its names are of all classes, those without an image in the fit among them."""
    data = guard_data(named.others, Guard.open(named.model, named.guard.path, threads=1))
    assert data.folders == {SYNSETS[label]: label for label in range(2, 10)}
    files = sorted(named.others.rglob("*.png"))
    wanted = [SYNSETS.index(file.parent.name) for file in files]
    assert data.labels.tolist() == wanted


def test_every_command_labels_alike(named: Named, tmp_path: Path) -> None:
    """Score, evaluate, red team, look-ins and retraining: by what the guard knows."""
    wanted = [SYNSETS.index(file.parent.name) for file in sorted(named.others.rglob("*.png"))]
    guard = named.guard.path
    asked = ("--model", named.model, "--guard", guard, "--data", named.others)
    run("score", *asked, "--out", tmp_path / "verdicts.npz")
    with np.load(tmp_path / "verdicts.npz") as verdicts:
        assert verdicts["labels"].tolist() == wanted
        assert (verdicts["prediction"] == verdicts["labels"]).mean() > 0.8
    few = ("--attack", "fgsm-linf-8", "--benign", "sign-2", "--matrix-rows", 0, "--workers", 1)
    card = run("evaluate", *asked, *few, "--out", tmp_path / "card", "--limit", 30)
    accuracy = card["clean"]["accuracy"]["value"]  # type: ignore[index] # JSON has no types
    assert accuracy > 0.8
    target = open_target(named.model, guard, named.others, seed=0, limit=10)
    assert set(target.labels.tolist()) <= set(range(2, 10))
    network = open_network(
        Given(model=named.model, data=named.others, guard=guard), folder=tmp_path
    )
    assert network.dataset.labels.tolist() == wanted
    assert network.names == NAMES
    assert network.more(named.fitted_on).folders == {s: i for i, s in enumerate(SYNSETS[:FITTED])}
    shown = next(named.others.rglob("*.png"))
    found = explain(named.model, guard, named.others, shown, tmp_path / "why.png", threads=1)
    assert set(found.neighbour_labels.ravel().tolist()) <= set(wanted)
    assert Original(named.guard).dataset.folders == {s: i for i, s in enumerate(SYNSETS[:FITTED])}


def test_attacked_images_come_in_folders_per_class(named: Named, tmp_path: Path) -> None:
    """What `retrain --new` takes: true classes by the guard's names, rows that fool the model."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-150, 150, named.unseen.images.shape)
    loud = np.clip(named.unseen.images + noise, 0, 255).astype(np.uint8)
    root = written(replace(named.unseen, images=loud), tmp_path / "noise", range(10))
    manifest = named.guard.manifest
    reader = Reader(load_production(named.model), manifest.input, manifest.taps, threads=1)
    (fresh,) = read_attacked(root, reader, known_classes(manifest))
    assert fresh.name == "noise"
    assert 0 < len(fresh.labels) < len(loud)
    assert (fresh.logits.argmax(axis=1) != fresh.labels).all()
    assert len(fresh.labels) + fresh.dropped["answered right"] == len(loud)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder of them per class"):
        read_attacked(tmp_path / "empty", reader)


def test_without_a_guard_it_is_said(named: Named, tmp_path: Path) -> None:
    """A file of names where there is no guard, and the other names where they differ."""
    given = Given(model=named.model, data=named.others)
    with pytest.raises(DataError, match="WordNet's numbers of the folders are"):
        open_network(given, folder=tmp_path)
    told = open_network(replace(given, classes=named.classes), folder=tmp_path)
    assert told.dataset.folders == {SYNSETS[label]: label for label in range(2, 10)}
    assert told.names == NAMES


def test_foreign_folders_are_refused_in_a_line(named: Named, tmp_path: Path) -> None:
    """The line names the folder that the guard doesn't know, and what to give."""
    foreign = shutil.copytree(named.others, tmp_path / "foreign")
    (foreign / SYNSETS[2]).rename(foreign / "teapot")
    words = ["score", "--model", named.model, "--guard", named.guard.path, "--data", foreign]
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "v.npz")])
    assert done.exit_code == 1
    said = " ".join((done.stderr or str(done.exception)).split())
    assert "10 classes the folders are: teapot" in said
    assert "Give --classes FILE" in said
    assert not (tmp_path / "v.npz").exists()

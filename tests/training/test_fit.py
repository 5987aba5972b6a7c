"""The main job on digits: a guard from a model and images, whatever happens meanwhile."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.head import threshold_at
from reluguard.detector.pixels.pipeline import Crop, Pipeline
from reluguard.detector.runtime import Guard
from reluguard.training.attacks import FGSM, PGD
from reluguard.training.data.dataset import Dataset, load_data, save_dataset
from reluguard.training.data.preprocessing import Preprocessing
from reluguard.training.data.reading import Reading
from reluguard.training.errors import AttackError, DataError, TwinError
from reluguard.training.fit import fit
from reluguard.training.progress import Progress, Step, progress_of
from reluguard.training.recipes import Portion, Recipe
from tests.training.fitting import Order
from tests.training.following import assert_told_to_the_end

ROOT = Path(__file__).resolve().parents[2]


def shards(settings: Order) -> dict[tuple[str, str], dict[str, NDArray[np.generic]]]:
    """Return the arrays of all shards by slug and split."""
    found: dict[tuple[str, str], list[dict[str, NDArray[np.generic]]]] = {}
    for file in sorted(settings.shards.glob("*/*.npz")):
        with np.load(file) as arrays:
            key = (file.parent.name, file.name.split("-")[0])
            found.setdefault(key, []).append({name: arrays[name] for name in arrays.files})
    return {
        key: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for key, parts in found.items()
    }


def head_bits(folder: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(folder / "head.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same_head(one: Path, other: Path) -> None:
    left, right = head_bits(one), head_bits(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert_array_equal(value, right[name], err_msg=name)


def test_the_guard_works(fitted: GuardArtifact, fit_settings: Order) -> None:
    """It opens on its model, tells attacked from clean, and its answers are the model's."""
    guard = Guard.open(fit_settings.model, fit_settings.out, threads=1)
    tests = {
        slug: arrays for (slug, split), arrays in shards(fit_settings).items() if split == "test"
    }
    clean = guard.inspect(tests["clean"]["images"].astype(np.uint8))
    assert_array_equal(clean.prediction, tests["clean"]["logits"].argmax(axis=1))
    kept = tests["fgsm-linf-48"]["success"].astype(np.bool_)
    attacked = guard.inspect(tests["fgsm-linf-48"]["images"][kept].astype(np.uint8))
    assert np.mean(attacked.score[:, None] > clean.score) > 0.85
    assert clean.is_adversarial.mean() < 0.25
    assert fitted.manifest.fpr == 0.05
    assert fitted.manifest.calibration_images == len(fitted.head.clean_scores)


def test_the_folder_is_small_and_whole(fitted: GuardArtifact, fit_settings: Order) -> None:
    """Its files are those of the format, reports included, under a megabyte, nothing beside."""
    out = fit_settings.out
    names = {"manifest.json", "head.npz", "golden.npz", "report.json", "report.html"}
    assert {file.name for file in out.iterdir()} == names
    assert sum(file.stat().st_size for file in out.iterdir()) < 1_000_000
    assert {path.name for path in out.parent.iterdir()} == {"guard", "guard.work"}
    assert read_guard(out).digest == fitted.digest
    assert json.loads((out / "report.json").read_text()) == fitted.manifest.metrics


def test_no_source_is_in_two_splits(fitted: GuardArtifact, fit_settings: Order) -> None:
    """An attacked twin is where its source is, and calibration images are nowhere else."""
    seen: dict[str, set[int]] = {"fit": set(), "test": set()}
    for (slug, split), arrays in shards(fit_settings).items():
        sources = set(arrays["sources"].tolist())
        if slug == "clean":
            seen[split] = sources
    for (_, split), arrays in shards(fit_settings).items():
        assert set(arrays["sources"].tolist()) <= seen[split]
    assert not seen["fit"] & seen["test"]
    images = fitted.manifest.provenance["images"]
    assert len(seen["fit"]) == images["fit"]
    assert len(seen["test"]) == images["test"]
    assert images["fit"] + images["calibrate"] + images["test"] == 300


def test_sources_are_what_they_say(
    fitted: GuardArtifact, fit_settings: Order, digits: Dataset
) -> None:
    """Every attacked image is within its budget of the source it names, in whole pixels."""
    del fitted
    budgets = {"fgsm-linf-48": 48, "pgd-linf-24-4": 24, "square-linf-56": 56}
    then = "+gaussian-3"
    found = {key: shard for key, shard in shards(fit_settings).items() if then not in key[0]}
    assert {slug for slug, _ in found} == {*budgets, "clean", "noise"}
    for (slug, _), arrays in found.items():
        assert arrays["images"].dtype == np.uint8
        sources = arrays["sources"].astype(np.int64)
        assert_array_equal(arrays["labels"], digits.labels[sources])
        moved = np.abs(arrays["images"].astype(int) - digits.images[sources])
        if slug in budgets:
            assert moved.max() == budgets[slug]
            assert (moved.reshape(len(moved), -1).max(axis=1) > 0).any()
        if slug == "clean":
            assert moved.max() == 0


def test_attacks_start_where_the_model_is_right(fitted: GuardArtifact, fit_settings: Order) -> None:
    """An image that is answered wrong anyway is not attacked."""
    del fitted
    found = shards(fit_settings)
    for split in ("fit", "test"):
        clean = found["clean", split]
        wrong = clean["logits"].argmax(axis=1) != clean["labels"]
        assert wrong.any()
        attacked = set(found["fgsm-linf-48", split]["sources"].tolist())
        assert attacked == set(clean["sources"][~wrong].tolist())


def test_calibration_is_on_clean_images_that_nothing_else_saw(
    fitted: GuardArtifact, fit_settings: Order
) -> None:
    """The clean scores are those of exactly the images that are in no shard."""
    data = load_data(fit_settings.data)
    used = np.concatenate([arrays["sources"] for arrays in shards(fit_settings).values()])
    rest = np.setdiff1d(np.arange(len(data)), used)
    assert len(rest) == fitted.manifest.calibration_images
    guard = Guard.open(fit_settings.model, fit_settings.out, threads=1)
    scores = np.sort(guard.inspect(data.images[rest]).score)
    np.testing.assert_allclose(scores, fitted.head.clean_scores, atol=1e-3)
    for rate, limit in fitted.manifest.thresholds.items():
        assert limit == threshold_at(float(rate), fitted.head.clean_scores)


def test_the_manifest_says_whence(fitted: GuardArtifact, fit_settings: Order) -> None:
    """Model, data, recipe, seed and versions are on record."""
    manifest = fitted.manifest
    assert manifest.model_sha256 == hashlib.sha256(fit_settings.model.read_bytes()).hexdigest()
    assert manifest.provenance["data"]["sha256"] == load_data(fit_settings.data).digest
    assert manifest.provenance["seed"] == 0
    assert [a["slug"] for a in manifest.provenance["recipe"]["attacks"]] == [
        "fgsm-linf-48",
        "pgd-linf-24-4",
        "square-linf-56",
    ]
    assert {"torch", "numpy", "onnxruntime"} <= manifest.provenance["versions"].keys()


def test_golden_images_are_of_both_kinds(fitted: GuardArtifact) -> None:
    """Clean and attacked images are replayed before a guard goes live."""
    assert len(fitted.golden.images) == 8
    assert fitted.golden.score[:4].mean() < fitted.golden.score[4:].mean()


class Told(Progress):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self._current = ""

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Note a stage."""
        del expected_s
        self._current = title
        self.totals[title], self.done[title] = total, 0

    def advance(self, units: int) -> None:
        """Count."""
        self.done[self._current] += units


def test_a_second_fit_goes_on_from_the_shards(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """With the work kept no shard is made anew, bars fill up, and the head is the same bits."""
    del fitted
    work = fit_settings.shards
    stamps = {file: file.stat().st_mtime_ns for file in work.rglob("*.npz")}
    told = Told()
    replace(fit_settings, out=tmp_path / "again", work=work).run(told)
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*.npz")} == stamps
    assert told.done == told.totals
    assert set(told.totals) == {
        "model and data",
        "attack and read",
        "choose taps",
        "head",
        "report card",
    }
    assert_same_head(fit_settings.out, tmp_path / "again")


def test_a_fresh_fit_is_the_same_guard(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """The same settings give the same head from nothing, and a callback is told of all of it."""
    del fitted
    told: list[Step] = []
    replace(fit_settings, out=tmp_path / "same").run(progress_of(told.append))
    assert_told_to_the_end(
        told, "model and data", "attack and read", "choose taps", "head", "report card"
    )
    assert_same_head(fit_settings.out, tmp_path / "same")


def test_a_failed_refit_leaves_the_old_guard(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """An error on the way leaves the guard that is there as it was, and a shard is made again."""
    settings = replace(fit_settings, out=tmp_path / "g")
    shutil.copytree(fit_settings.out, settings.out)
    shutil.copytree(fit_settings.shards, settings.shards)
    shard = next(settings.shards.glob("noise/fit-*.npz"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"expected a shard, .* is not one: remove it to make"):
        settings.run()
    assert read_guard(settings.out).digest == fitted.digest
    shard.unlink()
    assert settings.run().digest != fitted.digest  # written anew
    assert_same_head(fit_settings.out, settings.out)


def test_work_of_another_plan_is_refused(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """Shards of another seed are not mixed in; the message says what differs."""
    del fitted
    settings = replace(fit_settings, out=tmp_path / "g", work=fit_settings.shards, seed=9)
    with pytest.raises(DataError, match="holds work of another seed: give another --work folder"):
        settings.run()


def test_head_settings_need_no_new_shards(
    fitted: GuardArtifact, fit_settings: Order, brief_recipe: Recipe, tmp_path: Path
) -> None:
    """Another head, weight, rate or prevalence is fitted on the same shards."""
    del fitted
    heavier = replace(
        brief_recipe,
        attacks=tuple(replace(p, weight=2.0) for p in brief_recipe.attacks[:1])
        + brief_recipe.attacks[1:],
        head=replace(brief_recipe.head, units=8),
    )
    artifact = replace(
        fit_settings,
        out=tmp_path / "g",
        work=fit_settings.shards,
        recipe=heavier,
        target_fpr=0.1,
        prevalence=0.01,
    ).run()
    assert artifact.head.weights[0].shape[1] == 16  # two members of eight
    assert artifact.manifest.fpr == 0.1
    assert "0.1" in artifact.manifest.metrics["clean"]["false_positive_rate"]


def test_without_a_twin_black_box_attacks_are_left(fit_settings: Order, tmp_path: Path) -> None:
    """`none` fits a guard on what needs no gradients."""
    settings = replace(fit_settings, out=tmp_path / "g", twin="none")
    artifact = settings.run()
    assert list(artifact.manifest.metrics["attacks"]) == ["square-linf-56"]
    assert not (settings.shards / "fgsm-linf-48").exists()


def test_a_recipe_of_gradients_needs_a_twin(fit_settings: Order, tmp_path: Path) -> None:
    """Nothing to attack with is an error that names the recipe."""
    recipe = Recipe(
        name="white", attacks=(Portion(FGSM(size=8.0)), Portion(PGD(size=8.0))), benign=()
    )
    with pytest.raises(AttackError, match="recipe white has no attack that works without a twin"):
        replace(fit_settings, out=tmp_path / "g", recipe=recipe, twin="none").run()


def test_a_twin_that_disagrees_is_refused(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No guard is fitted with another model's gradients; a second try with a good one works.

    It is of another seed, which gives another head.
    """
    (tmp_path / "wrong_twin.py").write_text(
        "import torch\n\ndef make():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = replace(fit_settings, out=tmp_path / "g", twin="wrong_twin:make", seed=1)
    with pytest.raises(TwinError, match="to answer as the model within"):
        settings.run()
    assert not settings.out.exists()
    other = replace(settings, twin="auto").run()
    assert not np.array_equal(other.head.weights[0], fitted.head.weights[0])


def test_attacks_that_never_succeed_are_told(
    fit_settings: Order, brief_recipe: Recipe, tmp_path: Path
) -> None:
    """Without one success there is nothing to learn."""
    weak = replace(brief_recipe, attacks=(Portion(FGSM(size=0.4)),))  # rounds to no change at all
    with pytest.raises(DataError, match="at least one attack that succeeded"):
        replace(fit_settings, out=tmp_path / "g", recipe=weak).run()
    assert not (tmp_path / "g").exists()


def test_too_low_a_rate_is_refused_before_any_attack(fit_settings: Order, tmp_path: Path) -> None:
    """The number of images needed is known at once."""
    settings = replace(fit_settings, out=tmp_path / "g", target_fpr=0.001)
    with pytest.raises(
        DataError, match="needs 999 calibration images, which is 3330 images in all"
    ):
        settings.run()
    assert not settings.shards.exists()


def test_wrong_preprocessing_is_refused_before_any_attack(
    fit_settings: Order, tmp_path: Path
) -> None:
    """A model at chance is not attacked."""
    settings = replace(fit_settings, out=tmp_path / "g", preprocessing=Preprocessing(mean=(3.0,)))
    with pytest.raises(DataError, match="or go on with --preprocessing-as-given"):
        settings.run()
    assert not settings.shards.exists()


def test_one_class_is_refused(fit_settings: Order, digits: Dataset, tmp_path: Path) -> None:
    """Images of one class are no data set."""
    save_dataset(digits.take(digits.labels == 1), tmp_path / "ones.npz")
    settings = replace(fit_settings, out=tmp_path / "g", data=str(tmp_path / "ones.npz"))
    with pytest.raises(DataError, match="at least 2 classes"):
        settings.run()


def test_a_place_that_is_taken_is_refused_first(fit_settings: Order, tmp_path: Path) -> None:
    """A folder of other files is not replaced, and no work is done for it."""
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "thesis.tex").write_text("years of work")
    settings = replace(fit_settings, out=tmp_path / "g")
    with pytest.raises(GuardError, match="holds other files"):
        settings.run()
    assert not settings.shards.exists()
    assert (tmp_path / "g" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prevalence": 0.0}, "a prevalence between 0 and 1, got 0"),
        ({"prevalence": 1.0}, "a prevalence between 0 and 1, got 1"),
        ({"prevalence": float("nan")}, "a prevalence between 0 and 1, got nan"),
        ({"seed": -1}, "a seed of 0 or more, got -1"),
        ({"workers": 0}, "1 or more workers, got 0"),
    ],
)
def test_settings_are_checked(fit_settings: Order, wrong: dict[str, float], message: str) -> None:
    """What has no meaning is refused before anything is opened."""
    with pytest.raises(SettingsError, match=message):
        replace(fit_settings, model=Path("nowhere.onnx"), **wrong).run()  # type: ignore[arg-type]  # any field by name


# Fits on digits by the brief recipe in a process of its own, as a user's script would.
SCRIPT = """
import resource, sys

import reluguard
from reluguard.training.attacks import FGSM, PGD
from reluguard.training.changes import GaussianNoise
from reluguard.training.errors import DataError
from reluguard.training.head.fit import HeadSettings
from reluguard.training.recipes import Portion, Recipe

recipe = Recipe(
    name="small",
    attacks=(Portion(FGSM(size=48.0)), Portion(PGD(size=24.0, steps=4))),
    benign=(Portion(GaussianNoise(sigma=9.0)),),
    head=HeadSettings(units=16, epochs=6),
    fit=0.5, calibrate=0.3, test=0.2,
)
model, data, out, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    reluguard.fit(model, data, out=out, recipe=recipe, threads=1, workers=1)
except OSError as error:
    sys.exit(f"{type(error).__name__}: {error.strerror}")
"""


def run_script(settings: Order, out: Path, limit: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(settings.model), settings.data, str(out), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("limit", [2_000, 25_000], ids=["a shard", "the guard"])
def test_a_full_disk_leaves_no_half_guard(fit_settings: Order, tmp_path: Path, limit: int) -> None:
    """Files that can't be written are one clear error, nothing is left half, and a retry works."""
    out = tmp_path / "g"
    done = run_script(fit_settings, out, limit)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["g.work"]
    assert not list((tmp_path / "g.work").rglob(".*"))
    done = run_script(fit_settings, out, 0)
    assert done.returncode == 0, done.stderr
    read_guard(out)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_in_the_middle_is_resumed(fit_settings: Order, tmp_path: Path, workers: int) -> None:
    """Killed while it makes shards, a fit leaves no guard and no process; then it ends as usual."""
    out = tmp_path / "killed"

    def command(folder: Path, *, processes: int) -> list[str]:
        return [
            *(sys.executable, "-m", "reluguard", "fit", "--recipe", "digits", "--json"),
            *("--model", str(fit_settings.model), "--data", fit_settings.data),
            *("--out", str(folder), "--threads", "1", "--workers", str(processes)),
        ]

    with subprocess.Popen(
        command(out, processes=workers), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as fit:
        work = tmp_path / "killed.work"
        while fit.poll() is None and len(list(work.glob("*/*.npz"))) < 3:
            os.sched_yield()
        os.kill(fit.pid, signal.SIGKILL)
        fit.communicate(timeout=120)  # ends when the last process that holds the pipe does
    assert fit.returncode == -signal.SIGKILL
    assert not out.exists()
    made = {file: file.stat().st_mtime_ns for file in work.glob("*/*.npz")}
    assert len(made) >= 3
    for folder in (out, tmp_path / "whole"):
        done = subprocess.run(
            command(folder, processes=1), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["guard"] == str(folder)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert_same_head(out, tmp_path / "whole")


def test_files_go_their_own_way_from_folder_to_server(
    digits_model: Path, digits: Dataset, brief_recipe: Recipe, tmp_path: Path
) -> None:
    """A guard fitted on files that are cut cuts the files it is shown, and labels folders alike."""
    images, labels = digits.images[:300], digits.labels[:300]
    padded = np.pad(images, ((0, 0), (3, 4), (3, 4), (0, 0)), constant_values=99)
    root = tmp_path / "photographs"
    for i, (image, label) in enumerate(zip(padded, labels, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(root / str(label) / f"{i:03}.png")
    cut = Preprocessing(files=Pipeline(crop=Crop(height=9, width=9)))
    with pytest.raises(SettingsError, match="expected files to become images of 8 x 8"):
        fit(digits_model, (images, labels), out=tmp_path / "no", preprocessing=cut)
    cut = Preprocessing(files=Pipeline(crop=Crop(height=8, width=8, rounding="down")))
    guard = fit(
        digits_model,
        root,
        out=tmp_path / "guard",
        recipe=brief_recipe,
        preprocessing=cut,
        threads=1,
        workers=1,
    )
    files = sorted(root.rglob("*.png"))
    middle = np.stack([np.asarray(Image.open(file))[3:11, 3:11, None] for file in files])
    read = load_data(str(root), Reading.of_guard(guard.artifact.manifest))
    np.testing.assert_array_equal(read.images, middle)
    assert read.folders == {str(label): label for label in range(10)}
    served = guard.inspect_encoded([file.read_bytes() for file in files[:20]])
    np.testing.assert_array_equal(served.score, guard.inspect(middle[:20]).score)

import errno
import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import GuardArtifact, read_guard, write_guard
from reluguard.detector.errors import ModelMismatchError
from reluguard.detector.head import Head, threshold_at
from reluguard.detector.images import Images
from reluguard.detector.metrics import GateLimits
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.history import ShelfError
from reluguard.detector.shelf.shelf import current, promote
from reluguard.training.attacks import FGSM, PGD, Patch, Victim
from reluguard.training.changes import GaussianNoise
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import AttackError, DataError
from reluguard.training.head.economy import Economy
from reluguard.training.head.fit import HeadSettings
from reluguard.training.pages.gate_text import print_gate
from reluguard.training.progress import Step, progress_of
from reluguard.training.recipes import Portion, Recipe
from reluguard.training.retrain import retrain
from reluguard.training.retraining.captured import read_captured
from reluguard.training.retraining.gate import gate
from reluguard.training.retraining.kept import open_kept
from reluguard.training.statistics.metrics import auroc
from tests.training.capturing import write_captures
from tests.training.fitting import Order
from tests.training.following import assert_told_to_the_end

RECIPE = Recipe(
    name="small",
    attacks=(Portion(FGSM(size=48.0)), Portion(PGD(size=40.0, steps=5))),
    benign=(Portion(GaussianNoise(sigma=16.0)),),
    head=HeadSettings(epochs=10, batch=128),
    fit=0.5,
    calibrate=0.3,
    test=0.2,
)
GUARDED = 900
FAST = GateLimits(rounds=3, cost=10.0)


@dataclass(frozen=True)
class Champion:
    """A guard that has never seen a patch, and 300 clean and patched images it does not know."""

    model: Path
    guard: Path
    data: Path
    clean: Dataset
    patched: Dataset


@pytest.fixture(scope="module")
def trained(
    digits: Dataset,
    digits_model: Path,
    digits_victim: Victim,
    tmp_path_factory: pytest.TempPathFactory,
) -> Champion:
    folder = tmp_path_factory.mktemp("champion")
    data = folder / "digits.npz"
    save_dataset(digits.take(np.arange(GUARDED)), data)
    settings = Order(
        model=digits_model,
        data=str(data),
        out=folder / "guard",
        recipe=RECIPE,
        workers=1,
        threads=1,
    )
    settings.run()
    clean = digits.take(np.arange(GUARDED, GUARDED + 300))
    result = Patch(steps=10)(clean.images, clean.labels, digits_victim, seed=0)
    fooled = result.prediction != clean.labels
    patched = Dataset(images=result.images, labels=clean.labels, source="patch").take(fooled)
    return Champion(digits_model, settings.out, data, clean, patched)


@pytest.fixture
def champion(trained: Champion, tmp_path: Path) -> Champion:
    """The same with a guard and a harvest of this test's own."""
    shutil.copytree(trained.guard.with_name("guard.work"), tmp_path / "guard.work")
    there = read_guard(trained.guard)
    assert there.manifest.provenance["work"] == str(trained.guard.with_name("guard.work"))
    provenance = {**there.manifest.provenance, "work": str(tmp_path / "guard.work")}
    write_guard(
        tmp_path / "guard",
        manifest=replace(there.manifest, provenance=provenance),
        head=there.head,
        golden=there.golden,
    )
    return replace(trained, guard=tmp_path / "guard")


def detection(case: Champion, guard: GuardArtifact, attacked: Images) -> float:
    """Return AUROC of a guard on these images against clean ones nobody fitted on."""
    opened = Guard.open(case.model, guard.path, threads=1)
    return auroc(opened.inspect(case.clean.images).score, opened.inspect(attacked).score)


def test_a_new_attack_is_learned_and_no_old_one_forgotten(
    champion: Champion, tmp_path: Path
) -> None:
    """From 100 images; lineage and the gate's word are in the manifest, and the shelf takes it."""
    before = read_guard(champion.guard)
    shelf, work = tmp_path / "shelf", champion.guard.with_name("guard.work")
    promote(shelf, champion.guard, who="ann", why="first")
    new = tmp_path / "patch.npz"
    save_dataset(champion.patched.take(np.arange(100)), new)
    told: list[Step] = []
    found = retrain(
        shelf,
        champion.model,
        [new],
        tmp_path / "g2",
        work=work,
        limits=FAST,
        threads=1,
        progress=progress_of(told.append),
    )
    assert_told_to_the_end(told, "new images", "units", "gate")
    fresh = champion.patched.images[100:]
    assert detection(champion, found.guard, fresh) > detection(champion, before, fresh) + 0.05
    assert found.gate.passed, found.gate.reasons
    kinds = [row.what for row in found.gate.rows]
    assert kinds.count("old attack") == 2
    assert {"clean", "harmless", "new attack", "run time"} <= set(kinds)
    manifest = read_guard(tmp_path / "g2").manifest
    (step,) = manifest.provenance["lineage"]
    (unit,) = step.pop("units")
    assert step == {"parent": before.digest, "seed": 0, "added": ["patch"]}
    assert unit == found.units[0].to_json()
    assert manifest.metrics["gate"] == json.loads(json.dumps(found.gate.to_json()))
    assert manifest.metrics["gate"]["champion"] == before.digest
    assert manifest.calibration_images == before.manifest.calibration_images
    assert f"{manifest.fpr:g}" in manifest.thresholds
    assert promote(shelf, tmp_path / "g2", who="ann", why="patches").guard == found.guard.digest


@pytest.mark.slow
def test_a_guard_of_few_taps_is_retrained_from_the_same_harvest(
    champion: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --max-overhead chose is kept; captures of those taps join readings of all of them."""
    taps = read_guard(champion.guard).manifest.taps
    chosen = ((), (0, 1), *[()] * (len(taps) - 2))
    economy = Economy(
        asked=1.1, limit=1.1, chosen=chosen, plain_s=0.01, overhead={"1": 1.05}, lost=0.0
    )
    monkeypatch.setattr("reluguard.training.fitting.heads.choose_taps", lambda *_, **__: economy)
    work = champion.guard.with_name("guard.work")
    cheap = Order(
        model=champion.model,
        data=str(champion.data),
        out=tmp_path / "cheap",
        recipe=RECIPE,
        workers=1,
        threads=1,
        max_overhead=1.1,
        work=work,
    )
    first = cheap.run()
    assert len(first.manifest.taps) == 1
    case = replace(champion, guard=first.path)
    rows: list[tuple[Images, str | None]] = [
        (image, "attack:patch") for image in champion.patched.images[:100]
    ]
    folder = write_captures(tmp_path / "captured", case, rows)
    found = retrain(first.path, champion.model, [folder], tmp_path / "g2", limits=FAST, threads=1)
    assert found.guard.manifest.taps == first.manifest.taps
    fresh = champion.patched.images[100:]
    assert detection(case, found.guard, fresh) > detection(case, first, fresh)
    again = retrain(
        tmp_path / "g2",
        champion.model,
        [],
        tmp_path / "g3",
        attacks=["patch-6"],
        sources=60,
        limits=FAST,
        threads=1,
    )
    assert [one.name for one in open_kept(again.guard).added] == ["patch", "patch-6"]


@pytest.mark.slow
def test_the_harvest_is_not_made_again_and_the_images_may_go(
    champion: Champion, tmp_path: Path
) -> None:
    """A second retraining needs no image of the first fit, and finds what the first one added."""
    work = champion.guard.with_name("guard.work")
    stamps = {file: file.stat().st_mtime_ns for file in work.rglob("*.npz")}
    new = tmp_path / "patch.npz"
    save_dataset(champion.patched.take(np.arange(60)), new)
    first = retrain(champion.guard, champion.model, [new], tmp_path / "g2", limits=FAST, threads=1)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    save_dataset(champion.patched.take(np.arange(140)), new)
    gone = str(tmp_path / "gone.npz")
    second = retrain(
        tmp_path / "g2", champion.model, [new], tmp_path / "g3", data=gone, limits=FAST, threads=1
    )
    assert [one.name for one in open_kept(second.guard).added] == ["patch", "patch-2"]
    assert second.added[0].dropped["there already"] == 60
    assert len(second.guard.manifest.provenance["lineage"]) == 2
    rows = {row.name: row.what for row in second.gate.rows}
    assert (rows["patch"], rows["patch-2"]) == ("old attack", "new attack")
    with pytest.raises(DataError, match="140 were there already"):
        retrain(tmp_path / "g3", champion.model, [new], tmp_path / "g4", threads=1)
    assert first.guard.digest != second.guard.digest


def test_a_harvest_that_moved_with_its_guard_is_found(champion: Champion, tmp_path: Path) -> None:
    """Where the manifest names no folder that is there, the one beside the guard is taken."""
    artifact = read_guard(champion.guard)
    assert open_kept(artifact).workspace.folder == tmp_path / "guard.work"
    (tmp_path / "moved").mkdir()
    for name in ("guard", "guard.work"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = read_guard(tmp_path / "moved" / "guard")
    assert open_kept(moved).workspace.folder == tmp_path / "moved" / "guard.work"


def test_an_image_that_came_again_counts_once(champion: Champion, tmp_path: Path) -> None:
    """It is not both fitted on and judged by, whatever its request was called."""
    rows: list[tuple[Images, str | None]] = [
        (champion.patched.images[i % 40], "attack:patch") for i in range(100)
    ]
    folder = write_captures(tmp_path / "captured", champion, rows)
    (group,) = read_captured(folder, read_guard(champion.guard))
    assert (len(group.ids), group.dropped["seen before"]) == (40, 60)


def test_one_caller_does_not_decide(champion: Champion, tmp_path: Path) -> None:
    """Beyond so many rows under one label a caller's captures are left out and counted."""
    rows: list[tuple[Images, str | None]] = [
        (image, "attack:patch") for image in champion.patched.images[:60]
    ]
    folder = write_captures(tmp_path / "captured", champion, rows)
    with sqlite3.connect(folder / "capture.sqlite") as index:
        index.execute("UPDATE captures SET source = 'flood' WHERE row < 50")
    index.close()
    artifact = read_guard(champion.guard)
    (group,) = read_captured(folder, artifact, most_per_source=20)
    assert len(group.ids) == 30
    assert group.dropped["over its caller's share"] == 30
    (again,) = read_captured(folder, artifact, most_per_source=20)
    assert again.ids.tolist() == group.ids.tolist()


def test_a_locked_index_and_a_full_disk_leave_nothing_half_written(
    champion: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one clear error; no guard and no half of a shard is there afterwards."""
    rows: list[tuple[Images, str | None]] = [
        (image, "attack:patch") for image in champion.patched.images[:60]
    ]
    folder = write_captures(tmp_path / "captured", champion, rows)
    monkeypatch.setattr("reluguard.detector.captures.LOCK_S", 0.05)
    lock = sqlite3.connect(folder / "capture.sqlite")
    lock.execute("PRAGMA locking_mode=EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match="can't be read: database is locked"):
        retrain(champion.guard, champion.model, [folder], tmp_path / "g2", threads=1)
    lock.close()

    def full(file: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr("reluguard.training.harvest.workspace.write_file", full)
    with pytest.raises(OSError, match="No space left"):
        retrain(champion.guard, champion.model, [folder], tmp_path / "g2", threads=1)
    assert not (tmp_path / "g2").exists()
    assert not list(champion.guard.with_name("guard.work").glob("added/*/*"))


def test_labelled_captures_need_no_image(champion: Champion, tmp_path: Path) -> None:
    """Rates are enough; what has no label waits, a cut shard costs only its own rows."""
    rows: list[tuple[Images, str | None]] = [
        *((image, "attack:patch") for image in champion.patched.images[:100]),
        *((image, "clean") for image in champion.clean.images[:100]),
        *((image, None) for image in champion.clean.images[100:120]),
    ]
    folder = write_captures(tmp_path / "captured", champion, rows)
    with sqlite3.connect(folder / "capture.sqlite") as index:
        index.execute(
            "INSERT INTO captures (id, time, guard, model, score, p_value, prediction, stratum, "
            "weight, source, label, shard, row) SELECT 'lost', time, guard, model, score, p_value, "
            "prediction, stratum, weight, 'me', 'clean', 'cut.npz', 0 FROM captures LIMIT 1"
        )
    index.close()
    (folder / "shards" / "cut.npz").write_bytes((folder / "shards" / "0.npz").read_bytes()[:99])
    before = read_guard(champion.guard)
    found = retrain(
        champion.guard, champion.model, [folder], tmp_path / "g2", limits=FAST, threads=1
    )
    added = {one.name: one for one in found.added}
    assert added["labelled-clean"].dropped["shard damaged"] == 1
    assert added["labelled-clean"].fit + added["labelled-clean"].test == 100
    assert added["patch"].kind == "attack"
    assert added["patch"].fit % 5 == added["patch"].test % 5 == 0  # a request is not torn apart
    fresh = champion.patched.images[100:]
    assert detection(champion, found.guard, fresh) > detection(champion, before, fresh) + 0.05


@pytest.mark.slow
def test_an_attack_of_your_own_is_run_once(
    champion: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """module:Class attacks the original sources; its shards are there for the next time."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours_x.py").write_text(
        "from reluguard.training.attacks import FGSM\n\n\n"
        "def Strong():\n    return FGSM(size=70.0)\n"
    )
    options = {"attacks": ["ours_x:Strong"], "sources": 80, "limits": FAST, "threads": 1}
    found = retrain(champion.guard, champion.model, [], tmp_path / "g2", **options)  # type: ignore[arg-type]  # options of several types
    assert [one.name for one in found.added] == ["fgsm-linf-70"]
    shards = sorted(champion.guard.with_name("guard.work").glob("added/fgsm*/*.npz"))
    stamps = [file.stat().st_mtime_ns for file in shards]
    again = retrain(champion.guard, champion.model, [], tmp_path / "g3", **options)  # type: ignore[arg-type]  # as above
    assert [file.stat().st_mtime_ns for file in shards] == stamps
    assert again.added == found.added


def test_the_gate_refuses_what_forgets(
    champion: Champion, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head turned upside down loses every attack, and the table says by how much."""
    artifact = read_guard(champion.guard)
    head = artifact.head
    turned = replace(head, weights=(*head.weights[:-1], -head.weights[-1]))
    kept = open_kept(artifact)
    golden = artifact.golden
    rates, logits = golden.rates, Guard.open(champion.model, champion.guard).inspect(golden.images)
    answers = logits.outputs[artifact.manifest.answer]
    worse = replace(
        artifact,
        head=turned,
        golden=replace(golden, score=turned.score(rates, answers).score),
    )
    result = gate(load_production(champion.model), artifact, worse, kept, limits=FAST)
    assert not result.passed
    assert any("fgsm-linf-48: AUROC falls from" in reason for reason in result.reasons)
    print_gate(result)
    assert "gate: refused" in capsys.readouterr().out
    same = gate(load_production(champion.model), artifact, artifact, kept, limits=FAST)
    assert same.passed
    assert all(row.low <= 0 <= row.high for row in same.rows if row.what != "run time")


def test_other_taps_can_not_be_compared(champion: Champion) -> None:
    """The harvest of one set of taps says nothing of another."""
    artifact = read_guard(champion.guard)
    fewer = replace(artifact, manifest=replace(artifact.manifest, taps=artifact.manifest.taps[:1]))
    with pytest.raises(DataError, match="reads the champion's taps"):
        gate(load_production(champion.model), artifact, fewer, open_kept(artifact))


def test_bad_input_is_named(champion: Champion, tmp_path: Path, tiny_model: Path) -> None:
    """Each thing that can't be retrained from gets its own sentence, and no guard is written."""

    def attempt(
        new: Sequence[Path], message: str, error: type[Exception] = DataError, **more: object
    ) -> None:
        with pytest.raises(error, match=message):
            retrain(champion.guard, champion.model, new, tmp_path / "g2", **more)  # type: ignore[arg-type]  # options of several types
        assert not (tmp_path / "g2").exists()

    right = tmp_path / "clean.npz"
    save_dataset(champion.clean.take(champion.clean.labels >= 0), right)
    attempt([], "expected something new")
    attempt([], "expected an attack of", AttackError, attacks=["no-such"])
    attempt([tmp_path / "none"], "expected a .npz file")
    attempt([right], "share of the weight", share=1.0)
    attempt([right], "expected the harvest of", work=tmp_path / "elsewhere")
    shutil.copytree(champion.guard.with_name("guard.work"), tmp_path / "others")
    plan = tmp_path / "others" / "plan.json"
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    attempt([right], "the work of another model, data set or seed", work=tmp_path / "others")
    few = tmp_path / "few.npz"
    save_dataset(champion.patched.take(np.arange(1)), few)
    attempt(
        [few], "to fit on and to hold out, got .*: 30% of images are held out, chosen by chance"
    )
    foreign = write_captures(
        tmp_path / "foreign", champion, [(champion.clean.images[0], "clean")], of_model="0" * 64
    )
    attempt([foreign], "some are of 0000000000000000")
    odd = write_captures(tmp_path / "odd", champion, [(champion.clean.images[0], "attack:../x")])
    attempt([odd], "expected an attack's name")
    blank = write_captures(tmp_path / "blank", champion, [(champion.clean.images[0], None)])
    attempt([blank], "none has a label")
    (blank / "capture.sqlite").write_bytes(b"cut")
    attempt([blank], "the captures in .* can't be read")
    with pytest.raises(ModelMismatchError, match="was fitted to the model"):
        retrain(champion.guard, tiny_model, [right], tmp_path / "g2")
    for kept in champion.guard.with_name("guard.work").glob("calibration-*.npz"):
        kept.unlink()
    attempt([few], "calibration images are out of reach.*Give --data", data=str(tmp_path / "gone"))


@pytest.mark.slow
def test_the_command_says_by_its_exit_code_what_the_gate_says(
    champion: Champion, tmp_path: Path
) -> None:
    """0 and the gate's table as JSON for a guard that passed, 1 for one that was refused."""
    new = tmp_path / "patch.npz"
    save_dataset(champion.patched.take(np.arange(100)), new)
    arguments = ["retrain", "--guard", champion.guard, "--model", champion.model, "--new", new]
    arguments += ["--out", tmp_path / "g2", "--threads", 1, "--json"]
    for margin, code in ((0.9, 0), (-1.0, 1)):
        done = CliRunner().invoke(
            app, [*map(str, arguments), "--margin", str(margin)], catch_exceptions=False
        )
        said = json.loads(done.stdout)
        assert said["digest"] == read_guard(tmp_path / "g2").digest
        assert (done.exit_code, said["gate"]["passed"]) == (code, code == 0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["classes", "loose", "pattern"])
def test_the_command_takes_folders_of_pictures(
    champion: Champion, tmp_path: Path, layout: str
) -> None:
    """A folder per true class, pictures beside each other, or a pattern: a unit learns them."""
    root = tmp_path / "patched"
    few = champion.patched.take(np.arange(100))
    for row, (image, label) in enumerate(zip(few.images, few.labels, strict=True)):
        file = root / (str(label) if layout == "classes" else "") / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    new = root / "*.png" if layout == "pattern" else root
    arguments = ["retrain", "--guard", champion.guard, "--model", champion.model, "--new", new]
    arguments += ["--out", tmp_path / "g2", "--threads", 1, "--margin", 0.9, "--json"]
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    (added,) = json.loads(done.stdout)["added"]
    assert added["kind"] == "attack"
    assert added["fit"] + added["test"] == len(few)
    said = "the 100 pictures in" in done.stderr
    assert said is (layout != "classes")
    guard = read_guard(tmp_path / "g2")
    rest = champion.patched.images[100:]
    assert detection(champion, guard, rest) > detection(champion, read_guard(champion.guard), rest)


def captures_of(folder: Path, case: Champion, *, attacked: int, clean: int, wrong: bool) -> Path:
    """Write labelled captures, every third label wrong if so asked."""
    images = [
        *((image, "attack:patch") for image in case.patched.images[:attacked]),
        *((image, "clean") for image in case.clean.images[:clean]),
    ]
    other = {"attack:patch": "clean", "clean": "attack:patch"}
    rows: list[tuple[Images, str | None]] = [
        (image, other[label] if wrong and i % 3 == 0 else label)
        for i, (image, label) in enumerate(images)
    ]
    return write_captures(folder, case, rows)


def test_a_third_of_wrong_labels_is_stopped(champion: Champion, tmp_path: Path) -> None:
    """The reason names the share; honest labels of the same images pass; --force is on record."""
    shelf = tmp_path / "shelf"
    promote(shelf, champion.guard, who="ann", why="first")
    for wrong in (False, True):
        name = f"wrong-{wrong}"
        folder = captures_of(tmp_path / name, champion, attacked=100, clean=100, wrong=wrong)
        found = retrain(
            shelf, champion.model, [folder], tmp_path / f"g-{name}", limits=FAST, threads=1,
            work=champion.guard.with_name("guard.work"),
        )  # fmt: skip
        (row,) = [row for row in found.gate.rows if row.what == "labels"]
        assert (row.images, row.refused != "") == (200, wrong)
        assert row.low <= row.challenger <= row.high
        if not wrong:
            assert found.gate.passed, found.gate.reasons
    assert any("of 200 contradict the rest, more than 0.25" in one for one in found.gate.reasons)
    with pytest.raises(ShelfError, match="contradict the rest"):
        promote(shelf, tmp_path / "g-wrong-True", who="ann", why="in a hurry")
    forced = promote(shelf, tmp_path / "g-wrong-True", who="ann", why="in a hurry", force=True)
    assert forced.guard == read_guard(current(shelf).path).digest  # type: ignore[union-attr]  # there is one
    assert current(shelf).manifest.provenance["forced"]["who"] == "ann"  # type: ignore[union-attr]  # as above


@pytest.mark.slow
def test_how_many_labels_may_contradict_is_the_callers_choice(
    champion: Champion, tmp_path: Path
) -> None:
    """With a limit of one, nothing is refused for its labels."""
    folder = captures_of(tmp_path / "captured", champion, attacked=100, clean=100, wrong=True)
    limits = replace(FAST, contradicted=1.0)
    found = retrain(
        champion.guard, champion.model, [folder], tmp_path / "g2", limits=limits, threads=1
    )
    assert not [reason for reason in found.gate.reasons if reason.startswith("labels:")]


@pytest.mark.slow
def test_wrong_labels_that_are_let_through_do_bounded_harm(
    champion: Champion, tmp_path: Path
) -> None:
    """Forced past the gate, they raise no false alarms: calibration is out of their reach."""
    folder = captures_of(tmp_path / "captured", champion, attacked=100, clean=100, wrong=True)
    before = read_guard(champion.guard)
    found = retrain(
        champion.guard, champion.model, [folder], tmp_path / "g2", limits=FAST, threads=1
    )
    clean, fresh = champion.clean.images[100:], champion.patched.images[100:]
    scores = Guard.open(champion.model, tmp_path / "g2", threads=1).inspect(clean).score
    limit = threshold_at(0.05, found.guard.head.clean_scores)
    assert (scores > limit).mean() < 0.12
    harm = detection(champion, before, fresh) - detection(champion, found.guard, fresh)
    assert harm <= 0.02


@pytest.mark.slow
def test_a_head_fitted_anew_is_judged_with_the_noise_of_fitting(
    champion: Champion, tmp_path: Path
) -> None:
    """--refit gives no units; intervals of attacks are wider by what another seed alone moves."""
    new = tmp_path / "patch.npz"
    save_dataset(champion.patched.take(np.arange(100)), new)
    before = read_guard(champion.guard)
    found = retrain(
        champion.guard, champion.model, [new], tmp_path / "g2", refit=True, limits=FAST, threads=1
    )
    assert not found.units
    assert found.guard.head.weights[0].shape == before.head.weights[0].shape
    fresh = champion.patched.images[100:]
    assert detection(champion, found.guard, fresh) > detection(champion, before, fresh) + 0.05
    alone = gate(
        load_production(champion.model),
        before,
        found.guard,
        open_kept(found.guard),
        new=["patch"],
        limits=FAST,
    )
    widths = [
        [row.high - row.low for row in result.rows if row.what == "old attack"]
        for result in (alone, found.gate)
    ]
    assert all(wide > narrow for narrow, wide in zip(*widths, strict=True))


def test_chance_is_no_forgetting(champion: Champion) -> None:
    """The same loss is refused where fits agree, and not where a control loses as much."""
    artifact = read_guard(champion.guard)
    kept = open_kept(artifact)
    production = load_production(champion.model)
    rng = np.random.default_rng(0)
    first, last = artifact.head.weights
    shaken = replace(
        artifact.head,
        weights=(
            (first + rng.normal(0, 4 * first.std(), first.shape)).astype(np.float32),
            last,
        ),
    )
    golden = artifact.golden
    answers = Guard.open(champion.model, champion.guard).inspect(golden.images).outputs
    score = shaken.score(golden.rates, answers[artifact.manifest.answer]).score
    worse = replace(artifact, head=shaken, golden=replace(golden, score=score))

    def refused(control: Head | None) -> list[str]:
        result = gate(production, artifact, worse, kept, control=control, limits=FAST)
        return [row.name for row in result.rows if row.what == "old attack" and row.refused]

    assert refused(None)
    assert refused(artifact.head) == refused(None)
    assert not refused(shaken)

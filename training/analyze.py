"""`reluguard analyze`: read a network's bits, run every study, write the report. N images, P rows.

What is on disk afterwards: `report.html` with a page per chapter in `report` (nothing is fetched),
`analysis.json` (settings, figures per tap, claims) and `arrays.npz` (every array of every study).
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.errors import SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import load_production
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.checks import check_labels
from reluguard.training.analysis.findings import Findings
from reluguard.training.analysis.hardening import ConsistentTraining
from reluguard.training.analysis.material import (
    Material,
    arrays_of,
    check_budget,
    choose_rows,
    gathered,
)
from reluguard.training.analysis.networks.seeds import SeedStudy, study_seeds
from reluguard.training.analysis.networks.trained import ARCHITECTURES
from reluguard.training.analysis.papers import Papers, paper_tables
from reluguard.training.analysis.recording import Recorder
from reluguard.training.analysis.result import Analysis
from reluguard.training.analysis.studies.every import studied
from reluguard.training.attacks import attack_named
from reluguard.training.data.classes import Classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data
from reluguard.training.data.preprocessing import HowPixels, spec_of, told_by
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.forecasts import analyze_steps
from reluguard.training.harden import harden_images
from reluguard.training.hardening.settings import consistent_loss
from reluguard.training.models.given import Given
from reluguard.training.models.network import open_network
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.pages.analysis.report import report_pages, summary
from reluguard.training.progress import HowTold, Progress, progress_of
from reluguard.training.twin.twin import Twin, load_twin

__all__ = ["ATTACKS", "STEPS", "analyze"]

ATTACKS = ("pgd-linf-8", "pgd-linf-2", "fgsm-linf-8", "fgsm-linf-2")

STEPS = 400

FEW = 64  # images that are timed
_NETWORKS = 5  # of each architecture
_HARDENED = 4000  # images that consistent training sees at most


def analyze(
    model: ModelOrNone,
    data: Data,
    *,
    out: Path | str,
    guard: Path | str | None = None,
    other: Path | str | None = None,
    train: Data | None = None,
    limit: int = 2000,
    pairwise: int = 1000,
    attacks: Sequence[str] = ATTACKS,
    twin: str = "auto",
    papers: bool = False,
    steps: int = STEPS,
    class_names: Sequence[str] = (),
    classes: Classes | None = None,
    output: str | None = None,
    preprocessing: HowPixels | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: HowTold = None,
) -> Analysis:
    """Write report, `analysis.json` and `arrays.npz` to `out`; return what the JSON holds.

    `report.html` has what came out, and leads to a page per chapter in `report`.

    Args:
        model: the production ONNX file, or another model as `fit` takes it: with a guard the file
            beside that is used, as with None; without one it is exported to `out/model.onnx`.
        data: labelled images it was not trained on, as `fit` takes them.
        out: a folder. Each file is written aside and then renamed.
        guard: a guard fitted to this model, to see its scores and evidence on the same images. How
            pixels become the model's input, and which output holds the class scores, it says too.
        other: another ONNX classifier of the same images, to compare layers with.
        train: labelled images to train the papers' networks on; by default those images of `data`
            that no study attacks.
        limit: images read, at most.
        pairwise: images attacked and compared with one another, at most; distances take
            12 bytes * taps * pairwise^2.
        attacks: slugs; the first is the one every study looks at.
        twin: where gradients come from, as `fit` takes it.
        papers: also train what the papers' claims need: five networks of each of two architectures,
            kept in `out/networks` and not trained again, and two hardened networks.
        steps: of 64 images, that each of those networks is trained for; on two cores 400 take a
            minute and a half.
        class_names: one per class, for the plots; by default those of `classes`, the guard or the
            model's own metadata.
        classes: which class each folder of images is, as `fit` takes it; by default what the guard
            knows.
        output: which output holds the class scores, without a guard.
        preprocessing: from pixels to the model's input, without a guard.
        weights: of a network by name, as `fit` takes them.
        input_shape: of one image in a torch model's input, without a guard.
        seed: of every random choice.
        threads: of ONNX Runtime.
        progress: told of stages and steps: a `Progress`, or a function that takes a `Step`.

    Raises:
        SettingsError: a value has no meaning, or a guard says already what is said here.
        DataError: the images can't be read, or labels don't fit the model.
        LabelError: images of one class only.
        ConstantError: a tap says the same of every image.
        AnalysisError: the first attack never fools the model.
        AttackError: no such attack.
        OutOfMemoryError: it would take more than is free.
        ModelError: the model can't be read or run, or images of this size don't fit it.
        GuardError: the guard can't be read or is not the model's.
        TwinError: the model can't be attacked for lack of a twin.
    """
    _check(limit, pairwise, attacks, steps)
    out = Path(out)
    other = None if other is None else Path(other)
    progress = progress_of(progress)
    started = time.perf_counter()
    given = Given(
        model=model,
        data=data,
        guard=guard,
        output=output,
        preprocessing=preprocessing,
        classes=classes,
        weights=weights,
        input_shape=input_shape,
    )
    network = open_network(given, folder=out, threads=threads)
    for word in network.words:
        progress.say(word)
    file, production, spec = network.file, network.production, network.spec
    dataset = _sample(network.dataset, limit, seed)
    taps = find_taps(production, spec)
    rows = choose_rows(dataset.labels, pairwise, seed=seed)
    check_budget(taps, len(dataset), len(rows), len(attacks))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=out) as work:

        def twins() -> tuple[Twin | None, ...]:
            own = load_twin(file, spec, twin, images=dataset.images[:16], output=production.answer)
            return (own, *_surrogates(other, dataset, spec, attacks))

        recorder = Recorder(production, spec, taps, threads=threads)
        few = dataset.images[:FEW]
        steps_ahead = analyze_steps(
            {slug: attack_named(slug).passes for slug in attacks},
            busy_seconds(lambda: recorder.record(few), threads) / len(few),
            taps=len(taps),
            images=len(dataset),
            pairwise=len(rows),
            seed_steps=len(ARCHITECTURES) * _NETWORKS * steps,
            hardening=consistent_loss(seed) if papers else None,
        )
        progress.plan("analyze", steps_ahead)
        material = gathered(
            production,
            recorder,
            dataset,
            rows,
            attacks=attacks,
            twins=twins,
            class_names=class_names or network.names,
            work=Path(work),
            seed=seed,
            progress=progress,
        )
        findings = studied(material, other, network.guard, threads, progress)
        seeds: tuple[SeedStudy, ...] = ()
        hardening = None
        if papers:
            source = None if train is None else network.more(train)
            seeds, hardening = _papers(material, source, out / "networks", steps, seed, progress)
        tables = paper_tables(findings, seeds=seeds, hardening=hardening, seed=seed)
        about = {
            "model": file.name,
            "model_sha256": production.sha256,
            "data": Path(dataset.source).name,
            "data_sha256": dataset.digest,
            "images": len(dataset),
            "pairwise": len(rows),
            "seed": seed,
            "attacks": list(attacks),
            "seconds": round(time.perf_counter() - started, 1),
        }
        progress.stage("pages", 1)
        found = summary(about, material, findings, tables, seeds, hardening)
        _write(out, found, material, findings, tables, seeds, hardening)
        progress.advance(1)
    return found


def _check(limit: int, pairwise: int, attacks: Sequence[str], steps: int) -> None:
    """Raise SettingsError where a value has no meaning."""
    if limit < 20 or pairwise < 20:
        raise SettingsError(
            f"expected a limit and a pairwise of 20 or more images, got {limit} and {pairwise}"
        )
    if not attacks:
        raise SettingsError("expected one or more attacks, got none")
    if steps < 1:
        raise SettingsError(f"expected one or more steps of training, got {steps}")


def _sample(data: Dataset, limit: int, seed: int) -> Dataset:
    check_labels(data.labels)
    if len(data) <= limit:
        return data
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(np.sort(order[:limit]))


def _surrogates(
    other: Path | None, data: Dataset, spec: InputSpec, attacks: Sequence[str]
) -> tuple[Twin | None, ...]:
    """Attacks on several networks at once use the other network beside this one."""
    if not any(attack_named(slug).needs_surrogates for slug in attacks):
        return ()
    if other is None:
        raise SettingsError(
            f"attacks on several networks need another model: give `other`, or leave them out of "
            f"{', '.join(attacks)}"
        )
    production = load_production(other)
    theirs = spec_of(production, data.images.shape[1:], told_by(spec))
    return (load_twin(other, theirs, images=data.images[:16]),)


def _papers(
    material: Material,
    train: Dataset | None,
    folder: Path,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[tuple[SeedStudy, ...], ConsistentTraining]:
    """Train on images no study attacks, compare on those that were attacked."""
    source = train
    if source is None:
        rest = np.setdiff1d(np.arange(len(material.labels)), material.rows)
        if len(rest) < 100:
            raise SettingsError(
                f"the papers' networks need 100 or more images to train on, {len(rest)} are left: "
                "raise limit, lower pairwise, or give images to train on"
            )
        source = Dataset(
            images=material.images[rest], labels=material.labels[rest], source="the rest"
        )
    order = np.random.default_rng(seed).permutation(len(material.rows))
    compared = material.rows[order[:500]]
    images, labels = material.images[compared], material.labels[compared]
    progress.stage("seeds", len(ARCHITECTURES) * _NETWORKS * steps)
    seeds = [
        study_seeds(
            (source.images, source.labels),
            (images, labels),
            architecture=architecture,
            networks=_NETWORKS,
            steps=steps,
            seed=seed,
            folder=folder,
            progress=progress.advance,
        )
        for architecture in ARCHITECTURES
    ]
    order = np.random.default_rng(seed).permutation(len(source))
    learned = source.take(np.sort(order[:_HARDENED]))
    reports = [
        harden_images(
            material.production,
            material.spec,
            learned,
            Dataset(images=images, labels=labels, source="held out"),
            settings=consistent_loss(seed, plain=plain),
            progress=progress,
        )[1]
        for plain in (True, False)
    ]
    return tuple(seeds), ConsistentTraining(published=reports[0], normalised=reports[1])


def _write(
    out: Path,
    found: Analysis,
    material: Material,
    findings: Findings,
    tables: Papers,
    seeds: Sequence[SeedStudy],
    hardening: ConsistentTraining | None,
) -> None:
    arrays: dict[str, NDArray[Any]] = {"rows": material.rows, "labels": material.labels}
    for name in ("similarity", "splits", "votes", "classifiers", "maps", "graphs", "consistency"):
        arrays |= arrays_of(name, getattr(findings, name))
    for one in seeds:
        arrays |= arrays_of(f"seeds/{one.architecture}", one)
    for name, flags in material.success.items():
        arrays[f"success/{name}"] = flags
    write_file(out / "arrays.npz", npz=arrays)
    text = json.dumps(found.to_json(), indent=2, allow_nan=False)
    write_file(out / "analysis.json", text.encode())
    pages = report_pages(found, material, findings, tables, seeds, hardening)
    for place, page in reversed(pages.items()):  # what points at the others comes last
        write_file(out / place, page.encode())

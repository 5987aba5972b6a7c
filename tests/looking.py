"""Guards that look twice, or go by class, made of drawn ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.drawn import draw_head
from reluguard.detector.artifact import read_guard, write_guard
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.second import Look, SecondLook
from reluguard.detector.looks.views import SAME, viewed
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.detector.taps import find_taps
from tests.conftest import DRAWING, images

CLEAN, MORE = 199, 0.2  # images, and the share of them that is looked at again


def looking_twice(
    model: Path, guard: Path, out: Path, *, view: str = "mirror", other: Path | None = None
) -> Path:
    """Write a guard with a second look beside its first, drawn anew on the same images.

    Args:
        model: the production model.
        guard: a drawn guard of it.
        out: the folder to write.
        view: what is looked at.
        other: the network that looks; the model itself by default.
    """
    read = read_guard(guard)
    manifest, spec = read.manifest, read.manifest.input
    first = load_production(model, output=manifest.answer)
    network = first if other is None else load_production(other)
    taps = manifest.taps
    if other is not None:
        view = SAME
        taps = tuple(find_taps(network, replace(spec, name=network.input.name)))
    joint = Joint(manifest.taps, taps)
    own = replace(spec, name=network.input.name)
    readers = (
        Reader(first, spec, manifest.taps, threads=1),
        Reader(viewed(network, own, view), own, taps, threads=1),
    )
    clean = images(CLEAN, size=spec.height, channels=spec.channels, seed=1)
    (rates, logits), again = (reader.read(clean) for reader in readers)
    reading = joint.read(rates, logits, *again)
    head = draw_head(joint.runs, reading, logits, replace(DRAWING, seed=9))  # type: ignore[arg-type]  # a run has all of a tap that is asked for
    scores = head.score(reading, logits).score
    order = np.argsort(scores, kind="stable")
    ours = read.head.score(rates, logits).score
    golden = read.golden.images
    (rates, logits), again = (reader.read(golden) for reader in readers)
    look = Look(
        view=view,
        model_sha256="" if other is None else network.sha256,
        file="" if other is None else other.name,
        answer="" if other is None else network.answer,
        taps=() if other is None else tuple(tap.to_json() for tap in taps),
        agreement=0.9,
    )
    second = SecondLook(
        look=look,
        taps=taps,
        head=replace(head, clean_scores=scores[order]),
        first_scores=ours[order],
        bound=float(np.quantile(ours, 1 - MORE)),
        suspicious_slope=0.7,
        suspicious_intercept=0.1,
        golden_score=head.score(joint.read(rates, logits, *again), logits).score,
    )
    return write_guard(
        out, manifest=manifest, head=read.head, golden=read.golden, second=second
    ).path


def going_by_class(model: Path, guard: Path, out: Path) -> Path:
    """Write a guard as one that goes by class: the most frequent answer alone, the others together.

    Args:
        model: the production model.
        guard: a drawn guard of it, which may look twice.
        out: the folder to write.
    """
    read = read_guard(guard)
    production = load_production(model, output=read.manifest.answer)
    spec, taps = read.manifest.input, read.manifest.taps
    clean = images(CLEAN, size=spec.height, channels=spec.channels, seed=1)
    rates, logits = Reader(production, spec, taps, threads=1).read(clean)
    answers = logits.argmax(axis=1)
    counts = np.bincount(answers, minlength=logits.shape[1])
    groups = np.zeros(len(counts), np.int64)
    groups[counts.argmax()] = 1
    assert counts[groups == 0].sum() >= 20
    assert counts[groups == 1].sum() >= 20
    head = read.head.calibrated(read.head.score(rates, logits).score, answers, groups)
    second = read.second
    if second is not None:
        # drawn on the same images in the same order: the second scores tell which is which
        scores = second.head.clean_scores
        again = Guard.open(model, guard, threads=1, looks="always").inspect(clean)
        rank = np.argsort(again.score, kind="stable")
        np.testing.assert_allclose(again.score[rank], scores, atol=1e-3)
        own = replace(second.head, class_groups=groups, clean_groups=groups[answers[rank]])
        second = replace(second, head=own)
    manifest = replace(read.manifest, calibration_images=len(head.clean_scores))
    return write_guard(out, manifest=manifest, head=head, golden=read.golden, second=second).path

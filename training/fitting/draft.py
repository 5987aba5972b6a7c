"""A guard as fitted, not yet on disk: what it reads and scores, where it is from, a few answers."""

import datetime as dt
import importlib.metadata
from pathlib import Path

from reluguard.detector.artifact import Golden, GuardArtifact, Manifest
from reluguard.detector.head import Head
from reluguard.detector.reference import reference_of
from reluguard.detector.runtime import Reader
from reluguard.training.evaluation.report_card import promised_rates
from reluguard.training.fitting.harvested import Harvested
from reluguard.training.fitting.heads import Promise
from reluguard.training.harvest.readings import Readings
from reluguard.training.harvest.workspace import column_runs
from reluguard.training.provenance import ExportedFrom, FittedOn, FittedWith, Provenance

__all__ = ["drafted"]

GOLDEN_BYTES = 1_250_000
GOLDEN_IMAGES = 8
PACKAGES = ("numpy", "onnxruntime", "pillow", "torch", "adversarial-robustness-toolbox")


def drafted(
    out: Path,
    head: Head,
    clean: Readings,
    reader: Reader,
    harvested: Harvested,
    promise: Promise,
    exported: ExportedFrom | None,
) -> GuardArtifact:
    """Return a guard that looks once, without its figures.

    Args:
        out: the folder it goes to.
        head: calibrated.
        clean: what it was calibrated on.
        reader: of the taps it reads.
        harvested: what it was fitted on.
        promise: what its verdicts keep.
        exported: what its model was exported from, None of an ONNX file.
    """
    case, orders, columns = harvested.case, harvested.orders, harvested.workspace.columns
    provenance = Provenance(
        recipe=FittedWith.from_json(harvested.recipe.to_json()),
        seed=orders.seed,
        twin=orders.twin,
        prevalence=promise.prevalence,
        data=FittedOn(
            source=case.dataset.source,
            sha256=case.dataset.digest,
            copies=tuple(map(tuple, case.copies)),
            classes=case.dataset.folders,
            names=case.names,
        ),
        exported=exported,
        images={split: len(sources) for split, sources in case.splits.items()},
        work=str(orders.workspace.resolve()),
        reference=reference_of(clean.rates, clean.logits, case.taps).to_json(),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        columns=None if columns is None else column_runs(columns),
    )
    manifest = Manifest(
        model_sha256=case.production.sha256,
        input=case.spec,
        answer=case.production.answer,
        taps=case.taps,
        fpr=promise.fpr,
        thresholds=promised_rates(head.clean_scores, promise.fpr, fewest=head.fewest_clean),
        calibration_images=len(head.clean_scores),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        provenance=provenance.to_json(),
    )
    golden = _golden(head, reader, harvested)
    return GuardArtifact(path=out, digest="", manifest=manifest, head=head, golden=golden)


def _golden(head: Head, reader: Reader, harvested: Harvested) -> Golden:
    """Return a few clean and attacked images with what the guard must say of them."""
    room = GOLDEN_BYTES // harvested.case.dataset.images[0].nbytes
    images = harvested.examples(max(1, min(GOLDEN_IMAGES, room)))
    rates, logits = reader.read(images)
    return Golden(
        images=images,
        rates=rates,
        score=head.score(rates, logits).score,
        prediction=logits.argmax(axis=1),
    )

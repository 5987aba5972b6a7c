"""All studies, one after the other, on the same material."""

from pathlib import Path
from typing import TypeVar

from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.findings import Findings, GuardView
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.recording import Recorder, Recording
from reluguard.training.analysis.studies.classifiers import study_classifiers
from reluguard.training.analysis.studies.consistency import study_consistency
from reluguard.training.analysis.studies.graphs import study_graphs
from reluguard.training.analysis.studies.maps import study_maps
from reluguard.training.analysis.studies.similarity import study_similarity
from reluguard.training.analysis.studies.splits import study_splits
from reluguard.training.analysis.studies.votes import study_votes
from reluguard.training.data.preprocessing import spec_of, told_by
from reluguard.training.progress import Progress

__all__ = ["studied"]

STUDIES = 7
Study = TypeVar("Study")


def studied(
    material: Material,
    other: Path | None,
    guard: Guard | None,
    threads: int | None,
    progress: Progress,
) -> Findings:
    """Return what every study found.

    Args:
        material: what they read.
        other: another ONNX classifier of the same images, to compare layers with.
        guard: of the network, to see its scores on the same images.
        threads: of ONNX Runtime.
        progress: told of each study.
    """
    progress.stage("studies", STUDIES)

    def done(study: Study) -> Study:
        progress.advance(1)
        return study

    second = None if other is None else _second(material, other, threads)
    return Findings(
        similarity=done(study_similarity(material)),
        splits=done(study_splits(material)),
        votes=done(study_votes(material)),
        classifiers=done(study_classifiers(material)),
        maps=done(study_maps(material)),
        graphs=done(study_graphs(material, second)),
        consistency=done(study_consistency(material)),
        other=None if other is None else other.name,
        guard=None if guard is None else _guard_view(material, guard),
    )


def _second(material: Material, other: Path, threads: int | None) -> Recording:
    """Return what another network says of the same images, prepared as for this one."""
    production = load_production(other)
    spec = spec_of(production, material.images.shape[1:], told_by(material.spec))
    recorder = Recorder(production, spec, find_taps(production, spec), threads=threads)
    return recorder.record(material.images[material.rows])


def _guard_view(material: Material, guarded: Guard) -> GuardView:
    clean = guarded.inspect(material.images[material.rows])
    attacked = {name: guarded.inspect(x) for name, x in material.attacked_images.items()}
    main = material.main
    return GuardView(
        taps=tuple(tap.name for tap in guarded.artifact.manifest.taps),
        clean_scores=clean.score,
        attacked_scores=attacked[main].score[material.success[main]],
        clean_evidence=clean.evidence,
        attacked_evidence=attacked[main].evidence[material.success[main]],
        threshold=float(guarded.threshold),
    )

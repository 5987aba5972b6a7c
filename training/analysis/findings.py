"""What an analysis found, gathered for the report. L taps, P images, G taps a guard reads."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.studies.classifiers import ClassifierStudy
from reluguard.training.analysis.studies.consistency import ConsistencyStudy
from reluguard.training.analysis.studies.graphs import GraphStudy
from reluguard.training.analysis.studies.maps import MapStudy
from reluguard.training.analysis.studies.similarity import SimilarityStudy
from reluguard.training.analysis.studies.splits import SplitStudy
from reluguard.training.analysis.studies.votes import VoteStudy

__all__ = ["Findings", "GuardView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardView:
    """What a guard says of the same images.

    Attributes:
        taps: names of the G taps it reads.
        clean_scores: float32, (P,).
        attacked_scores: float32, (P',). Successes of the main attack.
        clean_evidence: float32, (P, G).
        attacked_evidence: float32, (P', G).
        threshold: above it an image counts as adversarial.
    """

    taps: tuple[str, ...]
    clean_scores: NDArray[np.float32]
    attacked_scores: NDArray[np.float32]
    clean_evidence: NDArray[np.float32]
    attacked_evidence: NDArray[np.float32]
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Every study, and what stood beside them: another network's name, a guard's view."""

    similarity: SimilarityStudy
    splits: SplitStudy
    votes: VoteStudy
    classifiers: ClassifierStudy
    maps: MapStudy
    graphs: GraphStudy
    consistency: ConsistencyStudy
    other: str | None = None
    guard: GuardView | None = None

"""What adversarial training did to a network: values measured by whoever trained it."""

from dataclasses import asdict, dataclass
from typing import Any

from reluguard.training.statistics.metrics import Interval

__all__ = ["ConsistentTraining", "HardenReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HardenReport:
    """What hardening did, on images no step of it saw.

    Attributes:
        clean_before, clean_after: accuracy on clean images.
        clean_gain: after minus before, paired by image.
        robust_before, robust_after: accuracy under PGD of the budget, each network attacked anew.
        robust_gain: after minus before, paired by image.
        consistency_before, consistency_after: mean cosine of a last-gate code before and after the
            attack.
        consistency_gain: after minus before, paired by image.
        detection_before, detection_after: AUROC of logistic regression on firing rates, attacked
            against clean, successes only; None where too few attacks succeed.
        images: trained on.
        evaluated: held-out images.
        attack: how robustness was measured.
        seconds: of training.
    """

    clean_before: Interval
    clean_after: Interval
    clean_gain: Interval
    robust_before: Interval
    robust_after: Interval
    robust_gain: Interval
    consistency_before: Interval
    consistency_after: Interval
    consistency_gain: Interval
    detection_before: Interval | None
    detection_after: Interval | None
    images: int
    evaluated: int
    attack: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentTraining:
    """The same network fine-tuned twice, with the consistent loss of Dong et al.

    Attributes:
        published: with the plain distance of codes.
        normalised: with the distance by the codes' mean length, where gates that fall silent
            gain nothing.
    """

    published: HardenReport
    normalised: HardenReport

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

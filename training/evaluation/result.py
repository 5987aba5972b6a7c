"""What an evaluation found, as `evaluation.json` holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from reluguard.detector.metrics import RedTeamSummary
from reluguard.detector.plain import UNSAID, Plain, named
from reluguard.training.evaluation.baselines import Confidence
from reluguard.training.evaluation.comparison import GUARD, DetectorFigures
from reluguard.training.evaluation.conclusion import Beside
from reluguard.training.evaluation.leave_out import Matrix
from reluguard.training.evaluation.scorecard import Scorecard
from reluguard.training.evaluation.two_looks import TwoLooks

__all__ = ["About", "Evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class About(Plain):
    """What was judged, and on what. `words` are what people should know of the images."""

    threat_model: str
    images: int
    origin: str = field(metadata=named("from"))
    model: str
    guard: str
    data: str
    recipe: str | None
    seed: int
    calibration_images: int | None = field(default=None, metadata=UNSAID)
    words: tuple[str, ...] = field(default=(), metadata=UNSAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Scorecard):
    """The scorecard with what stands beside it.

    Attributes:
        about: what was judged, and on what.
        left_out: what could not be judged, and why.
        baselines: the guard and other detectors on the same images.
        matrix: seen against unseen, by the first look.
        matrix_both: the same by both looks at every image, of a guard that looks again.
        looks: both looks side by side, of a guard that looks again.
        red_team: what the red team published with the guard.
        seconds: it took.
    """

    about: About
    left_out: str | None = field(default=None, metadata=UNSAID)
    baselines: Mapping[str, DetectorFigures]
    matrix: Matrix | None = field(default=None, metadata=UNSAID)
    matrix_both: Matrix | None = field(default=None, metadata=UNSAID)
    looks: TwoLooks | None = field(default=None, metadata=UNSAID)
    red_team: RedTeamSummary | None = None
    seconds: float

    @property
    def beside(self) -> Beside | None:
        """The guard beside confidence alone, None where that did not run."""
        guard, alone = self.baselines.get(GUARD), self.baselines.get(Confidence.name)
        if guard is None or alone is None or alone.lead is None:
            return None
        if guard.mean_auroc is None or alone.mean_auroc is None:
            return None
        word = alone.lead.mean.word
        return Beside(guard=guard.mean_auroc, alone=alone.mean_auroc, word=word)

    @classmethod
    def of(
        cls,
        scored: Scorecard,
        *,
        about: About,
        left_out: str | None,
        baselines: Mapping[str, DetectorFigures],
        matrix: Matrix | None,
        matrix_both: Matrix | None = None,
        looks: TwoLooks | None = None,
        red_team: RedTeamSummary | None,
        seconds: float,
    ) -> "Evaluation":
        """Return a scorecard with what stands beside it."""
        return cls(
            **{item.name: getattr(scored, item.name) for item in fields(scored)},
            about=about,
            left_out=left_out,
            baselines=baselines,
            matrix=matrix,
            matrix_both=matrix_both,
            looks=looks,
            red_team=red_team,
            seconds=seconds,
        )

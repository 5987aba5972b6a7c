"""The procedure under attack, one look or two, as one order of images. N images.

Whoever attacks needs one number that must stay at or below a limit. Of one look that is its score,
of a second look at every image the second score. Where only suspicious images are looked at again,
an image below the bound stands at its distance from it, zero or less, and a suspicious one above
all of those, the higher the higher its second score is: an image is flagged where its height is
above the limit, as `Order` judges it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import GuardError
from reluguard.detector.head import threshold_at
from reluguard.detector.looks.judging import Looks
from reluguard.detector.verdict import Verdicts

__all__ = ["Procedure"]

LEAST_RATE = 0.01  # evasion at rarer false alarms is only easier
FAR = 1e6  # instead of infinity
LEAST_HEIGHT = 1e-30  # of a suspicious image: above every other
_WORDS: Mapping[Looks, str] = {
    "first": "the first look alone",
    "suspicious": "both looks, the second at what the first finds suspicious",
    "always": "both looks at every image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Procedure:
    """When a guard looks, and the heights above which it flags.

    Attributes:
        looks: when a second look is taken.
        bound: of first scores, above which an image is suspicious.
        limits: by false-positive rate, the height above which an image is flagged.
        cuts: by rate, the first and the second score above which it is, where only suspicious
            images are looked at again.
        by_class: of a guard that goes by class, the same at the strictest rate for each class,
            (K,) twice. Images then stand by their p-values, the limits are those of the rates, and
            what is differentiated is how far an image is above its own class's limit.
    """

    looks: Looks
    bound: float
    limits: Mapping[str, float]
    cuts: Mapping[str, tuple[float, float]]
    by_class: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, artifact: GuardArtifact, looks: Looks) -> "Procedure":
        """Return the procedure of a guard at the rates it promises, 1 % the rarest.

        Raises:
            GuardError: a second look is asked for, and it has none.
        """
        manifest = artifact.manifest
        rates = {rate: at for rate, at in manifest.thresholds.items() if float(rate) >= LEAST_RATE}
        if not rates:
            rate = f"{manifest.fpr:g}"
            rates = {rate: threshold_at(manifest.fpr, artifact.head.clean_scores)}
        if looks != "first" and artifact.second is None:
            raise GuardError(f"expected a guard with a second look, {artifact.path} has none")
        if artifact.head.is_by_class:
            return cls._of_classes(artifact, looks, sorted(rates, key=float))
        if looks == "first" or artifact.second is None:
            return cls(looks=looks, bound=-np.inf, limits=rates, cuts={})
        order = artifact.second.order(looks)
        cuts = {rate: order.cut(float(rate)) for rate in rates}
        if looks == "always":
            return cls(
                looks=looks,
                bound=-np.inf,
                limits={rate: high for rate, (_, high) in cuts.items()},
                cuts={},
            )
        bound = artifact.second.bound
        limits = {
            rate: calm - bound if high == -np.inf else float(np.logaddexp(0, high))
            for rate, (calm, high) in cuts.items()
        }
        return cls(looks=looks, bound=bound, limits=limits, cuts=cuts)

    @classmethod
    def _of_classes(
        cls, artifact: GuardArtifact, looks: Looks, rates: Sequence[str]
    ) -> "Procedure":
        loosest = float(rates[-1])  # flags most: who stays below it evades at every rate
        second = artifact.second
        bound = -np.inf if second is None or looks != "suspicious" else second.bound
        if looks == "first" or second is None:
            limits = artifact.head.limits(loosest)
            cuts = (limits, limits)
        else:
            cuts = second.cuts(looks, loosest)
        # p-values are ranks: a rate that is one of them counts as flagged
        own = {rate: -float(rate) * (1 + 1e-6) for rate in rates}
        return cls(looks=looks, bound=bound, limits=own, cuts={}, by_class=cuts)

    @property
    def believed(self) -> float:
        """The value of `height` to stay at or below."""
        return self.strictest if self.by_class is None else 0.0

    @staticmethod
    def told(looks: Looks) -> str:
        """Return what is attacked, in words."""
        return _WORDS[looks]

    @property
    def strictest(self) -> float:
        """The lowest limit: who stays below it evades at every rate."""
        return min(self.limits.values())

    def heights(self, verdicts: Verdicts) -> NDArray[np.float32]:
        """Return where images stand, float32 (N,), by what the real guard says of them."""
        if self.by_class is not None:
            return (-verdicts.p_value).astype(np.float32)
        if self.looks != "suspicious":
            return verdicts.score
        score = verdicts.score.astype(np.float64)
        above = np.maximum(np.logaddexp(0, score), LEAST_HEIGHT)
        return np.where(verdicts.look == 2, above, score - self.bound).astype(np.float32)

    def height(self, first: Tensor, second: Tensor, logits: Tensor) -> Tensor:
        """Return the same of two scores, (N,) each, with a gradient that leads out of a flag.

        That is: down the second score or below the bound, whichever is nearer at the strictest
        rate. `logits`, (N, K), say which class's limit counts.
        """
        if self.by_class is not None:
            return self._above_own_limit(first, second, logits)
        if self.looks == "first":
            return first
        if self.looks == "always":
            return second
        above = softplus(second).clamp_min(LEAST_HEIGHT)
        bound = float(np.float32(self.bound))
        hard = torch.where(first > bound, above, first - self.bound)
        rate = min(self.limits, key=lambda one: self.limits[one])
        _, high = self.cuts[rate]
        calm = first - self.bound
        way = torch.minimum(calm, second - high) if np.isfinite(high) else calm
        return _straight(hard, way)

    def _above_own_limit(self, first: Tensor, second: Tensor, logits: Tensor) -> Tensor:
        """Return how far images are above the limit of the class they are answered as."""
        assert self.by_class is not None
        answers = logits.detach().argmax(dim=1).cpu().numpy()
        finite = (np.nan_to_num(cut[answers], posinf=FAR, neginf=-FAR) for cut in self.by_class)
        calm, high = (torch.from_numpy(cut).to(first.device) for cut in finite)
        if self.looks == "first":
            return first - calm
        if self.looks == "always":
            return second - high
        bound = float(np.float32(self.bound))
        hard = torch.where(first > bound, second - high, first - calm)
        way = torch.where(high > -FAR, torch.minimum(first - bound, second - high), first - calm)
        return _straight(hard, way)


def _straight(value: Tensor, through: Tensor) -> Tensor:
    """Return a value whose gradient is that of another tensor."""
    height: Tensor = through + (value - through).detach()
    return height

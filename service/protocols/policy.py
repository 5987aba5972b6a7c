"""What a caller gets to see of the verdicts. N images, L taps.

- `annotate`: everything the model said, and the verdict beside it.
- `reject`: rows that look adversarial are withheld: prediction -1, outputs blanked.
- `shadow`: verdicts are counted and nobody sees them.

A row without a score (`Verdicts.unscored`) is one whose pass failed, for example because finite
inputs overflowed inside the network. `open` answers such a row without a verdict,
`closed` treats it as adversarial. A run that fails as a whole is an error under both: there is no
answer to give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.verdict import Verdicts
from reluguard.service.settings import FailMode, Policy

__all__ = ["Detail", "Rules", "View", "blank"]

_WITHHELD: Mapping[str, object] = {"f": np.nan, "i": -1, "O": ""}


class Detail(IntEnum):
    """How much of a verdict is shown; the numbers are those of `reluguard.v1.Detail`."""

    FULL = 1
    COARSE = 2
    NONE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One request's verdicts as its caller may see them. N entries each.

    Attributes:
        verdicts: with withheld rows blanked and hidden columns NaN (evidence: no columns).
        detail: which columns mean something.
        withheld: bool, (N,).
    """

    verdicts: Verdicts
    detail: Detail
    withheld: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The server's policy."""

    policy: Policy = "annotate"
    fail: FailMode = "open"
    likelihood_step: float = 0.25

    def detail(self, *, privileged: bool) -> Detail:
        """Return how much this caller sees."""
        if self.policy == "shadow":
            return Detail.NONE
        return Detail.FULL if privileged else Detail.COARSE

    def view(self, verdicts: Verdicts, *, privileged: bool, all_scored: bool = False) -> View:
        """Return what this caller sees of these verdicts.

        Args:
            verdicts: of one request.
            privileged: whether the caller may see everything.
            all_scored: it is known already that every row has a score.
        """
        detail = self.detail(privileged=privileged)
        n = len(verdicts)
        if all_scored and detail is Detail.FULL and self.policy != "reject":
            nothing = np.zeros(n, np.bool_)
            return View(verdicts=verdicts, detail=detail, withheld=nothing)
        unscored = verdicts.unscored
        is_adversarial = np.where(unscored, self.fail == "closed", verdicts.is_adversarial)
        withheld = is_adversarial if self.policy == "reject" else np.zeros(n, np.bool_)
        hidden = np.full(n, np.nan, np.float32)
        full = detail is Detail.FULL
        likelihood = verdicts.likelihood if full else hidden
        if detail is Detail.COARSE:
            likelihood = self._coarse(verdicts.likelihood)
        return View(
            verdicts=Verdicts(
                prediction=np.where(withheld, -1, verdicts.prediction),
                score=verdicts.score if full else hidden,
                likelihood=likelihood,
                p_value=verdicts.p_value if full else hidden.astype(np.float64),
                is_adversarial=is_adversarial & (detail is not Detail.NONE),
                evidence=verdicts.evidence if full else np.zeros((n, 0), np.float32),
                outputs=blank(verdicts.outputs, withheld),
                unscored=unscored & (detail is not Detail.NONE),
                look=verdicts.look if full else np.ones(n, np.uint8),
            ),
            detail=detail,
            withheld=withheld,
        )

    def _coarse(self, likelihood: NDArray[np.float32]) -> NDArray[np.float32]:
        steps = np.round(likelihood / np.float32(self.likelihood_step))
        return np.minimum(steps * np.float32(self.likelihood_step), np.float32(1))


def blank(
    outputs: Mapping[str, NDArray[Any]], withheld: NDArray[np.bool_]
) -> Mapping[str, NDArray[Any]]:
    """Return the outputs with withheld rows NaN, -1 in signed and 0 in other integers, or empty."""
    if not withheld.any():
        return outputs
    blanked = {}
    for name, output in outputs.items():
        kept = output.copy()
        kept[withheld] = _WITHHELD.get(output.dtype.kind, 0)
        blanked[name] = kept
    return blanked

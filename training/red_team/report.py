"""What the red team found, as `red_team.json` holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reluguard.detector.looks.judging import Looks
from reluguard.detector.metrics import BlackBox, Interval, Rates, RedTeamSummary
from reluguard.detector.plain import UNSAID, Plain
from reluguard.detector.showing.axes import AMBER, BLUE, GREEN, GREY, RED, axes_for
from reluguard.detector.showing.frames import data_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BEST", "SEARCH", "Pair", "RedTeamReport", "Row", "Steps"]

BEST = "best per image"
SEARCH = "score-search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Plain):
    """One attack within one budget, or the best of all on each image.

    Attributes:
        misclassified: share of the images whose answer is wrong; None of an attack that none was
            left for.
        evaded: share whose answer is wrong and that is not flagged, by rate.
        images: tried; None where it was all.
        evaded_after_restarts: share that evades at every rate, after each restart.
        mean_queries: of the black box.
        median_queries_of_evasions: likewise, None without an evasion.
    """

    misclassified: Interval | None = field(default=None, metadata=UNSAID)
    evaded: Rates = field(default_factory=dict, metadata=UNSAID)
    images: int | None = field(default=None, metadata=UNSAID)
    evaded_after_restarts: tuple[float, ...] | None = field(default=None, metadata=UNSAID)
    mean_queries: float | None = field(default=None, metadata=UNSAID)
    median_queries_of_evasions: float | None = field(default=None, metadata=UNSAID)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; of the black box, null where nothing evaded."""
        found = super(Row, self).to_json()
        if self.mean_queries is not None:
            found["median_queries_of_evasions"] = self.median_queries_of_evasions
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps(Plain):
    """What more steps of one attack bring at one budget: shares that evade, by steps and rate."""

    budget: float
    attack: str
    evaded: Mapping[str, Rates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Plain):
    """One attacker with a guard in the way, beside the same one without.

    Attributes:
        rate: the false-positive rate at whose threshold an image must not be flagged.
        images: attacked.
        bare: share of them whose answer the attack on the bare model makes wrong.
        guarded: share of them that evade.
        bare_change: the median image's change, in 8-bit steps or L2; None where half never got
            there, or where the attack looks for no smallest change.
        guarded_change: likewise.
        ratio: median of the images' ratios of the two, with a 95 % interval by bootstrap over
            images. One that never evaded counts as far as pixels go.
        unnoticed: of what the attack on the bare model made wrong, the share that is not flagged:
            what someone reaches who doesn't know of the guard, or sees answers only.
        questions: mean of the guarded attack, where it asks.
        bare_questions: likewise.
    """

    rate: str
    images: int
    bare: Interval
    guarded: Interval
    bare_change: float | None = None
    guarded_change: float | None = None
    ratio: Interval | None = None
    unnoticed: Interval | None = None
    questions: float | None = field(default=None, metadata=UNSAID)
    bare_questions: float | None = field(default=None, metadata=UNSAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedTeamReport(Plain):
    """What someone who knows the guard gets past it.

    Attributes:
        budgets: by Linf budget in 8-bit steps and by attack.
        ladders: by norm and rate, or "bare model": who evades within a budget.
        median_budget: by norm and rate, of the image in the middle; None where half never evaded.
        steps: what more steps bring.
        threat_model: what the attacker knows, and what counts as success.
        black_box: what answered the questions.
        images: attacked.
        settings: how hard was tried.
        guard: its digest.
        thresholds: its score limits, by rate; of two looks, limits of the `Procedure`'s heights.
        seconds: it took.
        checks: signs that the attacks are not blinded: held, not held, or None where too few
            images evaded to tell.
        smallest: by norm, how far the smallest change that evades is beside the bare model's.
        asking_only: by attack, what someone reaches who sees answers and flags only.
        looks: the procedure attacked: "first", "suspicious" or "always".
    """

    budgets: Mapping[str, Mapping[str, Row]]
    ladders: Mapping[str, Mapping[str, Rates]]
    median_budget: Mapping[str, Mapping[str, float | None]]
    steps: Steps
    threat_model: str
    black_box: str
    images: int
    settings: Mapping[str, Any]
    guard: str
    thresholds: Mapping[str, float]
    seconds: float
    checks: Mapping[str, bool | None]
    smallest: Mapping[str, Pair] = field(default_factory=dict)
    asking_only: Mapping[str, Pair] = field(default_factory=dict)
    looks: Looks = field(default="first", metadata=UNSAID)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a pandas data frame, one row for each budget, attack and threshold.

        `budget` (Linf, in 8-bit steps), `attack`, `images`, `misclassified`, the share whose answer
        is wrong, `rate`, the false-positive rate of the threshold, and `evaded`, the share that is
        wrong and not flagged, with `low` and `high`; intervals are of 95 %.

        Raises:
            SettingsError: pandas is not installed: `pip install 'reluguard[tables]'`.
        """
        return data_frame(
            [
                {
                    "budget": float(size),
                    "attack": attack,
                    "images": self.images if row.images is None else row.images,
                    "misclassified": None if row.misclassified is None else row.misclassified.value,
                    "rate": float(rate),
                    "evaded": share.value,
                    "low": share.low,
                    "high": share.high,
                }
                for size, rows in self.budgets.items()
                for attack, row in rows.items()
                for rate, share in row.evaded.items()
            ]
        )

    def plot(self, axes: Any = None) -> Any:
        """Draw what share of images evades within each budget, by the best attack on each.

        One line is of the model without a guard, where a wrong answer is enough; the others are of
        the guard's thresholds.

        Args:
            axes: matplotlib's, to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            SettingsError: matplotlib is not installed: `pip install 'reluguard[training]'`.
        """
        axes = axes_for(axes)
        best = {float(size): row for size, row in self.best.items()}
        sizes = sorted(best)
        lines: dict[str, list[Interval | None]] = {
            "without a guard": [best[size].misclassified for size in sizes]
        }
        for rate in sorted(self.thresholds, key=float, reverse=True):
            name = f"guard at {float(rate):g} false alarms"
            lines[name] = [best[size].evaded.get(rate) for size in sizes]
        for (name, shares), color, mark in zip(
            lines.items(), (GREY, BLUE, GREEN, AMBER, RED), "vosD^", strict=False
        ):
            known = [(x, one) for x, one in zip(sizes, shares, strict=True) if one is not None]
            if not known:
                continue
            x = [size for size, _ in known]
            low, high = [one.low for _, one in known], [one.high for _, one in known]
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            style = "--" if mark == "v" else "-"
            middle = [one.value for _, one in known]
            axes.plot(x, middle, style, color=color, marker=mark, markersize=5, label=name)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.set_xlabel("budget: 8-bit steps that a pixel may move")
        axes.set_ylabel(f"share of {self.images} images that evade")
        axes.legend(loc="best", frameon=False, fontsize=9)
        return axes

    @property
    def best(self) -> dict[str, Row]:
        """Return the best attack on each image, by budget."""
        return {size: rows[BEST] for size, rows in self.budgets.items()}

    @property
    def evasions(self) -> int:
        """Return how many images evade within the largest budget, at the most lenient rate."""
        rate = max(self.thresholds, key=float)
        return max(
            (round(row.evaded[rate].value * self.images) for row in self.best.values()), default=0
        )

    @property
    def summary(self) -> RedTeamSummary:
        """Return what goes into the guard's manifest."""
        asked = {size: rows.get(SEARCH, Row()) for size, rows in self.budgets.items()}
        return RedTeamSummary(
            threat_model=self.threat_model,
            images=self.images,
            settings=self.settings,
            evaded={size: row.evaded for size, row in self.best.items()},
            black_box={
                size: BlackBox(
                    evaded=row.evaded, mean_queries=row.mean_queries or 0.0, images=row.images
                )
                for size, row in asked.items()
                if row.images
            },
            median_budget=self.median_budget,
            checks=self.checks,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the summary among them."""
        return {**super(RedTeamReport, self).to_json(), "summary": self.summary.to_json()}

"""Which guard is live per model, as Prometheus sees it."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reluguard.detector.looks.judging import Looks
from reluguard.detector.looks.thresholds import Thresholds

__all__ = ["LiveGuard", "LiveGuards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveGuard:
    """What is live for one model.

    Attributes:
        digest: of the guard.
        model_sha256: of the production model.
        created: when the guard was fitted, Unix seconds.
        thresholds: that it flags by.
        looks: when it looks a second time.
        challenger: the digest of the one in shadow; empty for none.
        challenger_thresholds: that it flags by.
        challenger_refused: whether there should be one.
    """

    digest: str
    model_sha256: str
    created: float
    thresholds: Thresholds
    looks: Looks = "first"
    challenger: str = ""
    challenger_thresholds: Thresholds | None = None
    challenger_refused: bool = False


class LiveGuards(Collector):
    """Which guard is live per model: what was swapped out leaves no series behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, LiveGuard] = {}

    def show(self, model: str, guard: LiveGuard) -> None:
        """Put a model's guard in the place of the one before."""
        with self._lock:
            self._live[model] = guard

    def hide(self, model: str) -> None:
        """Forget a model's guard, if there is one."""
        with self._lock:
            self._live.pop(model, None)

    def collect(self) -> Sequence[Metric]:
        """Return the series of this moment: Prometheus asks."""
        info = GaugeMetricFamily(
            "reluguard_guard_info", "1 for the live guard.",
            labels=["model", "guard", "model_sha256", "thresholds", "looks"],
        )  # fmt: skip
        age = GaugeMetricFamily(
            "reluguard_guard_age_seconds", "Time since the live guard was fitted.", labels=["model"]
        )
        promised = GaugeMetricFamily(
            "reluguard_target_ratio", "Share of clean images that the live guard may flag.",
            labels=["model"],
        )  # fmt: skip
        limits = _Limits("reluguard_", "an image is adversarial")
        challenger = GaugeMetricFamily(
            "reluguard_challenger_info", "1 for the challenger in shadow.",
            labels=["model", "challenger"],
        )  # fmt: skip
        theirs = _Limits("reluguard_challenger_", "the challenger calls an image adversarial")
        refused = GaugeMetricFamily(
            "reluguard_challenger_refused", "1 while the guard serves without its challenger.",
            labels=["model"],
        )  # fmt: skip
        with self._lock:
            live = dict(self._live)
        for model, guard in live.items():
            refused.add_metric([model], guard.challenger_refused)
            if guard.challenger_thresholds is not None:
                challenger.add_metric([model, guard.challenger], 1)
                theirs.add(model, guard.challenger_thresholds)
            form = "by_class" if guard.thresholds.is_by_class else "one"
            info.add_metric([model, guard.digest, guard.model_sha256, form, guard.looks], 1)
            age.add_metric([model], max(0.0, time.time() - guard.created))
            promised.add_metric([model], guard.thresholds.fpr)
            limits.add(model, guard.thresholds)
        return [info, age, promised, *limits.families, challenger, *theirs.families, refused]


class _Limits:
    """Series of thresholds: of one that is none there is no single number, only its ends."""

    def __init__(self, prefix: str, what: str) -> None:
        self._single = GaugeMetricFamily(
            f"{prefix}threshold",
            f"Score above which {what}; none where that goes by class or by a second look.",
            labels=["model"],
        )
        self._ends = GaugeMetricFamily(
            f"{prefix}threshold_bound",
            f"First score above which {what}: of some class or look (lowest), of all (highest).",
            labels=["model", "bound"],
        )

    @property
    def families(self) -> Sequence[Metric]:
        return [self._single, self._ends]

    def add(self, model: str, thresholds: Thresholds) -> None:
        if not math.isnan(thresholds.single):
            self._single.add_metric([model], thresholds.single)
        self._ends.add_metric([model, "lowest"], thresholds.lowest)
        self._ends.add_metric([model, "highest"], thresholds.highest)

"""Which guard is live per model, as Prometheus sees it."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["LiveGuard", "LiveGuards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveGuard:
    """What is live for one model. `created` is in Unix seconds; `challenger` may be empty."""

    digest: str
    model_sha256: str
    created: float
    threshold: float
    challenger: str
    challenger_threshold: float
    challenger_refused: bool


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
            labels=["model", "guard", "model_sha256"],
        )  # fmt: skip
        age = GaugeMetricFamily(
            "reluguard_guard_age_seconds", "Time since the live guard was fitted.", labels=["model"]
        )
        threshold = GaugeMetricFamily(
            "reluguard_threshold", "Score above which an image is adversarial.", labels=["model"]
        )
        challenger = GaugeMetricFamily(
            "reluguard_challenger_info", "1 for the challenger in shadow.",
            labels=["model", "challenger"],
        )  # fmt: skip
        limit = GaugeMetricFamily(
            "reluguard_challenger_threshold",
            "Score above which the challenger calls an image adversarial.", labels=["model"],
        )  # fmt: skip
        refused = GaugeMetricFamily(
            "reluguard_challenger_refused", "1 while the guard serves without its challenger.",
            labels=["model"],
        )  # fmt: skip
        with self._lock:
            live = dict(self._live)
        for model, guard in live.items():
            refused.add_metric([model], guard.challenger_refused)
            if guard.challenger:
                challenger.add_metric([model, guard.challenger], 1)
                limit.add_metric([model], guard.challenger_threshold)
            info.add_metric([model, guard.digest, guard.model_sha256], 1)
            age.add_metric([model], max(0.0, time.time() - guard.created))
            threshold.add_metric([model], guard.threshold)
        return [info, age, threshold, challenger, limit, refused]

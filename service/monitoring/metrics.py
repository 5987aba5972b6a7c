"""What Prometheus sees. Every metric hangs on the registry passed in; no label comes from a caller.

All but the RPC set starts with `reluguard_` and carries the model's configured name.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from reluguard.detector.head import is_scored
from reluguard.detector.verdict import Verdicts
from reluguard.service.captures.capture import DropReason
from reluguard.service.captures.drift import STATISTICS, Drift
from reluguard.service.intake import IntakeRefusal
from reluguard.service.monitoring.decisions import decisions_dropped
from reluguard.service.monitoring.hour import SCORES, Hour
from reluguard.service.monitoring.live_guards import LiveGuard, LiveGuards
from reluguard.service.monitoring.rpc_metrics import SECONDS, RpcMetrics
from reluguard.service.monitoring.shadow import DIRECTIONS, Direction, compare
from reluguard.service.quotas import QuotaRefusal
from reluguard.service.settings import Policy
from reluguard.service.watching.watch import KINDS, Kind, Seen, Watch

__all__ = ["CallRefusal", "Metrics", "ModelMetrics", "ReloadOutcome", "Stage"]

Stage = Literal["decode", "queue", "model", "second_look", "encode"]
Rejection = Literal["queue_full", "wait_too_long", "expired", "cancelled"]
CallRefusal = (
    Literal["too_many_calls", "too_many_streams", "draining", "unauthenticated"]
    | IntakeRefusal
    | QuotaRefusal
)
_CALL_REFUSALS: tuple[CallRefusal, ...] = tuple(
    reason for part in get_args(CallRefusal) for reason in get_args(part)
)
ReloadOutcome = Literal["swapped", "refused", "challenger_refused"]
Outcome = Literal["clean", "adversarial", "unscored"]

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All metrics of one server.

    Args:
        registry: that they hang on.
        processes: that the server should have.
    """

    def __init__(self, registry: CollectorRegistry, *, processes: int = 1) -> None:
        # `_created` gauges double the number of series and nobody reads them
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library left it bare
        self.registry = registry
        self.rpc = RpcMetrics(registry)
        model = ["model"]
        self._score = Histogram(
            "reluguard_score", "Score of each image, log-odds.", model,
            buckets=SCORES, registry=registry,
        )  # fmt: skip
        self._verdicts = Counter(
            "reluguard_verdicts_total", "Images by verdict and policy.",
            ["model", "verdict", "policy"], registry=registry,
        )  # fmt: skip
        self._stage = Histogram(
            "reluguard_stage_duration_seconds", "Time per stage: of a request, `model` of a run.",
            ["model", "stage"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._batch = Histogram(
            "reluguard_batch_size", "Images per model run.", model,
            buckets=_BATCHES, registry=registry,
        )  # fmt: skip
        self._depth = Gauge("reluguard_queue_depth", "Images waiting.", model, registry=registry)
        self._rejected = Counter(
            "reluguard_rejected_total", "Requests refused before the model ran, by reason.",
            ["model", "reason"], registry=registry,
        )  # fmt: skip
        self._reloads = Counter(
            "reluguard_reload_total", "Attempts to take a new guard or model.",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip
        self._refused_calls = Counter(
            "reluguard_refused_calls_total", "Calls refused before they were handled, by reason.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("reluguard_in_flight", "Calls being handled.", registry=registry)
        self._processes = Gauge(
            "reluguard_processes", "Processes of the server that answer.", registry=registry
        )
        self._processes.set(1)
        self._wanted = Gauge(
            "reluguard_processes_wanted", "Processes that should.", registry=registry
        )
        self._wanted.set(processes)
        self._restarts = Counter(
            "reluguard_process_restarts_total",
            "Processes of the server that were started again because they had ended or hung.",
            registry=registry,
        )
        self.draining = Gauge(
            "reluguard_draining", "1 while the server shuts down.", registry=registry
        )
        self._looked_again = Counter(
            "reluguard_second_looks_total", "Images that a second look was taken at.", model,
            registry=registry,
        )  # fmt: skip
        self._challenger_score = Histogram(
            "reluguard_challenger_score", "The challenger's score of each image, log-odds.", model,
            buckets=SCORES, registry=registry,
        )  # fmt: skip
        self._challenger_verdicts = Counter(
            "reluguard_challenger_verdicts_total", "Images by the challenger's verdict.",
            ["model", "verdict"], registry=registry,
        )  # fmt: skip
        self._disagreements = Counter(
            "reluguard_challenger_disagreements_total",
            "Images that only one of champion and challenger calls adversarial.",
            ["model", "direction"], registry=registry,
        )  # fmt: skip
        self._capture_dropped = Counter(
            "reluguard_capture_dropped_total", "Sampled images that were not kept, by reason.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self._decoders_ended = Counter(
            "reluguard_decoders_ended_total",
            "Decoding processes that were ended: their images took too long or too much memory.",
            registry=registry,
        )
        self._decisions_dropped = decisions_dropped(registry)
        self._capture_damaged = Counter(
            "reluguard_capture_damaged_total", "Captured shards that can't be read.",
            registry=registry,
        )  # fmt: skip
        self._capture_kept = Counter(
            "reluguard_capture_kept_total", "Sampled images that were kept.", registry=registry
        )
        self._drift = Gauge(
            "reluguard_drift_statistic", "How far captured traffic is from calibration.",
            ["model", "statistic"], registry=registry,
        )  # fmt: skip
        self._drift_samples = Gauge(
            "reluguard_drift_samples", "Effective number of images behind each drift statistic.",
            ["model", "statistic"], registry=registry,
        )  # fmt: skip
        self._drift_layer = Gauge(
            "reluguard_drift_layer_psi", "How far each layer's firing rate is from calibration.",
            ["model", "layer"], registry=registry,
        )  # fmt: skip
        self._questions = Counter(
            "reluguard_watch_questions_total",
            "Images by whether their caller asked a near-equal one, or an equal one, before.",
            ["model", "question"], registry=registry,
        )  # fmt: skip
        self._raised = Counter(
            "reluguard_watch_raised_total",
            "Times that a caller came under suspicion: it asked many near-equal questions.",
            model, registry=registry,
        )  # fmt: skip
        self._watch_refused = Counter(
            "reluguard_watch_refused_total",
            "Requests refused for near-equal questions of a caller under suspicion.",
            model, registry=registry,
        )  # fmt: skip
        self._suspects = Gauge(
            "reluguard_watch_suspects", "Callers under suspicion now.", registry=registry
        )
        self._guards = LiveGuards()
        registry.register(self._guards)
        for refusal in _CALL_REFUSALS:
            self._refused_calls.labels(refusal)
        for reason in get_args(DropReason):
            self._capture_dropped.labels(reason)

    def call_refused(self, reason: CallRefusal) -> None:
        """Count a call that was refused before it was handled."""
        self._refused_calls.labels(reason).inc()

    def capture_dropped(self, reason: DropReason, rows: int) -> None:
        """Count sampled images that were not kept."""
        self._capture_dropped.labels(reason).inc(rows)

    def decision_dropped(self) -> None:
        """Count an entry of the decision log that was lost."""
        self._decisions_dropped.inc()

    def decoder_ended(self) -> None:
        """Count a decoding process that was ended."""
        self._decoders_ended.inc()

    def capture_kept(self, rows: int) -> None:
        """Count sampled images that were kept."""
        self._capture_kept.inc(rows)

    def capture_damaged(self) -> None:
        """Count a captured shard that can't be read."""
        self._capture_damaged.inc()

    def watch(self, watch: Watch) -> None:
        """Ask the watch for how many callers are under suspicion, whenever somebody looks."""
        self._suspects.set_function(watch.under_suspicion)

    def drift(self, model: str, drift: Drift) -> None:
        """Show how far a model's traffic is from calibration; without samples, no statistic."""
        for name in STATISTICS:
            self._drift.labels(model, name).set(drift.statistics.get(name, math.nan))
            self._drift_samples.labels(model, name).set(drift.sizes.get(name, 0.0))
        for layer, value in drift.layers.items():
            self._drift_layer.labels(model, layer).set(value)
        for advice in ("recalibrate", "retrain"):
            self._drift.labels(model, advice).set(drift.advice == advice)
            self._drift_samples.labels(model, advice).set(drift.samples)

    def model(self, name: str, policy: Policy) -> "ModelMetrics":
        """Return the metrics of one configured model."""
        return ModelMetrics(
            name=name,
            hour=Hour(),
            _score=self._score.labels(name),
            _verdicts={
                outcome: self._verdicts.labels(name, outcome, policy)
                for outcome in get_args(Outcome)
            },
            _looked_again=self._looked_again.labels(name),
            _challenger_score=self._challenger_score.labels(name),
            _challenger_verdicts={
                outcome: self._challenger_verdicts.labels(name, outcome)
                for outcome in get_args(Outcome)
            },
            _disagreements={
                direction: self._disagreements.labels(name, direction) for direction in DIRECTIONS
            },
            _stages={stage: self._stage.labels(name, stage) for stage in get_args(Stage)},
            _batch=self._batch.labels(name),
            _depth=self._depth.labels(name),
            _questions={kind: self._questions.labels(name, kind) for kind in KINDS},
            _raised=self._raised.labels(name),
            _watch_refused=self._watch_refused.labels(name),
            _rejected={
                reason: self._rejected.labels(name, reason) for reason in get_args(Rejection)
            },
            _reloads={
                outcome: self._reloads.labels(name, outcome) for outcome in get_args(ReloadOutcome)
            },
            _guards=self._guards,
        )


@dataclass(slots=True, kw_only=True)
class ModelMetrics:
    """The metrics of one model. Safe to call from any thread."""

    name: str
    hour: Hour
    _score: Histogram
    _verdicts: dict[Outcome, Counter]
    _looked_again: Counter
    _challenger_score: Histogram
    _challenger_verdicts: dict[Outcome, Counter]
    _disagreements: dict[Direction, Counter]
    _stages: dict[Stage, Histogram]
    _batch: Histogram
    _depth: Gauge
    _questions: dict[Kind, Counter]
    _raised: Counter
    _watch_refused: Counter
    _rejected: dict[Rejection, Counter]
    _reloads: dict[ReloadOutcome, Counter]
    _guards: LiveGuards

    def stage(self, stage: Stage, seconds: float) -> None:
        """Record how long one stage took."""
        self._stages[stage].observe(seconds)

    def ran(self, rows: int, seconds: float) -> None:
        """Record one model run."""
        self._batch.observe(rows)
        self.stage("model", seconds)

    def looked_again(self, rows: int, seconds: float) -> None:
        """Record one run of second looks."""
        self._looked_again.inc(rows)
        self.stage("second_look", seconds)
        self.hour.looked_again += rows

    def watch_queue(self, rows: Callable[[], int]) -> None:
        """Ask this for how many images wait, whenever somebody looks."""
        self._depth.set_function(rows)

    def rejected(self, reason: Rejection) -> None:
        """Count one refused request."""
        self._rejected[reason].inc()

    def asked(self, seen: Seen) -> None:
        """Count what the watch said of one request."""
        for kind, count in zip(KINDS, np.bincount(seen.kinds, minlength=len(KINDS)), strict=True):
            if count:
                self._questions[kind].inc(int(count))
        if seen.raised:
            self._raised.inc()
        if seen.refused:
            self._watch_refused.inc()

    def reloaded(self, outcome: ReloadOutcome) -> None:
        """Count one attempt to take a new guard."""
        self._reloads[outcome].inc()

    def guard(self, live: LiveGuard) -> None:
        """Show which guard is live, and which challenger if there is one or should be."""
        self._guards.show(self.name, live)

    def unloaded(self) -> None:
        """Show that no guard is live."""
        self._guards.hide(self.name)

    def verdicts(self, verdicts: Verdicts) -> None:
        """Count the verdicts on one request, and the challenger's.

        Scores that are shown are the first look's: those of two heads have no common measure.
        """
        score = verdicts.score if verdicts.first is None else verdicts.first.score
        scored, counts = _observe(
            score, verdicts.is_adversarial, ~verdicts.unscored, self._score, self._verdicts
        )
        self.hour.add(scored, adversarial=counts["adversarial"], unscored=counts["unscored"])
        theirs = verdicts.challenge
        if theirs is not None:
            _observe(
                theirs.score,
                theirs.is_adversarial,
                is_scored(theirs.score),
                self._challenger_score,
                self._challenger_verdicts,
            )
            agreement = compare(verdicts)
            for direction in DIRECTIONS:
                self._disagreements[direction].inc(getattr(agreement, direction))


def _observe(
    score: NDArray[np.float32],
    is_adversarial: NDArray[np.bool_],
    scored: NDArray[np.bool_],
    histogram: Histogram,
    counters: Mapping[Outcome, Counter],
) -> tuple[list[float], dict[Outcome, int]]:
    """Count one guard's verdicts on one request; return the scores and how many of each verdict."""
    scores: list[float] = score[scored].tolist()
    for value in scores:
        histogram.observe(value)
    adversarial = int(np.count_nonzero(is_adversarial & scored))
    counts: dict[Outcome, int] = {
        "clean": len(scores) - adversarial,
        "adversarial": adversarial,
        "unscored": len(score) - len(scores),
    }
    for outcome, count in counts.items():
        if count:
            counters[outcome].inc(count)
    return scores, counts

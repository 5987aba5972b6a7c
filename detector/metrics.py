"""What a manifest's metrics say, typed, for whoever reads guards without judging them.

The shelf asks for the gate's word, the status and the server's page show it beside what the red
team published. The report card around both is training's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reluguard.detector.artifact import Manifest
from reluguard.detector.plain import Plain

__all__ = [
    "GATE",
    "RED_TEAM",
    "BlackBox",
    "GateLimits",
    "GateResult",
    "GateRow",
    "Interval",
    "Rates",
    "RedTeamSummary",
    "gate_of",
    "red_team_of",
]

GATE, RED_TEAM = "gate", "red_team"


@dataclass(frozen=True, slots=True)
class Interval(Plain):
    """A figure with its 95 % interval and the number of images it stands on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self:.3f}"

    def __format__(self, digits: str) -> str:
        """Return the figure with its interval in brackets, each number in this format."""
        digits = digits or ".3f"
        return f"{self.value:{digits}} [{self.low:{digits}}, {self.high:{digits}}]"


Rates = Mapping[str, Interval]  # shares by the false-positive rate whose threshold they are at


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits(Plain):
    """What a challenger may cost.

    Attributes:
        auroc: AUROC that any attack may lose.
        benign: share of harmlessly changed images that may be flagged on top.
        cost: share of run time that may come on top.
        rounds: timed pairs.
        contradicted: share of the labels that may contradict the rest. Chosen on digits and on
            ResNet-20, 12 pairs of network and attack, 3 seeds, 4 ways to choose 200 labels: honest
            ones were at .20 at most, with a third of them wrong at .30 at least. On 12 other pairs
            none of 144 honest sets is refused, and each of 144 with a third wrong. From 60 labels
            it is rougher: 12 of 105 honest sets are refused, 85 of 108 with a third wrong.
    """

    auroc: float = 0.01
    benign: float = 0.05
    cost: float = 0.1
    rounds: int = 60
    contradicted: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow(Plain):
    """One comparison. `low` and `high` bound the difference, challenger minus champion, at 95 %."""

    what: Literal["old attack", "new attack", "harmless", "clean", "run time", "labels"]
    name: str
    figure: str
    champion: float
    challenger: float
    low: float
    high: float
    images: int
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult(Plain):
    """The gate's word. `champion` is the digest of the guard that was compared with."""

    champion: str
    passed: bool
    reasons: tuple[str, ...] = ()
    rows: tuple[GateRow, ...] = ()
    limits: GateLimits = GateLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlackBox(Plain):
    """What a client that sees answers and scores reached, and by how many questions an image."""

    evaded: Rates
    mean_queries: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RedTeamSummary(Plain):
    """What the red team publishes with a guard.

    Attributes:
        threat_model: what the attacker knows, and what counts as success.
        images: attacked.
        settings: how hard was tried.
        evaded: by Linf budget, of the best attack on each image.
        black_box: by Linf budget.
        median_budget: by norm and rate, of the image in the middle; None where half never evaded.
        checks: signs that the attacks are not blinded: held, not held, or None where nothing tells.
    """

    threat_model: str = ""
    images: int
    settings: Mapping[str, Any]
    evaded: Mapping[str, Rates]
    black_box: Mapping[str, BlackBox] = field(default_factory=dict)
    median_budget: Mapping[str, Mapping[str, float | None]]
    checks: Mapping[str, bool | None] = field(default_factory=dict)


def gate_of(manifest: Manifest) -> GateResult | None:
    """Return what the gate said of a guard, None of one that it never judged.

    Raises:
        GuardError: it is no gate's word.
    """
    stored = manifest.metrics.get(GATE)
    return GateResult.from_json(stored) if stored else None


def red_team_of(manifest: Manifest) -> RedTeamSummary | None:
    """Return what the red team published with a guard, if it did.

    Raises:
        GuardError: these are no red team's figures.
    """
    stored = manifest.metrics.get(RED_TEAM)
    return RedTeamSummary.from_json(stored) if stored else None

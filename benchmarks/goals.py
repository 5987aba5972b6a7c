"""Numbers to beat: a guard's figures beside what the literature reports, each met or short.

    python -m benchmarks.goals EVALUATION.json GUARD

reads what `reluguard evaluate` wrote of a guard, and the guard's own folder.

The goals were set for ResNet-20 and CIFAR-10, where the anchors were measured. On any other model
the table is the same and the anchors are no more than that: what is common elsewhere.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from reluguard.detector.artifact import GuardArtifact, read_guard

__all__ = ["Figure", "Goal", "figure_text", "numbers_to_beat", "print_goals"]

Verdict = Literal["met", "met, within error", "short, within error", "short", "not measured"]
_ORDER: tuple[Verdict, ...] = (
    "met",
    "met, within error",
    "short, within error",
    "short",
    "not measured",
)
MINUTES = 15.0
BYTES = 1_000_000
TIMES_BARE = 2.0
POINTS = 0.05
MILD = ("gaussian", "sign", "uniform", "jpeg-90", "jpeg-75", "brightness", "shift")
MOST_FLAGGED = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value beside its bounds; `low` and `high` are its 95 % interval, if known."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any] | None, **bounds: float) -> "Figure":
        """Return the figure of an interval as `Interval.to_json` gives it, or of none."""
        if not entry:
            return cls(name=name, value=None, **bounds)
        known = {key: float(entry[key]) for key in ("value", "low", "high")}
        return cls(name=name, **known, **bounds)

    @property
    def verdict(self) -> Verdict:
        """Whether the value is within its bounds, and whether its whole interval is."""
        if self.value is None:
            return "not measured"
        if self._within(self.value):
            ends = (self.value if end is None else end for end in (self.low, self.high))
            return "met" if all(map(self._within, ends)) else "met, within error"
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        reached = (self.least is None or high >= self.least) and (
            self.most is None or low <= self.most
        )
        return "short, within error" if reached else "short"

    def _within(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        keys = ("name", "value", "low", "high", "least", "most", "verdict")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One row: what is asked for, what the literature has, and what was found."""

    what: str
    goal: str
    anchor: str
    figures: Sequence[Figure]

    @property
    def verdict(self) -> Verdict:
        """The least of its figures' verdicts; figures that nobody measured are left out."""
        known = [f.verdict for f in self.figures if f.value is not None]
        return max(known, key=_ORDER.index) if known else "not measured"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "what": self.what,
            "goal": self.goal,
            "anchor": self.anchor,
            "figures": [figure.to_json() for figure in self.figures],
            "verdict": self.verdict,
        }


def numbers_to_beat(
    card: Mapping[str, Any], metrics: Mapping[str, Any], size: int
) -> list[dict[str, Any]]:
    """Return the table as plain values, one entry per goal.

    Args:
        card: of an evaluation.
        metrics: of the guard's manifest: the fit's own report card, and the red team's figures
            where they were published.
        size: of the guard on disk without its reports, in bytes.
    """
    goals: Iterator[Goal] = chain(
        _seen(card), _unseen(card), _minimal(card), _benign(card), _aware(metrics)
    )
    return [goal.to_json() for goal in (*goals, *_economy(metrics, size))]


def _seen(card: Mapping[str, Any]) -> Iterator[Goal]:
    figures = []
    for slug in ("pgd-linf-4", "pgd-linf-8", "fgsm-linf-8"):
        figures.append(Figure.of(f"{slug} AUROC", _area(card, slug), least=0.995))
        found = card["attacks"].get(slug, {}).get("detected", {}).get("0.01")
        figures.append(Figure.of(f"{slug} detected at 1 %", found, least=0.98))
    yield Goal(
        what="PGD 4 and 8/255, FGSM 8/255",
        goal="AUROC .995 or more, 98 % detected at 1 % false positives",
        anchor="SID .993; NIC 100 % at 10.1 %; KD+BU 92 %, LID 94 %",
        figures=figures,
    )
    yield Goal(
        what="PGD 2/255 and 1/255",
        goal="AUROC .97 and .90 or more",
        anchor="SID .901 and .830",
        figures=[
            Figure.of("pgd-linf-2 AUROC", _area(card, "pgd-linf-2"), least=0.97),
            Figure.of("pgd-linf-1 AUROC", _area(card, "pgd-linf-1"), least=0.90),
        ],
    )


def _unseen(card: Mapping[str, Any]) -> Iterator[Goal]:
    matrix = card.get("matrix", {})
    count = len(matrix.get("unseen", {}))
    by = "attack" if matrix.get("by") == "attack" else "family of attacks"
    yield Goal(
        what=f"unseen: one {by} left out of the fit, {count} attacks",
        goal="AUROC: mean .96, worst .90 or more, over 10 attacks or more",
        anchor="SID's best single source: mean .880, worst .816",
        figures=[
            Figure.of("mean AUROC", matrix.get("mean_interval"), least=0.96),
            Figure.of("worst AUROC", matrix.get("worst_interval"), least=0.90),
            Figure(name="attacks", value=count or None, least=10),
        ],
    )
    unseen = matrix.get("unseen_intervals", {})
    yield Goal(
        what="Square, left out of the fit",
        goal="AUROC .97 or more",
        anchor="SID fitted on PGD: .445",
        figures=[
            Figure.of(f"{slug} AUROC", entry, least=0.97)
            for slug, entry in unseen.items()
            if slug.startswith("square")
        ],
    )


def _minimal(card: Mapping[str, Any]) -> Iterator[Goal]:
    lead = card["baselines"].get("confidence only", {}).get("lead", {}).get("attacks", {})
    figures = []
    for slug, least in (("deepfool-l2", 0.95), ("cw-l2", 0.95), ("fab-l2", 0.96)):
        figures.append(Figure.of(f"{slug} AUROC", _area(card, slug), least=least))
        figures.append(Figure.of(f"{slug} over confidence", lead.get(slug), least=POINTS))
    yield Goal(
        what="DeepFool, CW-L2, FAB",
        goal="AUROC .95, .95, .96 or more, and 5 points over confidence only",
        anchor="SID .929, .903, .958",
        figures=figures,
    )


def _benign(card: Mapping[str, Any]) -> Iterator[Goal]:
    rates = card["clean"]["false_positive_rate"]
    yield Goal(
        what="clean images flagged",
        goal="1 ± .3 % and 5 ± .6 %",
        anchor="nobody reports it",
        figures=[
            Figure.of("at the 1 % threshold", rates.get("0.01"), least=0.007, most=0.013),
            Figure.of("at the 5 % threshold", rates.get("0.05"), least=0.044, most=0.056),
        ],
    )
    mild = {slug: entry for slug, entry in card["benign"].items() if slug.startswith(MILD)}
    mild |= {
        f"{kind}-c1": levels["1"] for kind, levels in card["severity"].items() if "1" in levels
    }
    yield Goal(
        what="harmless changes flagged at the 5 % threshold",
        goal="10 % at most: noise as small as the attacks, JPEG 75, brightness, shift, severity 1",
        anchor="nobody reports it",
        figures=[
            Figure.of(slug, entry.get("0.05"), most=MOST_FLAGGED) for slug, entry in mild.items()
        ],
    )


def _aware(metrics: Mapping[str, Any]) -> Iterator[Goal]:
    found = metrics.get("red_team", {})
    evaded = found.get("evaded", {})
    sizes = (("2.55", ".01"), ("4", "4/255"), ("8", "8/255"))
    figures = [
        Figure.of(f"evades at {name}", evaded.get(size, {}).get("0.05"), **bound)
        for (size, name), bound in zip(sizes, ({"most": 0.5}, {}, {}), strict=True)
    ]
    median = found.get("median_budget", {}).get("l2", {})
    guarded, bare = median.get("0.05"), median.get("bare model")
    times = guarded / bare if guarded and bare else None
    figures.append(Figure(name="median L2 budget over bare", value=times, least=TIMES_BARE))
    yield Goal(
        what="attacker who knows the guard, white box, 5 % threshold",
        goal="published whatever it is; evades 50 % at most at .01, twice the bare model's budget",
        anchor="evading at .01: DLA .83, SID .93, Honeypot 1.00",
        figures=figures,
    )


def _economy(metrics: Mapping[str, Any], size: int) -> Iterator[Goal]:
    seconds = None if metrics.get("resumed", True) else metrics.get("seconds")
    minutes = None if seconds is None else seconds / 60
    yield Goal(
        what="time to fit",
        goal="15 minutes for 6,000 images on 2 cores",
        anchor="-",
        figures=[Figure(name="minutes", value=minutes, most=MINUTES)],
    )
    yield Goal(
        what="guard on disk, without its reports",
        goal="1 MB at most",
        anchor="-",
        figures=[Figure(name="bytes", value=float(size), most=float(BYTES))],
    )


def _area(card: Mapping[str, Any], slug: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = card["attacks"].get(slug, {}).get("auroc")
    return found


def print_goals(goals: Sequence[Mapping[str, Any]]) -> None:
    """Print the numbers to beat, each met or short, with what fell short."""
    table = Table("number to beat", "goal", "anchor", "found", "", title="numbers to beat")
    for goal in goals:
        known = [figure for figure in goal["figures"] if figure["value"] is not None]
        shown = (
            [f for f in known if not f["verdict"].startswith("met")] if len(known) > 8 else known
        )
        rest = len(known) - len(shown)
        lines = [f"{f['name']} {figure_text(f)}" for f in shown]
        lines += [f"{rest} more: met"] if rest else []
        verdict = goal["verdict"]
        table.add_row(
            goal["what"],
            goal["goal"],
            goal["anchor"],
            "\n".join(lines) or "-",
            verdict,
            end_section=True,
        )
    Console().print(table)


def figure_text(figure: Mapping[str, Any]) -> str:
    """Return a figure of a goal in words: its value and, where known, its interval."""
    value = figure["value"]
    if value is None:
        return "not measured"
    if figure["low"] is None:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def guard_bytes(artifact: GuardArtifact) -> int:
    """Return how many bytes a guard takes, its reports for people apart."""
    files = ("manifest.json", "head.npz", "golden.npz")
    return sum((artifact.path / name).stat().st_size for name in files)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("guard", type=Path)
    asked = parser.parse_args()
    card = json.loads(asked.evaluation.read_text())
    artifact = read_guard(asked.guard)
    print_goals(numbers_to_beat(card, artifact.manifest.metrics, guard_bytes(artifact)))


if __name__ == "__main__":
    main()

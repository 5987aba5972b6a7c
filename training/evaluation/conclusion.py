"""What a report card comes to, in a sentence or two that need no statistics to read.

Every figure is at one threshold and comes from the card; nothing is judged anew here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reluguard.detector.metrics import Interval, Rates, RedTeamSummary
from reluguard.training.evaluation.figures import FEW, Tried, few
from reluguard.training.evaluation.report_card import AttackFigures
from reluguard.training.statistics.bootstrap import Word

__all__ = ["Beside", "Conclusion", "Level", "by_fit", "conclude", "kind_of", "percent"]

# The first that a slug begins with, or all of it
_KINDS: Mapping[str, str] = {
    "deepfool": "attacks that barely cross the boundary",
    "fmn": "attacks that barely cross the boundary",
    "fab": "attacks that barely cross the boundary",
    "fgsm-varied": "strong and faint attacks mixed",
    "cw-l2-k": "strong attacks",
    "cw": "attacks that barely cross the boundary",
    "hopskipjump": "attacks that barely cross the boundary",
    "art-newtonfool": "attacks that barely cross the boundary",
    "sparse": "attacks on a few pixels",
    "patch": "attacks on a few pixels",
    "square": "attacks that only ask the model",
    "random-search": "attacks that only ask the model",
    "spatial": "small turns and shifts made to fool it",
    "pushed": "pushes across the boundary by chance",
    "transfer": "attacks made on another model",
    "ensemble": "attacks made on another model",
}
_BOTH = "both-"  # how the slug of an attack led by both looks begins
_STEP = re.compile(r"^(?:fgsm|bim|mifgsm|pgd|apgd-[a-z]+)-(linf|l2|l1)-([\d.]+)")
_FAINT = 4.0  # 8-bit steps; and in L2 the norm of about as large a change of 32 x 32 pixels
_FAINT_L2 = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How far kinds of attacks are caught: the verb, and the share of each kind, in [0, 1]."""

    verb: str
    kinds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The guard beside the model's own confidence, on the same attacks.

    Attributes:
        guard: mean AUROC, the chance that an attacked picture scores above a clean one.
        alone: the same of a detector that sees the answer's confidence alone.
        word: who is ahead by the interval of the difference, None where none was reckoned.
    """

    guard: float
    alone: float
    word: Word | None = None

    @property
    def words(self) -> str:
        """Return it as a sentence without statistics, its end left off."""
        pairs = [_of_hundred(share).removesuffix(" of 100") for share in (self.guard, self.alone)]
        told = (
            f"shown an attacked and a clean picture it picks the attacked one {pairs[0]} of 100 "
            f"times, the model's own confidence alone {pairs[1]} of 100"
        )
        ends = {
            "ahead": "so it beats confidence alone",
            "level": "which chance may explain: it is not shown to beat confidence alone",
            "behind": "so it does not beat confidence alone",
        }
        return told if self.word is None else f"{told}, {ends[self.word]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What a card comes to at one threshold.

    Attributes:
        levels: kinds of attacks by how far they are caught, best first.
        alarms: share of clean images flagged.
        promised: the share the threshold stands for.
        disturbing: the harmless change that is flagged most, and its share; None where none is
            flagged clearly more often than promised.
        thin: attacks with too few successes to say anything of.
        red_team: share of images that evade someone's attacks who knows the guard, by Linf budget.
        beside: the guard beside confidence alone, None where nobody compared.
    """

    levels: Sequence[Level]
    alarms: Interval | None
    promised: float
    disturbing: tuple[str, Interval] | None
    thin: Sequence[str]
    red_team: Mapping[str, Interval]
    beside: Beside | None = None

    @property
    def sentences(self) -> list[str]:
        """Return it in words, the most important first: two sentences to four."""
        second = "; ".join(part for part in (self._alarms(), self._thin()) if part)
        beside = None if self.beside is None else self.beside.words
        lines = (self._caught(), beside, second, self._evades())
        return [line[0].upper() + line[1:] + "." for line in lines if line]

    def _caught(self) -> str | None:
        parts = [
            f"{level.verb} "
            + _joined([f"{kind} ({percent(share)})" for kind, share in level.kinds.items()])
            for level in self.levels
        ]
        if not parts:
            return None if self.thin else "no attack fooled the model, so none could be caught"
        return "; ".join(parts)

    def _alarms(self) -> str | None:
        if self.alarms is None:
            return None
        found = self.alarms
        if found.value == 0:
            text = f"none of {found.n:,} clean pictures raises an alarm"
        else:
            text = f"{_of_hundred(found.value)} clean pictures raise an alarm"
        text += f" (at most {100 * self.promised:g} of 100 promised)"
        if self.disturbing is not None:
            name, share = self.disturbing
            text += f", and {_of_hundred(share.value)} after the harmless change “{name}”"
        return text

    def _evades(self) -> str | None:
        if not self.red_team:
            return None
        parts = [
            f"{percent(x.value)} of the pictures within {size}/255"
            for size, x in self.red_team.items()
        ]
        return f"someone who knows the guard gets past it with {_joined(parts)}"

    def _thin(self) -> str | None:
        if not self.thin:
            return None
        rows = "one attack" if len(self.thin) == 1 else f"{len(self.thin)} attacks"
        return f"too few attacked pictures (under {FEW}) to say more about {rows}"


def conclude(
    attacks: Mapping[str, Tried],
    clean: Rates,
    benign: Mapping[str, Rates],
    rate: str,
    red_team: RedTeamSummary | None = None,
    beside: Beside | None = None,
) -> Conclusion:
    """Return what a card comes to.

    A kind's share is the mean over its attacks of what is detected, attacks with fewer than 30
    successes left out.

    Args:
        attacks: by slug.
        clean: what is flagged of clean images, by rate.
        benign: what is flagged of harmless changes, by slug and rate.
        rate: whose threshold is meant.
        red_team: what was published with the guard.
        beside: the guard beside confidence alone; left out where no attack had as many successes.
    """
    shares: dict[str, list[float]] = {}
    for slug, entry in attacks.items():
        if entry.succeeded >= FEW and entry.detected:
            shares.setdefault(kind_of(slug), []).append(entry.detected[rate].value)
    means = {kind: sum(found) / len(found) for kind, found in shares.items()}
    ranked = sorted(means, key=lambda kind: -means[kind])
    levels = [
        Level(verb=verb, kinds={kind: means[kind] for kind in ranked if low <= means[kind] < high})
        for verb, low, high in (
            ("catches", 0.9, 2.0),
            ("catches most", 0.5, 0.9),
            ("misses most", 0.1, 0.5),
            ("misses nearly all", -1.0, 0.1),
        )
    ]
    flagged = {slug: rates[rate] for slug, rates in benign.items() if rate in rates}
    worst = max(flagged, key=lambda slug: flagged[slug].value, default=None)
    # clearly: the whole interval lies above what was promised
    clearly = worst is not None and flagged[worst].low > float(rate)
    return Conclusion(
        levels=[level for level in levels if level.kinds],
        alarms=clean.get(rate),
        promised=float(rate),
        disturbing=(worst, flagged[worst]) if worst is not None and clearly else None,
        thin=few(attacks),
        beside=beside if means else None,
        red_team={}
        if red_team is None
        else {
            f"{float(size):g}": shown[rate]
            for size, shown in red_team.evaded.items()
            if rate in shown
        },
    )


def by_fit(attacks: Mapping[str, AttackFigures]) -> Beside | None:
    """Return a fit's guard beside confidence alone, over attacks of enough successes, or None.

    Nobody reckoned an interval of the difference.
    """
    pairs = [
        (entry.auroc.value, entry.confidence_only_auroc)
        for entry in attacks.values()
        if entry.succeeded >= FEW
        and entry.auroc is not None
        and entry.confidence_only_auroc is not None
    ]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return Beside(guard=sum(ours) / len(pairs), alone=sum(theirs) / len(pairs))


def kind_of(slug: str) -> str:
    """Return the kind of an attack in plain words; one that is like no other is its own."""
    if slug.startswith(_BOTH):
        return f"{kind_of(slug.removeprefix(_BOTH))} on both looks"
    step = _STEP.match(slug)
    if step:
        if slug.endswith("-early"):
            return "attacks that barely cross the boundary"
        norm, size = step.groups()
        limit = {"linf": _FAINT, "l2": _FAINT_L2}.get(norm, 0.0)
        return "faint attacks" if float(size) < limit else "strong attacks"
    return next((words for start, words in _KINDS.items() if slug.startswith(start)), slug)


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def percent(share: float) -> str:
    """Return a share in words, never 100 % of what is not all nor 0 % of what is not nothing."""
    if 0.995 <= share < 1:
        return "over 99 %"
    if 0 < share < 0.005:
        return "under 1 %"
    return f"{share:.0%}".replace("%", " %")


def _of_hundred(share: float) -> str:
    if share < 0.01:
        return f"{1000 * share:.0f} of 1,000" if share >= 0.001 else "fewer than 1 of 1,000"
    return f"{100 * share:.0f} of 100"

"""The first look and both looks side by side, on the same images. N images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.looks.judging import Looks, Order
from reluguard.detector.looks.second import SecondLook
from reluguard.detector.metrics import Interval, Rates
from reluguard.detector.plain import UNSAID, Plain
from reluguard.training.composed import is_composed
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.head.second import joint_readings
from reluguard.training.statistics.metrics import auroc_interval, rate_interval

__all__ = ["LookFigures", "LookSummary", "TwoLooks", "two_looks"]

WAYS: tuple[Looks, ...] = ("first", "suspicious", "always")
ABOVE = 1e6  # puts what is suspicious above all the rest
ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LookFigures(Plain):
    """One group of images by one way to look: AUROC of an attack, and what is flagged."""

    auroc: Interval | None = field(default=None, metadata=UNSAID)
    flagged: Rates = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookSummary(Plain):
    """One way to look, over all attacks that succeeded, composed ones apart."""

    attacks: int
    mean_auroc: float | None
    worst_auroc: float | None
    mean_detected: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoLooks(Plain):
    """What a second look finds: each group by "first", "suspicious" and "always".

    Attributes:
        second: who looks at what.
        looked_again: the share of clean images that a second look is taken at.
        clean: images as they came.
        attacks: by slug, composed ones too; those that succeeded.
        benign: harmless changes by slug.
        summary: over the attacks.
        composed: over the composed ones.
    """

    second: str
    looked_again: Interval
    clean: Mapping[str, LookFigures]
    attacks: Mapping[str, Mapping[str, LookFigures]]
    benign: Mapping[str, Mapping[str, LookFigures]]
    summary: Mapping[str, LookSummary]
    composed: Mapping[str, LookSummary] = field(default_factory=dict, metadata=UNSAID)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Both scores of a group: float32, (N,), the sources, (N,), and groups by answer, (N,)."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    sources: NDArray[np.int64]
    of_answer: NDArray[np.int64] | None = None


def two_looks(
    artifact: GuardArtifact,
    workspace: Workspace,
    jobs: Mapping[str, Sequence[Job]],
    *,
    rates: Sequence[str],
    seed: int,
) -> TwoLooks | None:
    """Return both looks side by side, None of a guard that looks once.

    Args:
        artifact: the guard.
        workspace: shards made with its second look.
        jobs: of one split, by slug.
        rates: of false positives.
        seed: of the intervals.

    Raises:
        DataError: a shard was made without a second look.
    """
    second = artifact.second
    if second is None:
        return None
    columns = None if second.look.is_other else workspace.columns
    groups = {
        slug: seen
        for slug, made in jobs.items()
        if len((seen := _seen(artifact, second, workspace, made, columns)).sources)
    }
    kinds = {slug: made[0].kind for slug, made in jobs.items()}
    clean = next(seen for slug, seen in groups.items() if kinds[slug] == "clean")
    orders = {looks: second.order(looks) for looks in ("suspicious", "always")}
    head = artifact.head
    of_clean = head.clean_groups if head.is_by_class else None
    first = Order(head.clean_scores, head.clean_scores, np.inf, of_clean)

    def figures(slug: str, seen: _Seen) -> dict[str, LookFigures]:
        return {
            looks: _figures(
                orders.get(looks, first), clean, seen, kinds[slug] == "attack", rates, seed
            )
            for looks in WAYS
        }

    found = {slug: figures(slug, seen) for slug, seen in groups.items()}
    attacks = {slug: one for slug, one in found.items() if kinds[slug] == "attack"}
    alone = [one for slug, one in attacks.items() if not is_composed(slug)]
    composed = [one for slug, one in attacks.items() if is_composed(slug)]
    again = int(orders["suspicious"].is_suspicious(clean.first).sum())
    return TwoLooks(
        second=second.look.name,
        looked_again=rate_interval(again, len(clean.first)),
        clean=next(one for slug, one in found.items() if kinds[slug] == "clean"),
        attacks=attacks,
        benign={slug: one for slug, one in found.items() if kinds[slug] == "benign"},
        summary=_summaries(alone, rates),
        composed=_summaries(composed, rates) if composed else {},
    )


def _seen(
    artifact: GuardArtifact,
    second: SecondLook,
    workspace: Workspace,
    jobs: Sequence[Job],
    columns: NDArray[np.int64] | None,
) -> _Seen:
    taps = artifact.manifest.taps
    read = joint_readings(workspace, jobs, second.joint(taps), columns)
    before = sum(tap.rates for tap in taps)
    one, two = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for start in range(0, len(read), ROWS):
        rates = read.rates[start : start + ROWS].astype(np.float32)
        logits = read.logits[start : start + ROWS]
        one.append(artifact.head.score(rates[:, :before], logits).score)
        two.append(second.head.score(rates, logits).score)
    of_answer = artifact.head.groups_of(read.predictions)
    return _Seen(np.concatenate(one), np.concatenate(two), read.sources, of_answer)


def _figures(
    order: Order, clean: _Seen, seen: _Seen, attacked: bool, rates: Sequence[str], seed: int
) -> LookFigures:
    looked = order.is_suspicious(seen.first)
    p_values = order.p_values(seen.first, seen.second, looked, seen.of_answer)
    flagged = {
        rate: rate_interval(
            int(order.flags(p_values, float(rate), seen.of_answer).sum()), len(p_values)
        )
        for rate in rates
    }
    if not attacked:
        return LookFigures(flagged=flagged)
    area = auroc_interval(
        _height(order, clean), clean.sources, _height(order, seen), seen.sources, seed=seed
    )
    return LookFigures(auroc=area, flagged=flagged)


def _height(order: Order, seen: _Seen) -> NDArray[np.float64]:
    """Return where images stand in the order, (N,), as numbers."""
    looked = order.is_suspicious(seen.first)
    return np.where(looked, ABOVE + seen.second.astype(np.float64), seen.first)


def _summaries(
    attacks: Sequence[Mapping[str, LookFigures]], rates: Sequence[str]
) -> dict[str, LookSummary]:
    summaries: dict[str, LookSummary] = {}
    for looks in WAYS:
        areas = [one[looks].auroc.value for one in attacks if one[looks].auroc is not None]  # type: ignore[union-attr]  # just asked
        summaries[looks] = LookSummary(
            attacks=len(areas),
            mean_auroc=float(np.mean(areas)) if areas else None,
            worst_auroc=float(np.min(areas)) if areas else None,
            mean_detected={
                rate: float(np.mean([one[looks].flagged[rate].value for one in attacks]))
                for rate in rates
                if attacks
            },
        )
    return summaries

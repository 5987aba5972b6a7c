"""The figures of an analysis, as `analysis.json` holds them. L taps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reluguard.detector.metrics import Interval
from reluguard.detector.plain import Plain

__all__ = ["Analysis", "TapFigures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TapFigures(Plain):
    """What the studies found at one tap; None where it can't be reckoned."""

    name: str
    op: str
    shape: tuple[int, ...]
    bits: int
    fiedler_accuracy: Interval
    category_spearman: float | None
    nystrom_accuracy: float | None
    parts_accuracy: float | None
    attack_split: float | None
    attack_split_within: float | None
    vote_auroc: float | None
    participation_ratio: float | None
    som_nmi: float | None
    lsim_clean_attacked: float | None
    cka_clean_attacked: float | None
    bits_flipped: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis(Plain):
    """What an analysis found.

    Attributes:
        about: model, data, attacks and seed.
        accuracy: of the network on the images.
        attacks: share of right answers that each attack turned wrong.
        taps: the L taps, first to last.
        claims: of the source papers, each with what was found here.
        beside: figures measured alike that no paper claims.
        classifiers: what simple classifiers call attacked, per attack, over all taps and per tap.
        seeds: per architecture networks of several seeds beside each other, where any was
            trained.
        hardening: what training with the consistent loss did, where it was done: `published` and
            `normalised`.
        guard_auroc: of the guard on the main attack, where one was given.
    """

    about: Mapping[str, Any]
    accuracy: Interval
    attacks: Mapping[str, Interval]
    taps: tuple[TapFigures, ...]
    claims: tuple[Mapping[str, Any], ...]
    seeds: Mapping[str, Any] | None
    hardening: Mapping[str, Any] | None
    guard_auroc: float | None
    beside: tuple[Mapping[str, Any], ...] = ()
    classifiers: tuple[Mapping[str, Any], ...] = ()

"""Figures in words, the same on a page and on a terminal."""

import re
from collections.abc import Iterable, Mapping

from reluguard.detector.metrics import Rates
from reluguard.training.evaluation.figures import FEW, Promise, Tried, few

__all__ = ["answered_right", "few_note", "in_order", "number", "promise_note", "sign"]


def answered_right(rates: Rates, rate: str) -> str:
    """Return what is flagged of the images that the model still answers right, and how many."""
    return f"{rates[rate].value:.3f} of {rates[rate].n}" if rates else "-"


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in order of their words and numbers: `pgd-linf-2` before `pgd-linf-10`."""
    return sorted(names, key=_parts)


def _parts(name: str) -> list[tuple[int, float, str]]:
    pieces = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(0, float(p), "") if p[0].isdigit() else (1, 0.0, p) for p in pieces]


def few_note(attacks: Mapping[str, Tried]) -> str:
    """Return a warning of attacks whose figures say little, empty where there are none."""
    thin = few(attacks)
    if not thin:
        return ""
    listed = ", ".join(f"{slug} ({attacks[slug].succeeded})" for slug in thin)
    return f"Fewer than {FEW} successes, so go by the interval, not by the figure: {listed}."


def promise_note(found: Mapping[str, Promise], images: int) -> str:
    """Return what the promised rates can come to with so many calibration images, in words."""
    kept = [
        f"a promised {_percent(float(rate))} comes out between {_percent(one.low)} and "
        f"{_percent(one.high)}"
        for rate, one in found.items()
        if one.low is not None and one.high is not None
    ]
    wanting = [
        f"a promise of {_percent(float(rate))} needs {one.needed:,}"
        for rate, one in found.items()
        if one.low is None
    ]
    words = "; ".join((*kept, *wanting))
    return f"With {images:,} calibration images {words}." if words else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def number(value: float | None, digits: str = ".3f") -> str:
    """Return a number in this format, or a dash for none."""
    return "-" if value is None else f"{value:{digits}}"


def sign(held: bool | None, evasions: int) -> str:
    """Return whether a sign of the red team holds, or that too few evasions tell."""
    if held is None:
        return f"can't be told: {evasions} evasions"
    return "yes" if held else "no"

"""What the red team's pairs come to, in sentences."""

from collections.abc import Iterable

from reluguard.detector.metrics import Interval
from reluguard.training.red_team.report import BEST, SEARCH, Pair, RedTeamReport

__all__ = ["attack_legend", "pair_sentences"]

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WHOLE = frozenset(map(str, range(len(_COUNTS))))
_UNITS = {"linf": "8-bit steps in Linf", "l2": "in L2"}
_ATTACKS = {
    "selective": "follows the gradient that changes the answer; once it is wrong, the score's",
    "orthogonal": "as selective, each step at right angles to what would undo the other aim",
    "combined": "takes model and guard for one classifier, of which “flagged” is a class more",
    "lagrangian": "lowers the true class and, with a weight, the score; tries many weights",
    "mimicry": "copies what the guard reads of a clean image of another class",
    SEARCH: "no gradients: asks again and again, and sees answers and scores",
    BEST: "whatever of these came furthest on each image",
}


def attack_legend(names: Iterable[str]) -> list[str]:
    """Return what each attack of the table does, a line for each that is known by name."""
    return [f"{name}: {_ATTACKS[name]}." for name in dict.fromkeys(names) if name in _ATTACKS]


def pair_sentences(report: RedTeamReport) -> list[str]:
    """Return a sentence per attacker that was paired with the same one on the bare model."""
    lines = [
        f"Smallest change, the guard known: {_change(pair, norm)}"
        for norm, pair in report.smallest.items()
    ]
    for name, pair in report.asking_only.items():
        if not pair.images:
            lines.append(f"{name}: no clean image was left unflagged to start from.")
            continue
        asked = "" if pair.questions is None else f" after {pair.questions:,.0f} questions"
        bare = "" if pair.bare_questions is None else f" after {pair.bare_questions:,.0f}"
        lines.append(
            f"{name}, answers and flags only: {_share(pair.guarded)} of {pair.images} images "
            f"evade{asked}, {_share(pair.bare)} are answered wrong without the guard{bare}. "
            + (_change(pair, "l2") if pair.ratio is not None else _unnoticed(pair))
        )
    return lines


def _change(pair: Pair, norm: str) -> str:
    if pair.ratio is None:
        return "nothing to compare."
    ratio = pair.ratio
    return (
        f"{_length(pair.guarded_change)} {_unit(pair.guarded_change, norm)} for half of the "
        f"{pair.images} images, "
        f"{_length(pair.bare_change)} on the bare model; {ratio.value:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}] times as far, image by image, at the {pair.rate} "
        f"threshold. {_unnoticed(pair)}"
    )


def _unnoticed(pair: Pair) -> str:
    if pair.unnoticed is None:
        return "The bare model was not fooled."
    return (
        "Of the images made wrong by someone who does not know of the guard "
        f"{_share(pair.unnoticed)} are not flagged."
    )


def _length(value: float | None) -> str:
    if value is None:
        return "never reached"
    text = f"{value:.3g}"
    return _COUNTS[int(text)] if text in _WHOLE else text  # "two 8-bit steps", not "2 8-bit steps"


def _unit(value: float | None, norm: str) -> str:
    """Return what a change is counted in, one of them or several."""
    return _UNITS[norm].replace("steps", "step") if _length(value) == "one" else _UNITS[norm]


def _share(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"

"""The demo's picture: what nobody sees, what the network makes of it, and what the guard says."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.detector.metrics import Interval
from reluguard.detector.verdict import Verdict
from reluguard.training.pages.plots import BLUE, GREY, RED, canvas

__all__ = ["Pair", "draw_pairs"]

_TIMES = 12  # as strong, around grey
_WIDTH, _ROW, _REST = 8.0, 2.05, 1.35  # inches
_NAMES = {"fgsm": "FGSM", "pgd": "PGD", "deepfool": "DeepFool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture before and after an attack, uint8 (H, W, C), and what was said of either."""

    before: Images
    after: Images
    attack: str
    label: int
    calm: Verdict
    loud: Verdict
    largest: int

    @property
    def attack_name(self) -> str:
        """What people call the attack."""
        kind = self.attack.split("-")[0]
        return _NAMES.get(kind, kind)


def draw_pairs(file: Path, pairs: Sequence[Pair], detected: Interval, alarms: Interval) -> None:
    """Write the picture, PNG, to be read at a width of 800 pixels.

    Args:
        file: written aside and then renamed.
        pairs: one per row.
        detected: share of all attacked images that are flagged.
        alarms: share of clean ones.
    """
    if not pairs:
        return
    ratios = {"width_ratios": (1, 1, 1, 1.45)}
    with canvas(_WIDTH, _ROW * len(pairs) + _REST, len(pairs), 4, **ratios) as (figure, grid):
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, hspace=0.03)
        figure.suptitle(
            "A change that nobody sees, and that the network falls for",
            x=0.012,
            ha="left",
            fontsize=13.5,
            fontweight="bold",
        )
        for row, pair in zip(grid, pairs, strict=True):
            _draw_row(row, pair)
        heads = ("as it was", f"the change, {_TIMES} x", "as it was sent", "")
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(head, fontsize=9.5, fontweight="normal", loc="center", pad=5)
        grid[0, 3].set_title("evidence by depth, first layer to last", fontsize=9.5, pad=5,
                             fontweight="normal", loc="center")  # fmt: skip
        figure.supxlabel(
            f"Blue: not flagged; red: flagged. Of {detected.n} attacks that fooled the network the "
            f"guard flags {detected.value:.0%},\nof {alarms.n} untouched pictures "
            f"{alarms.value:.0%}; none of them was seen when it was fitted.",
            x=0.012,
            ha="left",
            fontsize=9.5,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, facecolor="#ffffff")
    write_file(file, buffer.getvalue())


def _draw_row(row: Sequence[Any], pair: Pair) -> None:
    change = pair.after.astype(np.int64) - pair.before.astype(np.int64)
    shown = np.clip(128 + _TIMES * change, 0, 255).astype(np.uint8)
    for axes, image in zip(row, (pair.before, shown, pair.after), strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    _say(row[0], pair.calm)
    _say(row[2], pair.loud)
    row[1].set_xlabel(f"{pair.attack_name}: at most {pair.largest}\nof 255 steps", fontsize=9)
    _draw_evidence(row[3], pair)


def _say(axes: Any, verdict: Verdict) -> None:
    word = "ADVERSARIAL" if verdict.is_adversarial else "not flagged"
    color = RED if verdict.is_adversarial else BLUE
    axes.set_xlabel(
        f"network reads {verdict.prediction}\n{word}, p = {verdict.p_value:.3f}",
        fontsize=9,
        color=color,
        fontweight="bold" if verdict.is_adversarial else "normal",
    )
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2.5)


def _draw_evidence(axes: Any, pair: Pair) -> None:
    places = np.arange(1, len(pair.calm.evidence) + 1)
    for side, (label, verdict, color) in enumerate(
        (("as it was", pair.calm, BLUE), ("as it was sent", pair.loud, RED))
    ):
        axes.bar(places + 0.4 * side - 0.2, verdict.evidence, 0.38, color=color, label=label)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(places)
    axes.tick_params(labelsize=8)
    axes.set_ylabel("log-odds", fontsize=8.5)
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize=8, borderaxespad=0,
        handlelength=1, columnspacing=1,
    )  # fmt: skip

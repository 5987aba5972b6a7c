"""The demo's picture: what nobody sees, what the network makes of it, and what the guard says."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.detector.metrics import Interval
from reluguard.detector.verdict import Verdict
from reluguard.training.evaluation.conclusion import percent
from reluguard.training.pages.plots import BLUE, GREY, RED, canvas

__all__ = ["Pair", "Scale", "draw_pairs"]

_TIMES = 12  # as strong, around grey
_WIDTH, _ROW, _REST = 8.0, 2.2, 1.65  # inches
_BINS = 30
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What a score is held against.

    Attributes:
        clean_scores: float32, (n,). Scores of clean images, log-odds: what p-values count.
        threshold: an image that scores above it is flagged.
    """

    clean_scores: NDArray[np.float32]
    threshold: float


def draw_pairs(
    file: Path, pairs: Sequence[Pair], scale: Scale, detected: Interval, alarms: Interval
) -> None:
    """Write the picture, PNG, to be read at a width of 800 pixels.

    Args:
        file: written aside and then renamed.
        pairs: one per row; none writes nothing.
        scale: of the guard that judged them.
        detected: share of all attacked images that are flagged.
        alarms: share of clean ones.
    """
    if not pairs:
        return
    ratios = {"width_ratios": (1, 1, 1, 1.85)}
    with canvas(_WIDTH, _ROW * len(pairs) + _REST, len(pairs), 4, **ratios) as (figure, grid):
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, hspace=0.04)
        figure.suptitle(
            "A change that nobody sees, and that the network falls for",
            x=0.012,
            ha="left",
            fontsize=13.5,
            fontweight="bold",
        )
        for row, pair in zip(grid, pairs, strict=True):
            _draw_row(row[:3], pair)
            place = row[3].get_subplotspec().subgridspec(2, 1, hspace=0.02)
            row[3].remove()
            score, layers = place.subplots()
            _draw_score(score, pair, scale)
            _draw_evidence(layers, pair)
        heads = ("as it was", f"the change, {_TIMES} x", "as it was sent")
        for axes, head in zip(grid[0], heads, strict=False):
            axes.set_title(head, fontsize=9.5, fontweight="normal", loc="center", pad=5)
        figure.supxlabel(
            "Blue: as it was; red: as it was sent; grey: the scores of other untouched pictures. "
            "A picture is flagged\nwhere its score, which weighs all layers together, is right of "
            "the dashed line; p is the share of grey\nthat is as far right. "
            f"Of {detected.n} attacks that fooled the network the guard flags "
            f"{percent(detected.value)}, of {alarms.n} untouched\npictures "
            f"{percent(alarms.value)}; none of them was seen when it was fitted.",
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
    for axes, image in zip(row, (pair.before, shown, pair.after), strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_anchor("N")
        for spine in axes.spines.values():
            spine.set_visible(False)
    _say(row[0], pair.calm)
    _say(row[2], pair.loud)
    row[1].set_xlabel(f"{pair.attack_name}: at most {pair.largest}\nof 255 steps", fontsize=9)


def _say(axes: Any, verdict: Verdict) -> None:
    word = "ADVERSARIAL" if verdict.is_adversarial else "not flagged"
    color = RED if verdict.is_adversarial else BLUE
    axes.set_xlabel(
        f"network reads {verdict.prediction}\n{word}, p = {verdict.p_value:.3f}",
        fontsize=8.5,
        color=color,
        fontweight="bold" if verdict.is_adversarial else "normal",
    )
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2.5)


def _draw_score(axes: Any, pair: Pair, scale: Scale) -> None:
    """Draw both scores among those of clean images, and where flagging begins."""
    ours = [pair.calm.score, pair.loud.score]
    low, high = (at([at(scale.clean_scores), scale.threshold, *ours]) for at in (np.min, np.max))
    room = 0.06 * (high - low)
    counts, _, _ = axes.hist(
        scale.clean_scores, np.linspace(low, high, _BINS + 1), color=GREY, alpha=0.45
    )
    top = float(np.max(counts))
    axes.axvline(scale.threshold, color=GREY, linestyle="--", linewidth=1.4)
    axes.axvspan(scale.threshold, high + room, color=RED, alpha=0.1, linewidth=0)
    for score, color in zip(ours, (BLUE, RED), strict=True):
        axes.plot([score, score], [0, 0.8 * top], color=color, linewidth=2.2)
        axes.plot([score], [0.8 * top], "o", color=color, markersize=7)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(0, 1.12 * top)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(labelsize=8)
    axes.set_title(
        f"score: flagged above {scale.threshold:.2f}", fontsize=9, fontweight="normal", pad=4
    )


def _draw_evidence(axes: Any, pair: Pair) -> None:
    """Draw what each layer says by itself; the score is no sum of it."""
    places = np.arange(1, len(pair.calm.evidence) + 1)
    for side, (verdict, color) in enumerate(((pair.calm, BLUE), (pair.loud, RED))):
        axes.bar(places + 0.4 * side - 0.2, verdict.evidence, 0.38, color=color)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(places)
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=8)
    axes.set_title("each layer alone, first to last", fontsize=9, fontweight="normal", pad=4)

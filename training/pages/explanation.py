"""The picture that explains one verdict. L taps, K classes, n neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.verdict import Verdict
from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.pages.plots import AMBER, BLUE, GREY, RED, canvas

__all__ = ["VOTERS", "Explanation", "draw_explanation"]

VOTERS = 15  # nearest clean images that say what a tap's pattern looks like
_SHOWN_TAPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One verdict and what led to it.

    Attributes:
        image: uint8, (H, W, C), as the model saw it.
        verdict: the guard's.
        threshold: the score above which an image counts as adversarial.
        taps: names of the L taps the guard reads.
        looks_like: (L, K). Share of the 15 nearest clean images of each class, by Hamming.
        neighbours: int64, (L, n). The nearest clean images, nearest first.
        distances: (L, n). Share of bits in which they differ.
        neighbour_images: uint8, (L, n, H, W, C).
        neighbour_labels: int64, (L, n).
        channels: (tap, channel) of the firing rates that moved the evidence most; empty where the
            head reads none.
        contributions: (len(channels),). By how much, in log-odds; positive is more adversarial.
    """

    image: Images
    verdict: Verdict
    threshold: float
    taps: tuple[str, ...]
    looks_like: Floats
    neighbours: Ints
    distances: Floats
    neighbour_images: Images
    neighbour_labels: Ints
    channels: tuple[tuple[int, int], ...]
    contributions: Floats

    @property
    def loudest(self) -> int:
        """The tap with the most evidence either way, the first of equal ones, from 0."""
        return int(np.argmax(np.abs(self.verdict.evidence)))


def draw_explanation(found: Explanation, file: Path, *, class_names: Sequence[str] = ()) -> None:
    """Write the picture of an explanation; the suffix says which kind."""
    k = found.looks_like.shape[1]
    names = list(class_names) or [f"class {i}" for i in range(k)]
    ratios = {"height_ratios": (1.05, 1.15, 1.3), "width_ratios": (1.25, 1)}
    with canvas(11, 10.5, 3, 2, **ratios) as (figure, grid):
        _draw_image(grid[0, 0], found, names)
        _draw_neighbours(grid[0, 1], found, names)
        _draw_evidence(grid[1, 0], found)
        if np.any(found.contributions):
            _draw_channels(grid[1, 1], found)
        else:  # no rate moved anything
            grid[1, 1].set_visible(False)
        _draw_looks(figure, grid[2, 0], found, names)
        _draw_sentence(grid[2, 1], found, names)
        figure.savefig(file, dpi=130, facecolor="#ffffff")


def _show(axes: Any, image: NDArray[np.uint8], extent: tuple[float, float, float, float]) -> None:
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        extent=extent,
        interpolation="nearest",
    )


def _bare(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_image(axes: Any, found: Explanation, names: list[str]) -> None:
    verdict = found.verdict
    _bare(axes, "The image and its verdict")
    _show(axes, found.image, (0, 1, 0, 1))
    word = "adversarial" if verdict.is_adversarial else "not flagged"
    lines = (
        (word, RED if verdict.is_adversarial else BLUE, 15),
        (f"answer: {names[verdict.prediction]}", None, 11),
        (f"score {verdict.score:+.2f} (threshold {found.threshold:+.2f})", None, 10),
        (f"likelihood {verdict.likelihood:.1%}", None, 10),
        (f"p-value {verdict.p_value:.4f}", None, 10),
    )
    for index, (text, color, size) in enumerate(lines):
        style = {} if color is None else {"color": color, "fontweight": "bold"}
        axes.text(1.08, 0.92 - 0.17 * index, text, fontsize=size, va="top", **style)
    axes.set_xlim(0, 2.3)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_anchor("W")


def _shown_taps(found: Explanation) -> list[int]:
    """The tap with the most evidence, the last one, and one in between or before."""
    last = len(found.taps) - 1
    chosen = [found.loudest, last, last // 2, 0]
    unique = list(dict.fromkeys(chosen))[:_SHOWN_TAPS]
    return sorted(unique)


def _draw_neighbours(axes: Any, found: Explanation, names: list[str]) -> None:
    _bare(axes, "Clean images whose gates fire most alike")
    count = found.neighbours.shape[1]
    shown = _shown_taps(found)
    for row, tap in enumerate(shown):
        top = (len(shown) - row) * 1.42
        axes.text(-0.12, top - 0.5, f"tap {tap + 1}", ha="right", va="center", fontsize=9.5)
        for column in range(count):
            left = column * 1.1
            extent = (left, left + 1, top - 1, top)
            _show(axes, found.neighbour_images[tap, column], extent)
            label = names[int(found.neighbour_labels[tap, column])]
            text = f"{label}\n{found.distances[tap, column]:.1%} differ"
            axes.text(left + 0.5, top - 1.03, text, ha="center", va="top", fontsize=6.5)
    axes.set_xlim(-0.9, count * 1.1)
    axes.set_ylim(0, len(shown) * 1.42 + 0.05)
    axes.set_aspect("equal")


def _draw_evidence(axes: Any, found: Explanation) -> None:
    evidence = np.asarray(found.verdict.evidence)
    places = np.arange(1, len(evidence) + 1)
    axes.bar(places, evidence, color=np.where(evidence > 0, RED, BLUE))
    axes.axhline(0, color=GREY, linewidth=1)
    axes.grid(visible=False, axis="x")
    axes.set_title("Evidence per tap")
    axes.set_xlabel("tap (a layer of gates), first to last")
    axes.set_ylabel("log-odds, up is adversarial")
    axes.set_xticks(places[:: max(1, len(places) // 10)])


def _draw_channels(axes: Any, found: Explanation) -> None:
    values = found.contributions
    places = np.arange(len(values))
    axes.barh(places, values, color=np.where(values > 0, RED, BLUE))
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(places, [f"tap {t + 1}, channel {c}" for t, c in found.channels], fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title("Channels that moved it most")
    axes.set_xlabel("log-odds, right is adversarial")


def _draw_looks(figure: Any, axes: Any, found: Explanation, names: list[str]) -> None:
    k = len(names)
    kept = (
        np.arange(k)
        if k <= 12
        else np.sort(np.argsort(-found.looks_like.max(axis=0), kind="stable")[:12])
    )
    table = found.looks_like[:, kept].T
    picture = axes.imshow(
        100 * table, cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="none"
    )
    axes.grid(visible=False)
    axes.set_yticks(np.arange(len(kept)), [names[int(i)] for i in kept])
    answer = np.flatnonzero(kept == found.verdict.prediction)
    if len(answer):
        axes.axhspan(answer[0] - 0.5, answer[0] + 0.5, fill=False, edgecolor=AMBER, linewidth=2)
    step = max(1, len(found.taps) // 10)
    places = np.arange(0, len(found.taps), step)
    axes.set_xticks(places, places + 1)
    axes.set_title("Which class each tap's pattern looks like")
    axes.set_xlabel("tap, first to last; framed: the model's answer")
    bar = figure.colorbar(picture, ax=axes, pad=0.02)
    bar.set_label(f"% of the {VOTERS} nearest clean images")
    bar.outline.set_visible(False)


def _draw_sentence(axes: Any, found: Explanation, names: list[str]) -> None:
    from textwrap import fill

    _bare(axes, "In words")
    answer = found.verdict.prediction
    favourite = found.looks_like.argmax(axis=1)
    against = [i for i in range(len(favourite)) if favourite[i] != answer]
    texts = [
        (
            f"The model answers {names[answer]}. "
            f"{len(favourite) - len(against)} of {len(favourite)} taps agree with it."
        ),
    ]
    if against:
        last = against[-1]
        texts.append(
            f"The last tap that disagrees is tap {last + 1}: its pattern looks like "
            f"{names[int(favourite[last])]}."
        )
    loudest = found.verdict.evidence[found.loudest]
    texts.append(
        f"The strongest evidence comes from tap {found.loudest + 1} ({loudest:+.2f} log-odds, "
        f"{'for' if loudest > 0 else 'against'} an attack)."
    )
    if np.any(found.contributions):
        tap, channel = found.channels[0]
        texts.append(f"The channel that moved it most is channel {channel} of tap {tap + 1}.")
    body = "\n\n".join(fill(text, 44) for text in texts)
    axes.text(0, 0.95, body, va="top", fontsize=10.5, linespacing=1.4, transform=axes.transAxes)

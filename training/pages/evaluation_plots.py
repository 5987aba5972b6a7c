"""What an evaluation shows: curves, matrices and example images. N images, L taps."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.evaluation.comparison import Group
from reluguard.training.evaluation.leave_out import Matrix
from reluguard.training.evaluation.result import Evaluation
from reluguard.training.pages.page import figure, paragraph, table
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    CATEGORIES,
    GREEN,
    GREY,
    PINK,
    RED,
    canvas,
    heat_map,
    svg,
)
from reluguard.training.pages.words import in_order
from reluguard.training.statistics.metrics import auroc

__all__ = ["before_and_after", "densities", "evidence", "examples", "matrix", "roc", "severity"]

EXAMPLES = 6
DIFFERENCE = 16  # times as strong, around grey
DISTINCT = (RED, AMBER, PINK, BLUE, GREEN)
MARKERS = "osD^vPX*"


def _hits(groups: Mapping[str, Group]) -> dict[str, NDArray[np.float32]]:
    found = {k: g.score[g.hits] for k, g in groups.items() if g.kind == "attack"}
    return {slug: found[slug] for slug in in_order(found) if len(found[slug])}


def roc(groups: Mapping[str, Group]) -> str:
    """Return one small ROC curve per attack."""
    clean = np.sort(groups["clean"].score)
    hits = _hits(groups)
    if not hits:
        return paragraph("No attack succeeded.")
    columns = min(5, len(hits))
    rows = -(-len(hits) // columns)
    limits = np.concatenate([[np.inf], clean[::-1], [-np.inf]])
    false = 1 - np.searchsorted(clean, limits, side="right") / len(clean)
    with canvas(9, 0.5 + 1.55 * rows, rows, columns, sharex=True, sharey=True) as (drawing, axes):
        for plot, (slug, scores) in zip(axes.flat, hits.items(), strict=False):
            true = 1 - np.searchsorted(np.sort(scores), limits, side="right") / len(scores)
            plot.fill_between(false, true, color=CATEGORIES[0], alpha=0.15, linewidth=0)
            plot.plot(false, true, color=CATEGORIES[0], linewidth=1.4)
            plot.set_title(slug, fontsize=8.5)
            area = f"{auroc(clean, scores):.3f}"
            plot.text(0.97, 0.08, area, ha="right", transform=plot.transAxes, fontsize=8.5)
            plot.set_xscale("symlog", linthresh=0.01, linscale=0.5)
            plot.set_xticks([0, 0.01, 0.1, 1], ["0", ".01", ".1", "1"])
            plot.set_xticks([], minor=True)
            plot.set_xlim(0, 1)
            plot.set_ylim(0, 1.02)
        for plot in axes.flat[len(hits) :]:
            plot.set_visible(False)
        drawing.supxlabel("share of clean images flagged", fontsize=9.5)
        drawing.supylabel("share of attacks detected", fontsize=9.5)
        return figure(
            svg(drawing, "ROC curve of each attack"),
            "ROC of each attack with its AUROC; the horizontal axis is linear below 1 % and "
            "logarithmic above.",
        )


def severity(card: Evaluation, rate: str) -> str:
    """Return what is flagged of harmless changes as they grow."""
    if not card.severity:
        return ""
    with canvas(8, 3.6) as (drawing, axes):
        plot = axes[0][0]
        for i, (kind, levels) in enumerate(card.severity.items()):
            x = [int(level) for level in levels]
            shown = [entry[rate] for entry in levels.values()]
            y = [entry.value for entry in shown]
            color = CATEGORIES[i % len(CATEGORIES)]
            low, high = [entry.low for entry in shown], [entry.high for entry in shown]
            plot.fill_between(x, low, high, color=color, alpha=0.08, linewidth=0)
            plot.plot(x, y, color=color, marker=MARKERS[i % len(MARKERS)], ms=4, label=kind)
        plot.axhline(float(rate), color=GREY, linestyle=":", label="promised for clean images")
        plot.set_xticks([1, 2, 3, 4, 5])
        plot.set_ylim(0, None)
        plot.set_xlabel("severity, as CIFAR-10-C")
        plot.set_ylabel(f"flagged at {rate}")
        drawing.legend(loc="outside upper left", ncols=4, fontsize=8.5)
        return figure(
            svg(drawing, "flagged share of harmless changes by severity"),
            "Harmless changes of growing strength, with 95 % intervals. What is flagged here is a "
            "false alarm, though the model's own answer gets worse along with it.",
        )


def densities(card: Evaluation, groups: Mapping[str, Group]) -> str:
    """Return score densities of clean images and of the hardest and easiest attacks."""
    hits = _hits(groups)
    if not hits:
        return ""
    areas = {slug: card.attacks[slug].auroc for slug in hits}
    area = {slug: found.value for slug, found in areas.items() if found is not None}
    ranked = sorted(area, key=lambda slug: area[slug])
    chosen = list(dict.fromkeys([*ranked[:3], *ranked[-2:]]))
    with canvas(8, 3.4) as (drawing, axes):
        plot = axes[0][0]
        clean = groups["clean"].score
        low, high = np.quantile(np.concatenate([clean, *hits.values()]), [0.002, 0.998])
        edges = list(np.linspace(low, high, 60))
        plot.hist(
            np.clip(clean, low, high),
            bins=edges,
            density=True,
            histtype="stepfilled",
            alpha=0.45,
            color=GREY,
            label="clean",
        )
        for i, name in enumerate(chosen):
            plot.hist(
                np.clip(hits[name], low, high),
                bins=edges,
                density=True,
                histtype="step",
                linewidth=1.4,
                color=DISTINCT[i % len(DISTINCT)],
                label=name,
            )
        plot.set_xlabel("score, log-odds")
        plot.set_ylabel("density")
        drawing.legend(loc="outside upper left", ncols=4, fontsize=8.5)
        return figure(
            svg(drawing, "score densities"),
            "Scores of clean images, and of the attacks hardest and easiest to tell from them.",
        )


def evidence(groups: Mapping[str, Group]) -> str:
    """Return how well each tap on its own tells each attack from clean images."""
    attacks = {slug: groups[slug] for slug in _hits(groups)}
    if not attacks:
        return ""
    clean = groups["clean"].evidence
    taps = clean.shape[1]
    values = np.array(
        [[auroc(clean[:, t], g.evidence[g.hits, t]) for t in range(taps)] for g in attacks.values()]
    )
    with canvas(9, 1.2 + 0.24 * len(values)) as (drawing, axes):
        plot = axes[0][0]
        heat_map(drawing, plot, values, title="", unit="AUROC", limits=(0.5, 1.0), ylabel="")
        plot.set_yticks(range(len(attacks)), list(attacks), fontsize=8.5)
        plot.set_xlabel("tap, first to last")
        picture = svg(drawing, "AUROC of each tap's own evidence on each attack")
    return figure(
        picture,
        "AUROC of each tap's own evidence, so which depth gives an attack away. The guard joins "
        "them with probes and confidence, and does better than any tap alone.",
    )


def matrix(found: Matrix) -> str:
    """Return AUROC of heads fitted without some attacks on every attack."""
    rows = list(found.auroc)
    columns = list(found.families)
    values = np.array([[found.auroc[row][column] for column in columns] for row in rows])
    with canvas(10, 1.9 + 0.36 * len(rows)) as (drawing, axes):
        plot = axes[0][0]
        heat_map(drawing, plot, values, title="", unit="AUROC", limits=(0.5, 1.0), digits=2)
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                if found.families[column] == row:
                    plot.add_patch(_frame(x, y))
        plot.set_xticks(
            range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor"
        )
        plot.set_yticks(range(len(rows)), rows)
        plot.set_ylabel("left out of the fit")
        plot.set_xlabel("")
        picture = svg(drawing, "AUROC per attack with some attacks left out of the fit")
    fitted = found.rows_per_group
    rows_used = "all images" if fitted is None else f"at most {fitted} images"
    text = (
        f"Heads fitted without one {found.by} of attacks each, on {rows_used} of each group, "
        "and their AUROC on the fit's test split. Framed: attacks that the head has not seen."
    )
    if found.unseen:
        text += f" On those: mean {found.mean_interval}, worst {found.worst_interval}."
    listed = [
        [slug, found.families[slug], str(entry)] for slug, entry in found.unseen_intervals.items()
    ]
    return figure(picture, text) + table(
        ["attack", "left out", "AUROC"], listed, text_columns=(0, 1)
    )


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#d8572a", linewidth=1.6)


def examples(groups: Mapping[str, Group], thresholds: Mapping[str, float], rate: str) -> str:
    """Return images before and after attacks, what was changed, and what the guard said."""
    clean = groups["clean"]
    attacks = [g for g in groups.values() if g.kind == "attack" and g.hits.any()]
    if not attacks:
        return paragraph("No attack succeeded.")
    if any(group.shard.images is None for group in (clean, *attacks)):
        return paragraph("The images are too large to keep.")
    chosen = [attacks[i] for i in np.unique(np.linspace(0, len(attacks) - 1, EXAMPLES).astype(int))]
    place = {int(source): row for row, source in enumerate(clean.shard.sources)}
    parts = []
    for group in chosen:
        row = int(np.flatnonzero(group.hits)[0])
        before = place[int(group.shard.sources[row])]
        assert clean.shard.images is not None
        assert group.shard.images is not None
        pair = clean.shard.images[before], group.shard.images[row]
        answer = int(group.shard.logits[row].argmax())
        flagged = group.score[row] > np.float32(thresholds[rate])
        pictures = {
            f"clean, score {clean.score[before]:.1f}": pair[0],
            f"{group.name}, score {group.score[row]:.1f}": pair[1],
        }
        word = "flagged" if flagged else "not flagged"
        label = int(group.shard.labels[row])
        text = f"{group.name}: class {label} read as {answer}, {word} at {rate}"
        parts.append(before_and_after(pictures, text))
    return f'<div class="pictures">{"".join(parts)}</div>'


def before_and_after(pictures: Mapping[str, Images], text: str) -> str:
    """Return two named images, uint8 (H, W, C), side by side with what was changed."""
    before, after = pictures.values()
    shown = {**pictures, f"difference, {DIFFERENCE} times": _difference(before, after)}
    return (
        "<figure><div>"
        + "".join(_picture(name, image) for name, image in shown.items())
        + f"</div><figcaption>{escape(text)}</figcaption></figure>"
    )


def _difference(before: Images, after: Images) -> Images:
    """Return what was added, so many times as strong, around grey."""
    change = after.astype(np.int64) - before.astype(np.int64)
    return np.clip(128 + DIFFERENCE * change, 0, 255).astype(np.uint8)


def _picture(name: str, image: Images) -> str:
    return f'<div><img alt="{escape(name)}" src="{_png(image)}"><small>{escape(name)}</small></div>'


def _png(image: Images) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

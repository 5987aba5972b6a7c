"""An evaluation as one self-contained HTML page, plots inline. N images."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.images import Images
from training.analysis.page import Section, figure, page, paragraph, table
from training.analysis.plots import CATEGORIES, canvas, heat_map, svg
from training.comparison import Group

__all__ = ["evaluation_page"]

EXAMPLES = 8
STYLES = ("-", "--", ":")


def evaluation_page(card: Mapping[str, Any], groups: Mapping[str, Group]) -> str:
    """Return the page.

    Args:
        card: as `evaluate` makes it.
        groups: what it was made from, for curves and examples.
    """
    about, clean = card["about"], card["clean"]
    rate = _own_rate(card)
    mean, worst = card["summary"]["mean_auroc"], card["summary"]["worst_auroc"]
    lead = paragraph(
        f"{about['images']} images that no step of fitting saw ({about['from']}). Clean images "
        f"flagged at the {rate} threshold: {_interval(clean['false_positive_rate'][rate])}. "
        + (f"AUROC over attacks: mean {mean:.3f}, worst {worst:.3f}." if mean is not None else "")
    ) + paragraph(
        "Threat model of this page: " + about["threat_model"] + ". Attacks count where they "
        "succeeded in whole pixels from images the model answers right; brackets are 95 % "
        "intervals. Someone who knows the guard gets past more often: see the red team's figures."
    )
    sections = [
        Section(title="Attacks", body=_roc(groups) + _attack_table(card)),
        Section(title="Clean images", body=_clean_table(card) + _class_table(card, rate)),
        Section(title="Harmless changes", body=_severity(card, rate) + _benign_table(card, rate)),
        Section(title="Baselines", body=_baseline_table(card)),
        Section(title="Precision", body=_precision_table(card)),
        Section(title="Scores", body=_densities(card, groups)),
        Section(title="Examples", body=_examples(groups)),
    ]
    if "matrix" in card:
        sections.insert(4, Section(title="Seen and unseen", body=_matrix(card["matrix"])))
    subtitle = f"model {about['model'][:16]}, guard {about['guard'][:16]}, seed {about['seed']}"
    return page("reluguard evaluation", subtitle, lead, sections)


def _own_rate(card: Mapping[str, Any]) -> str:
    """The most lenient rate: what tables of one column show."""
    return str(list(card["clean"]["false_positive_rate"])[-1])


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _attack_table(card: Mapping[str, Any]) -> str:
    rates = list(card["clean"]["false_positive_rate"])
    rows = []
    for slug, entry in card["attacks"].items():
        row = [slug, "yes" if entry["fitted_on"] else "new"]
        row += [f"{entry['succeeded']} / {entry['tried']}"]
        if "auroc" in entry:
            row += [_interval(entry["auroc"])]
            row += [_interval(entry["detected"][rate]) for rate in rates]
        else:
            row += ["-"] * (1 + len(rates))
        failed = entry["failed"]["flagged"]
        row += [_interval(failed[rates[-1]]) if failed else "-"]
        row += [_interval(entry["unnoticed"][rates[-1]])]
        rows.append(row)
    head = ["attack", "fitted on", "succeeded", "AUROC", *(f"detected at {r}" for r in rates)]
    head += [f"failed ones flagged at {rates[-1]}", f"unnoticed at {rates[-1]}, of all tries"]
    return table(head, rows)


def _clean_table(card: Mapping[str, Any]) -> str:
    clean = card["clean"]
    rows = [
        [
            rate,
            _interval(value),
            _interval(clean["misclassified_flagged"][rate])
            if clean["misclassified_flagged"]
            else "-",
        ]
        for rate, value in clean["false_positive_rate"].items()
    ]
    return table(["threshold for", "flagged", "of misclassified ones"], rows)


def _class_table(card: Mapping[str, Any], rate: str) -> str:
    rows = [
        [
            label,
            _interval(entry["false_positive_rate"][rate]),
            _interval(entry["detected"][rate]) if entry["detected"] else "-",
        ]
        for label, entry in card["classes"].items()
    ]
    head = ["true class", f"clean flagged at {rate}", "attacks detected"]
    return table(head, rows, folded="by class")


def _benign_table(card: Mapping[str, Any], rate: str) -> str:
    rows = [[slug, _interval(entry[rate])] for slug, entry in card["benign"].items()]
    return table(["harmless change", f"flagged at {rate}"], rows)


def _baseline_table(card: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in card["baselines"].items():
        keys = ("mean_auroc", "worst_auroc", "mean_benign_flagged")
        figures = [f"{entry[k]:.3f}" if entry.get(k) is not None else "-" for k in keys]
        rows.append([name, *figures, entry.get("note", "")])
    head = ["detector", "mean AUROC", "worst AUROC", "harmless changes flagged", "note"]
    slugs = list(card["attacks"])
    detail = [
        [slug, *(_cell(entry, slug) for entry in card["baselines"].values())] for slug in slugs
    ]
    left_out = paragraph("Left out: " + card["left_out"]) if "left_out" in card else ""
    return (
        paragraph(
            "Every detector on the same images, its threshold set where 5 % of these clean images "
            "are flagged. Those that need fitting are fitted on the guard's own fitting split."
        )
        + left_out
        + table(head, rows, text_columns=(0, 4))
        + table(["AUROC", *card["baselines"]], detail, folded="AUROC by attack")
    )


def _cell(entry: Mapping[str, Any], slug: str) -> str:
    value = entry.get("auroc", {}).get(slug)
    return "-" if value is None else f"{value:.3f}"


def _precision_table(card: Mapping[str, Any]) -> str:
    rows = [
        [rate, *(f"{value:.3g}" for value in entry["precision"].values())]
        for rate, entry in card["precision"].items()
    ]
    if not rows:
        return paragraph("No attack succeeded.")
    shares = next(iter(card["precision"].values()))["precision"]
    note = "Share of flagged requests that are attacks, where this share of requests are attacks."
    return paragraph(note) + table(["threshold for", *shares], rows)


def _hits(groups: Mapping[str, Group]) -> dict[str, NDArray[np.float32]]:
    found = {k: g.score[g.hits] for k, g in groups.items() if g.kind == "attack"}
    return {slug: scores for slug, scores in found.items() if len(scores)}


def _roc(groups: Mapping[str, Group]) -> str:
    clean = np.sort(groups["clean"].score)
    with canvas(8, 4.6) as (drawing, axes):
        plot = axes[0][0]
        for i, (slug, scores) in enumerate(_hits(groups).items()):
            limits = np.concatenate([[np.inf], clean[::-1], [-np.inf]])
            false = 1 - np.searchsorted(clean, limits, side="right") / len(clean)
            true = 1 - np.searchsorted(np.sort(scores), limits, side="right") / len(scores)
            style = STYLES[i // len(CATEGORIES) % len(STYLES)]
            color = CATEGORIES[i % len(CATEGORIES)]
            plot.plot(false, true, color=color, linestyle=style, linewidth=1.4, label=slug)
        plot.set_xscale("symlog", linthresh=0.01)
        plot.set_xlim(0, 1)
        plot.set_ylim(0, 1.01)
        plot.set_xlabel("clean images flagged")
        plot.set_ylabel("attacks detected")
        plot.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)
        return figure(svg(drawing, "ROC curve per attack"), "ROC per attack; linear below 1 %.")


def _severity(card: Mapping[str, Any], rate: str) -> str:
    if not card["severity"]:
        return ""
    with canvas(8, 3.6) as (drawing, axes):
        plot = axes[0][0]
        for i, (kind, levels) in enumerate(card["severity"].items()):
            x = [int(level) for level in levels]
            y = [entry[rate]["value"] for entry in levels.values()]
            plot.plot(x, y, color=CATEGORIES[i % len(CATEGORIES)], marker="o", label=kind)
        plot.axhline(float(rate), color="#8a929c", linestyle=":", label="target")
        plot.set_xticks([1, 2, 3, 4, 5])
        plot.set_ylim(0, None)
        plot.set_xlabel("severity, as CIFAR-10-C")
        plot.set_ylabel(f"flagged at {rate}")
        plot.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)
        return figure(
            svg(drawing, "flagged share of harmless changes by severity"),
            "Harmless changes of growing strength. What is flagged here is a false alarm, though "
            "the model's own answer gets worse along with it.",
        )


def _densities(card: Mapping[str, Any], groups: Mapping[str, Group]) -> str:
    hits = _hits(groups)
    area = {slug: card["attacks"][slug]["auroc"]["value"] for slug in hits}
    ranked = sorted(area, key=lambda slug: area[slug])
    chosen = dict.fromkeys([*ranked[:3], *ranked[-2:]])
    with canvas(8, 3.4) as (drawing, axes):
        plot = axes[0][0]
        every = {"clean": groups["clean"].score} | {slug: hits[slug] for slug in chosen}
        low, high = np.quantile(np.concatenate([*every.values()]), [0.002, 0.998])
        edges = np.linspace(low, high, 60)
        for i, (name, scores) in enumerate(every.items()):
            filled = "stepfilled" if name == "clean" else "step"
            plot.hist(
                np.clip(scores, low, high),
                bins=list(edges),
                density=True,
                histtype=filled,
                alpha=0.5 if name == "clean" else 1.0,
                color="#8a929c" if name == "clean" else CATEGORIES[i],
                label=name,
            )
        plot.set_xlabel("score, log-odds")
        plot.set_ylabel("density")
        plot.legend(fontsize=8)
        return figure(
            svg(drawing, "score densities"),
            "Scores of clean images, and of the attacks hardest and easiest to tell from them.",
        )


def _matrix(matrix: Mapping[str, Any]) -> str:
    rows = list(matrix["auroc"])
    columns = list(matrix["families"])
    values = np.array([[matrix["auroc"][row][column] for column in columns] for row in rows])
    with canvas(9, 1.5 + 0.36 * len(rows)) as (drawing, axes):
        plot = axes[0][0]
        heat_map(drawing, plot, values, title="", unit="AUROC", limits=(0.5, 1.0), digits=2)
        plot.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        plot.set_yticks(range(len(rows)), rows)
        plot.set_ylabel("left out of the fit")
        plot.set_xlabel("")
        picture = svg(drawing, "AUROC per attack with one family left out of the fit")
    worst, mean = matrix["worst_unseen"], matrix["mean_unseen"]
    text = (
        "Heads fitted without one family of attacks, at most "
        f"{matrix['rows_per_group']} images of each group, and their AUROC on the fit's test split."
    )
    if mean is not None:
        text += f" On families left out: mean {mean:.3f}, worst {worst:.3f}."
    rows_of = [[slug, matrix["families"][slug], f"{v:.3f}"] for slug, v in matrix["unseen"].items()]
    return figure(picture, text) + table(["attack", "family left out", "AUROC"], rows_of)


def _examples(groups: Mapping[str, Group]) -> str:
    """A clean image and what attacks made of it, with the guard's scores."""
    parts = []
    attacks = [g for g in groups.values() if g.kind == "attack" and g.hits.any()]
    for group in [groups["clean"], *attacks][:EXAMPLES]:
        if group.shard.images is None:
            return paragraph("The images are too large to keep.")
        row = int(np.flatnonzero(group.hits if group.kind == "attack" else ~group.wrong)[0])
        answer = int(group.shard.logits[row].argmax())
        text = (
            f"{group.name}: a {int(group.shard.labels[row])} read as {answer}, score "
            f"{group.score[row]:.1f}"
        )
        parts.append(
            f'<figure style="display:inline-block;width:10rem;margin:.6rem">'
            f'<img alt="{escape(group.name)}" style="width:100%;image-rendering:pixelated" '
            f'src="{_png(group.shard.images[row])}"><figcaption>{escape(text)}</figcaption></figure>'
        )
    return "".join(parts)


def _png(image: Images) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

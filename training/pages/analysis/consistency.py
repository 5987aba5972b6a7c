"""Chapter 6: real against attacked representations."""

import numpy as np

from reluguard.training.analysis.checks import Floats
from reluguard.training.analysis.hardening import ConsistentTraining
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.consistency import ConsistencyStudy
from reluguard.training.pages.page import Section, figure, paragraph, table
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    GREEN,
    RED,
    Line,
    bars,
    canvas,
    depth_lines,
    svg,
)

__all__ = ["consistency_chapter"]

_NAMED = 10


def consistency_chapter(
    study: ConsistencyStudy, material: Material, hardening: ConsistentTraining | None
) -> Section:
    """Return the chapter."""
    graded = bool(np.isfinite(study.tree_real[-1]).any())
    level = np.nanmean(study.level_real[-1]), np.nanmean(study.level_attacked[-1])
    text = (
        f"{material.main} flips {np.nanmean(study.flips[-1]):.1%} of the last tap's bits, harmless "
        f"noise of that size {np.nanmean(study.flips_noise[-1]):.1%}. There, a real image's code "
        f"has a cosine of {study.real[-1].mean():.2f} to its class, an attacked one "
        f"{study.attacked_true[-1].mean():.2f} to what it shows and "
        f"{np.nanmean(study.attacked_answer[-1]):.2f} to what is answered. Two of a channel's ten "
        f"favourite images share a label in {level[0]:.0%} of cases, attacked ones in "
        f"{level[1]:.0%}. "
    )
    if graded:
        trees = np.nanmean(study.tree_real[-1]), np.nanmean(study.tree_attacked[-1])
        text += (
            f"Graded by a small tree of words, as the paper grades them by WordNet, they are "
            f"{trees[0]:.2f} and {trees[1]:.2f} alike, where the same word is 1."
        )
    else:
        text += (
            "The paper grades labels by WordNet; the small tree of words that stands in for it "
            "lacks a class of these, or they have no names."
        )
    body = paragraph(text)
    body += figure(
        _profiles(study, material),
        "Upper left: bits flipped per channel, mean and 10 to 90 % of channels. Upper right: "
        "how alike the labels of favourites are. Lower left: cosine of codes to class prototypes "
        "from other images. Lower right: cosine of a code before and after; and distance "
        "to the true class by distance to the answer, above 1 where the code has gone "
        "over to the answer.",
    )
    if len(study.traced):
        body += figure(
            _influence(study),
            "By how much the answer's logit falls if a channel of the last tap is silenced; mean "
            f"over {len(study.traced)} images, the channels that weigh most.",
        )
    if hardening is not None:
        body += _hardening(hardening)
    return Section(title="Consistency", body=body)


def _spread(label: str, values: Floats, color: str) -> Line:
    return Line(
        label=label,
        values=100 * np.nanmean(values, axis=1),
        low=100 * np.nanquantile(values, 0.1, axis=1),
        high=100 * np.nanquantile(values, 0.9, axis=1),
        color=color,
    )


def _profiles(study: ConsistencyStudy, material: Material) -> str:
    graded = bool(np.isfinite(study.tree_real).any())
    with canvas(10, 7.4, 2, 2) as (drawing, grid):
        depth_lines(
            grid[0, 0],
            [
                _spread(material.main, study.flips, RED),
                _spread("noise as large", study.flips_noise, AMBER),
            ],
            title="Bits flipped",
            unit="% of a channel's bits",
            limits=(0, None),
        )
        depth_lines(
            grid[0, 1],
            [
                _spread("real images", study.tree_real if graded else study.level_real, BLUE),
                _spread(
                    material.main, study.tree_attacked if graded else study.level_attacked, RED
                ),
            ],
            title="Level of consistency",
            unit="likeness of labels, %" if graded else "% of favourite pairs of one label",
            limits=(0, None),
        )
        depth_lines(
            grid[1, 0],
            [
                Line(label="real, own class", values=study.real.mean(axis=1), color=BLUE),
                Line(
                    label="attacked, what is shown",
                    values=study.attacked_true.mean(axis=1),
                    color=RED,
                ),
                Line(
                    label="attacked, the answer",
                    values=np.nanmean(study.attacked_answer, axis=1),
                    color=AMBER,
                    dashed=True,
                ),
            ],
            title="Like the class",
            unit="cosine to the prototype",
        )
        depth_lines(
            grid[1, 1],
            [
                Line(label=f"cosine, {material.main}", values=study.twin, color=RED),
                Line(label="cosine, noise as large", values=study.twin_noise, color=AMBER),
                Line(label="distance ratio", values=study.ratio, color=GREEN, dashed=True),
            ],
            title="Before against after",
            unit="cosine or ratio",
        )
        return svg(drawing, "Consistency of real and attacked representations over depth")


def _influence(study: ConsistencyStudy) -> str:
    clean, attacked = study.influence_clean, study.influence_attacked
    weight = np.abs(clean.mean(axis=0)) + np.abs(attacked.mean(axis=0))
    chosen = np.argsort(-weight, kind="stable")[:_NAMED]
    groups = {}
    for label, values in (("clean", clean), ("attacked", attacked)):
        mean = values[:, chosen].mean(axis=0)
        error = 1.96 * values[:, chosen].std(axis=0) / np.sqrt(max(1, len(values)))
        groups[label] = [
            (float(m), float(m - e), float(m + e)) for m, e in zip(mean, error, strict=True)
        ]
    with canvas(10, 4.4) as (drawing, grid):
        bars(
            grid[0, 0],
            groups,
            [f"channel {c}" for c in chosen],
            (BLUE, RED),
            title="Influential channels at the last tap",
            unit="fall of the answer's logit",
        )
        return svg(drawing, "Channels whose silencing lowers the answer most")


def _hardening(both: ConsistentTraining) -> str:
    def cell(value: object) -> str:
        return "-" if value is None else str(value)

    first, second = both.published, both.normalised
    rows = [
        [name, *map(cell, values)]
        for name, values in (
            ("clean accuracy", (first.clean_before, first.clean_after, second.clean_after)),
            (
                f"accuracy under {first.attack}",
                (first.robust_before, first.robust_after, second.robust_after),
            ),
            (
                "cosine of codes before and after",
                (first.consistency_before, first.consistency_after, second.consistency_after),
            ),
            (
                "detection of the attack, AUROC",
                (first.detection_before, first.detection_after, second.detection_after),
            ),
        )
    ]
    return (
        "<h3>Training with the consistent loss</h3>"
        + paragraph(
            f"Fine-tuned on {first.images} images in {first.seconds:.0f} s each, measured on "
            f"{first.evaluated} others; brackets are 95 % intervals. As published, the distance "
            "of a code before and after the attack is added to the loss as it is; it is smallest "
            "where the gates say nothing at all. Beside it the distance by the codes' mean length."
        )
        + table(["", "before", "after, as published", "after, by length"], rows)
    )

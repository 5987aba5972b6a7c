"""Chapter 2: Fiedler cuts."""

import numpy as np

from reluguard.training.analysis.fiedler import GRAPHS
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.splits import SplitStudy
from reluguard.training.pages.page import Section, figure, paragraph, table
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    PINK,
    RED,
    Line,
    canvas,
    depth_lines,
    heat_map,
    svg,
)
from reluguard.training.statistics.intervals import class_pair_mean

__all__ = ["splits_chapter"]

_TITLES = {
    "plain": "plain Laplacian",
    "normalised": "symmetric normalised",
    "knn": "nearest neighbours, normalised",
}
_COLORS = {"plain": GREY, "normalised": BLUE, "knn": GREEN}


def splits_chapter(study: SplitStudy, material: Material) -> Section:
    """Return the chapter."""
    normalised = study.pairs[GRAPHS.index("normalised")]
    last = class_pair_mean(normalised[-1], seed=material.seed)
    worst = np.unravel_index(np.nanargmin(normalised[-1]), normalised[-1].shape)
    first, second = (material.class_names[int(study.classes[i])] for i in worst)
    text = (
        "Take images of two classes, link each pair by how alike their bits are and cut the graph "
        "at its weakest place. No label is used. At the last tap the two sides are the two classes "
        f"for {last} of the images, mean over class pairs; the hardest pair is {first} and "
        f"{second} with {np.nanmin(normalised[-1]):.3f}. Images that were not in the graph get "
        f"their side by the Nyström extension: {study.nystrom[-1]:.3f}. Cut into "
        f"{len(study.classes)} parts, {study.parts_accuracy[-1]:.3f} of the images lie in the part "
        "of their class."
    )
    return Section(
        title="Fiedler cuts",
        body=paragraph(text)
        + figure(
            _accuracy(study, material),
            "Left: clean images, mean over class pairs, bands are 95 % intervals over classes. "
            "Right: the same cut on attacked images, on images outside the graph, and recursive "
            "cuts into as many parts as classes.",
        )
        + figure(
            _pairs_and_attack(study, material),
            "Left: accuracy of every class pair at the last tap. Right: the cut of a graph of "
            "clean and attacked images (other sources, as many of each), all classes mixed and "
            "among images of one answer.",
        )
        + _table(study)
        + paragraph(
            "How sure a cut is shows in the eigengap, the third minus the second eigenvalue: a gap "
            "near zero means that another cut is as good."
        )
        + figure(_eigenvalues(study), "Means over class pairs, symmetric normalised Laplacian."),
    )


def _accuracy(study: SplitStudy, material: Material) -> str:
    with canvas(10, 4.2, 1, 2) as (drawing, grid):
        lines = []
        for g, graph in enumerate(GRAPHS):
            found = [class_pair_mean(pairs, seed=material.seed) for pairs in study.pairs[g]]
            lines.append(
                Line(
                    label=_TITLES[graph],
                    values=np.array([interval.value for interval in found]),
                    low=np.array([interval.low for interval in found]),
                    high=np.array([interval.high for interval in found]),
                    color=_COLORS[graph],
                )
            )
        chance = (0.5, "chance at best")
        depth_lines(
            grid[0, 0],
            lines,
            title="Two classes, clean images",
            unit="split accuracy",
            limits=(0.48, 1.01),
            chance=chance,
        )
        attacked = np.nanmean(study.attacked_pairs, axis=(1, 2))
        others = [
            Line(label="outside the graph (Nyström)", values=study.nystrom, color=BLUE),
            Line(label=f"{material.main}, by what is shown", values=attacked, color=RED),
            Line(
                label=f"{len(study.classes)} parts, accuracy",
                values=study.parts_accuracy,
                color=GREEN,
            ),
            Line(
                label=f"{len(study.classes)} parts, NMI",
                values=study.parts_information,
                color=PINK,
                dashed=True,
            ),
        ]
        depth_lines(
            grid[0, 1],
            others,
            title="Other images, attacked images, all classes",
            unit="accuracy or NMI",
            limits=(0, 1.02),
        )
        return svg(drawing, "Accuracy of Fiedler cuts over depth")


def _pairs_and_attack(study: SplitStudy, material: Material) -> str:
    names = [material.class_names[int(c)] for c in study.classes]
    with canvas(10, 4.6, 1, 2) as (drawing, grid):
        heat_map(
            drawing,
            grid[0, 0],
            study.pairs[GRAPHS.index("normalised")][-1],
            title="Class pairs at the last tap",
            unit="split accuracy",
            names=names,
            digits=2,
        )
        lines = [
            Line(label="all classes mixed", values=study.attack_split, color=AMBER),
            Line(label="within one answer", values=study.attack_split_within, color=RED),
        ]
        depth_lines(
            grid[0, 1],
            lines,
            title=f"Clean against {material.main}",
            unit="split accuracy",
            limits=(0.48, 1.01),
            chance=(0.5, "chance at best"),
        )
        return svg(drawing, "Split accuracy per class pair, and of clean against attacked images")


def _eigenvalues(study: SplitStudy) -> str:
    with canvas(10, 3.2, 1, 2) as (drawing, grid):
        depth_lines(
            grid[0, 0],
            [Line(label="connectivity", values=study.connectivity, color=BLUE)],
            title="Second eigenvalue",
            unit="eigenvalue",
        )
        depth_lines(
            grid[0, 1],
            [Line(label="gap", values=study.gap, color=BLUE)],
            title="Eigengap",
            unit="difference of eigenvalues",
            limits=(0, None),
        )
        return svg(drawing, "Second eigenvalue and eigengap over depth")


def _table(study: SplitStudy) -> str:
    rows = []
    for i in range(study.pairs.shape[1]):
        cells = [f"tap {i + 1}"]
        for g in range(len(GRAPHS)):
            values = study.pairs[g, i]
            mean, middle, least = np.nanmean(values), np.nanmedian(values), np.nanmin(values)
            cells.append(f"{mean:.3f} / {middle:.3f} / {least:.3f}")
        rows.append(cells)
    head = ["", *(_TITLES[graph] for graph in GRAPHS)]
    return table(head, rows, folded="All taps: mean / median / worst class pair")

"""Chapter 4: self-organizing maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.maps import CODES, MapStudy, depth_trend, last_minus_first
from reluguard.training.pages.page import Section, figure, paragraph, table
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    CATEGORIES,
    GREEN,
    PINK,
    RED,
    Line,
    canvas,
    depth_lines,
    svg,
)
from reluguard.training.statistics.metrics import Interval

__all__ = ["maps_chapter"]

_SHOWN = 6
_FIGURES = ("participation ratio", "codebook distance", "entropy of units")


def maps_chapter(study: MapStudy, material: Material) -> Section:
    """Return the chapter."""
    ratio, distance, entropy = (depth_trend(p, seed=material.seed) for p in study.profiles)
    text = (
        "A self-organizing map lays a layer's codes (one number per feature map) out on a grid; an "
        "image's best-matching unit is its functional code. The paper finds homogeneous codes "
        f"early and diverse ones late. {_of_stages(study)}Over every tap, wider ones among them, "
        f"the rank correlation with depth is {_signed(ratio)} for the participation ratio, "
        f"{_signed(distance)} for the distance of codebook vectors and {_signed(entropy)} for the "
        "entropy of the units. The units say "
        f"{study.information[0, 0]:.2f} (NMI) of the class at the first tap and "
        f"{study.information[0, -1]:.2f} at the last."
    )
    return Section(
        title="Self-organizing maps",
        body=paragraph(text)
        + figure(
            _maps(study, material),
            "Maps of feature-map means. A unit has the colour and, where there is room, the number "
            "of the class most frequent on it; its size grows with the images on it. "
            + _legend(material.class_names),
        )
        + _stage_table(study, material)
        + figure(
            _homogeneity(study),
            "Homogeneity and label link of the codes. Participation ratio: in how many directions "
            "the codes vary. Codebook distance: mean cosine distance of units.",
        )
        + figure(
            _quality(study, material),
            "Left: quantisation error of clean and attacked images, per root channel. Middle: "
            "share of images whose two best units don't touch. Right: how far images move on the "
            "grid.",
        ),
    )


def _legend(names: Sequence[str]) -> str:
    """Return which number is which class; nothing where names are these numbers."""
    told = [f"{i} {name}" for i, name in enumerate(names[:10]) if name != str(i)]
    return ", ".join(told) + "." if told else ""


def _of_stages(study: MapStudy) -> str:
    """Say by how much the last stage differs from the first, width held."""
    found = [last_minus_first(profile) for profile in study.stage_profiles]
    if any(one is None for one in found):
        return ""
    ratio, distance, entropy = (f"{one.value:+.3g}" for one in found if one is not None)
    return (
        f"From the first of {len(study.stages)} stages to the last, with as many columns of each, "
        f"the participation ratio changes by {ratio}, the distance of codebook vectors by "
        f"{distance} and the entropy of the units by {entropy}. "
    )


def _stage_table(study: MapStudy, material: Material) -> str:
    parts, stages = study.stage_profiles.shape[1:]
    if stages < 2:
        return ""
    rows = []
    for g, tap in enumerate(study.stages):
        held, own = study.stage_profiles[:, :, g], study.stage_profiles_own[:, :, g]
        rows.append(
            [
                f"stage {g + 1}",
                f"tap {tap + 1}",
                " x ".join(map(str, material.taps[tap].shape)),
                *(f"{_mean(a):.3f} / {_mean(b):.3f}" for a, b in zip(held, own, strict=True)),
            ]
        )
    head = ["", "its last tap", "shape", *_FIGURES]
    return paragraph(
        f"Stages end where feature maps change their size. Means over {parts} parts of the images "
        "that share none: with as many columns as the narrowest stage has / as wide as each is."
    ) + table(head, rows, text_columns=(0, 1, 2))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _signed(trend: Interval | None) -> str:
    return "undefined (fewer than three taps)" if trend is None else f"{trend.value:+.2f}"


def _maps(study: MapStudy, material: Material) -> str:
    count = len(material.taps)
    shown = np.unique(np.linspace(0, count - 1, min(_SHOWN, count)).round().astype(int))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with canvas(10, 3.5 * rows, rows, columns) as (drawing, grid):
        for index, axes in enumerate(grid.flat):
            if index >= len(shown):
                axes.set_visible(False)
                continue
            _map(axes, study, int(shown[index]))
        return svg(drawing, "Self-organizing maps at several depths, coloured by class")


def _map(axes: Any, study: MapStudy, tap: int) -> None:
    side = study.hits.shape[1]
    most = max(1, int(study.hits[tap].max()))
    for row in range(side):
        for column in range(side):
            hits = int(study.hits[tap, row, column])
            if hits == 0:
                continue
            label = int(study.winners[tap, row, column])
            size = 0.35 + 0.6 * np.sqrt(hits / most)
            color = CATEGORIES[label % len(CATEGORIES)]
            corner = (column - size / 2, row - size / 2)
            axes.add_patch(_square(corner, size, color))
            if size > 0.5:
                axes.text(
                    column,
                    row,
                    str(label),
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=_ink_on(color),
                )
    axes.set_xlim(-0.7, side - 0.3)
    axes.set_ylim(side - 0.3, -0.7)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.set_title(f"tap {tap + 1}, NMI {study.information[0, tap]:.2f}")


def _ink_on(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 130 else "#ffffff"


def _square(corner: tuple[float, float], size: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, size, size, facecolor=color, linewidth=0)


def _homogeneity(study: MapStudy) -> str:
    panels = (
        ("Participation ratio", "directions", study.participation),
        ("Codebook distance", "cosine distance", study.codebook),
        ("Entropy of units", "share of its maximum", study.entropy),
        ("Class in the unit", "NMI", study.information),
    )
    with canvas(10, 6.6, 2, 2) as (drawing, grid):
        for axes, (title, unit, values) in zip(grid.flat, panels, strict=True):
            lines = [
                Line(label=code, values=values[kind], color=color, dashed=kind == 1)
                for kind, (code, color) in enumerate(zip(CODES, (BLUE, GREEN), strict=True))
            ]
            depth_lines(axes, lines, title=title, unit=unit)
        return svg(drawing, "Homogeneity of the codes over depth")


def _quality(study: MapStudy, material: Material) -> str:
    with canvas(10, 3.8, 1, 3) as (drawing, grid):
        depth_lines(
            grid[0, 0],
            [
                Line(label="clean", values=study.quantisation[0], color=BLUE),
                Line(label=material.main, values=study.quantisation_attacked[0], color=RED),
            ],
            title="Quantisation error",
            unit="standard deviations",
        )
        depth_lines(
            grid[0, 1],
            [
                Line(label="means", values=study.topographic[0], color=BLUE),
                Line(label="rates", values=study.topographic[1], color=PINK, dashed=True),
            ],
            title="Topographic error",
            unit="share of images",
            limits=(0, None),
        )
        depth_lines(
            grid[0, 2],
            [
                Line(label=material.main, values=study.moved[0], color=RED),
                Line(label="noise as large", values=study.moved_noise[0], color=AMBER),
            ],
            title="Displacement",
            unit="grid units, median",
            limits=(0, None),
        )
        return svg(drawing, "Quality of the maps and displacement of attacked images")

"""Chapter 1: similarity of bit patterns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.similarity import SimilarityStudy
from reluguard.training.pages.page import Section, figure, paragraph
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    GREEN,
    PINK,
    RED,
    Line,
    canvas,
    depth_lines,
    heat_map,
    svg,
)

__all__ = ["similarity_chapter"]

_COLUMNS = 5


def similarity_chapter(study: SimilarityStudy, material: Material) -> Section:
    """Return the chapter."""
    last, best = study.category_hamming[-1], int(np.nanargmax(study.category_hamming)) + 1
    text = (
        "Two images are alike at a tap if the same ReLUs fire. Ordered by class, a layer that "
        f"knows the classes shows dark blocks along the diagonal. The agreement with a perfect "
        f"classifier's matrix (Spearman) is {study.category_hamming[0]:.2f} at the first tap, "
        f"{last:.2f} at the last and highest at tap {best}; for attacked images, judged by what "
        f"they show, it is {study.category_attacked[-1]:.2f} at the last."
    )
    return Section(
        title="Similarity of bits",
        body=paragraph(text)
        + figure(
            _tiles(study),
            "Dissimilarity matrices per tap, images in order of class. Above the diagonal clean "
            "images, below it the same images attacked, each half in its own percentiles. Dark: "
            "few bits differ; under each tile the mean share of differing bits.",
        )
        + figure(
            _profile(study, material.main),
            "Left: rank correlation of each tap's matrix with the category model (0 within a "
            "class, 1 between). Right: how many bits are on.",
        )
        + figure(_layers(study), "How alike the taps' clean matrices are to one another."),
    )


def _tiles(study: SimilarityStudy) -> str:
    count, side = study.rdm_clean.shape[:2]
    rows = -(-count // _COLUMNS)
    with canvas(10, 2.3 * rows + 0.3, rows, _COLUMNS) as (drawing, grid):
        for index, axes in enumerate(grid.flat):
            if index >= count:
                axes.set_visible(False)
                continue
            picture = _tile(axes, study, index, side)
        bar = drawing.colorbar(
            picture, ax=grid.ravel().tolist(), location="bottom", shrink=0.4, aspect=40, pad=0.01
        )
        bar.set_label("percentile of the share of differing bits, within each half")
        bar.outline.set_visible(False)
        return svg(drawing, "Dissimilarity matrices of clean and attacked images at every tap")


def _tile(axes: Any, study: SimilarityStudy, index: int, side: int) -> Any:
    upper = np.triu_indices(side, 1)
    both = np.full((side, side), np.nan)
    both[upper] = _percentiles(study.rdm_clean[index][upper])
    both.T[upper] = _percentiles(study.rdm_attacked[index][upper])
    picture = axes.imshow(
        np.ma.masked_invalid(both), cmap="cividis", vmin=0, vmax=100, interpolation="none"
    )
    axes.grid(visible=False)
    edges = np.flatnonzero(np.diff(study.rdm_labels)) + 0.5
    axes.set_xticks(edges, [""] * len(edges))
    axes.set_yticks(edges, [""] * len(edges))
    axes.tick_params(length=2.5, width=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    means = (float(x[index][upper].mean(dtype=np.float64)) for x in _both(study))
    axes.set_title(f"tap {index + 1}", fontsize=9.5, pad=3)
    axes.set_xlabel("mean {:.2f}, attacked {:.2f}".format(*means), fontsize=8, labelpad=2)
    return picture


def _both(study: SimilarityStudy) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    return study.rdm_clean, study.rdm_attacked


def _percentiles(values: NDArray[np.float16]) -> NDArray[np.float64]:
    """Ranks, as is usual for such matrices: what counts is which pairs differ more than others."""
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = 100 * (rankdata(values) - 1) / max(1, len(values) - 1)
    return ranks


def _profile(study: SimilarityStudy, attack: str) -> str:
    with canvas(10, 4.2, 1, 2, width_ratios=(2, 1)) as (drawing, grid):
        lines = [
            Line(label="clean, Hamming", values=study.category_hamming, color=BLUE),
            Line(label="clean, Jaccard", values=study.category_jaccard, color=GREEN),
            Line(label="clean, class-weighted", values=study.category_weighted, color=PINK),
            Line(label=f"{attack}, by what is shown", values=study.category_attacked, color=AMBER),
            Line(
                label=f"{attack}, by the answer",
                values=study.category_answer,
                color=RED,
                dashed=True,
            ),
        ]
        depth_lines(grid[0, 0], lines, title="Agreement with the classes", unit="Spearman's rho")
        share = Line(label="clean", values=100 * study.share_on, color=BLUE)
        depth_lines(
            grid[0, 1], [share], title="Bits that are on", unit="% of bits", limits=(0, None)
        )
        return svg(drawing, "Agreement of each tap's similarities with the classes")


def _layers(study: SimilarityStudy) -> str:
    with canvas(10, 4.4, 1, 2) as (drawing, grid):
        heat_map(
            drawing,
            grid[0, 0],
            study.layer_spearman,
            title="Spearman's rho of matrices",
            unit="rho",
        )
        heat_map(
            drawing, grid[0, 1], study.layer_kendall, title="Kendall's tau of matrices", unit="tau"
        )
        return svg(drawing, "Rank correlation between the dissimilarity matrices of all taps")

"""Chapter 5: graph-based similarity and CKA."""

import itertools
from collections.abc import Sequence

import numpy as np

from reluguard.training.analysis.material import Material
from reluguard.training.analysis.networks.seeds import SeedStudy
from reluguard.training.analysis.studies.graphs import GraphStudy
from reluguard.training.pages.page import Section, figure, paragraph
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    GREEN,
    RED,
    Line,
    canvas,
    depth_lines,
    heat_map,
    svg,
)

__all__ = ["graphs_chapter"]


def graphs_chapter(
    study: GraphStudy, material: Material, other: str | None, seeds: Sequence[SeedStudy]
) -> Section:
    """Return the chapter."""
    lowest = int(np.argmin(study.near_attack)) + 1
    text = (
        "A layer is the graph of how alike it finds the images (cosine of bits). LSim compares two "
        "layers by the neighbourhoods of every image, CKA by their centred Gram matrices. With all "
        f"edges LSim is {study.lsim.min():.3f} at least: every cosine of bits is large, and their "
        "common part hides the rest. The graph of the five nearest neighbours tells layers apart. "
        f"The attack {material.main} changes it most at tap {lowest} "
        f"(LSim {study.near_attack[lowest - 1]:.2f}; harmless noise of that size there "
        f"{study.near_noise[lowest - 1]:.2f}). "
        f"{study.same_clean[0]:.0%} of its triangles lie within one class at the first tap, "
        f"{study.same_clean[-1]:.0%} at the last, and {study.same_attacked[-1]:.0%} there for "
        "attacked images by what they show."
    )
    body = paragraph(text)
    body += figure(
        _tables(study),
        "Similarity of all pairs of taps. Graph-based and two kinds of CKA on bits; last, unbiased "
        "minibatch CKA on feature-map means.",
    )
    body += figure(
        _attack(study, material),
        "Left: each tap before against after the attack, LSim on neighbour graphs. Right: "
        "triangles of the neighbour graph that lie within one class.",
    )
    if other is not None:
        body += figure(_other(study), f"Taps of this network (rows) against {other} (columns).")
    for found in seeds:
        body += paragraph(
            f"The sanity check: {found.networks} small {found.architecture} networks of "
            f"{found.layers} layers, started from different seeds (accuracy "
            f"{found.accuracy.min():.2f} to {found.accuracy.max():.2f}). A layer's most similar "
            f"layer in another network is its own in {found.gbs.mean():.0%} of cases by GBS, "
            f"{found.cka_averaged.mean():.0%} by linear CKA on spatial means, "
            f"{found.cka.mean():.0%} by linear CKA on all features, {found.gbs_bits.mean():.0%} by "
            f"GBS on bits alone and {found.gbs_near.mean():.0%} by GBS of five nearest neighbours."
        )
        body += figure(_seeds(found), "Mean similarity between layers of two networks.")
    return Section(title="Graphs and CKA", body=body)


def _tables(study: GraphStudy) -> str:
    panels = (
        ("LSim, all edges", study.lsim),
        ("LSim, 5 neighbours", study.lsim_near),
        ("Linear CKA", study.cka),
        ("Gaussian CKA", study.cka_rbf),
        ("Minibatch CKA, unbiased", study.cka_minibatch),
    )
    with canvas(10, 6.4, 2, 3) as (drawing, grid):
        for axes, panel in itertools.zip_longest(grid.flat, panels):
            if panel is None:
                axes.set_visible(False)
            else:
                heat_map(drawing, axes, panel[1], title=panel[0], unit="similarity")
        return svg(drawing, "Similarity of all pairs of taps by five measures")


def _attack(study: GraphStudy, material: Material) -> str:
    with canvas(10, 4, 1, 2) as (drawing, grid):
        depth_lines(
            grid[0, 0],
            [
                Line(label=f"LSim, {material.main}", values=study.near_attack, color=RED),
                Line(label=f"CKA, {material.main}", values=study.cka_attack, color=AMBER),
                Line(label="LSim, noise", values=study.near_noise, color=BLUE, dashed=True),
                Line(label="CKA, noise", values=study.cka_noise, color=GREEN, dashed=True),
            ],
            title="Before against after",
            unit="similarity",
            limits=(0, 1.01),
        )
        depth_lines(
            grid[0, 1],
            [
                Line(label="clean", values=100 * study.same_clean, color=BLUE),
                Line(
                    label=f"{material.main}, by what is shown",
                    values=100 * study.same_attacked,
                    color=RED,
                ),
            ],
            title="Triangles within one class",
            unit="% of triangles",
            limits=(0, None),
        )
        return svg(drawing, "Similarity before and after the attack, and motifs")


def _other(study: GraphStudy) -> str:
    with canvas(10, 3.4, 1, 2) as (drawing, grid):
        for axes, (title, values) in zip(
            grid.flat,
            (("LSim, 5 neighbours", study.other_lsim), ("Linear CKA", study.other_cka)),
            strict=True,
        ):
            heat_map(
                drawing, axes, values, title=title, unit="similarity", xlabel="the other's tap"
            )
        return svg(drawing, "Similarity to the taps of another network")


def _seeds(seeds: SeedStudy) -> str:
    with canvas(10, 4, 1, 2) as (drawing, grid):
        panels = (("Graph-based (LSim)", seeds.gbs_table), ("Linear CKA", seeds.cka_table))
        for axes, (title, values) in zip(grid.flat, panels, strict=True):
            heat_map(
                drawing,
                axes,
                values,
                title=title,
                unit="similarity",
                xlabel="layer, other seed",
                ylabel="layer",
            )
        return svg(drawing, "Similarity of layers between networks of different seeds")

"""Chapter 3: discriminating bits."""

import numpy as np

from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.votes import CLASSIFIERS, VoteStudy
from reluguard.training.pages.page import Section, figure, paragraph, table
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    GREEN,
    PINK,
    Line,
    bars,
    canvas,
    depth_lines,
    svg,
)
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["votes_chapter"]

_COLORS = (BLUE, AMBER, GREEN, PINK)


def votes_chapter(study: VoteStudy, material: Material) -> Section:
    """Return the chapter."""
    main = study.attacks[0]
    best = int(np.nanargmax(study.auroc[0])) + 1
    share = study.hits[0] / study.trials[0]
    text = (
        "The plainest detector: the 100 bits whose firing rate differs most between clean and "
        f"attacked images each cast a vote. Against {main} the best single tap is tap {best} with "
        f"an AUROC of {study.auroc[0, best - 1]:.3f}. Over all taps the vote tells "
        f"{share[0]:.1%} of fresh images right, logistic regression on 2,000 bits {share[2]:.1%} "
        f"and on firing rates {share[3]:.1%}. No benign noise is among the negatives here, so "
        "these figures are an upper bound for a detector."
    )
    return Section(
        title="Discriminating bits",
        body=paragraph(text)
        + figure(
            _auroc(study),
            "Left: the vote of 100 bits of one tap; .5 is chance. Right: where the 2,000 most "
            "telling bits of the network lie.",
        )
        + figure(
            _classifiers(study),
            "Share told right among as many clean as attacked images of fresh sources, successful "
            "attacks only; 95 % Wilson intervals.",
        )
        + _named(study, material),
    )


def _auroc(study: VoteStudy) -> str:
    with canvas(10, 3.9, 1, 2) as (drawing, grid):
        pairs = list(zip(study.attacks, _COLORS, strict=False))
        depth_lines(
            grid[0, 0],
            [
                Line(label=name, values=study.auroc[a], color=color)
                for a, (name, color) in enumerate(pairs)
            ],
            title="Vote of one tap's bits",
            unit="AUROC",
            limits=(None, 1.01),
            chance=(0.5, "chance"),
        )
        depth_lines(
            grid[0, 1],
            [
                Line(label=name, values=study.bits_per_tap[a], color=color)
                for a, (name, color) in enumerate(pairs)
            ],
            title="Where the telling bits lie",
            unit="bits among the 2,000",
            limits=(0, None),
        )
        return svg(drawing, "AUROC of the vote per tap, and the taps of the most telling bits")


def _classifiers(study: VoteStudy) -> str:
    groups = {}
    for a, name in enumerate(study.attacks):
        found = [rate_interval(int(h), int(study.trials[a])) for h in study.hits[a]]
        groups[name] = [(100 * i.value, 100 * i.low, 100 * i.high) for i in found]
    with canvas(10, 3.4) as (drawing, grid):
        axes = grid[0, 0]
        bars(
            axes,
            groups,
            CLASSIFIERS,
            _COLORS,
            title="Simple classifiers over all taps",
            unit="% of images told right, from chance on",
            mark=(95, "the paper's 95 %"),
        )
        axes.set_xlim(50, 101)
        return svg(drawing, "Accuracy of simple classifiers")


def _named(study: VoteStudy, material: Material) -> str:
    rows = []
    for i, tap in enumerate(material.taps):
        named = ", ".join(
            f"{c} ({n})" for c, n in zip(study.channels[i], study.votes[i], strict=True) if c >= 0
        )
        rows.append([f"tap {i + 1}", tap.name, str(tap.channels), named])
    head = ["", "tensor", "channels", "channels named most (votes of 100)"]
    return table(
        head,
        rows,
        text_columns=(0, 1, 3),
        folded=f"Channels the vote names against {material.main}",
    )

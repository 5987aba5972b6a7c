"""Chapter 3: discriminating bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.classifiers import (
    CLASSIFIERS,
    LOGISTIC,
    VOTE,
    ClassifierStudy,
)
from reluguard.training.analysis.studies.halves import FEWEST, KINDS
from reluguard.training.analysis.studies.votes import VoteStudy
from reluguard.training.pages.page import Section, figure, paragraph, table
from reluguard.training.pages.plots import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    PINK,
    RED,
    Line,
    bars,
    canvas,
    depth_lines,
    svg,
)
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["votes_chapter"]

_COLORS = (BLUE, AMBER, GREEN, PINK, RED, GREY)
_HEADS = ("clean called attacked", "attacked", "noise as large")


def votes_chapter(study: VoteStudy, simple: ClassifierStudy, material: Material) -> Section:
    """Return the chapter."""
    main = study.attacks[0]
    best = int(np.nanargmax(study.auroc[0])) + 1
    share = simple.hits[0] / simple.trials[0]
    noise = simple.called[0, :, KINDS.index("noise")] / simple.tested[0]
    text = (
        "The plainest detector: the 100 bits whose firing rate differs most between clean and "
        f"attacked images each cast a vote. Against {main} the best single tap is tap {best} with "
        f"an AUROC of {study.auroc[0, best - 1]:.3f}. Over all taps the vote tells "
        f"{share[VOTE]:.1%} of fresh images right, logistic regression on 2,000 bits "
        f"{share[LOGISTIC]:.1%}. No benign noise is among the negatives here, so these figures are "
        "an upper bound for a detector: the same two call "
        f"{noise[VOTE]:.0%} and {noise[LOGISTIC]:.0%} of images attacked that hold harmless noise "
        "as large."
    )
    return Section(
        title="Discriminating bits",
        body=paragraph(text)
        + _left_out(simple)
        + figure(
            _auroc(study, simple),
            "Left: the vote of 100 bits of one tap; .5 is chance. Right: where the 2,000 most "
            "telling bits of the network lie.",
        )
        + figure(
            _per_tap(simple),
            "Logistic regression on the 2,000 most telling bits of one tap, fitted per attack. "
            "Left: share told right among as many clean as attacked images. Right: what it calls "
            "attacked among the same images with harmless noise as large instead.",
        )
        + figure(
            _classifiers(simple),
            "Share told right among as many clean as attacked images of fresh sources, successful "
            "attacks only; 95 % Wilson intervals.",
        )
        + _called(simple)
        + _called_per_tap(simple)
        + _named(study, material),
    )


def _left_out(study: ClassifierStudy) -> str:
    if not study.too_few:
        return ""
    names = " and ".join(study.too_few)
    return paragraph(
        f"Not shown: {names}, which fooled the network fewer than {FEWEST} times on these images."
    )


def _auroc(study: VoteStudy, simple: ClassifierStudy) -> str:
    with canvas(10, 3.9, 1, 2) as (drawing, grid):
        depth_lines(
            grid[0, 0],
            _lines(study.attacks, study.auroc),
            title="Vote of one tap's bits",
            unit="AUROC",
            limits=(None, 1.01),
            chance=(0.5, "chance"),
        )
        depth_lines(
            grid[0, 1],
            _lines(simple.attacks, simple.bits_per_tap),
            title="Where the telling bits lie",
            unit="bits among the 2,000",
            limits=(0, None),
        )
        return svg(drawing, "AUROC of the vote per tap, and the taps of the most telling bits")


def _per_tap(study: ClassifierStudy) -> str:
    with canvas(10, 3.9, 1, 2) as (drawing, grid):
        depth_lines(
            grid[0, 0],
            _lines(study.attacks, study.tap_hits / study.trials[:, None]),
            title="Clean and attacked told apart",
            unit="share told right",
            limits=(None, 1.01),
            chance=(0.5, "chance"),
        )
        depth_lines(
            grid[0, 1],
            _lines(
                study.attacks,
                study.tap_called[:, :, KINDS.index("noise")] / study.tested[:, None],
            ),
            title="Harmless noise as large",
            unit="share called attacked",
            limits=(0, 1.01),
        )
        return svg(drawing, "A simple classifier per tap, on attacked and on noisy images")


def _lines(names: Sequence[str], values: NDArray[Any]) -> list[Line]:
    return [
        Line(label=name, values=values[a], color=color)
        for a, (name, color) in enumerate(zip(names, _COLORS, strict=False))
    ]


def _classifiers(study: ClassifierStudy) -> str:
    groups = {}
    for a, name in enumerate(study.attacks):
        found = [rate_interval(int(h), int(study.trials[a])) for h in study.hits[a]]
        groups[name] = [(100 * i.value, 100 * i.low, 100 * i.high) for i in found]
    with canvas(10, 1 + 0.25 * len(CLASSIFIERS) * (1 + len(groups))) as (drawing, grid):
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


def _called(study: ClassifierStudy) -> str:
    rows = [
        [
            attack,
            name,
            str(rate_interval(int(study.hits[a, m]), int(study.trials[a]))),
            *(f"{n / study.tested[a]:.3f}" for n in study.called[a, m]),
        ]
        for a, attack in enumerate(study.attacks)
        for m, name in enumerate(CLASSIFIERS)
    ]
    head = ["fitted on", "classifier, all taps", "told right", *_HEADS]
    return table(head, rows, text_columns=(0, 1))


def _called_per_tap(study: ClassifierStudy) -> str:
    head = ["", *study.attacks]
    rows = [
        [
            f"tap {i + 1}",
            *(
                f"{study.tap_hits[a, i] / study.trials[a]:.3f} / "
                f"{study.tap_called[a, i, KINDS.index('noise')] / study.tested[a]:.3f}"
                for a in range(len(study.attacks))
            ),
        ]
        for i in range(study.tap_called.shape[1])
    ]
    return table(
        head, rows, folded="Logistic regression per tap: share told right / noise called attacked"
    )


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

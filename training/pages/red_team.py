"""The red team's figures as one self-contained HTML page. N images."""

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.evaluation.conclusion import percent
from reluguard.training.evaluation.figures import FEW
from reluguard.training.pages.evaluation_plots import before_and_after
from reluguard.training.pages.page import (
    Section,
    bullet_list,
    figure,
    page,
    paragraph,
    table,
    verdict,
)
from reluguard.training.pages.plots import AMBER, BLUE, GREEN, GREY, RED, canvas, svg
from reluguard.training.pages.red_team_words import attack_legend, pair_sentences
from reluguard.training.pages.words import number, sign
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.red_team.report import SEARCH, RedTeamReport

__all__ = ["red_team_page"]

COLORS = (BLUE, AMBER, GREEN, RED)
EXAMPLES = 6
MARKERS = "osD^"


def red_team_page(
    card: RedTeamReport,
    before: Images,
    after: Images,
    scores: NDArray[np.float32],
) -> str:
    """Return the page.

    Args:
        card: as `redteam` makes it.
        before: uint8, (N, H, W, C).
        after: the same images as they evaded, or as near as they came.
        scores: float32, (N,), infinite where the answer stayed right.
    """
    rates = list(card.thresholds)
    rate = max(rates, key=float)
    lead = (
        verdict(_come_to(card, rate))
        + paragraph(
            f"{card.images} images that no step of fitting saw, attacked by someone who has the "
            f"model, this guard and its thresholds. Attacked: {Procedure.told(card.looks)}. "
            "Evaded: the answer is wrong and the real guard, on whole 8-bit pixels, does not flag "
            "it."
        )
        + paragraph(
            "; ".join(
                f"{size}/255: {row.evaded[rate]} at {rate}" for size, row in card.best.items()
            )
        )
    )
    sections = [
        Section(title="Attacks", body=_attacks(card, rates)),
        Section(title="What the guard costs an attacker", body=_pairs(card)),
        Section(title="Budget", body=_ladders(card)),
        Section(title="Convergence", body=_convergence(card, rates)),
        Section(title="Examples", body=_examples(card, before, after, scores)),
    ]
    settings = ", ".join(
        key if value is True else f"{key} {value}"
        for key, value in card.settings.items()
        if value is not False
    )
    settings = settings.replace("_", " ")
    return page("reluguard red team", f"guard {card.guard[:16]}, {settings}", lead, sections)


def _come_to(card: RedTeamReport, rate: str) -> list[str]:
    """Return what the page comes to: who gets past, at what size, and by asking alone."""
    best = {float(size): row.evaded[rate] for size, row in card.best.items() if row.evaded}
    if not best:
        return ["No attack was tried on any picture."]
    sizes = sorted(best)
    parts = [f"{percent(best[size].value)} of pictures within {size:g}/255" for size in sizes]
    text = f"Someone who knows the guard gets past it with {', '.join(parts)}"
    asked = {
        float(size): rows[SEARCH].evaded[rate]
        for size, rows in card.budgets.items()
        if SEARCH in rows and rows[SEARCH].evaded
    }
    if asked:
        largest = max(asked)
        share = percent(asked[largest].value)
        text += f"; someone who only asks it, with {share} within {largest:g}/255"
    sentences = [f"{text} (at the threshold for {rate})."]
    if card.images < FEW:
        sentences.append(f"Only {card.images} pictures were attacked: go by the intervals.")
    blinded = [check for check, held in card.checks.items() if held is False]
    if blinded:
        sentences.append("Read it with care: a sign that the attacks work does not hold.")
    return sentences


def _attacks(card: RedTeamReport, rates: list[str]) -> str:
    rows = []
    for size, attacks in sorted(card.budgets.items(), key=lambda one: float(one[0])):
        for name, entry in attacks.items():
            tried = str(card.images if entry.images is None else entry.images)
            if entry.misclassified is None:
                rows.append([f"{size}/255", name, tried, *["-"] * (len(rates) + 2)])
                continue
            queries = "-" if entry.mean_queries is None else f"{entry.mean_queries:.0f}"
            shares = (str(entry.evaded[rate]) for rate in rates)
            rows.append(
                [
                    f"{size}/255",
                    name,
                    tried,
                    str(entry.misclassified),
                    *shares,
                    queries,
                ]
            )
    head = ["Linf", "attack", "images", "answer wrong", *(f"evades at {r}" for r in rates)]
    note = f"Black box: {card.black_box}."
    legend = bullet_list(attack_legend(row[1] for row in rows))
    body = table([*head, "mean queries"], rows, text_columns=(0, 1))
    return body + paragraph(note) + legend


def _pairs(card: RedTeamReport) -> str:
    sentences = pair_sentences(card)
    return "".join(paragraph(one) for one in sentences) or paragraph("Not tried.")


def _ladders(card: RedTeamReport) -> str:
    parts = []
    for norm, shares in card.ladders.items():
        if not any(entry.value for column in shares.values() for entry in column.values()):
            parts.append(paragraph(f"Within no {norm} budget tried did an image evade."))
            continue
        with canvas(8, 3.2) as (drawing, axes):
            plot = axes[0][0]
            for i, (name, column) in enumerate(shares.items()):
                x = [float(size) for size in column]
                y = [entry.value for entry in column.values()]
                label = "bare model" if name == "bare model" else f"guarded, {name}"
                color = GREY if name == "bare model" else COLORS[i % len(COLORS)]
                plot.plot(x, y, color=color, marker=MARKERS[i % len(MARKERS)], ms=4, label=label)
            plot.set_xscale("log")
            rungs = list(next(iter(shares.values())))
            plot.set_xticks([float(size) for size in rungs], rungs, fontsize=8.5)
            plot.set_xticks([], minor=True)
            plot.set_ylim(0, 1.03)
            plot.set_xlabel("budget, 8-bit steps" if norm == "linf" else f"{norm} budget")
            plot.set_ylabel("share of images that evade")
            drawing.legend(loc="outside upper left", ncols=3, fontsize=9)
            picture = svg(drawing, f"share of images that evade by {norm} budget")
        medians = ", ".join(
            f"{number(value, 'g')} {'on the' if name == 'bare model' else 'at the threshold for'} "
            f"{name}"
            for name, value in card.median_budget[norm].items()
        )
        what = "8-bit steps in Linf" if norm == "linf" else norm.upper()
        parts.append(
            figure(
                picture,
                f"The smallest budget that evades, in {what}. Half of the images: {medians}.",
            )
        )
    return "".join(parts) or paragraph("No ladder was climbed.")


def _convergence(card: RedTeamReport, rates: list[str]) -> str:
    steps = card.steps
    rows = [[count, *(str(entry[r]) for r in rates)] for count, entry in steps.evaded.items()]
    head = [
        f"steps, {steps.attack}, {steps.budget:g}/255",
        *(f"evades at {r}" for r in rates),
    ]
    restarts = [
        [f"{size}/255", name, " ".join(f"{v:.2f}" for v in entry.evaded_after_restarts)]
        for size, attacks in card.budgets.items()
        for name, entry in attacks.items()
        if entry.evaded_after_restarts is not None
    ]
    signs = [[check, sign(held, card.evasions)] for check, held in card.checks.items()]
    return (
        paragraph(
            "An attack that fails for want of gradients looks like a good defence. Signs that this "
            "red team is not blinded:"
        )
        + table(["sign", "holds"], signs)
        + table(head, rows)
        + (
            table(["Linf", "attack", "evaded after each restart"], restarts, text_columns=(0, 1))
            if restarts
            else ""
        )
    )


def _examples(
    card: RedTeamReport, before: Images, after: Images, scores: NDArray[np.float32]
) -> str:
    rate = max(card.thresholds, key=float)
    limit = np.float32(card.thresholds[rate])
    evaded = np.flatnonzero(scores <= limit)[:EXAMPLES]
    if not len(evaded):
        return paragraph("No image evaded.")
    pairs = "".join(
        before_and_after(
            {"clean": before[row], f"evades, score {scores[row]:.1f}": after[row]},
            f"image {row}: not flagged at {rate}",
        )
        for row in evaded
    )
    return f'<div class="pictures">{pairs}</div>'

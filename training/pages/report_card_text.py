"""The report card as tables on a terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from reluguard.training.evaluation.conclusion import by_fit, conclude
from reluguard.training.evaluation.figures import Precision, rarest_last
from reluguard.training.evaluation.report_card import ReportCard
from reluguard.training.pages.two_looks import look_lines
from reluguard.training.pages.words import answered_right, few_note, number

__all__ = ["print_card", "print_precision"]


def print_card(card: ReportCard) -> None:
    """Print the report card as tables."""
    console = Console()
    clean = card.clean
    rate = max(clean.false_positive_rate, key=float)
    harmless = {slug: change.flagged for slug, change in card.benign.items()}
    come_to = conclude(
        card.attacks,
        clean.false_positive_rate,
        harmless,
        rate,
        card.red_team,
        by_fit(card.attacks),
    )
    console.print(" ".join(come_to.sentences), highlight=False)
    for line in (*(card.gates.lines if card.gates else ()), *look_lines(card.looks)):
        console.print(line)
    console.print(f"clean accuracy {clean.accuracy} on {clean.images} unseen images")
    for fpr, value in clean.false_positive_rate.items():
        console.print(f"clean images flagged at the {fpr} threshold: {value}")
    for fpr, promise in card.promises.items():
        if promise.low is None:
            console.print(f"a threshold at {fpr} needs {promise.needed} calibration images")
        else:
            console.print(f"a promised {fpr} comes to {promise.low:.2g} to {promise.high:.2g}")
    attacks = Table("attack", "succeeded", "AUROC", f"detected at {rate}", "confidence alone")
    for slug, entry in card.attacks.items():
        share = f"{entry.succeeded} / {entry.tried}"
        if entry.auroc is None:
            attacks.add_row(slug, share, "-", "-", "-")
        else:
            alone = number(entry.confidence_only_auroc)
            attacks.add_row(slug, share, str(entry.auroc), str(entry.detected[rate]), alone)
    console.print(attacks)
    if note := few_note(card.attacks):
        console.print(note)
    for composed in card.composed.values():
        summary = composed.summary
        mean, worst = number(summary.mean_auroc), number(summary.worst_auroc)
        console.print(f"attacked, then changed: mean AUROC {mean}, worst {worst}")
    benign = Table("harmless change", "images", f"flagged at {rate}", "where answered right")
    for slug, change in card.benign.items():
        figures = (str(change.flagged[rate]), answered_right(change.answered_right, rate))
        benign.add_row(slug, str(change.images), *figures)
    console.print(benign)
    print_precision(console, card.precision)


def print_precision(console: Console, table: Mapping[str, Precision]) -> None:
    """Print what share of flagged requests are attacks."""
    if not table:
        return
    shares = rarest_last(table)
    heads = (f"attacks among flagged, 1 request in {1 / float(p):,.0f}" for p in shares)
    rows = Table("threshold for", *heads)
    for rate, entry in table.items():
        rows.add_row(rate, *(f"{entry.precision[p]:.2g}" for p in shares))
    console.print(rows)

"""An evaluation as tables on a terminal."""

from rich.console import Console
from rich.table import Table

from reluguard.training.evaluation.conclusion import conclude
from reluguard.training.evaluation.leave_out import Matrix
from reluguard.training.evaluation.result import Evaluation
from reluguard.training.pages.report_card_text import print_precision
from reluguard.training.pages.two_looks import look_lines
from reluguard.training.pages.words import few_note, number

__all__ = ["print_evaluation"]


def print_evaluation(card: Evaluation) -> None:
    """Print the main figures."""
    console = Console()
    clean = card.clean.false_positive_rate
    come_to = conclude(
        card.attacks, clean, card.benign, list(clean)[-1], card.red_team, card.beside
    )
    console.print(" ".join(come_to.sentences), highlight=False)
    console.print(f"{card.about.images} unseen images ({card.about.origin})")
    for rate, value in card.clean.false_positive_rate.items():
        console.print(f"clean images flagged at the {rate} threshold: {value}")
    for line in look_lines(card.looks):
        console.print(line, highlight=False)
    _print_attacks(console, card, list(card.clean.false_positive_rate)[-1])
    for composed in card.composed.values():
        console.print(
            f"attacked, then {composed.change}: mean AUROC {number(composed.mean_auroc)}, worst "
            f"{number(composed.worst_auroc)} ({composed.worst or '-'})"
        )
    _print_threats(console, card)
    _print_peers(console, card)
    if card.left_out:
        console.print(f"left out: {card.left_out}")
    _print_matrix(console, card.matrix, "")
    _print_matrix(console, card.matrix_both, ", both looks")
    print_precision(console, card.precision)


def _print_matrix(console: Console, matrix: Matrix | None, looks: str) -> None:
    if matrix is None or not matrix.unseen:
        return
    console.print(
        f"one {matrix.by} left out of the fit{looks}, AUROC on what was left out: mean "
        f"{matrix.mean_interval}, worst {matrix.worst_interval}"
    )
    if matrix.composed_mean is not None:
        console.print(
            f"the same, then changed: mean {matrix.composed_mean}, worst {matrix.composed_worst}"
        )


def _print_attacks(console: Console, card: Evaluation, rate: str) -> None:
    table = Table("attack", "threat", "fitted on", "succeeded", "AUROC", f"detected at {rate}")
    for slug, entry in card.attacks.items():
        figures = [] if entry.auroc is None else [str(entry.auroc), str(entry.detected[rate])]
        known = "yes" if entry.fitted_on else "no"
        table.add_row(slug, entry.threat, known, f"{entry.succeeded} / {entry.tried}", *figures)
    console.print(table)
    if note := few_note(card.attacks):
        console.print(note)


def _print_threats(console: Console, card: Evaluation) -> None:
    table = Table("the attacker has", "attacks", "mean AUROC", "worst AUROC", "which")
    for threat, entry in card.threats.items():
        figures = (f"{entry.mean_auroc:.3f}", f"{entry.worst_auroc:.3f}", entry.worst)
        table.add_row(f"{threat}: {entry.knows}", str(entry.attacks), *figures)
    console.print(table)
    if card.red_team is None:
        console.print(
            "an attacker who knows the guard: not published with it, `reluguard redteam --publish`"
        )


def _print_peers(console: Console, card: Evaluation) -> None:
    table = Table(
        "detector", "mean AUROC", "worst AUROC", "harmless flagged", "guard minus it: mean", "worst"
    )
    for name, entry in card.baselines.items():
        figures = (entry.mean_auroc, entry.worst_auroc, entry.mean_benign_flagged)
        leads = () if entry.lead is None else (entry.lead.mean, entry.lead.worst)
        cells = [number(value) for value in figures]
        table.add_row(name, *cells, *(f"{lead:+.3f}" for lead in leads))
    console.print(table)

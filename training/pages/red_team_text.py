"""The red team's figures as tables on a terminal."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from reluguard.training.pages.red_team_words import pair_sentences
from reluguard.training.pages.words import sign
from reluguard.training.red_team.report import BEST, SEARCH, RedTeamReport, Row

__all__ = ["print_red_team", "print_rounds"]


def print_red_team(report: RedTeamReport) -> None:
    """Print the figures as tables."""
    console = Console()
    said = {key: value for key, value in report.settings.items() if key != "everyone"}
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in said.items())
    if not report.settings.get("everyone", True):
        settings += ", later attacks on those images that are left"
    console.print(f"{report.images} unseen images; {report.threat_model}; {settings}")
    rates = list(report.thresholds)
    for size, rows in report.budgets.items():
        console.print(_of_budget(size, rows, report, rates))
    _print_pairs(console, report)
    _print_convergence(console, report, rates)


def _of_budget(
    size: str, rows: Mapping[str, Row], report: RedTeamReport, rates: Sequence[str]
) -> Table:
    """Return one budget's table: a column that no row has anything for is left out."""
    columns: dict[str, Callable[[Row], str]] = {
        "images": lambda row: "" if row.images in {None, report.images} else str(row.images),
        "wrong": lambda row: "" if row.misclassified is None else str(row.misclassified),
        **{f"evaded at {rate}": partial(_evaded, rate=rate) for rate in rates},
        "after restarts": lambda row: " ".join(f"{x:.2f}" for x in row.evaded_after_restarts or ()),
        "questions": lambda row: "" if row.mean_queries is None else f"{row.mean_queries:.0f}",
    }
    cells = {head: [cell(row) for row in rows.values()] for head, cell in columns.items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    table = Table(title=f"{size} / 255", title_justify="left")
    table.add_column("attack", no_wrap=True)
    for head in shown:
        table.add_column(head, overflow="fold")
    for k, name in enumerate(rows):
        row = (column[k] for column in shown.values())
        table.add_row(name, *row, end_section=name == BEST)
    return table


def _evaded(row: Row, rate: str) -> str:
    return str(row.evaded[rate]) if row.evaded else ""


def print_rounds(before: RedTeamReport, after: RedTeamReport) -> None:
    """Print what the rounds bought: shares evaded of the same unseen images, before and after."""
    console = Console()
    console.print(f"{before.images} unseen images, each guard attacked anew knowing all of it")
    heads = [f"{word} at {rate}" for rate in before.thresholds for word in ("before", "after")]
    table = Table("budget / 255", "attack", *heads)
    for size, rows in before.budgets.items():
        for name in (BEST, SEARCH):
            pair = (rows[name], after.budgets[size][name])
            if all(row.evaded for row in pair):
                cells = [str(row.evaded[r]) for r in before.thresholds for row in pair]
                table.add_row(size, name, *cells)
    console.print(table)
    for norm, medians in before.median_budget.items():
        moved = (f"{k} {v} -> {after.median_budget[norm][k]}" for k, v in medians.items())
        console.print(f"median {norm} budget: " + ", ".join(moved))


def _print_pairs(console: Console, report: RedTeamReport) -> None:
    for sentence in pair_sentences(report):
        console.print(sentence)


def _print_convergence(console: Console, report: RedTeamReport, rates: list[str]) -> None:
    steps = report.steps
    table = Table(f"steps at {steps.budget:g}/255, {steps.attack}", *rates)
    for count, entry in steps.evaded.items():
        table.add_row(count, *(str(entry[rate]) for rate in rates))
    console.print(table)
    console.print("share of images with an evasion within a budget, by rate, and of the bare model")
    for norm, shares in report.ladders.items():
        climbed = Table(f"{norm} budget", *shares)
        for size in next(iter(shares.values())):
            climbed.add_row(size, *(f"{column[size].value:.3f}" for column in shares.values()))
        console.print(climbed)
        medians = report.median_budget[norm].items()
        console.print(f"median {norm} budget: " + ", ".join(f"{k} {v}" for k, v in medians))
    for check, held in report.checks.items():
        console.print(f"{sign(held, report.evasions)}: {check}")

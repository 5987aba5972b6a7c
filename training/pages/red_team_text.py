"""The red team's figures as tables on a terminal."""

from rich.console import Console
from rich.table import Table

from reluguard.training.pages.red_team_words import pair_sentences
from reluguard.training.pages.words import sign
from reluguard.training.red_team.report import BEST, SEARCH, RedTeamReport

__all__ = ["print_red_team", "print_rounds"]


def print_red_team(report: RedTeamReport) -> None:
    """Print the figures as tables."""
    console = Console()
    settings = ", ".join(f"{key} {value}" for key, value in report.settings.items())
    console.print(f"{report.images} unseen images; {report.threat_model}; {settings}")
    rates = list(report.thresholds)
    heads = ("misclassified", *(f"evaded at {r}" for r in rates), "after restarts", "queries")
    table = Table("budget / 255", "attack", "images", *heads)
    for size, rows in report.budgets.items():
        for name, row in rows.items():
            tried = str(report.images if row.images is None else row.images)
            if row.misclassified is None:
                table.add_row(size, name, tried)
                continue
            cells = [str(row.misclassified), *(str(row.evaded[rate]) for rate in rates)]
            after = " ".join(f"{share:.2f}" for share in row.evaded_after_restarts or ())
            asked = "" if row.mean_queries is None else f"{row.mean_queries:.0f}"
            table.add_row(size, name, tried, *cells, after, asked, end_section=name == BEST)
    console.print(table)
    _print_pairs(console, report)
    _print_convergence(console, report, rates)


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

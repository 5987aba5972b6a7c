"""The red team's figures as tables on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from reluguard.training.statistics.metrics import interval_text

__all__ = ["print_red_team", "print_rounds"]


def print_red_team(card: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    settings = ", ".join(f"{key} {value}" for key, value in card["settings"].items())
    console.print(f"{card['images']} unseen images; {card['threat_model']}; {settings}")
    rates = list(card["thresholds"])
    heads = ("misclassified", *(f"evaded at {r}" for r in rates), "after restarts", "queries")
    table = Table("budget / 255", "attack", "images", *heads)
    for size, rows in card["budgets"].items():
        for name, row in rows.items():
            tried = str(row.get("images", card["images"]))
            if "evaded" not in row:
                table.add_row(size, name, tried)
                continue
            cells = [
                interval_text(row["misclassified"]),
                *(interval_text(row["evaded"][r]) for r in rates),
            ]
            after = " ".join(f"{share:.2f}" for share in row.get("evaded_after_restarts", ()))
            asked = f"{row['mean_queries']:.0f}" if "mean_queries" in row else ""
            last = name == "best per image"
            table.add_row(size, name, tried, *cells, after, asked, end_section=last)
    console.print(table)
    _print_convergence(console, card, rates)


def print_rounds(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Print what the rounds bought: shares evaded of the same unseen images, before and after."""
    console = Console()
    console.print(f"{before['images']} unseen images, each guard attacked anew knowing all of it")
    heads = [f"{word} at {rate}" for rate in before["thresholds"] for word in ("before", "after")]
    table = Table("budget / 255", "attack", *heads)
    for size, rows in before["budgets"].items():
        for name in ("best per image", "score-search"):
            pair = (rows[name], after["budgets"][size][name])
            if all("evaded" in row for row in pair):
                cells = [
                    interval_text(row["evaded"][r]) for r in before["thresholds"] for row in pair
                ]
                table.add_row(size, name, *cells)
    console.print(table)
    for norm, medians in before["median_budget"].items():
        moved = (f"{k} {v} -> {after['median_budget'][norm][k]}" for k, v in medians.items())
        console.print(f"median {norm} budget: " + ", ".join(moved))


def _print_convergence(console: Console, card: Mapping[str, Any], rates: list[str]) -> None:
    steps = card["steps"]
    table = Table(f"steps at {steps['budget']:g}/255, {steps['attack']}", *rates)
    for count, entry in steps["evaded"].items():
        table.add_row(count, *(interval_text(entry[rate]) for rate in rates))
    console.print(table)
    console.print("share of images with an evasion within a budget, by rate, and of the bare model")
    for norm, shares in card["ladders"].items():
        climbed = Table(f"{norm} budget", *shares)
        for size in next(iter(shares.values())):
            climbed.add_row(size, *(f"{column[size]['value']:.3f}" for column in shares.values()))
        console.print(climbed)
        medians = card["median_budget"][norm].items()
        console.print(f"median {norm} budget: " + ", ".join(f"{k} {v}" for k, v in medians))
    for check, held in card["checks"].items():
        console.print(f"{'yes' if held else 'NO '} {check}")

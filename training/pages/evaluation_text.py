"""An evaluation as tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from reluguard.training.evaluation.report_card import print_precision
from reluguard.training.statistics.metrics import interval_text

__all__ = ["figure_text", "print_evaluation", "print_goals"]


def print_evaluation(card: Mapping[str, Any]) -> None:
    """Print the main figures."""
    console = Console()
    about, clean = card["about"], card["clean"]
    console.print(f"{about['images']} unseen images ({about['from']})")
    for rate, value in clean["false_positive_rate"].items():
        console.print(f"clean images flagged at the {rate} threshold: {interval_text(value)}")
    rate = next(reversed(clean["false_positive_rate"]))
    _print_attacks(console, card, rate)
    _print_threats(console, card)
    _print_peers(console, card)
    if "left_out" in card:
        console.print(f"left out: {card['left_out']}")
    if card.get("matrix", {}).get("unseen"):
        matrix = card["matrix"]
        console.print(
            f"one {matrix['by']} left out of the fit, AUROC on what was left out: mean "
            f"{interval_text(matrix['mean_interval'])}, "
            f"worst {interval_text(matrix['worst_interval'])}"
        )
    print_precision(console, card["precision"])
    print_goals(card["goals"])


def _print_attacks(console: Console, card: Mapping[str, Any], rate: str) -> None:
    table = Table("attack", "threat", "fitted on", "succeeded", "AUROC", f"detected at {rate}")
    for slug, entry in card["attacks"].items():
        figures = (
            (interval_text(entry["auroc"]), interval_text(entry["detected"][rate]))
            if "auroc" in entry
            else ()
        )
        share = f"{entry['succeeded']} / {entry['tried']}"
        table.add_row(slug, entry["threat"], "yes" if entry["fitted_on"] else "no", share, *figures)
    console.print(table)


def _print_threats(console: Console, card: Mapping[str, Any]) -> None:
    table = Table("the attacker has", "attacks", "mean AUROC", "worst AUROC", "which")
    for threat, entry in card["threats"].items():
        figures = (f"{entry['mean_auroc']:.3f}", f"{entry['worst_auroc']:.3f}", entry["worst"])
        table.add_row(f"{threat}: {entry['knows']}", str(entry["attacks"]), *figures)
    console.print(table)
    if not card.get("red_team"):
        console.print(
            "an attacker who knows the guard: not published with it, `reluguard redteam --publish`"
        )


def _print_peers(console: Console, card: Mapping[str, Any]) -> None:
    table = Table(
        "detector", "mean AUROC", "worst AUROC", "harmless flagged", "guard minus it: mean", "worst"
    )
    for name, entry in card["baselines"].items():
        keys = ("mean_auroc", "worst_auroc", "mean_benign_flagged")
        cells = [f"{entry[k]:.3f}" if entry.get(k) is not None else "-" for k in keys]
        leads = [entry["lead"][key] for key in ("mean", "worst")] if "lead" in entry else []
        table.add_row(
            name, *cells, *(f"{interval_text(lead, '+.3f')} {lead['word']}" for lead in leads)
        )
    console.print(table)


def print_goals(goals: Sequence[Mapping[str, Any]]) -> None:
    """Print the numbers to beat, each met or short, with what fell short."""
    table = Table("number to beat", "goal", "anchor", "found", "", title="numbers to beat")
    for goal in goals:
        known = [figure for figure in goal["figures"] if figure["value"] is not None]
        shown = (
            [f for f in known if not f["verdict"].startswith("met")] if len(known) > 8 else known
        )
        rest = len(known) - len(shown)
        lines = [f"{f['name']} {figure_text(f)}" for f in shown]
        lines += [f"{rest} more: met"] if rest else []
        verdict = goal["verdict"]
        table.add_row(
            goal["what"],
            goal["goal"],
            goal["anchor"],
            "\n".join(lines) or "-",
            verdict,
            end_section=True,
        )
    Console().print(table)


def figure_text(figure: Mapping[str, Any]) -> str:
    """Return a figure of a goal in words: its value and, where known, its interval."""
    value = figure["value"]
    if value is None:
        return "not measured"
    if figure["low"] is None:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

"""The papers' claims as tables on a terminal."""

from rich.console import Console
from rich.table import Table

from reluguard.detector.metrics import Interval
from reluguard.training.analysis.result import Analysis

__all__ = ["print_claims"]


def print_claims(found: Analysis) -> None:
    """Print a table for every paper: its claims, the figures here and whether they hold."""
    console = Console()
    for paper in dict.fromkeys(line["paper"] for line in found.claims):
        table = Table(title=paper, title_justify="left", expand=True)
        table.add_column("claim", ratio=1)
        table.add_column("here", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for line in found.claims:
            if line["paper"] == paper:
                ours = "" if line["ours"] is None else str(Interval(**line["ours"]))
                table.add_row(line["claim"], ours, line["holds"])
        console.print(table)

"""The gate's word as a table on a terminal."""

from rich.console import Console
from rich.table import Table

from reluguard.detector.metrics import GateResult

__all__ = ["print_gate"]


def print_gate(result: GateResult) -> None:
    """Print the comparison as a table, and the reasons."""
    console = Console()
    table = Table("", "", "figure", "champion", "challenger", "difference", "images", "")
    for row in result.rows:
        table.add_row(
            row.what,
            row.name,
            row.figure,
            f"{row.champion:.3f}",
            f"{row.challenger:.3f}",
            f"[{row.low:+.3f}, {row.high:+.3f}]",
            str(row.images),
            "refused" if row.refused else "",
            style="bold red" if row.refused else None,
        )
    console.print(table, markup=False)
    console.print("gate: passed" if result.passed else "gate: refused")
    for reason in result.reasons:
        console.print(f"  {reason}", markup=False, highlight=False)

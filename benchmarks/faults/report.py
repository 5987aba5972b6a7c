"""What an exercise found: figures against goals, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "spread", "table"]

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the report.

    Attributes:
        exercise: its name.
        goal: what is asked for.
        figures: what was measured, by name.
        met: whether the goal is.
        sound: whether what does not depend on how busy the machine is holds; by default the goal.
    """

    exercise: str
    goal: str
    figures: dict[str, Any]
    met: bool
    sound: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"sound": self.met if self.sound is None else self.sound}


def spread(latencies: Sequence[float]) -> dict[str, float | None]:
    """Return count-free p50, p99 and the largest of latencies in seconds, in milliseconds."""
    if not latencies:
        return {"p50_ms": None, "p99_ms": None, "max_ms": None}
    p50, p99, most = np.percentile(latencies, [50, 99, 100]) * 1000
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "max_ms": round(float(most), 2),
    }


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as text: one block per exercise."""
    blocks = []
    for finding in findings:
        lines = [f"{'met   ' if finding.met else 'MISSED'}  {finding.exercise}: {finding.goal}"]
        lines += [f"          {name}: {value}" for name, value in finding.figures.items()]
        blocks.append("\n".join(lines))
    met = sum(finding.met for finding in findings)
    return "\n".join([*blocks, f"{met} of {len(findings)} goals met"])

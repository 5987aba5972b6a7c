"""What an exercise found: figures against goals, as a table and as JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.pair import Pair

__all__ = ["Finding", "add_options", "given_pair", "spread", "table", "tell"]


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every exercise takes: a model with its guard, and where the findings go."""
    parser.add_argument("--model", type=Path, help="ONNX file; goes with --guard")
    parser.add_argument("--guard", type=Path, help="its guard's folder")
    parser.add_argument("--json", type=Path, help="write the findings here too; - for stdout")


def given_pair(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Pair | None:
    """Return the model and guard that were given, None if neither was; half a pair is an error."""
    if (options.model is None) != (options.guard is None):
        parser.error("expected --model and --guard together: got only one of them")
    return None if options.model is None else Pair(model=options.model, guard=options.guard)


def tell(findings: Sequence[Finding], place: Path | None) -> int:
    """Print the findings, as JSON if the place is `-`; write them there otherwise. 0 if all met."""
    text = json.dumps([finding.to_json() for finding in findings], indent=2)
    if place and str(place) != "-":
        place.write_text(text + "\n", encoding="utf-8")
    print(text if str(place) == "-" else table(findings))
    return 0 if all(finding.met for finding in findings) else 1

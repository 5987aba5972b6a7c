"""Run the exercises of faults and load, and print what they found.

    python -m benchmarks.faults [NAME ...] [--short] [--model M.onnx --guard G] [--json OUT]

Without a name it runs all of them, without a model on a small network it makes itself. `--short`
is what the slow tests run: the same code for seconds instead of minutes. Exit code 0 if every goal
is met.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.pair import Pair
from benchmarks.faults.report import Finding, table

# each module has `run(pair or None, folder, *, short) -> list[Finding]`
EXERCISES = ("refusals", "hostile", "rotation", "drain", "kill", "overload", "fuzz", "decoders",
             "soak")  # fmt: skip


def main() -> int:
    """Run them in turn."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXERCISES))
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--model", type=Path, help="ONNX file; goes with --guard")
    parser.add_argument("--guard", type=Path, help="its guard's folder")
    parser.add_argument("--json", type=Path, help="write the findings here too; - for stdout")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(EXERCISES))
    if unknown:
        parser.error(f"expected names of {', '.join(EXERCISES)}, got {unknown[0]}")
    if (options.model is None) != (options.guard is None):
        parser.error("expected --model and --guard together: got only one of them")
    findings: list[Finding] = []
    for name in options.names or EXERCISES:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"reluguard-{name}-") as place:
            folder = Path(place)
            given = options.model and Pair(model=options.model, guard=options.guard)
            exercise = importlib.import_module(f"benchmarks.faults.{name}")
            found = exercise.run(given, folder, short=options.short)
        findings += found
        took = time.monotonic() - started
        marks = ", ".join("met" if finding.met else "MISSED" for finding in found)
        print(f"{name}: {marks} in {took:.0f} s", file=sys.stderr, flush=True)
    text = json.dumps([finding.to_json() for finding in findings], indent=2)
    if options.json and str(options.json) != "-":
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text if str(options.json) == "-" else table(findings))
    return 0 if all(finding.met for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())

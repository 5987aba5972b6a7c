"""Run the exercises of faults and load, and print what they found.

    python -m benchmarks.faults [NAME ...] [--short] [--model M.onnx --guard G] [--json OUT]

Without a name it runs all of them, without a model on a small network it makes itself. `--short`
is what the slow tests run: the same code for seconds instead of minutes. Exit code 0 if every goal
is met.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.report import Finding, add_options, given_pair, tell

# each module has `run(pair or None, folder, *, short) -> list[Finding]`
EXERCISES = ("refusals", "hostile", "by_http", "rotation", "drain", "kill", "overload", "fuzz",
             "decoders", "soak")  # fmt: skip


def main() -> int:
    """Run them in turn."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXERCISES))
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    add_options(parser)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(EXERCISES))
    if unknown:
        parser.error(f"expected names of {', '.join(EXERCISES)}, got {unknown[0]}")
    given = given_pair(parser, options)
    findings: list[Finding] = []
    for name in options.names or EXERCISES:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"reluguard-{name}-") as place:
            folder = Path(place)
            exercise = importlib.import_module(f"benchmarks.faults.{name}")
            found = exercise.run(given, folder, short=options.short)
        findings += found
        took = time.monotonic() - started
        marks = ", ".join("met" if finding.met else "MISSED" for finding in found)
        print(f"{name}: {marks} in {took:.0f} s", file=sys.stderr, flush=True)
    return tell(findings, options.json)


if __name__ == "__main__":
    sys.exit(main())

"""A coverage-guided fuzzer on everything that decodes what a caller sent.

It needs atheris, which wants an environment of its own: put the project's dependencies and atheris
into one and name its interpreter in FUZZ_PYTHON.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import ROOT
from benchmarks.faults.report import Finding
from benchmarks.faults.traffic import INSPECT, Ask, Kit

__all__ = ["run"]

_HANG_S = 10
_RSS_MB = 1024
_GOAL = "no exception but our refusals, no run over 10 s, memory under 1 GiB"
_DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/.*?rss: (\d+)Mb")


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Fuzz the decoders in a process of their own, from valid requests on."""
    python = os.environ.get("FUZZ_PYTHON", sys.executable)
    probe = [python, "-c", "import atheris"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        why = f"not run: {python} has no atheris; set FUZZ_PYTHON"
        return [Finding(exercise="decoders", goal=_GOAL, figures={"note": why}, met=False)]
    seeds = folder / "seeds"
    seeds.mkdir()
    kit = Kit(pair or make_pair(folder / "pair"))
    for number, ask in enumerate(kit.valid(most_rows=3)):
        for target, data in _seeds(ask):
            (seeds / f"{number}-{target}").write_bytes(bytes([target]) + data)
    seconds = 20 if short else 420
    done = subprocess.run(
        [python, "-m", "benchmarks.faults.decoder_target", str(seeds), f"-timeout={_HANG_S}",
         f"-max_total_time={seconds}", f"-rss_limit_mb={_RSS_MB}", "-max_len=4096", "-seed=1",
         f"-artifact_prefix={folder}/"],
        cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    found = _DONE.search(done.stderr)
    figures = {"seconds": seconds, "exit_code": done.returncode}
    if found:
        names = ("runs", "edges_covered", "features", "inputs_kept", "rss_mib")
        figures |= dict(zip(names, map(int, found.groups()), strict=True))
    crashed = done.returncode != 0 or found is None
    return [
        Finding(
            exercise="decoders",
            goal=_GOAL,
            figures=figures | ({"output": (done.stdout + done.stderr)[-3000:]} if crashed else {}),
            met=not crashed,
        )
    ]


def _seeds(ask: Ask) -> list[tuple[int, bytes]]:
    """Return this request for the targets that can use it: their numbers and their bytes."""
    own = 3 if ask.method == INSPECT else 4
    # FuzzedDataProvider takes whole byte strings from the front
    return [(own, ask.data), (2, ask.data[ask.data.find(b"\x89PNG") :])]

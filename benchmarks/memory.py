"""How much memory a fit takes in all: the process and those that it starts, whatever the images.

    python -m benchmarks.memory --model MODEL.onnx --data FOLDER --images 120 1000 [--workers 2]

Takes so many photographs of the data, repeated where there are fewer, fits a guard with two attacks
and one harmless change, and asks the system several times a second for the proportional share of
memory (PSS) of all processes together: what several of them share is counted once, and pages of
files while they are mapped in. Prints the peak by number of images, by process, and what was going
on; returns 1 where a peak is over the goal. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reluguard.detector.model import load_production
from reluguard.training.attacks import FGSM, PGD
from reluguard.training.changes import JPEG
from reluguard.training.data.dataset import Dataset, load_data, save_dataset
from reluguard.training.data.preprocessing import given_preprocessing
from reluguard.training.data.reading import Reading
from reluguard.training.recipes import Portion, Recipe

EVERY_S = 0.1
GOAL_MB = 2500
_FIT = "import sys; from reluguard import main; sys.exit(main())"


def recipe() -> Recipe:
    """Return a recipe that takes the memory of longer ones in little time."""
    attacks = (Portion(FGSM(size=8.0), 0.1), Portion(PGD(size=2.0, steps=3), 0.05))
    return Recipe(name="memory", attacks=attacks, benign=(Portion(JPEG(quality=75), 0.1),))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[120, 1000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    production = load_production(options.model)
    how = given_preprocessing(None, production.image_size)
    data = load_data(options.data, Reading.for_model(production, how))
    rows = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(options.model, data, count, options.workers, Path(folder)))
        if not options.json:
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))
    return int(any(row["peak_mb"] > GOAL_MB or row["exit"] for row in rows))


def measured(model: Path, data: Dataset, count: int, workers: int, folder: Path) -> dict[str, Any]:
    """Return the peak of a fit on so many images."""
    some = data.take(np.random.default_rng(0).permutation(np.arange(count) % len(data)))
    images = some.images.copy()
    for turn in range(1, -(-count // len(data))):  # what was repeated becomes another image
        again = slice(turn * len(data), (turn + 1) * len(data))
        images[again] = np.roll(images[again, ::-1], 17 * turn, axis=2)
    save_dataset(Dataset(images=images, labels=some.labels, source=data.source), folder / "d.npz")
    command = [sys.executable, "-c", _FIT, "fit", "--recipe", "benchmarks.memory:recipe"]
    command += ["--model", str(model), "--data", str(folder / "d.npz"), "--out", str(folder / "g")]
    command += ["--workers", str(workers), "--threads", "1", "--target-fpr", "0.1"]
    seen = watched(command, log=folder / "log")
    if seen.exit:
        print((folder / "log").read_text(), file=sys.stderr)
    first, *others = seen.each_mb
    return {
        "images": count,
        "peak_mb": seen.peak_mb,
        "first_process_mb": first,
        "others_mb": others,
        "while": seen.at,
        "exit": seen.exit,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a command took: the peak of all its processes together, in MB, and of each then.

    Attributes:
        exit: its exit code.
        each_mb: of each process at the peak, its own first.
        at: the last line of its log then.
    """

    exit: int
    each_mb: tuple[int, ...]
    at: str

    @property
    def peak_mb(self) -> int:
        """Of all together."""
        return sum(self.each_mb)


def watched(
    command: Sequence[str],
    *,
    log: Path,
    printed: Path | None = None,
    cwd: Path | None = None,
    every_s: float = EVERY_S,
) -> Watched:
    """Run a command to its end and return what memory it took.

    Args:
        command: the program and its arguments.
        log: file for its standard error.
        printed: file for its standard output; the log by default.
        cwd: where it runs.
        every_s: seconds between two looks.
    """
    with log.open("w") as errors, (printed or log).open("a" if printed is None else "w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=errors, cwd=cwd)
        peak: dict[int, int] = {process.pid: 0}
        at = ""
        while process.poll() is None:
            now = {pid: pss(pid) for pid in tree(process.pid)}
            if sum(now.values()) > sum(peak.values()):
                peak, at = now, log.read_text().strip().rpartition("\n")[2]
            time.sleep(every_s)
    each = tuple(round(value / 1000) for value in peak.values())
    return Watched(exit=process.returncode, each_mb=each, at=at)


def tree(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            parent = int(status.rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def pss(pid: int) -> int:
    """Return a process's proportional share of memory in kB, 0 where it has ended."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    sys.exit(main())

"""What the watch over question streams finds, and what it raises for nothing.

    python -m benchmarks.watching --model resnet20.onnx --guard guard --data heldout.npz

Thresholds are chosen on a first part of images, classes and photographs, and everything is told of
the second. Attacks ask offline first, where every question is kept and replayed to the server's own
watch with other settings, callers and times; then some ask a real server by gRPC.
"""

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.watching.asking import ask_server, time_ratio
from benchmarks.watching.judging import DISTANCES, Row, chosen, first_raised, rows_of
from benchmarks.watching.replay import Read, kept_streams, weights_of
from benchmarks.watching.streams import attack_streams, honest_streams, photographs
from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.attacks import HopSkipJump, Square
from reluguard.training.data.dataset import load_data
from reluguard.training.red_team.deciding import FromPictures

Weights = NDArray[np.float64]
STEPS = ("read", "choose", "table", "spread", "ask", "time")
_HALF_LIFE_S = 3600.0  # as the server has it by default
_PACE_S = 0.1
_PICTURES = 200
_CALLERS = (1, 2, 4, 8)
_PACES = (10.0, 60.0, 120.0, 300.0)
_OTHERS = (1, 10)
_SLOW = "HopSkipJump from pictures"


@dataclass(slots=True)
class _Case:
    """What is asked about: a network with a guard, images in two parts, photographs."""

    given: argparse.Namespace
    artifact: GuardArtifact = field(init=False)
    reader: Reader = field(init=False)
    images: Images = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    photos: list[Images] = field(init=False)
    attacked: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        given = self.given
        self.artifact = read_guard(given.guard)
        manifest = self.artifact.manifest
        production = load_production(given.model, output=manifest.answer)
        self.reader = Reader(production, manifest.input, manifest.taps, threads=1)
        dataset = load_data(given.data)
        order = np.random.default_rng(given.seed).permutation(len(dataset.images))
        self.images, self.labels = dataset.images[order], dataset.labels[order].astype(np.int64)
        self.photos = photographs(given.photographs, given.most_photographs)
        logits = self.reader.read(self.images[: self.quarter])[1]
        right = np.flatnonzero(logits.argmax(axis=1) == self.labels[: self.quarter])
        self.attacked = right[: 2 * given.images]
        say(f"{len(self.images)} images, {len(self.photos)} photographs, {len(manifest.taps)} taps")

    @property
    def quarter(self) -> int:
        """The images below this are attacked, those above it are asked about honestly."""
        return len(self.images) // 4

    @property
    def pictures(self) -> Images:
        """What attackers have who start from pictures."""
        return self.images[self.quarter :][:_PICTURES]

    def attacks(self, part: int) -> list[Read]:
        """Return what attacks ask about the images of a part."""
        given, mine = self.given, self.attacked[part::2]
        return kept_streams(
            given.work,
            f"attacks-{part}",
            lambda: attack_streams(
                self.images[mine], self.labels[mine], self.pictures, self._predict,
                queries=given.queries, steps=given.steps, seed=given.seed + 1000 * part,
            ),
            self.reader,
        )  # fmt: skip

    def honest(self, part: int) -> list[Read]:
        """Return what is asked honestly, of the photographs and images of a part."""
        given = self.given
        own = np.arange(self.quarter + _PICTURES, len(self.images))[part::2]
        return kept_streams(
            given.work,
            f"honest-{part}",
            lambda: honest_streams(
                self.photos[part::2], (self.images[own], self.labels[own]),
                size=self.images.shape[1], length=given.frames, seed=given.seed + 1 + part,
            ),
            self.reader,
        )  # fmt: skip

    def weighed(self, reads: Sequence[Read], distance: float) -> dict[str, list[Weights]]:
        """Return the weights of streams, by kind."""
        found: dict[str, list[Weights]] = defaultdict(list)
        for read in reads:
            found[read.kind].append(
                weights_of(
                    read, self.artifact, distance=distance, half_life_s=_HALF_LIFE_S,
                    pace_s=_PACE_S,
                )
            )  # fmt: skip
        return found

    def _predict(self, batch: Images) -> NDArray[np.float32]:
        return self.reader.read(batch)[1]


def main() -> None:
    """Print the tables."""
    given = _arguments()
    case = _Case(given)
    distance, near = given.distance, given.near
    if "read" in given.what:
        for part in (0, 1):
            counts = len(case.attacks(part)), len(case.honest(part))
            say(f"part {part + 1}: {counts[0]} attacks, {counts[1]} honest streams")
    if "choose" in given.what:
        attacks, honest = case.attacks(0), case.honest(0)
        distance, near = chosen(
            {one: case.weighed(attacks, one) for one in DISTANCES},
            {one: case.weighed(honest, one) for one in DISTANCES},
        )
        say(f"chosen on the first part: distance {distance:g}, {near} questions")
    report: dict[str, Any] = {"distance": distance, "near": near}
    if "table" in given.what:
        found = [case.weighed(reads, distance) for reads in (case.attacks(1), case.honest(1))]
        rows = [row for part in found for row in rows_of(part, near)]
        table(rows)
        report["streams"] = [dataclasses.asdict(row) for row in rows]
    if "spread" in given.what:
        report["spread"] = _spread(case.attacks(1), case.artifact, distance, near)
        report["hidden"] = _hidden(case.attacks(1), case.honest(1), case.artifact, distance, near)
    if "ask" in given.what:
        report["asked"] = _asked(case, distance, near)
    if "time" in given.what:
        report["time"] = _timed(case)
    if given.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")


def _timed(case: _Case) -> list[float]:
    given = case.given
    guards = [
        Guard.open(given.model, given.guard, threads=1, readings=read) for read in (False, True)
    ]
    ratios = time_ratio(guards, case.images, calls=given.calls, rounds=5)
    say(f"time of a call, watched / not: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    return ratios


def _spread(
    attacks: Sequence[Read], artifact: GuardArtifact, distance: float, near: int
) -> list[dict[str, Any]]:
    """Return what is left of detection when an attack is spread over callers and over time."""
    mine = [read for read in attacks if read.kind == _SLOW]
    found = []
    for what, values in (("callers", _CALLERS), ("pace_s", _PACES)):
        for value in values:
            told = [
                first_raised(
                    weights_of(
                        read, artifact, distance=distance, half_life_s=_HALF_LIFE_S,
                        pace_s=value if what == "pace_s" else _PACE_S,
                        callers=int(value) if what == "callers" else 1,
                    ),
                    near,
                )
                for read in mine
            ]  # fmt: skip
            found.append(_told(f"{_SLOW}, {what} {value:g}", told))
    return found


def _hidden(
    attacks: Sequence[Read],
    honest: Sequence[Read],
    artifact: GuardArtifact,
    distance: float,
    near: int,
) -> list[dict[str, Any]]:
    """Return the same of an attacker who asks about other images in between."""
    others = [read for read in honest if read.kind == "any class"]
    rates = np.concatenate([read.rates for read in others])
    images = np.concatenate([read.images for read in others])
    found = []
    for between in _OTHERS:
        told = []
        for read in (read for read in attacks if read.kind == _SLOW):
            count = min(len(read.rates), len(rates) // between)
            places = np.arange(count) * (between + 1)
            size = count * (between + 1)
            among = np.setdiff1d(np.arange(size), places)
            mixed_rates = np.empty((size, rates.shape[1]), np.float32)
            mixed_images = np.empty((size, *images.shape[1:]), np.uint8)
            mixed_rates[places], mixed_rates[among] = read.rates[:count], rates[: len(among)]
            mixed_images[places], mixed_images[among] = read.images[:count], images[: len(among)]
            mixed = Read(kind=read.kind, rates=mixed_rates, images=mixed_images)
            asked = first_raised(
                weights_of(mixed, artifact, distance=distance, half_life_s=_HALF_LIFE_S,
                           pace_s=_PACE_S), near,
            )  # fmt: skip
            told.append(None if asked is None else -(-asked // (between + 1)))
        found.append(_told(f"{_SLOW}, {between} others between", told))
    return found


def _told(what: str, told: Sequence[int | None]) -> dict[str, Any]:
    raised = [one for one in told if one is not None]
    before = int(np.median(raised)) if raised else None
    say(f"{what}: raised {len(raised)} of {len(told)}, questions before it {before}")
    return {"what": what, "runs": len(told), "raised": len(raised), "before": before}


def _asked(case: _Case, distance: float, near: int) -> list[dict[str, Any]]:
    """Return what attacks reach that ask a real server."""
    given, rows = case.given, case.attacked[1::2][: case.given.asked]
    guard = Guard.open(given.model, given.guard, threads=1, readings=True)
    found = []
    for attack in (
        FromPictures(pictures=case.pictures, steps=given.steps),
        HopSkipJump(steps=given.steps),
        Square(size=4, most_queries=given.queries),
    ):
        for watch in ("off", "count", "refuse"):
            asked = ask_server(
                guard, attack, case.images[rows], case.labels[rows], seed=given.seed,
                watch=watch, watch_distance=distance, watch_near=near,
            )  # fmt: skip
            name = f"{type(attack).__name__}, watch={watch}"
            say(f"{name}: {dataclasses.asdict(asked)}")
            found.append({"what": name, **dataclasses.asdict(asked)})
    return found


def table(rows: Sequence[Row]) -> None:
    """Print a table of streams."""
    say("| stream | number, length | raised | asked before, middle (most) |\n|---|---|---|---|")
    for row in rows:
        before = "" if row.before is None else f"{row.before} ({row.most_before})"
        say(f"| {row.kind} | {row.streams} of {row.questions} | {row.raised} | {before} |")


def say(text: str) -> None:
    """Print a line at once, beside what a machine reads."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.watching", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--guard", required=True)
    parser.add_argument("--data", required=True, help="images that no step of fitting saw")
    parser.add_argument("--photographs", help="a folder; some that libraries bring by default")
    parser.add_argument("--most-photographs", type=int, default=24)
    parser.add_argument("--images", type=int, default=20, help="attacked in each part")
    parser.add_argument("--queries", type=int, default=1000, help="of Square at most")
    parser.add_argument("--steps", type=int, default=6, help="of HopSkipJump")
    parser.add_argument("--frames", type=int, default=600, help="of each honest stream")
    parser.add_argument("--asked", type=int, default=10, help="images attacked by gRPC")
    parser.add_argument("--calls", type=int, default=300, help="timed in a round")
    parser.add_argument("--work", type=Path, help="a folder that keeps what was read")
    parser.add_argument(
        "--what", type=_steps, default=frozenset(STEPS), help=f"some of {','.join(STEPS)}"
    )
    parser.add_argument("--distance", type=float, default=0.0625, help="where none is chosen")
    parser.add_argument("--near", type=int, default=40, help="where none is chosen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _steps(text: str) -> frozenset[str]:
    steps = frozenset(text.split(","))
    if not steps <= set(STEPS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(STEPS)}, got {text!r}")
    return steps


if __name__ == "__main__":
    main()

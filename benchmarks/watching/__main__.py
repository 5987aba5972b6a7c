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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.watching.asking import ask_server, time_ratio
from benchmarks.watching.judging import DISTANCES, Row, chosen, first_raised, rows_of
from benchmarks.watching.replay import Read, read_streams, weights_of
from benchmarks.watching.streams import Stream, attack_streams, honest_streams, photographs
from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.attacks import HopSkipJump, Square
from reluguard.training.data.dataset import load_data
from reluguard.training.red_team.deciding import FromPictures

Weights = NDArray[np.float64]
_HALF_LIFE_S = 3600.0  # as the server has it by default
_PACE_S = 0.1
_CALLERS = (1, 2, 4, 8)
_PACES = (10.0, 60.0, 120.0, 300.0)
_OTHERS = (1, 10)
_SLOW = "HopSkipJump from pictures"


def main() -> None:
    """Print the tables."""
    given = _arguments()
    artifact = read_guard(given.guard)
    production = load_production(given.model, output=artifact.manifest.answer)
    reader = Reader(production, artifact.manifest.input, artifact.manifest.taps, threads=1)
    dataset = load_data(given.data)
    images, labels = dataset.images, dataset.labels.astype(np.int64)
    rng = np.random.default_rng(given.seed)
    order = rng.permutation(len(images))
    images, labels = images[order], labels[order]
    photos = photographs(given.photographs, given.most_photographs)
    say(f"{len(images)} images, {len(photos)} photographs, {len(artifact.manifest.taps)} taps")

    quarter = len(images) // 4
    right = np.flatnonzero(reader.read(images[:quarter])[1].argmax(axis=1) == labels[:quarter])
    attacked = right[: 2 * given.images]
    rest = np.arange(quarter, len(images))
    pictures = images[rest[:200]]
    parts = []
    for part in (0, 1):
        mine = attacked[part::2]
        streams: list[Stream] = list(
            attack_streams(
                images[mine], labels[mine], pictures, lambda batch: reader.read(batch)[1],
                queries=given.queries, steps=given.steps, seed=given.seed + 1000 * part,
            )
        )  # fmt: skip
        own = rest[200:][part::2]
        honest: list[Stream] = list(
            honest_streams(
                photos[part::2], (images[own], labels[own]), size=images.shape[1],
                length=given.frames, seed=given.seed + 1 + part,
            )
        )  # fmt: skip
        parts.append((read_streams(streams, reader), read_streams(honest, reader)))
        say(f"part {part + 1}: {len(streams)} attacks and {len(honest)} honest streams read")

    def weighed(reads: Sequence[Read], distance: float, **how: Any) -> dict[str, list[Weights]]:
        found: dict[str, list[Weights]] = defaultdict(list)
        given_ = {"half_life_s": _HALF_LIFE_S, "pace_s": _PACE_S} | how
        for read in reads:
            found[read.kind].append(weights_of(read, artifact, distance=distance, **given_))
        return found

    first = [{d: weighed(reads, d) for d in DISTANCES} for reads in parts[0]]
    distance, near = chosen(first[0], first[1])
    say(f"chosen on the first part: distance {distance:g}, {near} questions")
    attacks, honest_reads = parts[1]
    rows = rows_of(weighed(attacks, distance), near) + rows_of(
        weighed(honest_reads, distance), near
    )
    table(rows)
    report: dict[str, Any] = {
        "distance": distance,
        "near": near,
        "streams": [dataclasses.asdict(row) for row in rows],
        "spread": _spread(attacks, artifact, distance, near),
        "hidden": _hidden(attacks, honest_reads, artifact, distance, near),
    }
    if given.asked:
        report["asked"] = _asked(
            given, images[attacked[1::2]], labels[attacked[1::2]], pictures, distance, near
        )
    if given.calls:
        guards = [
            Guard.open(given.model, given.guard, threads=1, readings=r) for r in (False, True)
        ]
        ratios = time_ratio(guards, images, calls=given.calls, rounds=5)
        say(f"time of a call, watched / not: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
        report["time"] = ratios
    if given.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")


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


def _asked(
    given: argparse.Namespace,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    pictures: NDArray[np.uint8],
    distance: float,
    near: int,
) -> list[dict[str, Any]]:
    """Return what attacks reach that ask a real server."""
    guard = Guard.open(given.model, given.guard, threads=1, readings=True)
    found = []
    for attack in (
        FromPictures(pictures=pictures, steps=given.steps),
        HopSkipJump(steps=given.steps),
        Square(size=4, most_queries=given.queries),
    ):
        for watch in ("off", "count", "refuse"):
            asked = ask_server(
                guard, attack, images[: given.asked], labels[: given.asked], seed=given.seed,
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
    parser.add_argument("--asked", type=int, default=10, help="attacked by gRPC; 0 for none")
    parser.add_argument("--calls", type=int, default=300, help="timed in a round; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

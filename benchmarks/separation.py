"""Do a network's bits tell two classes apart, without a label? On any network with labelled images.

    python -m benchmarks.separation --model model.onnx --data photographs --limit 500

Jamil et al. 2023 (arXiv 2305.01808) claim > .95 at the last ReLU. Images of two classes are linked
by how alike their bits are, and the graph is cut by its Fiedler vector: the share of images on
their class's side, over all pairs of classes. Nothing is attacked or trained, so a network of 224
pixels is read in minutes; `reluguard analyze` does far more. Prints a table of taps.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reluguard.detector.metrics import Interval
from reluguard.detector.plain import Plain
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.claims.claim import judge
from reluguard.training.analysis.fiedler import pair_accuracies
from reluguard.training.analysis.material import choose_rows
from reluguard.training.analysis.recording import Recorder
from reluguard.training.analysis.similarity import hamming_counts, hamming_similarity
from reluguard.training.models.given import Given
from reluguard.training.models.network import open_network
from reluguard.training.statistics.intervals import class_pair_mean

TARGET = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class AtTap(Plain):
    """What cuts at one tap, counted from 1, come to over all pairs of classes."""

    tap: int
    shape: tuple[int, ...]
    mean: Interval
    median: float
    worst: float


def main() -> None:
    """Print a line per tap, and whether the claim holds at the last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--classes", help="as `reluguard fit` takes it")
    parser.add_argument("--limit", type=int, default=500, help="images, as many of each class")
    parser.add_argument("--taps", type=int, default=8, help="first and last among them")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    given = Given(model=options.model, data=options.data, classes=options.classes)
    with tempfile.TemporaryDirectory() as folder:
        network = open_network(given, folder=Path(folder))
    taps = find_taps(network.production, network.spec)
    places = np.unique(np.linspace(0, len(taps) - 1, min(options.taps, len(taps))).round())
    chosen = [int(place) for place in places]
    rows = choose_rows(network.dataset.labels, options.limit, seed=options.seed)
    images, labels = network.dataset.images[np.sort(rows)], network.dataset.labels[np.sort(rows)]
    recorder = Recorder(
        network.production, network.spec, [taps[i] for i in chosen], threads=options.threads
    )
    found: list[AtTap] = []
    with tempfile.TemporaryDirectory() as folder:
        recording = recorder.record(images, folder=Path(folder), batch=16)
        for place, tap, patterns in zip(chosen, recorder.taps, recording.patterns, strict=True):
            alike = hamming_similarity(hamming_counts(np.asarray(patterns)), tap.bits)
            pairs = pair_accuracies(alike, labels, seed=options.seed)
            values = pairs[np.triu_indices(len(pairs), 1)]
            found.append(
                AtTap(
                    tap=place + 1,
                    shape=tuple(tap.shape),
                    mean=class_pair_mean(pairs, seed=options.seed),
                    median=float(np.median(values)),
                    worst=float(values.min()),
                )
            )
    holds, why = judge(found[-1].mean, TARGET)
    right = float((recording.answers == labels).mean())
    if options.json:
        taps_found = [one.to_json() for one in found]
        print(json.dumps({"taps": taps_found, "answered_right": right, "holds": holds, "why": why}))
        return
    print(f"{len(labels)} images of {len(np.unique(labels))} classes, {right:.3f} answered right")
    print("| tap | shape | mean over pairs of classes | median | worst |\n|---|---|---|---|---|")
    for one in found:
        shape = " x ".join(map(str, one.shape))
        print(f"| {one.tap} | {shape} | {one.mean} | {one.median:.3f} | {one.worst:.3f} |")
    print(f"the last tap tells two classes apart for more than {TARGET:.0%}: {holds} ({why})")


if __name__ == "__main__":
    main()

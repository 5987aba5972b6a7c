"""A guard's recipe judged by folds over its own source images, where few are left to test on.

    reluguard fit --model M.onnx --data IMAGES.npz --out GUARD
    python -m benchmarks.folds --guard GUARD

Heads are fitted on the kept harvest of the fit without one fold of the source images each, and
judge that fold: AUROC of every attack beside confidence alone, 95 % intervals over source images,
and how many held-out clean and harmlessly changed images lie above the threshold that flags 5 % of
the clean images of the other folds.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import read_guard
from reluguard.detector.features import confidence
from reluguard.detector.head import Head
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.fit import fit_head
from reluguard.training.head.moments import row_blocks
from reluguard.training.retraining.kept import open_kept
from reluguard.training.statistics.metrics import auroc_interval

FPR = 0.05


def scores_of(head: Head, group: Readings) -> NDArray[np.float32]:
    """Return the scores of a group, (N,), a few rows at a time."""
    blocks = row_blocks(len(group), head.features.width)
    return np.concatenate([head.score(group.rates[b], group.logits[b]).score for b in blocks])


def both(first: Readings, second: Readings | None) -> Readings:
    """Return the readings of both parts as one group, in memory."""
    parts = [first] if second is None else [first, second]
    return replace(
        first,
        rates=np.concatenate([part.rates[:].astype(np.float32) for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        sources=np.concatenate([part.sources for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )


def main() -> None:
    """Fit a head a fold and print what they say of what they never saw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    artifact = read_guard(given.guard)
    kept = open_kept(artifact, given.work)
    tested = {group.name: group for group in kept.groups("test")}
    groups = [both(group, tested.get(group.name)) for group in kept.groups("fit")]
    sources = np.unique(np.concatenate([group.sources for group in groups]))
    dealt = np.random.default_rng(given.seed).permutation(len(sources)) % given.folds
    fold_of = {group.name: dealt[np.searchsorted(sources, group.sources)] for group in groups}
    scores = {group.name: np.zeros(len(group), np.float32) for group in groups}
    for fold in range(given.folds):
        rest = [group.rows(fold_of[group.name] != fold) for group in groups]
        head = fit_head(
            [group for group in rest if len(group)],
            taps=artifact.manifest.taps,
            settings=kept.head,
            seed=given.seed + fold,
        )
        for group in groups:
            held = fold_of[group.name] == fold
            if held.any():
                scores[group.name][held] = scores_of(head, group.rows(held))
        print(f"fold {fold + 1} of {given.folds}", flush=True)
    clean = next(group for group in groups if group.kind == "clean")
    found, folds = scores[clean.name], fold_of[clean.name]
    limits = np.array([np.quantile(found[folds != fold], 1 - FPR) for fold in range(given.folds)])
    unsure = {group.name: -confidence(group.logits)[:, 0] for group in groups}
    for group in sorted(groups, key=lambda one: (one.kind, one.name)):
        above = float((scores[group.name] > limits[fold_of[group.name]]).mean())
        line = f"{group.name:24} {group.kind:7} {len(group):6} {above:6.3f} above"
        if group.kind == "attack":
            ours, plain = (
                auroc_interval(
                    said[clean.name], clean.sources, said[group.name], group.sources, seed=0
                )
                for said in (scores, unsure)
            )
            line += f"   AUROC {ours:.3f}   confidence alone {plain:.3f}"
        print(line)


if __name__ == "__main__":
    main()

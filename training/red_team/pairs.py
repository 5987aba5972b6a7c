"""How much farther evasion lies than a wrong answer, image by image. N images.

Each attacker is paired with the same attack on the bare model, with the same steps, starts and
questions, so that a ratio of 1 says that the guard costs an attacker nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.metrics import Interval
from reluguard.training.attacks import Attack, HopSkipJump, Square
from reluguard.training.attacks.budget import Norm
from reluguard.training.progress import Progress
from reluguard.training.red_team.convergence import middle
from reluguard.training.red_team.deciding import Deciding, FromPictures
from reluguard.training.red_team.report import Pair
from reluguard.training.red_team.smallest import NO_GUARD, Smallest
from reluguard.training.red_team.target import Target
from reluguard.training.red_team.tries import Tries
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["asking_only", "smallest"]

DRAWS = 1000
SQUARE = 8.0  # 8-bit steps

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What one attack came to: scores (N,), infinite where the answer stayed, and images."""

    scores: NDArray[np.float32]
    images: Images
    queries: NDArray[np.int64] | None = None

    def asked(self) -> float | None:
        return None if self.queries is None else float(self.queries.mean())


def smallest(
    target: Target, tries: Tries, norm: Norm, *, steps: int, restarts: int, progress: Progress
) -> Pair:
    """Return how far the smallest change that evades is, beside the bare model's.

    Args:
        target: what is attacked.
        tries: makes the tries, or finds them.
        norm: "l2" or "linf".
        steps: of each run.
        restarts: runs, of each of the two attacks.
        progress: told of each image.
    """
    rows = np.arange(len(target))
    progress.stage(f"smallest change in {norm}", 2 * len(rows))
    settings: dict[str, Any] = {
        "guard": target.relaxed,
        "norm": norm,
        "steps": steps,
        "restarts": restarts,
    }
    bare = tries.fool(Smallest(threshold=NO_GUARD, **settings), rows)
    guarded = tries.fool(Smallest(threshold=target.believed, **settings), rows)
    return _paired(target, rows, _Side(scores=bare[0], images=bare[1]), _side(guarded), norm)


def asking_only(
    target: Target, tries: Tries, *, images: int, queries: int, progress: Progress
) -> dict[str, Pair]:
    """Return what someone reaches who sees an answer and whether it was flagged, and no score.

    Of clean images that are flagged nothing can be learnt this way; others are attacked.

    Args:
        target: what is attacked, by `target.ask`, which may be a real server.
        tries: makes the tries, or finds them.
        images: at most.
        queries: most questions of Square for one image; HopSkipJump asks as many as its steps take.
        progress: told of each image.
    """
    asked = target.ask(target.images)
    rows = np.flatnonzero(~asked.is_adversarial & (asked.prediction == target.labels))[:images]
    if not len(rows):
        return {}
    attacks: list[Attack] = [
        FromPictures(pictures=target.images),
        Square(size=SQUARE, most_queries=queries),
    ]
    progress.stage("answers and flags only", 2 * len(attacks) * len(rows))
    found = {}
    for attack in attacks:
        bare, flagged = (
            _side(tries.fool(Deciding(attack=attack, ask=target.ask, flags=flags), rows))
            for flags in (False, True)
        )
        norm: Norm | None = "l2" if isinstance(attack, HopSkipJump) else None
        found[attack.name] = _paired(target, rows, bare, flagged, norm)
    return found


def _side(found: tuple[NDArray[np.float32], Images, NDArray[np.int64] | None]) -> _Side:
    return _Side(scores=found[0], images=found[1], queries=found[2])


def _paired(
    target: Target, rows: NDArray[np.int64], bare: _Side, guarded: _Side, norm: Norm | None
) -> Pair:
    rate = min(target.thresholds, key=lambda one: target.thresholds[one])
    limit = np.float32(target.strictest)
    wrong, evades = np.isfinite(bare.scores), guarded.scores <= limit
    unseen = bare.scores <= limit
    n = len(rows)
    pair = Pair(
        rate=rate,
        images=n,
        bare=rate_interval(int(wrong.sum()), n),
        guarded=rate_interval(int(evades.sum()), n),
        unnoticed=rate_interval(int(unseen.sum()), int(wrong.sum())) if wrong.any() else None,
        questions=guarded.asked(),
        bare_questions=bare.asked(),
    )
    if norm is None or not n:
        return pair
    clean = target.images[rows]
    near = np.where(wrong, _lengths(clean, bare.images, norm), np.inf)
    # whatever evades is a wrong answer too, and what was made for the bare model may evade
    own = np.where(evades, _lengths(clean, guarded.images, norm), np.inf)
    near, far = np.minimum(near, own), np.minimum(own, np.where(unseen, near, np.inf))
    reach = _farthest(clean, norm)
    ratios = np.minimum(far, reach) / np.minimum(near, reach)
    return replace(
        pair,
        bare_change=middle(near),
        guarded_change=middle(far),
        ratio=_median_interval(ratios, seed=target.seed),
    )


def _lengths(clean: Images, moved: Images, norm: Norm) -> Floats:
    change = (moved.astype(np.float64) - clean).reshape(len(clean), -1)
    if norm == "linf":
        return np.asarray(np.abs(change).max(axis=1))
    return np.asarray(np.linalg.norm(change, axis=1) / 255)


def _farthest(clean: Images, norm: Norm) -> Floats:
    """Return how far pixels go: every one to the end of the range that is farther away."""
    return _lengths(clean, np.where(clean < 128, 255, 0).astype(np.uint8), norm)


def _median_interval(values: Floats, *, seed: int) -> Interval:
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    medians = np.median(values[drawn], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high), len(values))

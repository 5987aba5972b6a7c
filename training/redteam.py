"""The red team: attacks on the user's own guard by someone who knows all of it. N images.

An image evades where the real guard, hard bits on whole 8-bit pixels, gives a wrong answer and does
not flag it. The figures are published with the guard, whatever they are. A guard is a tripwire, not
a wall: an attacker with enough budget always gets through, and here it shows how much is enough.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.artifact import GuardArtifact, read_guard, write_file, write_guard
from detector.images import Images
from detector.model import load_production
from detector.runtime import Guard
from training.attacks import Attack, Victim, open_victim
from training.attacks.budget import Norm
from training.aware import (
    Aware,
    Bank,
    CombinedLogit,
    Lagrangian,
    Mimicry,
    Orthogonal,
    ScoreSearch,
    Selective,
)
from training.data import load_data
from training.errors import DataError
from training.holdout import unseen_rows
from training.metrics import rate_interval
from training.progress import Progress
from training.relaxed import RelaxedGuard
from training.twin import load_twin

__all__ = ["BUDGETS", "print_red_team", "publish", "redteam"]

BUDGETS = (2.55, 4.0, 8.0)  # 0.01, 4/255 and 8/255; in whole pixels the first is 2/255
# whole 8-bit steps are too coarse to tell how much farther evasion lies than a wrong answer: L2 is
# for that, and Linf up to no bound at all for whether the attacks can do what they must
LADDERS: Mapping[Norm, tuple[float, ...]] = MappingProxyType(
    {
        "linf": (1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 255.0),
        "l2": (0.03, 0.05, 0.07, 0.09, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 2.0, 4.0),
    }
)
BANK = 512
BARE = "bare model"
NO_GUARD = 1e6  # a threshold above any score

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What is attacked: the real guard, its relaxed copy, the images, and the limits by rate."""

    guard: Guard
    relaxed: RelaxedGuard
    victim: Victim
    bank: Bank
    images: Images
    labels: NDArray[np.int64]
    thresholds: Mapping[str, float]
    seed: int

    @property
    def strictest(self) -> float:
        """The lowest threshold: who stays below it evades at every rate."""
        return min(self.thresholds.values())

    def fool(self, attack: Attack, rows: NDArray[np.int64]) -> tuple[Scores, Images, float | None]:
        """Return scores (N,) of the real guard, images and the mean number of queries.

        A score is infinite where the answer is right.
        """
        result = attack(self.images[rows], self.labels[rows], self.victim, seed=self.seed)
        verdicts = self.guard.inspect(result.images)
        wrong = verdicts.prediction != self.labels[rows]
        scores = np.where(wrong, verdicts.score, np.float32(np.inf))
        asked = None if result.queries is None else float(result.queries.mean())
        return scores, result.images, asked


def redteam(
    model: Path,
    guard: Path,
    data: str,
    out: Path,
    *,
    budgets: Sequence[float] = BUDGETS,
    steps: int = 100,
    restarts: int = 2,
    queries: int = 1000,
    seed: int = 0,
    limit: int = 100,
    ladders: Mapping[Norm, Sequence[float]] = LADDERS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Attack a guard with full knowledge of it; write `red_team.json`, `evasions.npz` and return.

    Args:
        model: the production ONNX file.
        guard: the guard's folder; only read.
        data: labelled images; of those the guard was fitted on, only its test split is used.
        out: the folder to write to.
        budgets: Linf, in 8-bit steps, at which every attack attacks every image.
        steps: of each run of a gradient attack.
        restarts: runs of each gradient attack.
        queries: most questions of the black box for one image.
        seed: of every random choice.
        limit: how many images, of those the model answers right.
        ladders: by norm, rising budgets for the smallest evasion of each image and for convergence.
        threads: of ONNX Runtime.
        progress: told of each attack.

    Raises:
        DataError: no image is left that the guard has not seen and the model answers right.
        TwinError: the model can't be run in torch.
        GuardError: the guard can't be read or is not the model's.
    """
    started = perf_counter()
    progress = progress or Progress()
    target = _open(model, guard, data, seed=seed, limit=limit, threads=threads)
    plan = {size: _attacks(target, size, steps, restarts, queries) for size in sorted(budgets)}
    total = sum(map(len, plan.values())) + 2 * sum(map(len, ladders.values())) + 4
    progress.stage("red team", total)
    everyone = np.arange(len(target.images))
    lowest = np.full(len(everyone), np.inf, np.float32)
    found = target.images.copy()
    used = np.zeros(len(everyone))
    card: dict[str, Any] = {"budgets": {}}
    for size, attacks in plan.items():
        rows: dict[str, Any] = {}
        for attack in attacks:
            scores, images, asked = target.fool(attack, everyone)
            better = scores < lowest
            found[better], lowest[better], used[better] = images[better], scores[better], size
            name = attack.name.removesuffix(f"-{attack.budget}")
            rows[name] = _entry(scores, target.thresholds)
            if asked is not None:
                rows[name]["mean_queries"] = asked
            progress.advance(1)
        # what evades within a smaller budget evades within this one
        rows["best per image"] = _entry(lowest, target.thresholds)
        card["budgets"][f"{size:g}"] = rows
    climbed = {
        norm: _smallest_budgets(target, norm, sorted(rungs), steps, restarts, progress)
        for norm, rungs in ladders.items()
    }
    card["ladders"] = {norm: shares for norm, (shares, _) in climbed.items()}
    card["median_budget"] = {norm: medians for norm, (_, medians) in climbed.items()}
    card["steps"] = _by_steps(target, max(budgets), steps, progress)
    card |= {
        "threat_model": "white box: model, guard and thresholds known; Linf; untargeted; success "
        "is a wrong answer that the guard, hard bits on whole 8-bit pixels, does not flag",
        "black_box": "score-search sees answers and scores of the guard in process, as the service "
        "gives them to a client that may see scores",
        "images": len(everyone),
        "settings": {"steps": steps, "restarts": restarts, "queries": queries, "seed": seed},
        "guard": target.guard.artifact.digest,
        "thresholds": dict(target.thresholds),
        "seconds": perf_counter() - started,
    }
    card["summary"] = _summary(card)
    arrays: dict[str, NDArray[Any]] = {
        "images": found,
        "labels": target.labels,
        "score": lowest,
        "budget": used,
    }
    write_file(out / "evasions.npz", npz=arrays)
    write_file(out / "red_team.json", json.dumps(card, indent=2).encode())
    return card


def publish(guard: Path, card: Mapping[str, Any]) -> GuardArtifact:
    """Write the summary into the guard's manifest, `metrics["red_team"]`, and return the guard.

    The guard's digest changes, its head and verdicts don't.

    Raises:
        DataError: the figures are another guard's.
        GuardError: the guard can't be read.
    """
    artifact = read_guard(guard)
    if card["guard"] != artifact.digest:
        raise DataError(f"expected figures of the guard in {guard}, got another guard's")
    metrics = {**artifact.manifest.metrics, "red_team": card["summary"]}
    reports = {
        name: (guard / name).read_bytes()
        for name in ("report.json", "report.html")
        if (guard / name).is_file()
    }
    return write_guard(
        guard,
        manifest=replace(artifact.manifest, metrics=metrics),
        head=artifact.head,
        golden=artifact.golden,
        reports=reports,
    )


def _open(
    model: Path, guard: Path, data: str, *, seed: int, limit: int, threads: int | None
) -> _Target:
    opened = Guard.open(model, guard, threads=threads)
    manifest, spec = opened.artifact.manifest, opened.spec
    dataset = load_data(data, size=(spec.height, spec.width))
    unseen = np.random.default_rng(seed).permutation(unseen_rows(dataset, manifest))
    victim = open_victim(model, spec, output=manifest.answer, threads=threads)
    production = load_production(model, output=manifest.answer)
    relaxed = RelaxedGuard(production, opened.artifact, dataset.images[unseen])
    twin = load_twin(model, spec, images=dataset.images[unseen], output=manifest.answer)
    answers = victim.predict(dataset.images[unseen]).argmax(axis=1)
    right = unseen[answers == dataset.labels[unseen]]
    if len(right) == 0:
        raise DataError(f"expected unseen images that the model answers right, {data} has none")
    chosen = right[:limit]
    # the attacker's own images to copy: others than those under attack, where there are any
    copied = right[limit : limit + BANK] if len(right) > limit else right
    return _Target(
        guard=opened,
        relaxed=relaxed,
        victim=replace(victim, twin=twin),
        bank=Bank.read(relaxed, dataset.images[copied]),
        images=dataset.images[chosen],
        labels=dataset.labels[chosen],
        thresholds={
            rate: limit_at for rate, limit_at in manifest.thresholds.items() if float(rate) >= 0.01
        }
        or {f"{manifest.fpr:g}": opened.threshold},
        seed=seed,
    )


def _attacks(target: _Target, size: float, steps: int, restarts: int, queries: int) -> list[Attack]:
    common: dict[str, Any] = {
        "guard": target.relaxed,
        "threshold": target.strictest,
        "size": size,
        "steps": steps,
        "restarts": restarts,
    }
    searched = ScoreSearch(
        guard=target.guard, threshold=target.strictest, size=size, most_queries=queries
    )
    return [
        Selective(**common),
        Orthogonal(**common),
        CombinedLogit(**common),
        Lagrangian(**common | {"restarts": 1}),
        Mimicry(**common, bank=target.bank),
        searched,
    ]


def _entry(scores: Scores, thresholds: Mapping[str, float]) -> dict[str, Any]:
    n = len(scores)
    return {
        "misclassified": rate_interval(int(np.isfinite(scores).sum()), n).to_json(),
        "evaded": {
            rate: rate_interval(int((scores <= np.float32(limit)).sum()), n).to_json()
            for rate, limit in thresholds.items()
        },
    }


def _smallest_budgets(
    target: _Target,
    norm: Norm,
    rungs: Sequence[float],
    steps: int,
    restarts: int,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Return, for the guard at each rate and for the bare model, who evades within a budget.

    First the share of images by budget, then the median image's budget. Up the ladder each image
    goes on from rung to rung until it evades at every rate.
    """
    smallest = {name: np.full(len(target.images), np.inf) for name in (*target.thresholds, BARE)}
    climbed: dict[str, dict[str, Any]] = {name: {} for name in smallest}
    for size in rungs:
        common: dict[str, Any] = {
            "guard": target.relaxed,
            "norm": norm,
            "size": size,
            "steps": steps,
            "restarts": restarts,
        }
        left = np.flatnonzero(np.isinf(smallest[BARE]))
        _climb(target, [Selective(**common, threshold=NO_GUARD)], left, size, smallest, bare=True)
        progress.advance(1)
        guarded = np.max([smallest[rate] for rate in target.thresholds], axis=0)
        pair = [kind(**common, threshold=target.strictest) for kind in (Selective, Orthogonal)]
        _climb(target, pair, np.flatnonzero(np.isinf(guarded)), size, smallest, bare=False)
        progress.advance(1)
        for name, budgets in smallest.items():
            reached = rate_interval(int(np.isfinite(budgets).sum()), len(budgets))
            climbed[name][f"{size:g}"] = reached.to_json()
    medians = {name: _median(budgets) for name, budgets in smallest.items()}
    return climbed, medians


def _climb(
    target: _Target,
    attacks: Sequence[Aware],
    left: NDArray[np.int64],
    size: float,
    smallest: dict[str, NDArray[np.float64]],
    *,
    bare: bool,
) -> None:
    for attack in attacks:
        if len(left) == 0:
            return
        scores, _, _ = target.fool(attack, left)
        limits = {BARE: NO_GUARD} if bare else dict(target.thresholds)
        for name, limit in limits.items():
            reached = left[np.isfinite(scores) & (scores <= np.float32(limit))]
            smallest[name][reached] = np.minimum(smallest[name][reached], size)
        if not bare:
            left = left[~(scores <= np.float32(target.strictest))]


def _median(budgets: NDArray[np.float64]) -> float | None:
    """Return the middle image's budget, none where half of them never evaded."""
    middle = float(np.sort(budgets)[(len(budgets) - 1) // 2])
    return middle if np.isfinite(middle) else None


def _by_steps(target: _Target, size: float, steps: int, progress: Progress) -> dict[str, Any]:
    """Return what more steps bring, at one budget, for an attack that has converged: nothing."""
    counts = sorted({max(1, steps // share) for share in (16, 4, 2, 1)})
    everyone = np.arange(len(target.images))
    curve = {}
    for count in counts:
        attack = Selective(guard=target.relaxed, threshold=target.strictest, size=size, steps=count)
        scores, _, _ = target.fool(attack, everyone)
        curve[f"{count}"] = _entry(scores, target.thresholds)["evaded"]
        progress.advance(1)
    return {"budget": size, "attack": "selective", "evaded": curve}


def _summary(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes into the guard's manifest."""
    return {
        "threat_model": card["threat_model"],
        "images": card["images"],
        "settings": card["settings"],
        "evaded": {
            size: rows["best per image"]["evaded"] for size, rows in card["budgets"].items()
        },
        "median_budget": card["median_budget"],
    }


def print_red_team(card: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{card['images']} unseen images; {card['threat_model']}")
    rates = list(card["thresholds"])
    table = Table("budget / 255", "attack", "misclassified", *(f"evaded at {r}" for r in rates))
    for size, rows in card["budgets"].items():
        for name, row in rows.items():
            cells = [_text(row["misclassified"]), *(_text(row["evaded"][r]) for r in rates)]
            table.add_row(size, name, *cells, end_section=name == "best per image")
    console.print(table)
    console.print("share of images with an evasion within a budget, by rate, and of the bare model")
    for norm, shares in card["ladders"].items():
        climbed = Table(f"{norm} budget", *shares)
        for size in next(iter(shares.values())):
            climbed.add_row(size, *(f"{column[size]['value']:.3f}" for column in shares.values()))
        console.print(climbed)
        medians = card["median_budget"][norm].items()
        console.print(f"median {norm} budget: " + ", ".join(f"{k} {v}" for k, v in medians))


def _text(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

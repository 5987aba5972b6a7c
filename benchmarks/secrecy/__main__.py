"""What a hidden seed of each deployment buys against an attacker who has no weights of the guard.

    python -m benchmarks.secrecy --model M.onnx --data IMAGES.npz --out secrecy

Owner and attacker each fit guards on images of their own. A secret decides which half, or quarter,
of the rates or which half of the taps the owner's guard reads; which of several such guards sees an
image, by a keyed hash of its bytes; or at which view of the picture the model looks a second time.
The attacker knows the model, the method and that there is a secret: they attack a guard of their
own that reads everything, or the mean of several with secrets of their own, and try the images on
the owner's guard. Beside it stands an attacker who has the weights. Everything is kept in `--out`
and not made again; `--what guards` and `--what attacks` stop after those.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.secrecy.attacking import BARE, Plan, made, names_of, victim_of, ways_of
from benchmarks.secrecy.forms import Kind, kinds_of, plans_of
from benchmarks.secrecy.guards import ATTACKER, FRESH, OWNER, Party, Read, deal
from benchmarks.secrecy.judging import Judged, Outcome, cost_of, difference, mean_of, times
from benchmarks.secrecy.keys import picked
from reluguard.detector.images import Images
from reluguard.detector.looks.views import VIEWS
from reluguard.training.attacks import Attack, Victim
from reluguard.training.data.dataset import load_data
from reluguard.training.statistics.metrics import rate_interval

CLEAN_IMAGES = 1000  # the attacker's, for thresholds


def main() -> int:
    """Print the tables."""
    given = _options()
    given.out.mkdir(parents=True, exist_ok=True)
    views = list(VIEWS) if given.views else []
    files = deal(given.data, given.out, each=given.images, seed=given.seed)
    owner, attacker = (
        Party(
            name, given.model, files[name], given.out, recipe=given.recipe, seed=given.seed + turn
        )
        for turn, name in enumerate((OWNER, ATTACKER))
    )
    kinds, plans = kinds_of(given.secrets, views), plans_of(owner, attacker, views)
    for form in (form for kind in kinds for form in kind.forms):
        owner.head(form)
    for plan in plans:
        for form in plan.forms:
            plan.party.head(form)
    if given.what == "guards":
        return 0
    fresh = load_data(str(files[FRESH]))
    logits = owner.read(fresh.images).logits
    right = np.flatnonzero(logits.argmax(axis=1) == fresh.labels)[: given.attacked]
    targets = Targets(
        owner=owner,
        attacker=attacker,
        images=fresh.images[right],
        labels=fresh.labels[right],
        views=views,
        budgets=given.budgets,
    )
    tried = {
        plan.name if plan else BARE: targets.tried(plan, given.out / "tries", steps=given.steps)
        for plan in (None, *plans)
        if given.only is None or (plan.name if plan else BARE) in given.only
    }
    if given.what == "attacks":
        return 0
    rest = np.setdiff1d(np.arange(len(fresh)), right)
    _print_reached(kinds, tried, targets)
    _print_costs(owner, kinds, owner.read(fresh.images[rest], views))
    return 0


@dataclass(frozen=True, slots=True)
class Made:
    """What an attack made: images, what the network gives of them, which are wrong, how far."""

    images: Images
    read: Read
    wrong: NDArray[np.bool_]
    length: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The images that are attacked: uint8 (N, H, W, C), answered right, and labels (N,)."""

    owner: Party
    attacker: Party
    images: Images
    labels: NDArray[np.int64]
    views: Sequence[str]
    budgets: Sequence[float]

    @property
    def sizes(self) -> tuple[str, ...]:
        """The budgets' names."""
        return tuple(f"linf-{size:g}" for size in self.budgets)

    def tried(self, plan: Plan | None, folder: Path, *, steps: int) -> Mapping[str, Made]:
        """Return what a plan makes of them, by way; without one, on the bare model."""
        name = plan.name if plan else BARE
        clean = self.attacker.images.images[:CLEAN_IMAGES]

        @cache
        def attacker() -> tuple[Mapping[str, Attack], Victim]:
            ways = ways_of(plan, self.owner, clean, budgets=self.budgets, steps=steps)
            return ways, victim_of(self.owner, self.images)

        found = {}
        for way in names_of(plan, self.budgets):
            images = made(way, self.images, self.labels, folder / name, attacker)
            read = self.owner.read(images, self.views)
            change = (images.astype(np.float64) - self.images).reshape(len(images), -1)
            wrong = read.logits.argmax(axis=1) != self.labels
            found[way] = Made(images, read, wrong, np.linalg.norm(change, axis=1) / 255)
            print(f"{name}, {way}: {wrong.mean():.2f} wrong", file=sys.stderr, flush=True)
        return found

    @property
    def farthest(self) -> float:
        """More than pixels can move, in L2."""
        return float(np.sqrt(self.images[0].size))

    def outcome(self, tried: Mapping[str, Made], kind: Kind) -> Outcome:
        """Return what an attacker reaches against guards of a kind."""
        quiet = {way: self._quiet(one, kind) for way, one in tried.items()}
        lengths = [
            np.where(bits, tried[way].length, np.inf)
            for way, bits in quiet.items()
            if way not in self.sizes
        ]
        return Outcome({size: quiet[size] for size in self.sizes}, np.min(lengths, axis=0))

    def _quiet(self, one: Made, kind: Kind) -> NDArray[np.bool_]:
        """Return which images each guard answers wrong and does not flag: (G, N)."""
        found: NDArray[np.bool_] = np.array(
            [
                one.wrong
                & (self.owner.scores(form, one.read) <= np.float32(self.owner.limit(form)))
                for form in kind.forms
            ]
        )
        if kind.pick == "keyed":
            sees = picked(one.images, "owner", len(found))
            return found[sees, np.arange(len(sees))][None]
        return np.logical_or.reduce(found, axis=0)[None] if kind.pick == "any" else found


def _print_reached(
    kinds: Sequence[Kind], tried: Mapping[str, Mapping[str, Made]], targets: Targets
) -> None:
    """Print a row for each form and attacker.

    What a secret takes away is told beside the guards without one and whoever reaches most there.
    """
    bare, sizes = tried[BARE][BARE], targets.sizes
    nearest = np.where(bare.wrong, bare.length, np.inf)
    print(
        f"{len(targets.labels)} images, smallest change of the bare model {np.median(nearest):.3f}"
    )
    heads = ("the owner's guard", "attacker", *(f"evades, {size}" for size in sizes),
             *(f"less, {size}" for size in sizes), "L2, times the bare model's",
             "times without a secret")  # fmt: skip
    print(_row(heads) + "\n" + "|---" * len(heads) + "|")
    rivals: dict[str, list[Outcome]] = {}
    for kind in kinds:
        for plan, name in kind.attackers:
            if plan not in tried:
                continue
            outcome = targets.outcome(tried[plan], kind)
            row = [kind.name, name, *(f"{mean_of(outcome.shares(size)):.2f}" for size in sizes)]
            far = times(outcome.middle, nearest, most=targets.farthest)
            if kind.name == kind.beside:
                rivals.setdefault(kind.name, []).extend([outcome] if kind.costs else [])
                row += [*("" for _ in sizes), f"{far:.2f}", ""]
            else:
                row += _beside(
                    outcome, rivals[kind.beside], far=f"{far:.2f}", most=targets.farthest
                )
            print(_row(row), flush=True)


def _beside(outcome: Outcome, rivals: Sequence[Outcome], *, far: str, most: float) -> list[str]:
    """Return what is less and farther than what the best attacker reaches without a secret."""
    cells = []
    for size in outcome.evades:
        best = max(rivals, key=lambda one: float(one.shares(size).mean()))
        cells.append(f"{difference(best.shares(size), outcome.shares(size)):.2f}")
    near = min(rivals, key=lambda one: float(np.median(one.middle)))
    return [*cells, far, f"{times(outcome.middle, near.middle, most=most):.2f}"]


def _print_costs(owner: Party, kinds: Sequence[Kind], clean: Read) -> None:
    """Print what each form detects of attacks that know of no guard, and its false alarms."""
    heads = ("the owner's guard", "AUROC", "detected", "less than without", "clean flagged")
    print(_row(heads) + "\n" + "|---" * len(heads) + "|")
    known: dict[str, list[Judged]] = {}
    for kind in (kind for kind in kinds if kind.costs):
        limits = [owner.limit(form) for form in kind.forms]
        judged = zip(map(owner.ordinary, kind.forms), limits, strict=True)
        known[kind.name] = list(judged)
        cost = cost_of(known[kind.name], known[kind.beside])
        hits = [
            (owner.scores(form, clean) > np.float32(limit)).sum()
            for form, limit in zip(kind.forms, limits, strict=True)
        ]
        flagged = rate_interval(round(float(np.mean(hits))), len(clean.logits))
        figures = (
            f"{cost.auroc:.3f}",
            f"{cost.detected:.3f}",
            f"{cost.lost:.3f}",
            f"{flagged:.3f}",
        )
        print(_row((kind.name, *figures)), flush=True)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="an ONNX classifier")
    add("--data", required=True, help="labelled images it was not trained on")
    add("--out", type=Path, required=True, help="a folder to keep everything in")
    add("--recipe", default="quick", help="what guards are fitted on. [quick]")
    add("--images", type=int, default=2000, help="of the owner, and of the attacker. [2000]")
    add("--attacked", type=int, default=120, help="images that are attacked. [120]")
    add("--secrets", type=int, default=4, help="guards of each form. [4]")
    add("--steps", type=int, default=60, help="of each attack. [60]")
    add("--budgets", type=float, nargs="+", default=[2.0, 4.0], help="in 8-bit steps. [2 4]")
    add("--no-views", dest="views", action="store_false", help="leave second looks out")
    add("--what", choices=("guards", "attacks", "tables"), default="tables", help="where to stop")
    add("--only", action="append", help="of the attackers, these alone")
    add("--seed", type=int, default=0, help="of every random choice. [0]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""What retraining adds to a harvest: new readings, or an attack to run.

Each becomes shards under `added/` in the work folder, split by where an image came from, so that no
source is fitted on in one retraining and judged by in the next. N images.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reluguard.training.attacks import attack_named
from reluguard.training.errors import DataError
from reluguard.training.harvest.harvest import harvest_told
from reluguard.training.harvest.orders import Orders, plan_jobs
from reluguard.training.harvest.workspace import ADDED
from reluguard.training.progress import Progress
from reluguard.training.provenance import Added
from reluguard.training.retraining.fresh import SPLITS, Fresh
from reluguard.training.retraining.kept import WEIGHT, Kept

__all__ = ["run_attack", "with_fresh"]

HELD_OUT = 0.3
FEWEST_CLEAN = 20  # labelled clean images below which they neither teach nor judge
# How many old rows a new one counts as in a head fitted anew, at most, so that a few labels don't
# turn a guard. For 138 patches among 17,525 attacked rows on ResNet-20, of which .29 were detected
# before: at 3 rows .54 are afterwards and the old attack that loses most loses .005 AUROC, at 10
# .67 and .008, at 25 .70 and .013, at 50 old attacks lose .007 on average; another seed alone moves
# one by .010. On digits, 80 labelled clean images that weigh as much as a group of harmless changes
# raise the false alarms on sign noise by .06, at one row each by .01.
ATTACK_ROWS = 10
BENIGN_ROWS = 1


def run_attack(
    text: str,
    kept: Kept,
    orders: Orders,
    splits: Mapping[str, NDArray[np.int64]],
    *,
    weight: float,
    progress: Progress | None = None,
) -> Added:
    """Attack source images of the original data set; what is on disk is not made again.

    Args:
        text: the attack's name, or module:Class.
        kept: the harvest it joins.
        orders: of the harvest; the attack is put in.
        splits: the source images of "fit" and "test".
        weight: of the new group.
        progress: told of a stage of the attack's name.

    Raises:
        AttackError: there is no such attack, or it lacks what it needs.
        DataError: it never succeeded.
    """
    attack = attack_named(text)
    key = f"{attack!r} {orders.seed} {[len(rows) for rows in splits.values()]}"
    slug = f"{ADDED}{attack.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    jobs = plan_jobs(slug, "attack", splits)
    harvest_told(
        jobs,
        replace(orders, changes={slug: attack}),
        workers=1,
        progress=progress or Progress(),
        title=text,
    )
    counts = {
        split: kept.workspace.count([job for job in jobs if job.split == split]) for split in splits
    }
    if not all(counts.values()):
        raise DataError(f"{attack.name} succeeds too seldom on this model to learn from: {counts}")
    return Added(
        name=_free_name(attack.name, kept),
        kind="attack",
        slug=slug,
        weight=weight,
        fit=counts["fit"],
        test=counts["test"],
        source=repr(attack),
        dropped={"failed": sum(map(len, splits.values())) - sum(counts.values())},
    )


def with_fresh(found: Sequence[Fresh], kept: Kept, *, weight: float, judging: bool) -> Kept:
    """Return the harvest with what is new in it.

    Args:
        found: what is new.
        kept: the harvest.
        weight: of each new attack, at most.
        judging: whether a few clean images are only held against the labels.
    """
    per_row = {"attack": kept.row_weight("attack"), "benign": kept.row_weight("benign")}
    for one in found:
        if one.kind == "benign" and judging and len(one.ids) < FEWEST_CLEAN:
            continue
        most, times = (weight, ATTACK_ROWS) if one.kind == "attack" else (WEIGHT, BENIGN_ROWS)
        added = _stored(one, kept, weight=most, per_row=times * per_row[one.kind])
        kept = kept.with_added([added])
    return kept


def _stored(fresh: Fresh, kept: Kept, *, weight: float, per_row: float = math.inf) -> Added:
    """Write new readings into the harvest and return what was added.

    An image is held out or not by its id alone, so it stays on its side from one retraining to the
    next; what an earlier one added already is left out.

    Args:
        fresh: the readings.
        kept: the harvest they join.
        weight: of the new group, at most.
        per_row: of each row it is fitted on, at most.

    Raises:
        DataError: nothing new, or too few to both fit and judge.
    """
    known = [job.sources for made in kept.jobs.values() for job in made]
    old = np.isin(fresh.ids, np.concatenate(known))
    held = fresh.ids % SPLITS < SPLITS * HELD_OUT
    parts = {"fit": np.flatnonzero(~held & ~old), "test": np.flatnonzero(held & ~old)}
    if not all(map(len, parts.values())):
        raise DataError(
            f"expected new images of {fresh.name} to fit on and to hold out, got "
            f"{len(parts['fit'])} and {len(parts['test'])}; {int(old.sum())} were there already"
            f"{_why_one_side(fresh, ~old)}"
        )
    digest = hashlib.sha256(np.sort(fresh.ids).tobytes()).hexdigest()[:8]
    slug = f"{ADDED}{fresh.name}-{digest}"
    for split, rows in parts.items():
        again = None if fresh.again is None else fresh.again.rows(rows)
        kept.workspace.add(slug, split, fresh.readings().rows(rows), again)
    return Added(
        name=_free_name(fresh.name, kept),
        kind=fresh.kind,
        slug=slug,
        weight=min(weight, per_row * len(parts["fit"])),
        fit=len(parts["fit"]),
        test=len(parts["test"]),
        source=fresh.source,
        dropped={**fresh.dropped, "there already": int(old.sum())},
    )


def _why_one_side(fresh: Fresh, new: NDArray[np.bool_]) -> str:
    """Return why images that are new all fell to one side, and what to do about it."""
    count = int(new.sum())
    if not count:
        return ""
    if fresh.is_captured and len(np.unique(fresh.ids[new] % SPLITS)) == 1:
        return (
            f": images of one request stay together, and the {count} new ones are of one; label "
            "captures of more requests"
        )
    return f": {HELD_OUT:.0%} of images are held out, chosen by chance; give more of them"


def _free_name(name: str, kept: Kept) -> str:
    taken, number = name, 1
    while taken in kept.jobs:
        number += 1
        taken = f"{name}-{number}"
    return taken

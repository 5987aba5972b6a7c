"""What a recipe asks of a case: the orders of the harvest and its shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.composed import composed_name
from reluguard.training.data.case import Case
from reluguard.training.errors import AttackError, DataError
from reluguard.training.harvest.orders import (
    SHARD_IMAGES,
    Job,
    Orders,
    plan_jobs,
    shard_images,
    with_changes,
)
from reluguard.training.harvest.readings import CLEAN
from reluguard.training.looks.both import AtBoth
from reluguard.training.looks.choice import Second
from reluguard.training.recipes import Portion, Recipe

__all__ = ["jobs_of", "orders_of", "plan_of"]

ATTACK_SEEDS = 1000  # apart from those of the benign changes


def orders_of(
    case: Case,
    recipe: Recipe,
    *,
    twin: str,
    workspace: Path,
    seed: int,
    threads: int | None,
    second: Second | None,
) -> Orders:
    """Return the orders of a recipe's harvest.

    Args:
        case: the model and its images, with all taps that can be read.
        recipe: as it suits images of this shape.
        twin: where gradients come from, as `load_twin` takes it.
        workspace: the folder of shards.
        seed: of every random choice.
        threads: of ONNX Runtime and torch in each process.
        second: who looks again, None where nobody does.
    """
    alone = {portion.change.name: portion.change for portion in (*recipe.attacks, *recipe.benign)}
    composed = {
        composed_name(attack.change.name, later.change.name): later.change
        for attack in recipe.attacks
        for later in recipe.then
    }
    return Orders(
        model=case.path,
        output=case.production.answer,
        spec=case.spec,
        taps=case.taps,
        twin=twin,
        dataset=case.dataset,
        changes=alone | composed,
        workspace=workspace,
        seed=seed,
        threads=threads,
        second=second,
    )


def plan_of(case: Case, recipe: Recipe, orders: Orders) -> dict[str, Any]:
    """Return everything that a shard's content depends on."""
    size = shard_images(case.dataset.images.shape[1:])
    strided = {tap.name: [*tap.strides, tap.pooled] for tap in case.taps if tap.is_strided}
    return {
        **({"strides": strided} if strided else {}),
        **({"shard": size} if size != SHARD_IMAGES else {}),
        **({} if orders.second is None else {"second look": orders.second.look.to_json()}),
        "model": case.production.sha256,
        "data": case.dataset.digest,
        "input": case.spec.to_json(),
        "output": case.production.answer,
        "twin": orders.twin,
        "recipe": {
            k: v for k, v in recipe.to_json().items() if k not in {"name", "head", "weights"}
        },
        "seed": orders.seed,
    }


def jobs_of(case: Case, recipe: Recipe, orders: Orders) -> dict[str, list[Job]]:
    """Return the shards of the recipe by slug, clean first; those of composed ones are in them.

    Raises:
        DataError: the model answers no image of a part right.
        AttackError: no attack of the recipe works without a twin, and there is none.
    """
    fitted = {split: case.splits[split] for split in ("fit", "test")}
    size = shard_images(case.dataset.images.shape[1:])
    jobs = {CLEAN: plan_jobs(CLEAN, "clean", fitted, size=size)}
    for index, portion in enumerate(recipe.benign):
        some = _portion(fitted, portion, recipe, orders.seed + index)
        jobs[portion.change.name] = plan_jobs(portion.change.name, "benign", some, size=size)
    # an attack has nothing to do where the model is wrong already
    right = {split: sources[case.right[sources]] for split, sources in fitted.items()}
    for split, sources in right.items():
        if not len(sources):
            raise DataError(
                f"the model answers none of the {len(fitted[split])} images of the {split} part "
                "right: give more images"
            )
    then = {portion.change.name: portion.share for portion in recipe.then}
    for index, portion in enumerate(recipe.attacks):
        if orders.twin == "none" and getattr(portion.change, "needs_gradients", False):
            continue
        some = _portion(right, portion, recipe, orders.seed + ATTACK_SEEDS + index)
        made = plan_jobs(portion.change.name, "attack", some, size=size)
        alone = isinstance(portion.change, AtBoth)  # the same attack is composed without it
        jobs[portion.change.name] = (
            made if alone else with_changes(made, then, seed=orders.seed, caused=True)
        )
    if all(made[0].kind != "attack" for made in jobs.values()):
        raise AttackError(f"recipe {recipe.name} has no attack that works without a twin")
    return jobs


def _portion(
    splits: Mapping[str, NDArray[np.int64]], portion: Portion, recipe: Recipe, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return a share of each split's sources, other ones for each attack."""
    rng = np.random.default_rng(seed)
    counts = {
        split: portion.images(len(sources), recipe.least.get(split, 1), recipe.most.get(split))
        for split, sources in splits.items()
    }
    return {
        split: np.sort(rng.permutation(sources)[: counts[split]])
        for split, sources in splits.items()
    }

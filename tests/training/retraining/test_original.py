"""The images of a guard's first fit: the same ones, split the same way, or words."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError
from reluguard.training.harvest.workspace import read_shard, work_folder
from reluguard.training.retraining.original import Original


def test_the_parts_are_those_of_the_fit(fitted: GuardArtifact, digits: Dataset) -> None:
    """Drawn again they are disjoint, as large as the manifest says, and of the same images."""
    original = Original(fitted)
    assert original.dataset.digest == digits.take(np.arange(300)).digest
    sizes = {part: len(rows) for part, rows in original.splits.items()}
    assert sizes == fitted.manifest.provenance["images"]
    rows = np.concatenate([*original.splits.values()])
    assert len(np.unique(rows)) == len(rows)


def test_what_was_harvested_of_a_part_is_of_that_part(
    fitted: GuardArtifact,
) -> None:
    """The clean test shards hold the images of the test part and no others."""
    work = work_folder(fitted.path)
    shards = sorted((work / "clean").glob("test-*.npz"))
    held = np.concatenate([read_shard(file, "sources")["sources"] for file in shards])
    assert_array_equal(np.sort(held), Original(fitted).splits["test"])


def test_other_images_are_refused(fitted: GuardArtifact, digits: Dataset) -> None:
    """Images that moved may be named; others are told by their content."""
    there = digits.take(np.arange(300))
    assert Original(fitted, there).dataset is there
    with pytest.raises(DataError, match="expected the images the guard was fitted on, SHA-256"):
        Original(fitted, digits.take(np.arange(1, 301))).dataset  # noqa: B018  (it loads)


@pytest.mark.parametrize(
    "forget",
    [
        lambda p: p.pop("data"),
        lambda p: p.pop("seed"),
        lambda p: p["recipe"].pop("splits"),
        lambda p: p.update(recipe=7),
        lambda p: p.update(seed="many"),
        lambda p: p["recipe"]["splits"].update(fit="half"),
    ],
    ids=["no data", "no seed", "no splits", "other recipe", "seed in words", "share in words"],
)
def test_a_guard_that_does_not_say_how_it_was_fitted_is_named(
    fitted: GuardArtifact, forget: Callable[[dict[str, Any]], object]
) -> None:
    """A provenance that lacks what is needed, or holds other things, is one line."""
    recipe = dict(fitted.manifest.provenance["recipe"])
    recipe["splits"] = dict(recipe["splits"])
    provenance = {**fitted.manifest.provenance, "recipe": recipe}
    forget(provenance)
    manifest = replace(fitted.manifest, provenance=provenance)
    with pytest.raises(DataError, match=r"expected .* to say how it was fitted, it lacks it"):
        Original(replace(fitted, manifest=manifest))

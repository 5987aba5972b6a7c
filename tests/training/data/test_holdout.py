"""No image that a guard or its model has learned from is ever judged."""

from dataclasses import replace

import numpy as np
import pytest

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.data.holdout import check_untrained, unseen_rows
from reluguard.training.data.splits import split_sources
from reluguard.training.errors import DataError
from reluguard.training.evaluation.leave_out import open_fit, shards_of
from reluguard.training.head.fit import HeadSettings, fit_head
from tests.training.fitting import Order


def parts_of(fitted: GuardArtifact, own: Dataset) -> dict[str, np.ndarray]:
    provenance = fitted.manifest.provenance
    return split_sources(own.labels, provenance["recipe"]["splits"], provenance["seed"])


def test_other_data_give_only_what_the_fit_has_not_seen(
    digits: Dataset, fitted: GuardArtifact, fit_settings: Order
) -> None:
    """A data set with the fit's own images in it, in another order, gives the rest of it."""
    own = load_data(fit_settings.data)
    parts = parts_of(fitted, own)
    order = np.random.default_rng(0).permutation(len(own))
    fresh = digits.take(np.arange(300, 340))
    mixed = Dataset(
        images=np.concatenate([fresh.images, own.images[order]]),
        labels=np.concatenate([fresh.labels, own.labels[order]]),
        source="mixed",
    )
    rows = unseen_rows(mixed, fitted.manifest)
    taken = order[rows[rows >= 40] - 40]
    assert set(rows[rows < 40]) == set(range(40))
    assert set(taken) <= set(parts["test"])
    assert len(taken) > 0.9 * len(parts["test"])


def test_a_copy_of_a_seen_image_is_not_unseen(fitted: GuardArtifact, fit_settings: Order) -> None:
    """A twin in the test split of an image that was fitted on is left out."""
    own = load_data(fit_settings.data)
    parts = parts_of(fitted, own)
    images = own.images.copy()
    images[parts["test"][0]] = images[parts["fit"][0]]
    images[parts["test"][1]] = images[parts["calibrate"][0]]
    twins = Dataset(images=images, labels=own.labels, source="twins")
    provenance = {**fitted.manifest.provenance, "data": {"source": "twins", "sha256": twins.digest}}
    rows = unseen_rows(twins, replace(fitted.manifest, provenance=provenance))
    assert set(parts["test"]) - set(rows) == set(parts["test"][:2])


def test_nothing_left_is_told(fitted: GuardArtifact, fit_settings: Order) -> None:
    """A data set of nothing but seen images is refused, not judged on."""
    own = load_data(fit_settings.data)
    seen = own.take(parts_of(fitted, own)["fit"])
    with pytest.raises(DataError, match="expected images the guard has not seen"):
        unseen_rows(seen, fitted.manifest)


def test_images_the_model_was_trained_on_are_no_clean_images(digits: Dataset) -> None:
    """One of them among the images is refused; others pass, and so do images of another size."""
    trained, held = digits.take(np.arange(300, 600)), digits.take(np.arange(300))
    assert not {image.tobytes() for image in trained.images} & {i.tobytes() for i in held.images}
    check_untrained(held, trained)
    with pytest.raises(DataError, match="1 of 151 in digits are in digits too"):
        check_untrained(digits.take(np.arange(150, 301)), trained)
    check_untrained(held, replace(trained, images=trained.images[:, :4]))


def test_heads_learn_from_the_fitting_split_alone(
    fitted: GuardArtifact, fit_settings: Order
) -> None:
    """Fitted anew on the fitting split's shards and nothing else, the head is the guard's."""
    manifest = fitted.manifest
    workspace = open_fit(fit_settings.shards, manifest)
    recipe = manifest.provenance["recipe"]
    groups = [
        replace(workspace.readings(jobs), weight=recipe["weights"].get(slug, 1.0))
        for slug, jobs in shards_of(workspace, manifest, "fit").items()
    ]
    settings = HeadSettings(**recipe["head"])
    head = fit_head(groups, taps=manifest.taps, settings=settings, seed=fit_settings.seed)
    for ours, theirs in zip(head.weights, fitted.head.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(head.features.center, fitted.head.features.center)
    np.testing.assert_array_equal(head.features.probe_weights, fitted.head.features.probe_weights)

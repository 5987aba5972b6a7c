"""The harvest that a guard was fitted on, as evaluation opens it."""

from dataclasses import replace

import numpy as np
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.evaluation.leave_out import open_fit, shards_of
from tests.training.fitting import Order


def test_of_a_guard_that_reads_less_it_gives_what_is_read(
    fitted: GuardArtifact, fit_settings: Order
) -> None:
    """Baselines and the matrix once got all harvested rates, and failed on any guard cut down."""
    whole = open_fit(fit_settings.shards, fitted.manifest)
    jobs = shards_of(whole, fitted.manifest, "fit")["clean"]
    every = whole.readings(jobs).rates
    runs = [[0, 3], [5, 7]]
    provenance = {**fitted.manifest.provenance, "columns": runs}
    cut = open_fit(fit_settings.shards, replace(fitted.manifest, provenance=provenance))
    some = cut.readings(jobs).rates
    assert every.shape[1] == sum(tap.rates for tap in fitted.manifest.taps)
    assert_array_equal(np.asarray(some), np.asarray(every)[:, [0, 1, 2, 5, 6]])


def test_rows_are_counted_without_being_read(fitted: GuardArtifact, fit_settings: Order) -> None:
    """As many as readings have, of attacks the successes: what a forecast goes by."""
    work = open_fit(fit_settings.shards, fitted.manifest)
    found = shards_of(work, fitted.manifest, "fit")
    counts = {slug: work.count(jobs) for slug, jobs in found.items()}
    assert counts == {slug: len(work.readings(jobs)) for slug, jobs in found.items()}
    assert counts["fgsm-linf-48"] < sum(
        len(work.read(job).success) for job in found["fgsm-linf-48"]
    )

"""The black box: it asks as it may, here and through a real server."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.service.background import running
from reluguard.service.client.client import Client
from reluguard.training.attacks import Victim
from reluguard.training.data.dataset import Dataset
from reluguard.training.red_team.score_search import ScoreSearch
from reluguard.training.red_team.target import Ask


@pytest.fixture(scope="module")
def guard(digits_model: Path, fitted: GuardArtifact) -> Guard:
    return Guard.open(digits_model, fitted.path, threads=1)


def search(ask: Ask, guard: Guard) -> ScoreSearch:
    return ScoreSearch(
        ask=ask,
        answer=guard.artifact.manifest.answer,
        threshold=guard.threshold,
        size=64.0,
        most_queries=40,
    )


def test_the_search_counts_its_questions(
    digits: Dataset, guard: Guard, digits_victim: Victim
) -> None:
    """The black box asks no more than allowed and rests once it evades."""
    attack = search(guard.inspect, guard)
    found = attack(digits.images[:10], digits.labels[:10], digits_victim, seed=0)
    assert found.queries is not None
    assert found.queries.max() <= 40
    verdicts = guard.inspect(found.images)
    evades = found.success & (verdicts.score <= guard.threshold)
    assert evades.any()
    assert (found.queries[~evades] == 40).all()
    assert found.linf.max() <= 64


def test_through_a_server_it_finds_the_same(
    digits: Dataset, guard: Guard, digits_victim: Victim
) -> None:
    """Asked over gRPC, the same images come out, and every question counted was a row asked."""
    images, labels = digits.images[:6], digits.labels[:6]
    here = search(guard.inspect, guard)(images, labels, digits_victim, seed=2)
    asked = 0
    with running(guard) as server, Client(server.address) as client:

        def ask(batch: Images) -> Verdicts:
            nonlocal asked
            asked += len(batch)
            return client.inspect(batch, outputs=True)

        there = search(ask, guard)(images, labels, digits_victim, seed=2)
        assert client.describe().guard == guard.artifact.digest
    assert_array_equal(there.images, here.images)
    assert there.queries is not None
    assert asked == there.queries.sum()
    assert_array_equal(there.queries, here.queries)


def test_a_guard_that_hides_its_scores_gives_it_nothing_to_go_by(
    digits: Dataset, guard: Guard, digits_victim: Victim
) -> None:
    """Of a score that never changes the search learns nothing about the guard."""
    blank = partial(_without_scores, guard)
    found = search(blank, guard)(digits.images[:10], digits.labels[:10], digits_victim, seed=0)
    seen = search(guard.inspect, guard)(
        digits.images[:10], digits.labels[:10], digits_victim, seed=0
    )
    evades = [
        (r.success & (guard.inspect(r.images).score <= guard.threshold)).sum()
        for r in (found, seen)
    ]
    assert evades[0] <= evades[1]


def _without_scores(guard: Guard, images: Images) -> Verdicts:
    from dataclasses import replace

    verdicts = guard.inspect(images)
    return replace(verdicts, score=np.full(len(images), 1e3, np.float32))

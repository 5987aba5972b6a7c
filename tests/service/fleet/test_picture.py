"""The picture of a server of several processes."""

import json
import math
from dataclasses import replace

import pytest

from reluguard.service.captures.counts import CaptureStatus
from reluguard.service.captures.drift import Drift
from reluguard.service.fleet.picture import read_picture, together, write_picture
from reluguard.service.monitoring.shadow import Agreement
from reluguard.service.room import room_of
from reluguard.service.settings import Settings
from reluguard.service.web.page import page
from reluguard.service.web.snapshot import (
    ChallengerStatus,
    ChangeStatus,
    GuardStatus,
    HourStatus,
    ModelStatus,
    ServerStatus,
)

GUARD = GuardStatus(
    digest="ab" * 32,
    created_at="2026-01-01",
    target_fpr=0.05,
    threshold=1.5,
    lowest=1.5,
    highest=1.5,
    by_class=False,
    flags="score above 1.500",
)
HOUR = HourStatus(
    images=10,
    adversarial=2,
    unscored=1,
    minutes=[(0, 0)] * 59 + [(10, 2)],
    histogram=[(0.0, 7), (math.inf, 2)],
)
MODEL = ModelStatus(
    name="m",
    state="ready",
    is_ready=True,
    policy="annotate",
    hour=HOUR,
    guard=GUARD,
    challenger=ChallengerStatus(
        guard=GUARD, since="2026-02-02", agreement=Agreement(both=3), histogram=HOUR.histogram
    ),
    captured=CaptureStatus(images=4, waiting={"above": 3}, labels={"clean": 1}),
    drift=Drift(samples=5.0, statistics={"bulk_ks": math.nan}, advice="wait"),
    changes=(
        ChangeStatus(number=1, action="promote", guard="ab", who="x", why="y", when="z",
                     forced=False, passed=None, reasons=("r",)),
    ),
)  # fmt: skip
STATUS = ServerStatus(
    state="serving",
    version="1",
    when="2026-03-03T00:00:00+00:00",
    models=[MODEL],
    room=room_of(Settings(), 1000),
)


def test_reading_undoes_writing() -> None:
    """Whatever is shown, infinite bounds and missing numbers too, by way of JSON."""
    again = read_picture(json.loads(json.dumps(write_picture(STATUS))))
    assert page(again) == page(STATUS)
    assert again.to_json() == STATUS.to_json()
    assert again.models[0].hour.histogram[-1][0] == math.inf


def test_two_are_shown_as_one_that_saw_it_all() -> None:
    """Counts are added; what one knows is known."""
    other = replace(
        MODEL, captured=None, drift=None, hour=replace(HOUR, images=90, minutes=[(1, 1)] * 60)
    )
    whole = together([replace(STATUS, models=[other]), STATUS])
    (model,) = whole.models
    assert (model.hour.images, model.hour.adversarial) == (100, 4)
    assert (model.hour.minutes[0], model.hour.minutes[-1]) == ((1, 1), (11, 3))
    assert model.hour.histogram == [(0.0, 14), (math.inf, 4)]
    assert model.challenger is not None
    assert model.challenger.agreement == Agreement(both=6)
    assert (model.captured, model.drift) == (MODEL.captured, MODEL.drift)
    assert together([STATUS]).to_json() == STATUS.to_json()


@pytest.mark.parametrize("states", [["serving", "not serving"], ["not serving", "serving"]])
def test_one_that_serves_is_enough(states: list[str]) -> None:
    """The server serves; where a model is ready in one process that one is shown."""
    loading = replace(MODEL, state="loading", is_ready=False, guard=None, challenger=None)
    models = {"serving": MODEL, "not serving": loading}
    parts = [replace(STATUS, state=state, models=[models[state]]) for state in states]
    whole = together(parts)
    assert (whole.state, whole.models[0].state) == ("serving", "ready")
    assert whole.models[0].guard == GUARD

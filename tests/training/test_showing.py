"""Results in Python: data frames and plots, and callbacks that are told of progress."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import reluguard
from reluguard.detector.metrics import Interval
from reluguard.training.evaluation.figures import Clean
from reluguard.training.evaluation.report_card import AttackFigures, BenignFigures, ReportCard
from reluguard.training.progress import Planned, Progress, Step, Told, progress_of
from reluguard.training.red_team.report import BEST, RedTeamReport, Row, Steps


@pytest.fixture(autouse=True)
def _no_screen() -> Iterator[None]:
    before = mpl.get_backend()
    mpl.use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    mpl.use(before)


def share(value: float, n: int = 100) -> Interval:
    """Return a share with an interval."""
    return Interval(value=value, low=max(0.0, value - 0.05), high=min(1.0, value + 0.05), n=n)


def rates(value: float) -> dict[str, Interval]:
    """Return a share at two thresholds."""
    return {"0.01": share(value / 2), "0.05": share(value)}


CARD = ReportCard(
    clean=Clean(
        images=100,
        accuracy=share(0.97),
        false_positive_rate=rates(0.04),
        misclassified_flagged={},
    ),
    attacks={
        "pgd-linf-4": AttackFigures(tried=90, succeeded=80, auroc=share(0.98), detected=rates(0.9)),
        "spatial": AttackFigures(tried=90, succeeded=0),
    },
    benign={"jpeg": BenignFigures(images=100, flagged=rates(0.08))},
)
RED_TEAM = RedTeamReport(
    budgets={
        size: {
            "pgd": Row(misclassified=share(wrong), evaded=rates(past), images=40),
            BEST: Row(misclassified=share(wrong), evaded=rates(past)),
        }
        for size, wrong, past in (("2.55", 0.5, 0.2), ("8", 0.95, 0.7))
    },
    ladders={},
    median_budget={},
    steps=Steps(budget=2.55, attack="pgd", evaded={}),
    threat_model="all known",
    black_box="none",
    images=40,
    settings={},
    guard="0",
    thresholds={"0.01": 2.0, "0.05": 1.0},
    seconds=1.0,
    checks={},
)


def test_a_report_card_is_a_row_for_each_kind_and_threshold() -> None:
    """What the report says stands in the frame, and nothing for an attack without a success."""
    frame = CARD.to_pandas()
    assert len(frame) == 2 * 3
    (row,) = frame[(frame["name"] == "pgd-linf-4") & (frame["rate"] == 0.05)].to_dict("records")
    assert (row["kind"], row["images"], row["flagged"], row["auroc"]) == ("attack", 80, 0.9, 0.98)
    assert set(frame["kind"]) == {"clean", "benign", "attack"}


def test_a_report_card_is_drawn_at_one_threshold() -> None:
    """A mark for each kind lies where its share is, at the largest rate or at the one asked for."""
    for asked, factor in ((None, 1.0), (0.01, 0.5)):
        axes = CARD.plot(asked)
        found = sorted(float(line.get_xdata()[0]) for line in axes.containers and [
            container[0] for container in axes.containers
        ])  # fmt: skip
        np.testing.assert_allclose(found, np.array([0.04, 0.08, 0.9]) * factor)
        names = [text.get_text() for text in axes.get_yticklabels()]
        assert names == ["clean (100)", "jpeg (100)", "pgd-linf-4 (100)"]
    with pytest.raises(reluguard.SettingsError, match=r"among 0\.01, 0\.05, got 0\.2"):
        CARD.plot(0.2)


def test_plots_take_axes_of_the_callers() -> None:
    """Several may stand side by side."""
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2)
    assert CARD.plot(axes=left) is left
    assert RED_TEAM.plot(right) is right
    assert len(plt.get_fignums()) == 1


def test_a_red_team_report_is_a_table_and_a_curve() -> None:
    """Each budget and threshold has its row, and the lines are of the best attack per image."""
    frame = RED_TEAM.to_pandas()
    assert len(frame) == 2 * 2 * 2
    assert set(frame["images"]) == {40}
    axes = RED_TEAM.plot()
    lines = {line.get_label(): list(map(float, line.get_ydata())) for line in axes.lines}
    assert lines == {
        "without a guard": [0.5, 0.95],
        "guard at 0.05 false alarms": [0.2, 0.7],
        "guard at 0.01 false alarms": [0.1, 0.35],
    }


def test_a_guard_says_its_report_card(tiny_guard: Path, tmp_path: Path) -> None:
    """Of a guard on disk, by what its manifest holds."""
    import shutil

    folder = tmp_path / "guard"
    shutil.copytree(tiny_guard, folder)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"metrics": CARD.to_json()}))
    assert reluguard.ReportCard.of(folder) == CARD


def test_verdicts_are_drawn_by_p_value(
    tiny_model: Path, tiny_guard: Path, make_images: Any
) -> None:
    """Every scored image has its mark, in one of two groups."""
    guard = reluguard.Guard.open(tiny_model, tiny_guard)
    verdicts = guard.inspect(make_images(40, seed=3))
    axes = verdicts.plot()
    drawn = np.concatenate([points.get_offsets()[:, 1] for points in axes.collections])
    np.testing.assert_allclose(np.sort(drawn), np.sort(verdicts.p_value))
    flagged = int(verdicts.is_adversarial.sum())
    assert f"flagged: {flagged} of 40" in [text.get_text() for text in axes.get_legend().texts]
    part = replace(verdicts, unscored=np.arange(40) < 5)
    assert sum(len(points.get_offsets()) for points in part.plot().collections) == 35


def test_a_callback_is_told_of_steps_and_notes() -> None:
    """Each change is a call: shares rise to 1, notes come in between."""
    told: list[Step] = []
    progress = progress_of(told.append)
    progress.stage("attack", 4)
    progress.advance(1)
    progress.say("few images")
    progress.advance(3)
    assert [(step.title, step.share, step.note) for step in told] == [
        ("attack", 0.0, ""),
        ("attack", 0.25, ""),
        ("attack", 0.25, "few images"),
        ("attack", 1.0, ""),
    ]
    assert told[0].left_s is None
    assert told[1].left_s is not None
    assert told[-1].left_s == 0


def test_a_callback_is_told_of_the_whole_command() -> None:
    """By its plan, in the same numbers as a line; without one there is nothing to tell."""
    told: list[Step] = []
    now = 0.0
    progress = Told(told.append, clock=lambda: now)
    progress.plan("fit", [Planned("attack", 60.0), Planned("head", 40.0)])
    progress.stage("attack", 2)
    now = 30.0
    progress.advance(1)
    now = 60.0
    progress.advance(1)
    progress.stage("head", 1)
    now = 100.0
    progress.advance(1)
    assert [step.command_left_s for step in told] == pytest.approx([100, 70, 40, 40, 0])
    assert [step.command_share for step in told] == pytest.approx([0, 0.3, 0.6, 0.6, 1])
    assert [step.left_s for step in told] == pytest.approx([60, 30, 0, 40, 0])
    alone: list[Step] = []
    progress_of(alone.append).stage("score", 2)
    assert alone[0].command_share is alone[0].command_left_s is None


def test_what_is_told_may_be_left_out_but_must_be_callable() -> None:
    """None is silence, a Progress itself."""
    own = Progress()
    assert progress_of(own) is own
    assert type(progress_of(None)) is Progress
    with pytest.raises(reluguard.SettingsError, match="a function that takes a Step, got int"):
        progress_of(3)  # type: ignore[arg-type] # as users may


def test_commands_of_python_tell_callbacks(
    tiny_model: Path, tiny_guard: Path, make_images: Any
) -> None:
    """`score` is one of those that take one."""
    told: list[Step] = []
    images = make_images(10)
    reluguard.score(tiny_model, tiny_guard, (images, np.zeros(10, np.int64)), progress=told.append)
    assert [(step.title, step.share) for step in told] == [("score", 0.0), ("score", 1.0)]

import datetime as dt
import fcntl
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detector.artifact import GuardArtifact, read_guard, write_guard
from detector.errors import GuardError
from detector.shelf import ShelfError, current, history, promote, rollback, versions


@pytest.fixture(scope="session")
def first(tiny_guard: Path) -> GuardArtifact:
    return read_guard(tiny_guard)


@pytest.fixture
def heir(tmp_path: Path, first: GuardArtifact) -> Callable[..., GuardArtifact]:
    """Writes a guard that says the gate passed it against another, or what it is told to say."""

    def write(name: str, champion: GuardArtifact = first, /, **gate: Any) -> GuardArtifact:
        said = {"champion": champion.digest, "passed": True, "reasons": []} | gate
        manifest = replace(first.manifest, provenance={"tag": name}, metrics={"gate": said})
        reports = {"report.json": b"{}"}
        return write_guard(
            tmp_path / name,
            manifest=manifest,
            head=first.head,
            golden=first.golden,
            reports=reports,
        )

    return write


@pytest.fixture
def shelf(tmp_path: Path, first: GuardArtifact) -> Path:
    """A shelf with one version."""
    promote(tmp_path / "shelf", first.path, who="ann", why="the first")
    return tmp_path / "shelf"


def live(shelf: Path) -> GuardArtifact:
    found = current(shelf)
    assert found is not None
    return found


def test_a_promoted_guard_is_current_byte_for_byte(shelf: Path, first: GuardArtifact) -> None:
    """The version has the guard's digest, its name says so and the guard itself stays."""
    assert live(shelf).digest == first.digest == read_guard(first.path).digest
    assert (shelf / "CURRENT").read_text() == f"{first.digest[:16]}\n"
    assert list(versions(shelf)) == [first.digest[:16]]


def test_rollback_undoes_promote(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """Each rollback goes one version further back, down to the first."""
    second = heir("second")
    third = heir("third", second)
    for guard in (second, third):
        promote(shelf, guard.path, who="ann", why="better")
    assert live(shelf).digest == third.digest
    assert rollback(shelf, who="bob", why="worse").guard == second.digest
    assert rollback(shelf, who="bob", why="still").guard == first.digest
    assert live(shelf).digest == first.digest
    with pytest.raises(ShelfError, match="an earlier version to go back to"):
        rollback(shelf, who="bob", why="again")


def test_history_says_who_when_and_why_in_order(
    shelf: Path, heir: Callable[..., GuardArtifact]
) -> None:
    """A clock that goes backwards changes what is written down, not the order."""
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    promote(shelf, heir("second").path, who="ann", why="CW", clock=lambda: past)
    rollback(shelf, who="bob", why="alarm")
    changes = history(shelf)
    assert [(c.number, c.action, c.who, c.why) for c in changes] == [
        (1, "promote", "ann", "the first"),
        (2, "promote", "ann", "CW"),
        (3, "rollback", "bob", "alarm"),
    ]
    assert changes[1].when == "2001-01-01T00:00:00+00:00"
    assert [c.before for c in changes] == [None, changes[0].guard, changes[1].guard]


def test_a_cut_last_line_is_no_line(shelf: Path, heir: Callable[..., GuardArtifact]) -> None:
    """A line cut at any byte is ignored and the next one takes its place."""
    file = shelf / "history.jsonl"
    whole = file.read_bytes()
    second = heir("second")
    for cut in (1, 20, len(whole) - 1):
        file.write_bytes(whole + whole[:cut])
        assert len(history(shelf)) == 1
    promote(shelf, second.path, who="ann", why="better")
    assert [c.number for c in history(shelf)] == [1, 2]
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(ShelfError, match=r"line 1 of .* is damaged"):
        history(shelf)


def test_what_never_became_current_is_not_gone_back_to(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """A crash between the line of history and the pointer leaves the pointer right."""
    file = shelf / "history.jsonl"
    lost = heir("lost")
    line = json.loads(file.read_text()) | {"number": 2, "guard": lost.digest}
    file.write_text(file.read_text() + json.dumps(line | {"before": first.digest}) + "\n")
    promote(shelf, heir("second").path, who="ann", why="better")
    assert rollback(shelf, who="ann", why="worse").guard == first.digest


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"passed": False, "reasons": ["forgets pgd"]}, "the gate refused .*: forgets pgd"),
        ({"champion": "0" * 64}, "never judged against the current version"),
    ],
)
def test_what_the_gate_did_not_pass_needs_force_and_says_so(
    shelf: Path,
    first: GuardArtifact,
    heir: Callable[..., GuardArtifact],
    gate: dict[str, Any],
    message: str,
) -> None:
    """A forced version carries in its manifest who forced it, why, and what spoke against it."""
    bad = heir("bad", **gate)
    with pytest.raises(ShelfError, match=message):
        promote(shelf, bad.path, who="ann", why="hurry")
    assert live(shelf).digest == first.digest
    change = promote(shelf, bad.path, who="ann", why="hurry", force=True)
    forced = live(shelf).manifest.provenance["forced"]
    assert change.forced
    assert change.guard == live(shelf).digest != bad.digest
    assert (forced["who"], forced["why"]) == ("ann", "hurry")
    assert (live(shelf).path / "report.json").read_bytes() == b"{}"
    assert not list(shelf.glob(".forced*"))


def test_another_model_needs_another_shelf(
    shelf: Path, tmp_path: Path, make_network: Callable[..., Any], make_guard: Callable[..., Path]
) -> None:
    """A guard of another model is refused, by force too."""
    model = tmp_path / "other.onnx"
    model.write_bytes(make_network(seed=5).SerializeToString())
    other = make_guard(model, tmp_path / "other")
    with pytest.raises(ShelfError, match="another model needs another shelf"):
        promote(shelf, other, who="ann", why="new model", force=True)


def test_a_second_promotion_waits_or_is_refused(
    shelf: Path, heir: Callable[..., GuardArtifact]
) -> None:
    """While another process holds the lock, one that may not wait is told so."""
    second = heir("second")
    with (shelf / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ShelfError, match=r"another promotion holds .* for more than 0.05 s"):
            promote(shelf, second.path, who="ann", why="better", wait_s=0.05)
    assert promote(shelf, second.path, who="ann", why="better").number == 2


def test_many_at_once_leave_one_line_each(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """Of several promoted at once against the same version one wins, the others are refused."""
    guards = [heir(f"g{i}") for i in range(4)]

    def attempt(guard: GuardArtifact) -> str:
        try:
            return promote(shelf, guard.path, who="ann", why="race").guard
        except ShelfError:
            return ""

    with ThreadPoolExecutor(4) as pool:
        won = [digest for digest in pool.map(attempt, guards) if digest]
    assert won == [live(shelf).digest]
    assert [c.before for c in history(shelf)] == [None, first.digest]


def test_going_back_to_a_damaged_version_changes_nothing(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """The pointer moves to what was read whole, or not at all."""
    second = heir("second")
    promote(shelf, second.path, who="ann", why="better")
    (shelf / first.digest[:16] / "head.npz").write_bytes(b"")
    with pytest.raises(GuardError, match=r"head\.npz"):
        rollback(shelf, who="ann", why="worse")
    assert live(shelf).digest == second.digest
    assert list(versions(shelf)) == [second.digest[:16]]


def test_an_empty_shelf_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    """No folder is an error, an empty one has no current version."""
    empty = tmp_path / "nowhere"
    with pytest.raises(ShelfError, match="there is no folder"):
        rollback(empty, who="ann", why="?")
    assert current(empty) is None
    assert history(empty) == []
    assert versions(empty) == {}


def test_a_pointer_out_of_the_shelf_is_refused(shelf: Path) -> None:
    """CURRENT names a version of this shelf and nothing else."""
    (shelf / "CURRENT").write_text("../elsewhere\n")
    with pytest.raises(ShelfError, match="expected the name of one version"):
        current(shelf)

import datetime as dt
import fcntl
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reluguard.detector.artifact import GuardArtifact, read_files, read_guard, write_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.shelf.shelf import (
    ShelfError,
    challenger,
    clear,
    current,
    history,
    promote,
    rollback,
    shadow,
    versions,
)
from reluguard.detector.shelf.versions import put


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


NAMES = ("../../out", "../out", "/out", "sub/out", "..", ".", "manifest.json", "\0")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_placed_is_what_was_read(tmp_path: Path, first: GuardArtifact, name: str) -> None:
    """Whatever lies there a moment later, the bytes that were checked are those on the shelf."""
    guard = tmp_path / "in" / "deep" / "guard"
    shutil.copytree(first.path, guard)
    (tmp_path / "in" / "out").write_text("not yours")
    read = read_files(guard)
    manifest = guard / "manifest.json"
    swapped = json.loads(manifest.read_bytes())
    swapped["files"][name] = {"bytes": 9, "sha256": "0" * 64}
    manifest.write_text(json.dumps(swapped))
    (guard / "head.npz").write_bytes(b"swapped")
    shelf = tmp_path / "admin" / "shelves" / "shelf"
    shelf.mkdir(parents=True)
    placed = put(shelf, read)
    assert placed.digest == first.digest
    assert read_guard(placed.path).digest == first.digest
    with pytest.raises(GuardError):
        promote(shelf, guard, who="eve", why="swapped")
    outside = {path for path in tmp_path.rglob("*") if path.is_file() and "in" not in path.parts}
    assert all(path.is_relative_to(shelf) for path in outside)


def test_another_version_does_not_take_its_name(tmp_path: Path, first: GuardArtifact) -> None:
    """A folder that a stranger named like a version is not taken for it."""
    shelf = tmp_path / "new-shelf"
    other = shelf / first.digest[:16]
    shutil.copytree(first.path, other)
    manifest = other / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(ShelfError, match="is another version than"):
        promote(shelf, first.path, who="ann", why="first")


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


def rival(shelf: Path) -> str | None:
    """The challenger's digest."""
    found = challenger(shelf)
    return None if found is None else found.digest


def test_a_challenger_comes_beside_the_current_version_and_goes(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """Shadowing needs no gate, moves no other pointer and is on record; clearing undoes it."""
    assert rival(shelf) is None
    refused = heir("refused", passed=False)
    second = heir("second")
    shadow(shelf, refused.path, who="ann", why="let us see")
    assert (live(shelf).digest, rival(shelf)) == (first.digest, refused.digest)
    shadow(shelf, second.path, who="ann", why="a better one")
    assert rival(shelf) == second.digest
    clear(shelf, who="bob", why="enough seen")
    assert rival(shelf) is None
    with pytest.raises(ShelfError, match="expected a challenger to clear"):
        clear(shelf, who="bob", why="again")
    assert [(c.action, c.guard, c.before) for c in history(shelf)[1:]] == [
        ("shadow", refused.digest, None),
        ("shadow", second.digest, refused.digest),
        ("clear", second.digest, second.digest),
    ]
    assert set(versions(shelf)) == {g.digest[:16] for g in (first, refused, second)}


def test_a_promoted_challenger_is_no_challenger_any_more(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """Promoting it ends its shadow, promoting another does not, and rollback knows promotions."""
    second, third = heir("second"), heir("third", heir("second"))
    shadow(shelf, third.path, who="ann", why="next year")
    promote(shelf, second.path, who="ann", why="better")
    assert (live(shelf).digest, rival(shelf)) == (second.digest, third.digest)
    promote(shelf, third.path, who="ann", why="its time has come")
    assert (live(shelf).digest, rival(shelf)) == (third.digest, None)
    shadow(shelf, second.path, who="ann", why="compare with the old one")
    assert rollback(shelf, who="bob", why="worse").guard == second.digest
    assert rival(shelf) is None  # what is current can't be its own challenger
    assert rollback(shelf, who="bob", why="worse").guard == first.digest
    assert rival(shelf) == second.digest


def test_a_forced_challenger_leaves_the_shadow_too(
    shelf: Path, heir: Callable[..., GuardArtifact]
) -> None:
    """Though its digest changes by being forced."""
    bad = heir("bad", passed=False, reasons=["forgets pgd"])
    shadow(shelf, bad.path, who="ann", why="let us see")
    promote(shelf, bad.path, who="ann", why="hurry", force=True)
    assert rival(shelf) is None
    assert live(shelf).manifest.provenance["forced"]["why"] == "hurry"


def test_what_can_not_be_a_challenger(
    shelf: Path,
    first: GuardArtifact,
    heir: Callable[..., GuardArtifact],
    tmp_path: Path,
    make_network: Callable[..., Any],
    make_guard: Callable[..., Path],
) -> None:
    """The current version, one of another model, one on an empty shelf, a damaged one."""
    model = tmp_path / "other.onnx"
    model.write_bytes(make_network(seed=5).SerializeToString())
    other = make_guard(model, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for where, guard, message in (
        (shelf, first.path, "can't be its own challenger"),
        (shelf, other, "another model needs another shelf"),
        (tmp_path / "empty", first.path, "expected a current version to shadow"),
        (shelf, tmp_path, "it has no file manifest.json"),
    ):
        with pytest.raises(GuardError, match=message):
            shadow(where, guard, who="ann", why="?")
    assert not (shelf / "CHALLENGER").exists()
    second = heir("second")
    shadow(shelf, second.path, who="ann", why="see")
    (shelf / second.digest[:16] / "head.npz").write_bytes(b"")
    with pytest.raises(GuardError, match=r"head\.npz"):
        challenger(shelf)
    assert clear(shelf, who="ann", why="damaged").guard == second.digest
    (shelf / "CHALLENGER").write_text("../elsewhere\n")
    with pytest.raises(ShelfError, match="expected the name of one version"):
        challenger(shelf)


def test_shadows_and_promotions_at_once_stay_whole(
    shelf: Path, heir: Callable[..., GuardArtifact]
) -> None:
    """Whatever order they came in, numbers count up and both pointers name whole versions."""
    guards = [heir(f"g{i}") for i in range(6)]

    def attempt(i: int) -> None:
        guard = guards[i].path
        try:
            if i % 2:
                shadow(shelf, guard, who="ann", why="race")
            else:
                promote(shelf, guard, who="ann", why="race")
        except ShelfError as error:
            assert "never judged" in str(error)  # noqa: PT017 - the losers of the race

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(attempt, range(6)))
    changes = history(shelf)
    assert [c.number for c in changes] == list(range(1, len(changes) + 1))
    assert sum(c.action == "promote" for c in changes) == 2
    assert sum(c.action == "shadow" for c in changes) == 3
    assert rival(shelf) in {guards[i].digest for i in (1, 3, 5)}
    assert live(shelf).digest in {guards[i].digest for i in (0, 2, 4)}


def test_a_clock_that_jumps_back_between_shadow_and_promotion(
    shelf: Path, first: GuardArtifact, heir: Callable[..., GuardArtifact]
) -> None:
    """Rollback follows the order of the lines, whatever times they carry."""
    times = iter(dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2031, 2001, 1999))
    second = heir("second")
    shadow(shelf, second.path, who="ann", why="see", clock=lambda: next(times))
    promote(shelf, second.path, who="ann", why="good", clock=lambda: next(times))
    assert rollback(shelf, who="bob", why="bad", clock=lambda: next(times)).guard == first.digest
    assert [c.when[:4] for c in history(shelf)[1:]] == ["2031", "2001", "1999"]

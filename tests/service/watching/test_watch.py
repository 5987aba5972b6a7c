"""The watch over question streams: what it remembers, whom it suspects, what nobody can read."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.runtime import Guard
from reluguard.service.watching.prints import BITS, Prints, exact, nearest
from reluguard.service.watching.table import LEADERS, LEAST_BYTES, RECENT, ROW_BYTES, Table
from reluguard.service.watching.watch import KINDS, Seen, Watch

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NEAR = 10
HALF_LIFE_S = 100.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return what the test says."""
        return self.now


class Asked:
    """A watch, and a way to ask it with numbers in place of a network's reading."""

    def __init__(
        self,
        artifact: GuardArtifact,
        *,
        key: bytes = KEY,
        max_bytes: int = LEAST_BYTES,
        **changes: Any,
    ) -> None:
        self.artifact, self.clock = artifact, Clock()
        self.table = Table(max_bytes, key=key)
        given = {"refuses": False, "near": NEAR, "distance": 0.125, "half_life_s": HALF_LIFE_S}
        self.watch = Watch(self.table, key=key, clock=self.clock, **(given | changes))

    def __call__(self, rates: NDArray[np.float32], who: str = "someone") -> Seen:
        """Ask about these readings, which stand for the images too."""
        return self.watch.ask(who, self.artifact, rates, rates, np.zeros(len(rates), np.bool_))

    def kinds(self, rates: NDArray[np.float32], who: str = "someone") -> list[str]:
        """Ask, and return what each question was."""
        return [KINDS[kind] for kind in self(rates, who).kinds]


@pytest.fixture(scope="session")
def artifact(guard: Guard) -> GuardArtifact:
    return guard.artifact


@pytest.fixture(scope="session")
def readings(artifact: GuardArtifact) -> Callable[..., NDArray[np.float32]]:
    """So many readings around one, at a distance of a share of the rates' own spread."""
    features = artifact.head.features
    columns = len(features.columns)
    center, spread = features.center[:columns], features.spread[:columns]

    def drawn(count: int, *, seed: int, apart: float = 1.0, around: int = 0) -> NDArray[np.float32]:
        middle = np.random.default_rng(around).normal(0, 1, columns)
        moved = np.random.default_rng([seed, 1]).normal(0, 1, (count, columns))
        x = (middle + apart * moved) if apart < 1 else moved
        rates = np.zeros((count, artifact.golden.rates.shape[1]), np.float32)
        rates[:, features.columns] = center + spread * x
        return rates

    return drawn


Drawn = Callable[..., NDArray[np.float32]]


# ---- laws


def test_prints_differ_as_readings_do(artifact: GuardArtifact, readings: Drawn) -> None:
    """The share of bits that differ is about the angle over pi, so it grows with the distance."""
    prints = Prints(artifact, KEY)
    one = readings(1, seed=0, apart=0.0)
    shares = [
        float(nearest(prints(one)[0], prints(readings(200, seed=2, apart=apart))).mean()) / BITS
        for apart in (0.02, 0.1, 0.3, 0.9)
    ]
    expected = [np.arctan(apart) / np.pi for apart in (0.02, 0.1, 0.3, 0.9)]
    assert shares == sorted(shares)
    np.testing.assert_allclose(shares, expected, rtol=0.5)


def test_another_key_gives_other_prints_and_hashes(
    artifact: GuardArtifact, readings: Drawn
) -> None:
    """Who lacks the key can't say which print a picture has: half of the bits, by chance."""
    rates = readings(300, seed=1)
    mine, theirs = (Prints(artifact, key)(rates) for key in (KEY, OTHER_KEY))
    differing = np.bitwise_count(mine ^ theirs).sum(axis=1) / BITS
    assert 0.4 < differing.mean() < 0.6
    assert not (exact(rates, KEY) == exact(rates, OTHER_KEY)).any()
    assert_array_equal(mine, Prints(artifact, KEY)(rates))


def test_a_print_does_not_hang_on_its_batch(artifact: GuardArtifact, readings: Drawn) -> None:
    """Alone and among others an image has the same print and hash."""
    rates = readings(20, seed=3)
    prints = Prints(artifact, KEY)
    assert_array_equal(prints(rates), np.concatenate([prints(row[None]) for row in rates]))
    assert_array_equal(exact(rates, KEY), np.concatenate([exact(row[None], KEY) for row in rates]))


@given(cuts=st.lists(st.integers(1, 40), max_size=6), seed=st.integers(0, 5))
@settings(max_examples=8)
def test_batches_say_what_single_questions_say(
    artifact: GuardArtifact, readings: Drawn, cuts: list[int], seed: int
) -> None:
    """However a stream is cut into requests, the watch says and remembers the same."""
    near = readings(20, seed=seed, apart=0.05)
    rates = np.concatenate([near, readings(15, seed=seed + 9), near[:5]])
    whole, parts = Asked(artifact), Asked(artifact)
    at_once = whole(rates)
    told = [parts(part) for part in np.split(rates, sorted({cut for cut in cuts if cut < 40}))]
    assert_array_equal(at_once.kinds, np.concatenate([seen.kinds for seen in told]))
    np.testing.assert_allclose(at_once.near, np.concatenate([seen.near for seen in told]))
    assert at_once.suspected == told[-1].suspected
    assert bytes(whole.table.rows) == bytes(parts.table.rows)


@given(
    streams=st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 60), st.floats(0, 500)),
        min_size=1,
        max_size=25,
    ),
    rows=st.integers(1, 12),
)
@settings(max_examples=8)
def test_memory_has_a_bound_that_nobody_moves(
    artifact: GuardArtifact, readings: Drawn, streams: Sequence[tuple[int, int, float]], rows: int
) -> None:
    """Whoever asks whatever, however often: the table has the size it began with."""
    asked = Asked(artifact, max_bytes=rows * ROW_BYTES)
    size = asked.table.bytes
    assert size <= max(rows * ROW_BYTES, LEAST_BYTES)
    for who, count, wait in streams:
        asked(readings(count, seed=who), f"caller {who}")
        asked.clock.now += wait
        assert asked.table.bytes == asked.table.rows.nbytes == size
        assert asked.watch.status().callers * ROW_BYTES <= size
        assert asked.watch.status().max_bytes == size


def test_no_image_is_kept(artifact: GuardArtifact, readings: Drawn) -> None:
    """No byte run of an image or a reading stands in what is remembered, and it is small.

    Of one question 56 bytes are kept at most, whatever the image: nothing comes back from them.
    """
    asked = Asked(artifact)
    rates = readings(LEADERS, seed=4)
    before = bytes(asked.table.rows)
    asked(rates)
    state = bytes(asked.table.rows)
    changed = sum(a != b for a, b in zip(before, state, strict=True))
    assert changed <= LEADERS * (BITS // 8 + 8 + 8 + 8) + 200
    for row in rates[:10]:
        data = row.tobytes()
        runs = {data[i : i + 8] for i in range(0, len(data) - 8, 4)} - {bytes(8)}
        assert not any(run in state for run in runs)


def test_what_is_remembered_says_nothing_without_the_key(
    artifact: GuardArtifact, readings: Drawn
) -> None:
    """Who has the table and the guard, but another key, can't tell who asked about an image."""
    asked = Asked(artifact)
    rates = readings(60, seed=5)
    asked(rates)
    guessed = Prints(artifact, OTHER_KEY)(rates)
    kept = asked.table.rows["prints"].reshape(-1, BITS // 64)
    kept = kept[kept.any(axis=1)]
    own = Prints(artifact, KEY)(rates)
    assert all(nearest(one, kept).min() == 0 for one in own)
    chance = Prints(artifact, OTHER_KEY)(readings(60, seed=6))
    best, by_chance = (
        np.mean([nearest(one, kept).min() for one in prints]) for prints in (guessed, chance)
    )
    assert abs(best - by_chance) < 10


def test_callers_do_not_add_up(artifact: GuardArtifact, readings: Drawn) -> None:
    """Near-equal questions of different callers are nobody's."""
    asked = Asked(artifact, max_bytes=100 * ROW_BYTES)
    rates = readings(NEAR + 1, seed=7, apart=0.02)
    for i, row in enumerate(rates):
        assert asked.kinds(row[None], f"caller {i}") == ["new"]
    assert asked.watch.under_suspicion() == 0


# ---- worked examples


def test_near_equal_questions_raise_suspicion(artifact: GuardArtifact, readings: Drawn) -> None:
    """The tenth of ten near-equal questions puts its caller under suspicion, once."""
    asked = Asked(artifact)
    told = [asked(row[None]) for row in readings(NEAR + 2, seed=8, apart=0.02)]
    assert [KINDS[seen.kinds[0]] for seen in told] == ["new"] + ["near"] * (NEAR + 1)
    assert [seen.suspected for seen in told] == [False] * (NEAR - 1) + [True] * 3
    assert [seen.raised for seen in told].count(True) == 1
    (suspect,) = asked.watch.status().suspects
    assert suspect.caller == "someone"
    assert suspect.near == pytest.approx(NEAR + 2)


def test_equal_questions_are_retries(artifact: GuardArtifact, readings: Drawn) -> None:
    """An image that is sent again, byte for byte, counts nothing, however often it is."""
    asked = Asked(artifact)
    few = readings(5, seed=9)
    for _ in range(3 * NEAR):
        kinds = asked.kinds(few)
    assert kinds == ["equal"] * 5
    assert asked.watch.under_suspicion() == 0


def test_unlike_images_raise_nothing(artifact: GuardArtifact, readings: Drawn) -> None:
    """A thousand images that have nothing to do with each other are a thousand new ones."""
    asked = Asked(artifact)
    kinds = asked.kinds(readings(1000, seed=10))
    assert kinds.count("near") < 10
    assert asked.watch.under_suspicion() == 0


def test_suspicion_goes_with_time(artifact: GuardArtifact, readings: Drawn) -> None:
    """It lasts as long as what was counted takes to halve, and comes again."""
    asked = Asked(artifact)
    rates = readings(3 * NEAR, seed=11, apart=0.02)
    asked(rates[:NEAR])
    asked.clock.now += 0.99 * HALF_LIFE_S
    assert asked.watch.under_suspicion() == 1
    asked.clock.now += 0.02 * HALF_LIFE_S
    assert asked.watch.under_suspicion() == 0
    assert asked(rates[NEAR : 2 * NEAR]).raised


def test_slow_questions_are_not_added_up(artifact: GuardArtifact, readings: Drawn) -> None:
    """Who waits long enough between questions stays unseen: what it costs is time."""
    asked = Asked(artifact)
    for row in readings(5 * NEAR, seed=12, apart=0.02):
        assert not asked(row[None]).suspected
        asked.clock.now += HALF_LIFE_S / 5


def test_what_is_old_is_wiped(artifact: GuardArtifact, readings: Drawn) -> None:
    """A caller that did not ask for four half-lives leaves no byte behind."""
    asked = Asked(artifact)
    empty = bytes(asked.table.rows)
    asked(readings(30, seed=13))
    asked.clock.now += 3.9 * HALF_LIFE_S
    asked.watch.forget()
    assert asked.watch.status().callers == 1
    asked.clock.now += 0.2 * HALF_LIFE_S
    asked.watch.forget()
    assert bytes(asked.table.rows) == empty


def test_a_stream_hides_among_others_only_so_far(artifact: GuardArtifact, readings: Drawn) -> None:
    """One near-equal question among fifty others is still added up; the memory is of a hundred."""
    asked = Asked(artifact)
    near = readings(NEAR, seed=14, apart=0.02)
    others = readings(50 * NEAR, seed=15)
    for i, row in enumerate(near):
        asked(others[50 * i : 50 * (i + 1)])
        seen = asked(row[None])
    assert seen.suspected


def test_near_equal_questions_are_refused(artifact: GuardArtifact, readings: Drawn) -> None:
    """Under suspicion near-equal questions are refused, again too, and others answered."""
    asked = Asked(artifact, refuses=True)
    near = readings(NEAR + 5, seed=16, apart=0.02)
    assert not any(asked(row[None]).refused for row in near[:NEAR])
    for row in (*near[NEAR:], *near[NEAR:]):  # a refused question that comes again is no retry
        assert asked(row[None]).refused
    both = asked(np.concatenate([readings(3, seed=23), near[NEAR:]]))
    assert both.refused
    assert [KINDS[kind] for kind in both.kinds] == ["new"] * 3 + ["near"]  # and no further
    assert both.wait_s == pytest.approx(HALF_LIFE_S)
    assert not asked(near[:3]).refused  # these were answered before: retries
    assert not asked(readings(20, seed=17)).refused
    assert not asked(near[NEAR:], who="another").refused


def test_refused_questions_do_not_prolong_suspicion(
    artifact: GuardArtifact, readings: Drawn
) -> None:
    """A client that goes on trying is answered again once what it asked before has faded."""
    asked = Asked(artifact, refuses=True)
    near = readings(200, seed=18, apart=0.02)
    asked(near[:NEAR])
    answered = 0
    for row in near[NEAR:]:
        asked.clock.now += HALF_LIFE_S / 50
        answered += not asked(row[None]).refused
    assert 1 <= answered <= 3 * NEAR


def test_the_longest_unseen_caller_makes_way(artifact: GuardArtifact, readings: Drawn) -> None:
    """Where a set is full the caller that asked longest ago is forgotten, not one that asks."""
    asked = Asked(artifact)  # one set
    near = readings(NEAR, seed=19, apart=0.02)
    for i in range(NEAR):
        asked.clock.now += 0.1
        asked(near[i : i + 1], "who asks")
        asked(readings(1, seed=i), f"caller {i}")
    assert asked.watch.under_suspicion() == 1


def test_rows_that_were_not_read_are_left_out(artifact: GuardArtifact, readings: Drawn) -> None:
    """Rows whose pass failed have no print, so many of them are not near-equal questions."""
    asked = Asked(artifact)
    rates = np.full_like(readings(30, seed=20), np.nan)
    tensor = np.arange(30.0)[:, None]
    seen = asked.watch.ask("someone", artifact, tensor, rates, np.ones(30, np.bool_))
    assert not seen.kinds.any()
    assert not seen.suspected


def test_two_processes_share_a_table(artifact: GuardArtifact, readings: Drawn) -> None:
    """What one process counted the other knows: a caller's connections may end up at either."""
    handle = Table.make(LEAST_BYTES)
    given: dict[str, Any] = {"refuses": False, "near": NEAR, "distance": 0.125, "half_life_s": 9.0}
    clock = Clock()
    two = [
        Watch(Table(LEAST_BYTES, key=KEY, handle=handle), key=KEY, clock=clock, **given)
        for _ in range(2)
    ]
    rates = readings(NEAR, seed=21, apart=0.02)
    nothing = np.zeros(1, np.bool_)
    for i, row in enumerate(rates):
        seen = two[i % 2].ask("someone", artifact, row[None], row[None], nothing)
    assert seen.raised
    assert [watch.under_suspicion() for watch in two] == [1, 1]
    assert RECENT >= NEAR


def test_a_guard_that_reads_the_same_goes_on(artifact: GuardArtifact, readings: Drawn) -> None:
    """After a reload what was counted stays, where the new guard reads what the old one did."""
    again: GuardArtifact = pickle.loads(pickle.dumps(artifact))
    rates = readings(4, seed=22)
    assert_array_equal(Prints(artifact, KEY)(rates), Prints(again, KEY)(rates))

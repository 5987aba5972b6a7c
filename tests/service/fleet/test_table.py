"""Callers' accounts that several processes keep together."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select
from subprocess import PIPE, Popen
from sys import executable

import pytest

from reluguard.service.errors import OverloadedError
from reluguard.service.fleet.table import Table
from reluguard.service.quotas import Quota, Quotas

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ends() -> Iterator[Callable[[int], list[Table]]]:
    """Make a table and give so many ends of it."""
    handles: list[int] = []

    def make(of: int) -> list[Table]:
        handles.append(Table.make(of))
        key = bytes(range(32))  # it deals the places: how many fit is a matter of chance
        return [Table(handles[-1], number=n, of=of, key=key) for n in range(of)]

    yield make
    for handle in handles:
        os.close(handle)


def test_a_quota_holds_over_all_processes(ends: Callable[[int], list[Table]]) -> None:
    """Calls at once, and what is left of a second's allowance, are the same wherever one asks."""
    told: list[str] = []

    async def ask() -> None:
        quotas = [Quotas(Quota(calls=3, rows_per_s=10), told.append, end) for end in ends(3)]
        for one in quotas:
            assert one.enter("ann")
        for one in quotas:
            with pytest.raises(OverloadedError, match="at most 3 calls of one caller at once"):
                one.enter("ann")
            assert one.enter("bob")
        quotas[1].leave("ann")
        assert quotas[0].enter("ann")
        quotas[0].rows("ann", 6)
        quotas[1].rows("ann", 4)
        with pytest.raises(OverloadedError, match="at most 10 rows a second"):
            quotas[2].rows("ann", 4)

    asyncio.run(ask())
    assert set(told) == {"calls_at_once", "rows_per_second"}


def test_what_a_process_was_handling_goes_with_it(ends: Callable[[int], list[Table]]) -> None:
    """The calls of one that was killed don't count against their callers for ever."""
    one, other = ends(2)
    for end in (one, other, other):
        with end.held("ann") as use:
            use.calls += 1
    one.clear(1)
    with one.held("ann") as use:
        assert use.calls == 1


def test_callers_are_told_apart_and_old_ones_forgotten(
    ends: Callable[[int], list[Table]],
) -> None:
    """However many names are made up, memory stays, and who has a call is never forgotten."""
    (end,) = ends(1)
    with end.held("busy") as use:
        use.calls += 1
    for i in range(20_000):
        with end.held(f"caller {i}") as use:
            assert use.calls == 0
    with end.held("busy") as use:
        assert use.calls == 1


def test_too_many_callers_at_once_are_refused(ends: Callable[[int], list[Table]]) -> None:
    """Nobody is taken for somebody else."""
    (end,) = ends(1)

    def enter(name: str) -> None:
        with end.held(name) as use:
            assert use.calls == 0
            use.calls += 1

    refused: list[int] = []
    for i in range(10_000):
        try:
            enter(str(i))
        except OverloadedError as error:
            refused.append(i)
            assert str(error) == "expected fewer callers at once"  # noqa: PT017 - one of many
    assert refused
    assert refused[0] > 4000


def test_processes_wait_for_each_other() -> None:
    """Two that count at the same time lose nothing, and one that is killed holds nobody up."""
    handle = Table.make(3)
    code = (
        "import sys\n"
        "from reluguard.service.fleet.table import Table\n"
        "end = Table(int(sys.argv[1]), number=int(sys.argv[2]), of=3, key=bytes(32))\n"
        "sys.stdin.readline()\n"
        "for _ in range(3000):\n"
        "    with end.held('ann') as use:\n"
        "        use.calls += 1\n"
        "        use.by_call.left += 1\n"
        "with end.held('killed') as use:\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    workers = [
        Popen([executable, "-c", code, str(handle), str(n)], cwd=ROOT, pass_fds=[handle],
              stdin=PIPE, stdout=PIPE, text=True)
        for n in (0, 1)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ready, _, _ = select([worker.stdout for worker in workers if worker.stdout], [], [], 60)
    first, second = sorted(workers, key=lambda worker: worker.stdout not in ready)
    first.kill()  # while it holds what the other waits for
    assert second.stdout is not None
    assert second.stdout.readline() == "held\n"
    second.kill()
    with Table(handle, number=2, of=3, key=bytes(32)).held("ann") as use:
        assert (use.calls, use.by_call.left) == (6000, 6000)
    for worker in workers:
        worker.communicate()
    os.close(handle)

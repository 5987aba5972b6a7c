"""Second looks at requests: batched among themselves, each request's rows its own."""

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Readings
from reluguard.service.models.batching import Answer, Batcher
from reluguard.service.models.slots import Slots
from reluguard.service.models.version import Version
from reluguard.service.monitoring.metrics import Metrics
from tests.conftest import images
from tests.looking import looking_twice


@pytest.fixture(scope="module")
def twice(tiny_model: Path, tiny_guard: Path, tmp_path_factory: pytest.TempPathFactory) -> Guard:
    """A guard that looks again at what is suspicious."""
    folder = looking_twice(tiny_model, tiny_guard, tmp_path_factory.mktemp("twice") / "guard")
    return Guard.open(tiny_model, folder, threads=1)


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    """One thread, as a server of one worker has."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Counted:
    """A real version that counts rows of second runs, and may break on them."""

    def __init__(self, guard: Guard, *, breaks: bool = False) -> None:
        self._version, self._breaks = Version(guard=guard), breaks
        self.runs: list[int] = []
        self.run, self.wanted, self.judged = (
            self._version.run,
            self._version.wanted,
            self._version.judged,
        )

    def again(self, tensor: NDArray[Any], first: Readings) -> NDArray[np.float32]:
        """Return the real scores."""
        self.runs.append(len(tensor))
        if self._breaks:
            raise ValueError("this look fails")
        return self._version.again(tensor, first)


def served(
    executor: ThreadPoolExecutor, runner: Any, parts: list[NDArray[Any]], **options: Any
) -> tuple[list[Answer], Metrics]:
    """Return what requests that come together are answered."""
    metrics = Metrics(CollectorRegistry())

    async def main() -> list[Answer]:
        given: dict[str, Any] = {
            "max_batch": 8,
            "max_delay_s": 0.0,
            "max_queue_rows": 1000,
            "max_wait_s": 60.0,
            "executor": executor,
            "slots": Slots(1),
            "metrics": metrics.model("m", "annotate"),
        }
        batcher = Batcher(**(given | options))
        batcher.start()
        try:
            return await asyncio.gather(*(batcher.submit(part, runner) for part in parts))
        finally:
            await batcher.close()

    return asyncio.run(main()), metrics


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    """Return one sample of the metrics."""
    value = metrics.registry.get_sample_value(name, {"model": "m"} | labels)
    return 0.0 if value is None else value


@pytest.mark.parametrize("sizes", [[1] * 30, [3, 1, 7, 2, 9, 8], [30]])
def test_each_request_gets_its_own_second_look(
    executor: ThreadPoolExecutor, twice: Guard, sizes: list[int]
) -> None:
    """However first and second looks are merged, verdicts are those of each image alone."""
    tensor = twice.spec.to_tensor(images(30, seed=1))
    cuts = np.concatenate([[0], np.cumsum(sizes)])
    runner = Counted(twice)
    parts = [tensor[start:stop] for start, stop in itertools.pairwise(cuts)]
    answers, metrics = served(executor, runner, parts)
    alone = twice.inspect_tensor(tensor)
    looked = int((alone.look == 2).sum())
    assert 1 < looked < 30
    for name in ("look", "is_adversarial", "prediction", "unscored"):
        together = np.concatenate([getattr(answer.verdicts, name) for answer in answers])
        assert_array_equal(together, getattr(alone, name))
    for name in ("score", "p_value", "likelihood"):
        together = np.concatenate([getattr(answer.verdicts, name) for answer in answers])
        assert_allclose(together, getattr(alone, name), atol=1e-3)
    assert sum(runner.runs) == looked
    assert max(runner.runs) <= 8
    assert all(answer.all_scored for answer in answers)
    assert counted(metrics, "reluguard_second_looks_total") == looked
    flagged = counted(metrics, "reluguard_verdicts_total", verdict="adversarial", policy="annotate")
    assert flagged == alone.is_adversarial.sum()


def test_second_looks_go_together(executor: ThreadPoolExecutor, twice: Guard) -> None:
    """Those of many requests are one run, not one each."""
    tensor = twice.spec.to_tensor(images(30, seed=1))
    suspicious = tensor[twice.inspect_tensor(tensor).look == 2][:1]
    runner = Counted(twice)
    served(executor, runner, [suspicious] * 16, max_batch=16)
    assert sum(runner.runs) == 16
    assert len(runner.runs) <= 2


def test_a_second_look_that_fails_leaves_its_rows_without_a_score(
    executor: ThreadPoolExecutor, twice: Guard
) -> None:
    """They are flagged and told as unscored, which the server's `fail` decides on; others go on."""
    tensor = twice.spec.to_tensor(images(30, seed=1))
    wanted = twice.inspect_tensor(tensor).look == 2
    answers, _ = served(
        executor, Counted(twice, breaks=True), [tensor[i : i + 1] for i in range(30)]
    )
    assert [bool(a.verdicts.unscored[0]) for a in answers] == wanted.tolist()
    assert [bool(a.all_scored) for a in answers] == (~wanted).tolist()

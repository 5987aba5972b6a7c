"""How long a harvest will take: a few passes are timed, and every attack says how many it takes.

A forecast is of free cores, and progress corrects it by what becomes of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reluguard.detector.allowance import available_cores
from reluguard.detector.images import Images
from reluguard.training.attacks import FGSM, PGD, Attack, Passes, Victim
from reluguard.training.data.case import chunk_of
from reluguard.training.data.dataset import Dataset
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.harvest.orders import Job, Orders

__all__ = ["Pace", "expected_seconds", "in_turn", "pace_of", "passes_of"]

CLIMBS = 2  # steps of the attack that is timed
BATCH = 32
_AROUND = 2  # an attack is asked what the clean image is, and what became of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that a pass takes per image: of the model, and of the twin both ways."""

    asked_s: float
    climbed_s: float = 0.0
    exact_s: float = 0.0

    def milliseconds(self, job: Job, passes: Passes) -> int:
        """Return what a shard takes, 1 or more."""
        one = (
            passes.asked * self.asked_s
            + passes.climbed * self.climbed_s
            + passes.exact * self.exact_s
        )
        return max(1, round(1000 * one * len(job.sources)))


def passes_of(job: Job, orders: Orders) -> Passes:
    """Return about how many passes a shard takes for each of its images, and what comes then."""
    change = orders.changes.get(job.slug)
    again = 0 if orders.second is None else 1  # whoever looks again reads what is kept
    if not isinstance(change, Attack):
        return Passes(asked=1 + again)
    asked = sum(len(later.sources) * (1 + later.caused + again) for later in job.then)
    after = asked / max(1, len(job.sources))
    return replace(change.passes, asked=change.passes.asked + _AROUND + again + after)


def pace_of(victim: Victim, dataset: Dataset, threads: int | None = None) -> Pace:
    """Return the pace of a few passes on the first images, after as many that warm up.

    Args:
        victim: the model and its twin, with the threads that the harvest gives it.
        dataset: to take images of.
        threads: those.
    """
    count = min(len(dataset), BATCH, max(4, chunk_of(dataset.images)))
    images, labels = dataset.images[:count], dataset.labels[:count]

    def seconds(work: Callable[[Images], object]) -> float:
        """Return the time per image of the second run, on images that nobody remembers."""
        work(images.copy())
        fresh = images.copy()
        return busy_seconds(lambda: work(fresh), threads) / count

    asked = seconds(victim.predict)
    if victim.twin is None:
        return Pace(asked_s=asked)

    def climbs(attack: Attack) -> float:
        return max(0.0, seconds(lambda x: attack(x, labels, victim, seed=0)) - _AROUND * asked)

    return Pace(
        asked_s=asked,
        climbed_s=climbs(PGD(size=1.0, steps=CLIMBS)) / CLIMBS,
        exact_s=climbs(FGSM(size=1.0)),
    )


def expected_seconds(milliseconds: int, orders: Orders, workers: int, engine: str) -> float:
    """Return how long so much work takes, shared among workers.

    Args:
        milliseconds: of work at the pace of one maker, with its threads.
        orders: say the threads.
        workers: processes or actors.
        engine: "local", whose workers share the cores of this machine, or "ray".
    """
    if workers == 1 and engine == "local":
        return milliseconds / 1000
    cores = available_cores()
    timed_on = min(orders.threads or cores, cores)
    shared = workers * (orders.threads or 1)
    return milliseconds / 1000 * timed_on / (shared if engine == "ray" else min(shared, cores))


def in_turn(jobs: Sequence[Job]) -> list[Job]:
    """Return the shards so that every slug is done to the same share at any time.

    Then what is done costs what the rest costs, and tells how long that takes.
    """
    counts: dict[str, int] = {}
    place: list[tuple[float, int]] = []
    for i, job in enumerate(jobs):
        counts[job.slug] = counts.get(job.slug, 0) + 1
        place.append((counts[job.slug] - 0.5, i))
    order = sorted((nth / counts[jobs[i].slug], i) for nth, i in place)
    return [jobs[i] for _, i in order]

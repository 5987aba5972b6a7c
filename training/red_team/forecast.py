"""How long a red team's attacks will take: one is timed, and each says how many passes it takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from reluguard.training.attacks.base import Passes
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.target import Target

__all__ = ["Costs", "costs_of"]

IMAGES = 8
STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of an image: to ask the guard, and to climb the relaxed guard's gradient once."""

    asked_s: float
    climbed_s: float

    def of(self, passes: Passes, images: int) -> float:
        """Return the seconds that so many passes of so many images take at most.

        Attacks leave an image once it evades; how early they do shows as they go.
        """
        one = passes.asked * self.asked_s + (passes.climbed + passes.exact) * self.climbed_s
        return images * one


def costs_of(target: Target, attack: Aware) -> Costs:
    """Return what passes cost, by a few on the first images.

    Args:
        target: what is attacked. Timed is the guard in this process, whoever answers its questions:
            a server that counts them is asked none for this.
        attack: a gradient attack on it.
    """
    images, labels = target.images[:IMAGES], target.labels[:IMAGES]
    short = replace(attack, steps=STEPS, restarts=1)

    def seconds(work: Callable[[], object]) -> float:
        work()  # warms up
        return busy_seconds(work) / len(images)

    climbed = seconds(lambda: short(images, labels, target.victim, seed=0))
    asked = seconds(lambda: target.guard.inspect(images))
    return Costs(asked_s=asked, climbed_s=climbed / short.passes.exact)

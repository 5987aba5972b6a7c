"""How long a red team's attacks will take: one is timed, and each says how many passes it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reluguard.training.attacks import HopSkipJump, Passes, Square
from reluguard.training.attacks.budget import Norm
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.progress import Planned
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.convergence import step_counts
from reluguard.training.red_team.effort import Effort
from reluguard.training.red_team.hunt import attacks_on, restarts_of
from reluguard.training.red_team.target import Target

__all__ = ["Costs", "costs_of", "redteam_steps"]

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


def redteam_steps(
    target: Target,
    budgets: Sequence[float],
    effort: Effort,
    ladders: Mapping[Norm, Sequence[float]],
) -> list[Planned]:
    """Return what is to come, in its order, and how long it takes where no image evades early.

    Args:
        target: what is attacked; one attack on it is timed.
        budgets: Linf, in 8-bit steps.
        effort: how hard is tried.
        ladders: by norm, the budgets to climb.
    """
    n = len(target)
    by_budget = [attacks_on(target, size, effort) for size in sorted(budgets)]
    first = next(one for one in by_budget[0] if isinstance(one, Aware))
    costs = costs_of(target, first)
    steps = [
        Planned(attack.name, costs.of(attack.passes, n * restarts_of(attack, effort)))
        for attacks in by_budget
        for attack in attacks
    ]
    climb_once = Passes(exact=effort.ladder_steps)
    for norm, rungs in ladders.items():
        # an image climbs half of the rungs: the bare model once, the guard by two attacks twice
        tries = n * len(rungs) * 5 // 2
        steps.append(Planned(f"ladder of {norm}", costs.of(climb_once, tries)))
    for norm in ladders:  # one gradient on the bare model, two on the guard
        tries = 3 * n * effort.restarts
        steps.append(Planned(f"smallest change in {norm}", costs.of(climb_once, tries)))
    if effort.asking:
        asked = Square(most_queries=effort.queries).passes.asked + HopSkipJump().passes.asked
        some = 2 * min(n, effort.asking)
        steps.append(Planned("answers and flags only", costs.of(Passes(asked=asked), some)))
    again = sum(step_counts(effort.steps))
    return [*steps, Planned("more steps", costs.of(Passes(exact=again), n))]

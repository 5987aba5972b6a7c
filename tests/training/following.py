"""What a callback must have been told in the course of a command, whatever the command."""

from collections.abc import Sequence
from itertools import pairwise

from reluguard.training.progress import Step


def assert_told_to_the_end(steps: Sequence[Step], *titles: str) -> None:
    """Shares of the whole never fall and end at 1, nothing is left then, and each step was there.

    So every step that comes was planned, and none was planned that does not come.

    Args:
        steps: all that was told.
        titles: of the steps, in their order.
    """
    found = [step.title for step in steps]
    order = [found[0], *(after for before, after in pairwise(found) if after != before)]
    assert tuple(order) == titles
    shares = [step.command_share for step in steps if step.command_share is not None]
    assert shares == sorted(shares)
    assert (shares[-1], steps[-1].command_left_s) == (1.0, 0.0)
    assert all(share < 1 for share in shares[:-1])
    last = max(i for i, step in enumerate(steps) if step.title != titles[-1])
    left = steps[last].command_left_s
    assert left is not None  # what remains was known before the last step began
    assert left >= 0

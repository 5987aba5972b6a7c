"""How hard a red team tries."""

from dataclasses import dataclass

from reluguard.training.errors import AttackError

__all__ = ["STANDARD", "Effort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try.

    Attributes:
        steps: of each run of a gradient attack.
        restarts: runs of each gradient attack on an image that does not evade.
        queries: most questions of the black box for one image.
        ladder_steps: of each run up a ladder of budgets, which is many runs.
        asking: most images of those who see answers and flags only, who ask more than a thousand
            questions each; 0 leaves them out.
        everyone: whether each attack tries all images, so that attacks can be compared; otherwise
            all but the first of a budget try those that are left, which finds the same evasions.
    """

    steps: int = 100
    restarts: int = 2
    queries: int = 1000
    ladder_steps: int = 100
    asking: int = 20
    everyone: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.queries, self.ladder_steps) < 1:
            raise AttackError(f"expected steps, restarts and queries of 1 or more, got {self}")
        if self.asking < 0:
            raise AttackError(f"expected 0 or more images to ask about, got {self.asking}")


# the least that counts as an honest try. Source: Carlini et al. 2019, arXiv 1902.06705
STANDARD = Effort(steps=1000, restarts=5, everyone=False)

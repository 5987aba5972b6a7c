"""Attacks by name. `ATTACKS` is the explicit list; `attack_named` also finds attacks of yours."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from training.attacks.base import Attack, AttackResult, Goal
from training.attacks.budget import Budget
from training.attacks.gradient import BIM, FGSM, MIFGSM, PGD
from training.attacks.victim import Victim, open_victim
from training.errors import AttackError

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "Budget",
    "Goal",
    "Victim",
    "attack_named",
    "open_victim",
]

_MAKERS: tuple[Callable[[], Attack], ...] = (
    *(lambda size=size: FGSM(size=size) for size in (1.0, 2.0, 4.0, 8.0)),
    *(lambda size=size: PGD(size=size) for size in (1.0, 2.0, 4.0, 8.0)),
    lambda: PGD(norm="l2", size=0.25),
    lambda: PGD(norm="l2", size=0.5),
    lambda: PGD(norm="l1", size=12.0),
    lambda: BIM(size=4.0),
    lambda: MIFGSM(size=4.0),
)

ATTACKS: Mapping[str, Callable[[], Attack]] = MappingProxyType(
    {make().name: make for make in _MAKERS}
)


def attack_named(text: str) -> Attack:
    """Return an attack by its name in `ATTACKS`.

    Raises:
        AttackError: no such attack.
    """
    if text not in ATTACKS:
        raise AttackError(f"expected an attack of {', '.join(ATTACKS)}, got {text!r}")
    return ATTACKS[text]()

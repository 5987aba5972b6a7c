"""Attacks by name.

`ATTACKS` is the explicit list. `attack_named` also finds what others registered under the entry
point group `reluguard.attacks`, and a class of yours as `module:Class`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from reluguard.training.attacks.auto_pgd import APGD
from reluguard.training.attacks.base import Attack, AttackResult, Goal, Passes
from reluguard.training.attacks.budget import Budget
from reluguard.training.attacks.carlini import CWL2
from reluguard.training.attacks.chance import RandomSearch
from reluguard.training.attacks.fab import FAB
from reluguard.training.attacks.gradient import BIM, FGSM, MIFGSM, PGD
from reluguard.training.attacks.library import FromART
from reluguard.training.attacks.minimal import FMN, DeepFool
from reluguard.training.attacks.pushed import Pushed
from reluguard.training.attacks.query import HopSkipJump, Square
from reluguard.training.attacks.sparse import Patch, SparsePGD
from reluguard.training.attacks.spatial import Spatial
from reluguard.training.attacks.through import PGDThrough
from reluguard.training.attacks.transfer import Ensemble, Transfer
from reluguard.training.attacks.varied import Varied, VariedQueries
from reluguard.training.attacks.victim import Victim, open_victim
from reluguard.training.errors import AttackError
from reluguard.training.plugged import Shelf

__all__ = [
    "APGD",
    "ATTACKS",
    "BIM",
    "CWL2",
    "FAB",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "Budget",
    "DeepFool",
    "Ensemble",
    "FromART",
    "Goal",
    "HopSkipJump",
    "PGDThrough",
    "Passes",
    "Patch",
    "Pushed",
    "RandomSearch",
    "SparsePGD",
    "Spatial",
    "Square",
    "Transfer",
    "Varied",
    "VariedQueries",
    "Victim",
    "attack_named",
    "open_victim",
]

GROUP = "reluguard.attacks"

_MAKERS: tuple[Callable[[], Attack], ...] = (
    lambda: FGSM(size=1.0),
    lambda: FGSM(size=2.0),
    lambda: FGSM(size=4.0),
    lambda: FGSM(size=8.0),
    lambda: BIM(size=4.0),
    lambda: MIFGSM(size=4.0),
    lambda: PGD(size=1.0),
    lambda: PGD(size=2.0),
    lambda: PGD(size=4.0),
    lambda: PGD(size=8.0),
    lambda: PGD(size=4.0, steps=40),
    lambda: PGD(size=4.0, early_stop=True),
    lambda: PGD(norm="l2", size=0.25),
    lambda: PGD(norm="l2", size=0.5),
    lambda: PGD(norm="l1", size=12.0),
    PGDThrough,
    lambda: PGDThrough(size=8.0),
    lambda: APGD(loss="ce", size=4.0),
    lambda: APGD(loss="dlr", size=4.0),
    DeepFool,
    lambda: DeepFool(overshoot=0.5),
    lambda: DeepFool(overshoot=1.0),
    lambda: FMN(norm="l2"),
    lambda: FMN(norm="linf"),
    FAB,
    lambda: FAB(norm="linf"),
    CWL2,
    lambda: CWL2(confidence=5.0),
    lambda: CWL2(confidence=10.0),
    lambda: CWL2(confidence=20.0),
    SparsePGD,
    Patch,
    Square,
    HopSkipJump,
    RandomSearch,
    Pushed,
    Spatial,
    lambda: Spatial(padding="border"),
    Transfer,
    Ensemble,
    lambda: Ensemble(with_twin=False),
    lambda: FromART(attack="NewtonFool", arguments=(("max_iter", 20), ("verbose", False))),
)

ATTACKS: Mapping[str, Callable[[], Attack]] = MappingProxyType(
    {make().name: make for make in _MAKERS}
)


def attack_named(text: str) -> Attack:
    """Return an attack by its name in `ATTACKS`, by entry point, or as `module:Class`.

    Raises:
        AttackError: there is none, or what is there is not an attack.
    """
    return Shelf(
        what="attack",
        kind=Attack,  # type: ignore[type-abstract]  # only asked whether something is one
        group=GROUP,
        own=ATTACKS,
        refusal=AttackError,
    ).named(text)

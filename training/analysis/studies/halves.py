"""Source images to fit a detector on and others to test it on. P images, L taps.

Only images that the attack turned from right to wrong are in either half, each beside its clean
version and beside noise as large.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Ints, Packed
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.recording import Recording
from reluguard.training.errors import ShapeError

__all__ = [
    "FEWEST",
    "KINDS",
    "Halves",
    "Kind",
    "fooled_enough",
    "halves_of",
    "patterns_of",
    "rates_of",
]

Kind = Literal["clean", "attacked", "noise"]
KINDS: tuple[Kind, ...] = ("clean", "attacked", "noise")
FEWEST = 8  # successes that can be halved


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """Indices into the P images, successes of one attack only, no image in both."""

    fit: Ints
    test: Ints


def fooled_enough(material: Material) -> tuple[str, ...]:
    """Return the attacks that have successes enough, the main one first.

    Raises:
        ShapeError: the main attack has too few.
    """
    successes = {name: int(flags.sum()) for name, flags in material.success.items()}
    if successes[material.main] < FEWEST:
        raise ShapeError(
            f"expected {FEWEST} or more successes of {material.main}, got "
            f"{successes[material.main]}: give more images, or by --attack one that changes more"
        )
    return tuple(name for name, count in successes.items() if count >= FEWEST)


def halves_of(material: Material, attack: str) -> Halves:
    """Return every other success of an attack to fit on, and those between to test on."""
    rows = np.flatnonzero(material.success[attack])
    return Halves(fit=rows[::2], test=rows[1::2])


def patterns_of(material: Material, attack: str, kind: Kind, tap: int, rows: Ints) -> Packed:
    """Return the packed bits at one tap: uint8, (R, W).

    Args:
        material: the network.
        attack: whose versions, and noise as large as whose.
        kind: clean, attacked, or with noise.
        tap: which, counted from 0.
        rows: int64, (R,). Which of the P images.
    """
    recording, places = _found(material, attack, kind, rows)
    return np.asarray(recording.patterns[tap][places])


def rates_of(material: Material, attack: str, kind: Kind, rows: Ints) -> NDArray[np.float32]:
    """Return the firing rates of all channels of all taps: float32, (R, channels); see above."""
    recording, places = _found(material, attack, kind, rows)
    return np.concatenate([rates[places] for rates in recording.rates], axis=1)


def _found(material: Material, attack: str, kind: Kind, rows: Ints) -> tuple[Recording, Ints]:
    if kind == "clean":  # it holds all N images, the others only the P attacked
        return material.clean, material.rows[rows]
    return (material.attacked if kind == "attacked" else material.noise)[attack], rows

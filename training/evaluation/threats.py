"""Threat models, which an honest report never mixes: what the attacker knows and may do."""

from collections.abc import Mapping
from types import MappingProxyType

from reluguard.training.attacks import Attack, Patch, Spatial

__all__ = ["AWARE", "THREATS", "threat_of"]

AWARE = "knows the guard"

THREATS: Mapping[str, str] = MappingProxyType(
    {
        "white box": "gradients of the model; nothing of the guard",
        "black box": "answers of the model only, by many questions",
        "transfer": "another model of the same task only",
        "place": "turns, shifts or covers part of the image: no small norm",
        AWARE: "everything: model, guard and thresholds",
    }
)


def threat_of(attack: Attack) -> str:
    """Return the threat model of an attack that knows nothing of the guard: a key of THREATS."""
    if attack.needs_surrogates:
        return "transfer"
    if isinstance(attack, (Patch, Spatial)):
        return "place"
    return "white box" if attack.needs_gradients else "black box"

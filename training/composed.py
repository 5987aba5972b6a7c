"""Names of composed attacks: an attack, and what its images went through afterwards.

Nobody uploads an attacked image as it is: it is cropped, encoded again, brightened. `pgd-linf-4`
and then `changed` is `pgd-linf-4+changed`, a group of its own of the same family.
"""

__all__ = ["SEPARATOR", "attack_of", "change_of", "composed_name", "is_composed"]

SEPARATOR = "+"


def composed_name(attack: str, change: str) -> str:
    """Return what an attack and then a harmless change is called."""
    return f"{attack}{SEPARATOR}{change}"


def is_composed(name: str) -> bool:
    """Return whether a group is of attacked images that were changed afterwards."""
    return SEPARATOR in name


def attack_of(name: str) -> str:
    """Return the attack of a group, composed or not."""
    return name.partition(SEPARATOR)[0]


def change_of(name: str) -> str:
    """Return what came after the attack, empty where nothing did."""
    return name.partition(SEPARATOR)[2]

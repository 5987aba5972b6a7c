"""How alike two classes' names are, by a small tree of words. K classes.

The tree holds the classes of CIFAR-10 and of Imagenette. It was made by hand for this project, in
the manner of WordNet's tree of nouns (Fellbaum 1998): every word hangs under a more general one, at
about the depth that WordNet has it. It is no copy of WordNet, and knows no other words.

Source: Wu and Palmer 1994, for the measure; Dong et al. 2017, arXiv 1708.05493, grade labels by
WordNet, by a measure we don't know.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from reluguard.training.analysis.checks import Floats

__all__ = ["depth", "known_word", "likeness", "likeness_table"]

_PATHS = """
thing > object > whole > living thing > organism > animal > vertebrate
vertebrate > aquatic vertebrate > fish > bony fish > soft-finned fish > cyprinid > tench
vertebrate > amphibian > frog
vertebrate > bird
vertebrate > mammal > placental
placental > carnivore > feline > cat
placental > carnivore > canine > dog > hunting dog > sporting dog > spaniel > english springer
placental > hoofed mammal > even-toed ungulate > ruminant > deer
placental > hoofed mammal > odd-toed ungulate > equine > horse
whole > artifact > structure > building > place of worship > church
artifact > instrumentality > conveyance > vehicle > craft
craft > aircraft > heavier-than-air craft > airplane
craft > vessel > ship
vehicle > wheeled vehicle > self-propelled vehicle > motor vehicle > automobile
motor vehicle > truck > garbage truck
instrumentality > equipment > electronic equipment > cassette player
equipment > game equipment > ball > golf ball
equipment > rescue equipment > parachute
instrumentality > device > musical instrument > wind instrument > brass > french horn
device > mechanism > mechanical device > pump > gas pump
instrumentality > implement > tool > power tool > power saw > chain saw
"""
_SAME = {
    "aeroplane": "airplane",
    "plane": "airplane",
    "car": "automobile",
    "english springer spaniel": "english springer",
    "springer": "english springer",
    "chainsaw": "chain saw",
    "gas station pump": "gas pump",
    "petrol pump": "gas pump",
}


def _parents() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _PATHS.strip().splitlines():
        words = line.split(" > ")
        for above, word in itertools.pairwise(words):
            assert found.setdefault(word, above) == above, word
    return found


_ABOVE = _parents()


def known_word(name: str) -> str | None:
    """Return the tree's word for a class's name, None where it has none.

    Letter case, underscores, hyphens for blanks and numbers in front are passed over, and of names
    separated by commas the first that is known counts.
    """
    for part in name.split(","):
        plain = re.sub(r"^[n\d\s_-]*\d[\s_-]+", "", part.strip().lower())
        for word in (plain, plain.replace("_", " "), re.sub(r"[_-]", " ", plain)):
            word = _SAME.get(word, word)  # noqa: PLW2901 - another spelling of the same
            if word in _ABOVE:
                return word
    return None


def _line(word: str) -> list[str]:
    """Return a word and all above it, the root last."""
    line = [word]
    while line[-1] in _ABOVE:
        line.append(_ABOVE[line[-1]])
    return line


def depth(word: str) -> int:
    """Return how deep a word of the tree hangs; the root is at 1."""
    return len(_line(word))


def likeness(one: str, other: str) -> float:
    """Return how alike two words of the tree are, in (0, 1]; one means the same word.

    Twice the depth of the lowest word above both, by the sum of their depths.
    """
    above = set(_line(one))
    shared = next(word for word in _line(other) if word in above)
    return 2 * depth(shared) / (depth(one) + depth(other))


def likeness_table(names: Sequence[str]) -> Floats | None:
    """Return how alike all classes are: float64, (K, K); None where the tree lacks one of them."""
    words = [known_word(name) for name in names]
    known = [word for word in words if word is not None]
    if len(known) < len(words) or not known:
        return None
    return np.array([[likeness(a, b) for b in known] for a in known])

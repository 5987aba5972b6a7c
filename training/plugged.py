"""What other distributions bring, by entry point: attacks, harmless changes, recipes.

A name is looked for among reluguard's own first, then in the entry points of a group, then as
`module:name` or `file.py:name` of the user's. So no distribution can change what one of our own
names means.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from reluguard.detector.errors import DetectorError, did_you_mean
from reluguard.training.lent import Lent

__all__ = ["Shelf"]

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf(Generic[Kind]):
    """Things of one kind, by name.

    Attributes:
        what: one is called in words, like "attack".
        kind: the class that each is of.
        group: the entry points that bring more.
        own: makes each of reluguard's own.
        refusal: raised where there is none of a name, or what is there is something else.
    """

    what: str
    kind: type[Kind]
    group: str
    own: Mapping[str, Callable[[], Kind]]
    refusal: type[DetectorError]

    def named(self, text: str) -> Kind:
        """Return one by name: our own, another distribution's, or the user's as `module:name`.

        Raises:
            DetectorError: of class `refusal`. There is none of this name, two distributions have
                one, or what is there fails or is of another kind.
        """
        if text in self.own:
            return self.own[text]()
        if ":" in text:
            lent = Lent(text, self.what, self.refusal)
            return self._made(lent.find(), lent)
        found = [entry for entry in entry_points(group=self.group) if entry.name == text]
        if len({(_distribution(entry), entry.value) for entry in found}) > 1:
            several = " and ".join(sorted({_distribution(entry) for entry in found}))
            raise self.refusal(
                f"expected one {self.what} called {text!r}, {several} have one each: name the one "
                f"that is meant as {' or '.join(sorted({entry.value for entry in found}))}"
            )
        if found:
            text = f"{text} of {_distribution(found[0])}"
            lent = Lent(text, self.what, self.refusal)
            return self._made(lent.make(found[0].load), lent)
        others = self.brought()
        article = "an" if self.what[0] in "aeiou" else "a"
        raise self.refusal(
            f"expected {article} {self.what} of {', '.join((*self.own, *others))}, or module:name "
            f"of yours, got {text!r}{did_you_mean(text, (*self.own, *others))}"
        )

    def brought(self) -> tuple[str, ...]:
        """Return the names that other distributions bring, in alphabetical order."""
        names = {entry.name for entry in entry_points(group=self.group)}
        return tuple(sorted(names - set(self.own)))

    def _made(self, found: object, lent: Lent) -> Kind:
        is_it = isinstance(found, self.kind)
        made = lent.make(found) if callable(found) and not is_it else found
        if not isinstance(made, self.kind):
            article = "an" if self.kind.__name__[0] in "AEIOU" else "a"
            raise self.refusal(
                f"expected {lent.text} to be {article} {self.kind.__name__}, got "
                f"{type(made).__name__}"
            )
        return made


def _distribution(entry: EntryPoint) -> str:
    """Return which distribution an entry point is of, with its version."""
    found = entry.dist
    return f"{found.name} {found.version}" if found is not None else entry.value

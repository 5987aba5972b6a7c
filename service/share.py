"""What one of several processes of a server has in common with the others."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from reluguard.service.quotas import Uses

__all__ = ["ALONE", "Share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One process's part.

    Attributes:
        number: of this process, from 0; number 0 does what one has to do for all.
        of: processes there are.
        key: secret of all processes; None for one of its own.
        watch: handle of the table of who asked what, of all processes; None for one of its own.
        uses: what callers have used, of all processes; None for an account of one's own.
        decide: takes a line of the decision log to the one who writes it.
        change: asks for a model to be loaded ("load") or unloaded ("unload") in all processes.
        loaded: models that were loaded by name since the server started.
        unloaded: models that were unloaded.
    """

    number: int = 0
    of: int = 1
    key: bytes | None = None
    watch: int | None = None
    uses: Uses | None = None
    decide: Callable[[str], None] | None = None
    change: Callable[[str, str], Awaitable[None]] | None = None
    loaded: Sequence[str] = ()
    unloaded: Sequence[str] = ()

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.of == 1

    @property
    def leads(self) -> bool:
        """Whether this process does what one has to do for all."""
        return self.number == 0


ALONE = Share()

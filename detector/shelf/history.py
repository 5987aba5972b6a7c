"""The history of a shelf: one line of JSON per change, appended and flushed to disk.

The order of history is that of its lines: the clock is only written down.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reluguard.detector.errors import GuardError

__all__ = ["HISTORY", "Change", "ShelfError", "append", "earlier", "history"]

HISTORY = "history.jsonl"


class ShelfError(GuardError):
    """A promotion or rollback is refused, or the shelf's own files are damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of history.

    Attributes:
        number: of the change, from 1.
        action: "promote", "rollback", "shadow" (it scores beside the current one from now on) or
            "clear" (it no longer does).
        guard: the digest of the version that became current or challenger, or was cleared.
        before: the digest of the one that was, or None.
        who: whoever says so.
        why: in their words.
        when: by the clock of the machine, ISO 8601.
        forced: whether the gate had refused, or never judged.
    """

    number: int
    action: str
    guard: str
    before: str | None
    who: str
    why: str
    when: str
    forced: bool = False


def history(shelf: Path) -> list[Change]:
    """Return every change in the order it was made; a last line that was cut does not count.

    Raises:
        ShelfError: a line before the last is damaged.
    """
    changes: list[Change] = []
    for number, line in enumerate(_whole_lines(shelf), 1):
        try:
            changes.append(Change(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ShelfError(f"line {number} of {shelf / HISTORY} is damaged") from error
    return changes


def append(shelf: Path, change: Change) -> None:
    """Write a change behind the last whole line. The caller holds the shelf's lock."""
    lines = _whole_lines(shelf)
    with (shelf / HISTORY).open("ab") as stream:
        stream.truncate(sum(map(len, lines)))
        stream.write(json.dumps(asdict(change)).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def earlier(changes: Sequence[Change], live: str | None) -> list[str]:
    """Return the versions below the current one, oldest first: promote adds, rollback takes off.

    A change after which something else was current never took effect: we died before the pointer.
    """
    moves = [change for change in changes if change.action in {"promote", "rollback"}]
    after = [*(change.before for change in moves[1:]), live]
    stack: list[str] = []
    for change, came in zip(moves, after, strict=bool(moves)):
        if change.guard != came:
            continue
        if change.action == "rollback":
            while stack and stack[-1] != change.guard:
                stack.pop()
        elif not stack or stack[-1] != change.guard:
            stack.append(change.guard)
    return stack[:-1]


def _whole_lines(shelf: Path) -> list[bytes]:
    file = shelf / HISTORY
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]

"""The decision log: what was answered to whom, as JSON lines, off the request path. Never pixels.

One line per image that was flagged or not scored, per near-equal question of a caller under
suspicion, per share of the others, and per caller whose token was refused, of which so many a
minute are told and the rest counted. The file is rotated by size; lines that nobody could write in
time are counted.
"""

import json
import logging
import logging.handlers
import math
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as PromCounter

from reluguard.detector.verdict import Verdicts
from reluguard.service.errors import StartError
from reluguard.service.monitoring.exported import Exported
from reluguard.service.watching.watch import Seen, as_shown

__all__ = [
    "Decision",
    "DecisionFile",
    "DecisionLog",
    "Trouble",
    "decisions_dropped",
    "open_decisions",
]

_log = logging.getLogger(__name__)
_QUEUE = 4096
_CLOSE_S = 2.0
_WINDOW_S = 60.0
_MOST_REFUSED, _MOST_OF_ONE = 600, 60  # in that time: whoever has no token fills no disk
_draw = random.Random()  # noqa: S311 - which clean images are told is no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One answered request, or one that was refused for what the watch had `seen`.

    `verdicts` are those of the guard, whatever its caller may see.
    """

    time: float
    request: str
    capture: str
    caller: str
    model: str
    guard: str
    policy: str
    fail: str
    latency_s: float
    verdicts: Verdicts
    seen: Seen | None = None


def decisions_dropped(registry: CollectorRegistry) -> PromCounter:
    """Return what counts lost entries: of a server, or of the one who writes for several."""
    return PromCounter(
        "reluguard_decisions_dropped_total",
        "Entries of the decision log that were lost.",
        registry=registry,
    )


@dataclass(slots=True)
class Trouble:
    """Why lines are being lost, logged once: the log may be on the same full disk."""

    _last: str = ""

    def tell(self, error: Exception) -> None:
        """Log what went wrong, unless it is what went wrong before."""
        if str(error) != self._last:
            _log.error("decisions are being lost: %s", error)
        self._last = str(error)

    def end(self) -> None:
        """Go on: a line was written."""
        self._last = ""


class DecisionLog:
    """What makes lines of decisions: a bounded queue and one thread.

    Args:
        write: takes one line, and may raise OSError: `DecisionFile.write`, or what leads there;
            None for no file.
        share: of images that are neither flagged nor unscored, in [0, 1].
        dropped: told of each decision or refusal that could not be written.
        export: takes one line as plain values; None for nobody.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None,
        *,
        share: float,
        dropped: Callable[[], None],
        export: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._share, self._dropped = share, dropped
        self._put_down, self._export = write, export
        self._since, self._untold = -math.inf, 0
        self._told: Counter[str] = Counter()
        self._trouble = Trouble()
        self._queue: queue.Queue[Decision | dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._write, name="decisions", daemon=True)
        self._thread.start()

    def add(self, decision: Decision) -> None:
        """Queue a request's decisions; never waits."""
        self._put(decision)

    def refused(self, *, caller: str, request: str, reason: str) -> None:
        """Queue that a caller's token was refused; the next line counts those that had no line.

        Whoever guesses tokens could push everybody's decisions out of the files otherwise.

        Args:
            caller: the address it came from.
            request: what it calls its request.
            reason: in the words it was told.
        """
        now = time.monotonic()
        if now - self._since >= _WINDOW_S:
            self._since = now
            self._told.clear()
        if self._told[caller] >= _MOST_OF_ONE or self._told.total() >= _MOST_REFUSED:
            self._untold += 1
            return
        self._told[caller] += 1
        self._put(
            {
                "time": _moment(time.time()),
                "event": "unauthenticated",
                "request": request,
                "caller": caller,
                "reason": reason,
                **({"untold": self._untold} if self._untold else {}),
            }
        )
        self._untold = 0

    def close(self) -> None:
        """Write what is queued and end; a stuck disk is given up."""
        try:
            self._queue.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)

    def _put(self, what: Decision | dict[str, Any]) -> None:
        try:
            self._queue.put_nowait(what)
        except queue.Full:
            self._dropped()

    def _write(self) -> None:
        while (what := self._queue.get()) is not None:
            try:
                for line in [what] if isinstance(what, dict) else self._lines(what):
                    if self._export is not None:
                        self._export(line)
                    if self._put_down is not None:
                        self._put_down(json.dumps(line, ensure_ascii=False))
            except Exception as error:  # noqa: BLE001 - the next ones may well be written
                self._dropped()
                self._trouble.tell(error)
            else:
                self._trouble.end()

    def _lines(self, decision: Decision) -> list[dict[str, Any]]:
        told = {
            "time": _moment(decision.time),
            "event": "decision",
            "request": decision.request,
            "capture": decision.capture,
            "caller": decision.caller,
            "model": decision.model,
            "guard": decision.guard,
            "policy": decision.policy,
            "latency_ms": round(decision.latency_s * 1000, 3),
        }
        verdicts, seen = decision.verdicts, decision.seen
        lines = []
        for row in range(len(verdicts)):
            if verdicts.unscored[row]:
                word, withheld = "unscored", decision.fail == "closed"
            else:
                withheld = bool(verdicts.is_adversarial[row])
                word = "adversarial" if withheld else "clean"
            told_anyway = seen is not None and seen.is_told(row)
            if word == "clean" and not told_anyway and _draw.random() >= self._share:
                continue
            lines.append(
                {
                    **told,
                    "row": row,
                    "verdict": word,
                    "withheld": withheld and decision.policy == "reject",
                    "p_value": round(float(verdicts.p_value[row]), 6),
                    "prediction": int(verdicts.prediction[row]),
                    **({"look": 2} if verdicts.look[row] == 2 else {}),
                    **({} if seen is None else as_shown(seen, row)),
                }
            )
        return lines


class DecisionFile(logging.handlers.RotatingFileHandler):
    """A rotated file that says when it can't be written. Safe to write from any thread.

    Where somebody else moved or removed it, as logrotate does, the next line begins another.

    Args:
        path: of the newest file; older ones are PATH.1, PATH.2 and so on.
        max_bytes: of one file.
        files: kept besides the newest.

    Raises:
        StartError: the file can't be written.
    """

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, maxBytes=max_bytes, backupCount=files, encoding="utf-8")
        except OSError as error:
            raise StartError(f"the decision log {path} can't be written: {error}") from error

    def write(self, line: str) -> None:
        """Append a line.

        Raises:
            OSError: the disk is full or can't be written.
        """
        with self.lock or nullcontext():
            if self.stream is not None and self.stream.closed:  # by a rotation that failed
                self.stream = None
            self._follow()
            self.emit(logging.makeLogRecord({"msg": line}))

    def _follow(self) -> None:
        if self.stream is None:  # the last line could not be written: the next one opens it
            return
        path, ours = Path(self.baseFilename), os.fstat(self.stream.fileno())
        with suppress(FileNotFoundError):
            there = path.stat()
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        stream, self.stream = self.stream, None  # emit opens it, as after a failure
        with suppress(OSError):  # it was counted when it could not be written
            stream.close()
        path.parent.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """End; what a full disk did not take is counted already."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Let the writer count it; the base class prints a trace for each."""
        del record
        raise  # noqa: PLE0704 - called while an error is handled


@contextmanager
def open_decisions(
    path: Path | None,
    *,
    max_bytes: int,
    files: int,
    share: float,
    dropped: Callable[[], None],
    write: Callable[[str], None] | None = None,
    export: Exported | None = None,
) -> Iterator[DecisionLog | None]:
    """Hold the decision log open that was asked for, None where none was.

    Args:
        path: of the newest file; None for no file.
        max_bytes: of one file.
        files: kept besides the newest.
        share: of the clean ones that are written.
        dropped: told of each entry that is lost.
        write: takes lines in place of a file of one's own.
        export: takes them too; closed with the log.

    Raises:
        StartError: the file can't be written.
    """
    if write is None and path is None and export is None:
        yield None
        return
    with ExitStack() as held:
        if export is not None:
            held.callback(export.close)
        if write is None and path is not None:
            file = DecisionFile(path, max_bytes=max_bytes, files=files)
            held.callback(file.close)
            write = file.write
        log = DecisionLog(write, share=share, dropped=dropped, export=export)
        held.callback(log.close)
        yield log


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

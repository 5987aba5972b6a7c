"""How much one caller may ask for: calls at once, calls and rows a second.

A caller is the name of its token or, where there are no tokens, the address it comes from. What is
allowed in a second may come at once, and grows back steadily.

Source: the token bucket of Turner 1986, New directions in communications.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from reluguard.service.errors import OverloadedError

__all__ = ["Bucket", "Quota", "QuotaRefusal", "Quotas", "Use", "Uses"]

QuotaRefusal = Literal["calls_at_once", "calls_per_second", "rows_per_second"]
_MOST_CALLERS = 10_000  # addresses can be made up: the longest unseen are forgotten
_PUSHBACK_S = 0.1
_LONGEST_PUSHBACK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one caller may use; None for any amount."""

    calls: int | None = None
    calls_per_s: float | None = None
    rows_per_s: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is limited."""
        return self.calls is None and self.calls_per_s is None and self.rows_per_s is None

    def or_else(self, other: "Quota") -> "Quota":
        """Return this quota, with another's limits where it has none."""
        return Quota(
            calls=other.calls if self.calls is None else self.calls,
            calls_per_s=other.calls_per_s if self.calls_per_s is None else self.calls_per_s,
            rows_per_s=other.rows_per_s if self.rows_per_s is None else self.rows_per_s,
        )


@dataclass(slots=True)
class Bucket:
    """What is left of a second's allowance; `at` is in the event loop's time, None for never."""

    left: float = 0.0
    at: float | None = None

    def take(self, amount: float, per_s: float, now: float) -> float:
        """Take an amount and return 0, or how long to wait for it."""
        # more than a second's worth goes when the bucket is full, and leaves it in debt
        most = max(per_s, 1.0)
        grown = most if self.at is None else self.left + (now - self.at) * per_s
        self.left = min(most, grown)
        self.at = now
        needed = min(amount, most)
        if self.left < needed:
            return (needed - self.left) / per_s
        self.left -= amount
        return 0.0


@dataclass(slots=True)
class Use:
    """What one caller has used, and how many of its calls are being handled."""

    calls: int
    by_call: Bucket
    by_row: Bucket

    @classmethod
    def none(cls) -> "Use":
        """Return the account of a caller never seen."""
        return cls(0, Bucket(), Bucket())


class Uses(Protocol):
    """The accounts of all callers."""

    def held(self, who: str) -> AbstractContextManager[Use]:
        """Give a caller's account, nobody else's meanwhile; what is changed in it is kept.

        Raises:
            OverloadedError: there are too many callers at once.
        """


class _Own:
    """The accounts of one process."""

    def __init__(self) -> None:
        self._use: OrderedDict[str, Use] = OrderedDict()

    @contextmanager
    def held(self, who: str) -> Iterator[Use]:
        use = self._use.get(who)
        if use is None:
            use = self._use[who] = Use.none()
            if len(self._use) > _MOST_CALLERS:
                self._forget()
        else:
            self._use.move_to_end(who)
        yield use

    def _forget(self) -> None:
        """Forget who was not seen for longest and has no call."""
        for who, use in self._use.items():
            if not use.calls:
                del self._use[who]
                return


class Quotas:
    """What callers may still use. Belongs to one event loop.

    Args:
        quota: of a caller who has none of its own.
        refused: told why a call was refused.
        uses: what callers have used, where several processes keep one account of it.
    """

    def __init__(
        self, quota: Quota, refused: Callable[[QuotaRefusal], None], uses: Uses | None = None
    ) -> None:
        self._quota = quota
        self._refused = refused
        self._uses = _Own() if uses is None else uses

    def enter(self, who: str, own: Quota | None = None) -> bool:
        """Count one call in and return whether it is counted; `leave` undoes that.

        Raises:
            OverloadedError: the caller has used what it may.
        """
        quota = self._quota if own is None else own.or_else(self._quota)
        if quota.is_open:
            return False
        with self._uses.held(who) as use:
            if quota.calls is not None and use.calls >= quota.calls:
                self._refused("calls_at_once")
                raise OverloadedError(
                    f"expected at most {quota.calls} calls of one caller at once",
                    retry_after_s=_PUSHBACK_S,
                )
            if quota.calls_per_s is not None:
                self._spend(use.by_call, 1, quota.calls_per_s, "calls_per_second")
            use.calls += 1
        return True

    def leave(self, who: str) -> None:
        """Count one call out."""
        with self._uses.held(who) as use:
            use.calls -= 1

    def rows(self, who: str, rows: int, own: Quota | None = None) -> None:
        """Count the rows of a call.

        Raises:
            OverloadedError: the caller has used what it may.
        """
        quota = self._quota if own is None else own.or_else(self._quota)
        if quota.rows_per_s is not None:
            with self._uses.held(who) as use:
                self._spend(use.by_row, rows, quota.rows_per_s, "rows_per_second")

    def _spend(self, bucket: Bucket, amount: int, per_s: float, reason: QuotaRefusal) -> None:
        wait = bucket.take(amount, per_s, asyncio.get_running_loop().time())
        if wait > 0:
            self._refused(reason)
            what = reason.partition("_")[0]
            raise OverloadedError(
                f"expected at most {per_s:g} {what} a second of one caller",
                retry_after_s=min(max(wait, _PUSHBACK_S), _LONGEST_PUSHBACK_S),
            )

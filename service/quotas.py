"""How much one caller may ask for: calls at once, calls and rows a second.

A caller is the name of its token or, where there are no tokens, the address it comes from. What is
allowed in a second may come at once, and grows back steadily.

Source: the token bucket of Turner 1986, New directions in communications.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reluguard.service.errors import OverloadedError

__all__ = ["Quota", "QuotaRefusal", "Quotas"]

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
class _Bucket:
    """What is left of a second's allowance."""

    left: float
    at: float

    def take(self, amount: float, per_s: float, now: float) -> float:
        """Take an amount and return 0, or how long to wait for it."""
        # more than a second's worth goes when the bucket is full, and leaves it in debt
        most = max(per_s, 1.0)
        self.left = min(most, self.left + (now - self.at) * per_s)
        self.at = now
        needed = min(amount, most)
        if self.left < needed:
            return (needed - self.left) / per_s
        self.left -= amount
        return 0.0


@dataclass(slots=True)
class _Use:
    calls: int
    by_call: _Bucket
    by_row: _Bucket


class Quotas:
    """What callers have used. Belongs to one event loop.

    Args:
        quota: of a caller who has none of its own.
        refused: told why a call was refused.
    """

    def __init__(self, quota: Quota, refused: Callable[[QuotaRefusal], None]) -> None:
        self._quota = quota
        self._refused = refused
        self._use: OrderedDict[str, _Use] = OrderedDict()

    def enter(self, who: str, own: Quota | None = None) -> bool:
        """Count one call in and return whether it is counted; `leave` undoes that.

        Raises:
            OverloadedError: the caller has used what it may.
        """
        quota = self._quota if own is None else own.or_else(self._quota)
        if quota.is_open:
            return False
        use = self._used(who, quota)
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
        use = self._use.get(who)
        if use is not None:
            use.calls -= 1

    def rows(self, who: str, rows: int, own: Quota | None = None) -> None:
        """Count the rows of a call.

        Raises:
            OverloadedError: the caller has used what it may.
        """
        quota = self._quota if own is None else own.or_else(self._quota)
        if quota.rows_per_s is not None:
            use = self._used(who, quota)
            self._spend(use.by_row, rows, quota.rows_per_s, "rows_per_second")

    def _spend(self, bucket: _Bucket, amount: int, per_s: float, reason: QuotaRefusal) -> None:
        wait = bucket.take(amount, per_s, asyncio.get_running_loop().time())
        if wait > 0:
            self._refused(reason)
            what = reason.partition("_")[0]
            raise OverloadedError(
                f"expected at most {per_s:g} {what} a second of one caller",
                retry_after_s=min(max(wait, _PUSHBACK_S), _LONGEST_PUSHBACK_S),
            )

    def _used(self, who: str, quota: Quota) -> _Use:
        use = self._use.get(who)
        if use is None:
            now = asyncio.get_running_loop().time()
            use = self._use[who] = _Use(
                0,
                _Bucket(max(quota.calls_per_s or 0, 1.0), now),
                _Bucket(max(quota.rows_per_s or 0, 1.0), now),
            )
            if len(self._use) > _MOST_CALLERS:
                self._forget()
        else:
            self._use.move_to_end(who)
        return use

    def _forget(self) -> None:
        """Forget who was not seen for longest and has no call."""
        for who, use in self._use.items():
            if not use.calls:
                del self._use[who]
                return

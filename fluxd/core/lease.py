"""
When may a tunnel's credential still be used?

A lease runs from its grant to ``ends_at`` and warns 10 and 2 minutes earlier. This module knows no clock: every
question takes ``now``, in seconds of a clock that counts sleep. Wall clocks are asked twice only: the plane's own, to
learn how many seconds a grant has left (both its instants come from there, so its skew cancels), and this machine's
after another boot, when the old clock means nothing any more.

PostgreSQL enforces the same instant by VALID UNTIL, but only at *login*; open sessions survive it
(https://www.postgresql.org/docs/current/sql-createrole.html). Ending those is the forward's work.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from math import floor, isfinite
from typing import Final, Literal

from .errors import LeaseOver, PlaneAnswerInvalid, RenewLimit

State = Literal["live", "expiring", "over"]

# Seconds before the end at which a warning is due, the earliest first.
WARN_BEFORE_S: Final = (600.0, 120.0)
# No credential lives longer after its mint, however often it is renewed.
MAX_LIFE_S: Final = 8 * 3600.0
# A renewal that gains less is not worth asking for.
_LEAST_GAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Lease:
    """
    A grant's right to exist. The three ``…_at`` are seconds of the clock that counts sleep.

    `wall_granted_at` is what this machine's wall clock said at `granted_at` (aware, UTC): only for showing an instant
    to people and for `restored`.
    """

    granted_at: float
    ends_at: float
    # No renewal goes beyond.
    limit_at: float
    wall_granted_at: datetime

    @classmethod
    def granted(cls, now: float, wall: datetime, left_s: float, max_left_s: float | None = None) -> Lease:
        """
        A lease with *left_s* seconds left at *now*, and *max_left_s* (from the plane, else 8 h) for all renewals.

        Neither can exceed 8 h, whatever a plane says.
        """
        most = MAX_LIFE_S if max_left_s is None else _within_life(max_left_s)
        left = _within_life(left_s)
        return cls(now, now + left, now + max(left, most), wall.astimezone(UTC))

    @property
    def expires_at(self) -> datetime:
        """The end, as this machine's wall clock will show it."""
        return self.wall_granted_at + timedelta(seconds=self.ends_at - self.granted_at)

    def remaining(self, now: float) -> float:
        """Seconds left; 0 when it is over."""
        return max(0.0, self.ends_at - now)

    def state(self, now: float) -> State:
        """``expiring`` from the first warning on; of a lease too short for any, the second half is."""
        remaining = self.remaining(now)
        if remaining <= 0:
            return "over"
        soon = max(self._thresholds(), default=(self.ends_at - self.granted_at) / 2)
        return "expiring" if remaining <= soon else "live"

    def due_warning(self, now: float, given: Collection[float] = ()) -> float | None:
        """
        The threshold of `WARN_BEFORE_S` to warn of now, or None. Add the answer to *given*.

        Each comes once. After a sleep that passed several only the latest comes, and never an earlier one after it.
        One that is not shorter than the whole lease never comes: who asks for a minute knows that it is a minute.
        """
        remaining = self.remaining(now)
        passed = [before for before in self._thresholds() if remaining <= before]
        if remaining <= 0 or not passed or min(passed) >= min(given, default=MAX_LIFE_S):
            return None
        return min(passed)

    def next_wake(self, now: float) -> float:
        """The instant after *now* at which something is due: a warning, or the end. The end itself when it is over."""
        instants = [self.ends_at - before for before in self._thresholds()]
        return min((at for at in instants if at > now), default=self.ends_at)

    def renewal_ttl_s(self, now: float, asked_s: int | None) -> int | None:
        """
        The ttl to ask the plane for: *asked_s*, cut to what the limit leaves; None (the plane's default) stays None.

        Raises:
            LeaseOver: there is nothing left to renew.
            RenewLimit: it already runs to its limit.
        """
        if now >= self.ends_at:
            raise LeaseOver
        if self.limit_at - self.ends_at < _LEAST_GAIN_S:
            raise RenewLimit
        return None if asked_s is None else max(1, min(asked_s, floor(self.limit_at - now)))

    def renewed(self, now: float, left_s: float) -> Lease:
        """The same role with *left_s* seconds left at *now*; never beyond the limit."""
        return replace(self, ends_at=min(now + _within_life(left_s), self.limit_at))

    def restored(self, *, same_boot: bool, now: float, wall: datetime) -> Lease:
        """
        This lease, read back from disk by a restarted daemon.

        In the same boot its clock went on and the wall clock is not asked. After another boot the wall clock decides;
        set back meanwhile, it can give back no more than the whole lease.
        """
        if same_boot:
            return self
        gone = max(0.0, (wall - self.wall_granted_at).total_seconds())
        granted_at = now - gone
        shift = granted_at - self.granted_at
        return replace(self, granted_at=granted_at, ends_at=self.ends_at + shift, limit_at=self.limit_at + shift)

    def _thresholds(self) -> list[float]:
        return [before for before in WARN_BEFORE_S if before < self.ends_at - self.granted_at]


def seconds_left(
    expires_at: str, *, date: str | None, request_s: float, wall: datetime, expires_in_s: float | None = None
) -> float:
    """
    How long a grant may still be used when the answer has arrived: 0 or more.

    ``expiresIn`` (our extension) if there is one, else *expires_at* minus the response's ``Date`` header *date*: both
    are the plane's, so that its clock may be wrong. Either way minus *request_s*, the whole request's duration, since
    the answer may have been made at its start. *wall* (aware) stands in for a missing or unreadable ``Date``.

    Raises:
        PlaneAnswerInvalid: *expires_at* is not a date.
    """
    if expires_in_s is not None and isfinite(expires_in_s):
        return max(0.0, expires_in_s - request_s)
    end = parse_instant(expires_at)
    if end is None:
        raise PlaneAnswerInvalid("The control plane's `expiresAt` is not a date.")
    answered = parse_instant(date) if date is not None else None
    return max(0.0, (end - (answered or wall)).total_seconds() - request_s)


def parse_instant(text: str) -> datetime | None:
    """An aware UTC instant from RFC 3339, ISO 8601 or an HTTP-date; one without a zone is UTC. None: not a date."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = parse(text.strip())
            return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _within_life(seconds: float) -> float:
    return min(max(0.0, seconds), MAX_LIFE_S)

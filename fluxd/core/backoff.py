"""
When to try again.

A value: `failed` answers the next one, and nothing here sleeps, reads a clock or rolls dice. The delays double up to a
cap, and each is shortened by a random part, so that the laptops of a whole office do not redial one bastion in step.
It never gives up; whoever asks decides when to stop, or that something happened (a wake, a client) which makes
waiting pointless: then `reset`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# 2.0**64 times any sane delay is over any sane cap; a float overflows at 2.0**1024.
_MOST_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    The state between two tries. Seconds throughout, on whatever clock *now* is read from.

    `jitter` is the largest part of a delay that chance may take away, 0 to 1.
    """

    first_s: float = 0.25
    cap_s: float = 30.0
    jitter: float = 0.5
    failures: int = 0
    due_at: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.first_s <= self.cap_s and 0 <= self.jitter <= 1):
            raise ValueError("0 < first_s <= cap_s and 0 <= jitter <= 1")

    def failed(self, now: float, fraction: float) -> Backoff:
        """One more failure at *now*; *fraction* is a random number in [0, 1)."""
        full = min(self.cap_s, self.first_s * 2.0 ** min(self.failures, _MOST_DOUBLINGS))
        return replace(self, failures=self.failures + 1, due_at=now + full * (1 - self.jitter * fraction))

    def wait_s(self, now: float) -> float:
        """Seconds until the next try; 0 when it is due, as it is before the first failure."""
        return 0.0 if self.due_at is None else max(0.0, self.due_at - now)

    def reset(self) -> Backoff:
        """As if nothing had failed: the next try is due at once."""
        return replace(self, failures=0, due_at=None)

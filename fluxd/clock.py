"""
What time is it, on a clock that counts sleep?

Leases run on ``now``: CLOCK_BOOTTIME on Linux; on macOS CLOCK_MONOTONIC through ``clock_gettime``, which goes on during
sleep there. Not ``time.monotonic``: it stands still while a laptop sleeps on Linux, and a lease would live longer by
every lunch. ``awake`` is its opposite, a clock that stands still: the two drift apart by exactly the time slept.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

if sys.platform == "darwin":
    _COUNTS_SLEEP: Final = time.CLOCK_MONOTONIC
    _STANDS_STILL: Final = time.CLOCK_UPTIME_RAW
else:
    _COUNTS_SLEEP: Final = time.CLOCK_BOOTTIME
    _STANDS_STILL: Final = time.CLOCK_MONOTONIC


class Clock:
    """This machine's clocks. Tests pass one of their own."""

    def now(self) -> float:
        """Seconds, sleep included, from an instant that is the same until the next boot."""
        return time.clock_gettime(_COUNTS_SLEEP)

    def awake(self) -> float:
        """Seconds, sleep left out."""
        return time.clock_gettime(_STANDS_STILL)

    def wall(self) -> datetime:
        """The wall clock, in UTC: for people, and to compare across boots. It may be wrong, and it may jump."""
        return datetime.fromtimestamp(time.time(), UTC)

    def boot_id(self) -> str:
        """The same until the next boot: whether a `now` that was written down still means something."""
        return _boot_id()


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # No such file on macOS: the instant of boot, rounded since the wall clock is stepped by a few ms.
        return f"booted-{round((time.time() - time.clock_gettime(_COUNTS_SLEEP)) / 60)}"

"""
fluxd, with a window for the fault lab.

SIGUSR1 writes the number of its asyncio tasks to $FLUXD_TASKS_FILE. SIGUSR2 is a night of sleep: from then on the clock
that counts sleep is 8 hours ahead, and the one that stands still is not. Everything else is the daemon as it is.
"""

import asyncio
import os
import signal
from pathlib import Path

from fluxd.__main__ import main
from fluxd.clock import Clock

NIGHT_S = 8 * 3600
_true_now = Clock.now
_slept = 0


def now(clock):
    return _true_now(clock) + _slept


def sleep(*_):
    global _slept  # noqa: PLW0603 - a clock is global
    _slept += NIGHT_S


def count(*_):
    Path(os.environ["FLUXD_TASKS_FILE"]).write_text(str(len(asyncio.all_tasks())))


if __name__ == "__main__":
    Clock.now = now
    signal.signal(signal.SIGUSR1, count)
    signal.signal(signal.SIGUSR2, sleep)
    raise SystemExit(main([]))

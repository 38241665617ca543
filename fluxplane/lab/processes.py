"""
Processes that are not our children: those below one of ours, and those that a killed lab left behind.

By /proc where there is one, else by ps(1). A pid may name a stranger by now, so that whoever ends a leftover says what
its command line must hold.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

POLL_S: Final = 0.02
PROGRAM_WITHIN_S: Final = 10


@functools.cache
def dying_with_us(number: signal.Signals) -> tuple[str, ...]:
    """
    What to put before a command so that it gets *number* when the thread that started it ends, even by SIGKILL.

    util-linux's setpriv(1), which Linux has; elsewhere nothing: the next lab in the same directory ends the leftover.
    The threads of an event loop's executor live as long as the loop.
    """
    words = ("setpriv", "--pdeathsig", number.name.removeprefix("SIG"))
    try:
        subprocess.run([*words, "true"], capture_output=True, timeout=PROGRAM_WITHIN_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return words


def descendants(pid: int) -> list[int]:
    """All processes below *pid*, parents before children."""
    return [one for child in _children(pid) for one in (child, *descendants(child))]


def command_line(pid: int) -> str:
    """What *pid* was started as; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if _has_proc():
            return ""
    return _ps("-o", "command=", "-p", str(pid))


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    """Those that are gone already don't matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_gone(pids: Sequence[int], *, within_s: float) -> None:
    """Return when none of *pids* runs, or after *within_s*."""
    give_up_at = time.monotonic() + within_s
    while any(map(_alive, pids)) and time.monotonic() < give_up_at:
        time.sleep(POLL_S)


def end_leftover(pid: int, marker: str, number: signal.Signals, *, within_s: float) -> None:
    """End *pid* if *marker* is on its command line: by *number*, and after *within_s* by SIGKILL."""
    give_up_at = time.monotonic() + within_s
    while marker in command_line(pid):
        signal_all([pid], number if time.monotonic() < give_up_at else signal.SIGKILL)
        time.sleep(POLL_S)


def _children(pid: int) -> Iterator[int]:
    if not _has_proc():
        for line in _ps("-A", "-o", "pid=,ppid=").splitlines():
            child, parent = map(int, line.split())
            if parent == pid:
                yield child
        return
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, path.read_text().split())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _has_proc() -> bool:
    return Path("/proc/self/task").exists()


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout

"""Running a program that has the terminal: its signals, and what its end means for our exit code."""

from __future__ import annotations

import os
import signal

from fluxctl.problem import Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def run(argv: Sequence[str], variables: Mapping[str, str]) -> int:
    """
    Run *argv* with our own stdin, stdout and stderr; answers what to exit with.

    Ctrl+C reaches the program as well as us, and is its own business: our handler does nothing, and unlike an ignored
    signal it is not inherited. What ends us (`Stopped`) ends the program too.

    Raises:
        OSError: it cannot be started.
    """
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        # posix_spawn: importing subprocess costs as much as starting psql. Python ignores SIGPIPE, programs do not.
        return _wait_for(os.posix_spawnp(argv[0], list(argv), variables, setsigdef=[signal.SIGPIPE]))
    finally:
        signal.signal(signal.SIGINT, before)


def exit_code(returned: int) -> int:
    """As a shell says it: 128 + the signal's number for a program that a signal ended."""
    return returned if returned >= 0 else 128 - returned


def _wait_for(pid: int) -> int:
    try:
        return _end_of(pid)
    except Stopped:
        os.kill(pid, signal.SIGTERM)
        return _end_of(pid)


def _end_of(pid: int) -> int:
    return exit_code(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

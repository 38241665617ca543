"""
Starting fluxd when nobody answers on its socket: by the service manager where it is installed, else detached.

The daemon gets none of the shell's tokens, planes or SSH variables: those come with each request and count for that one
alone. Two clients may start it at once: whichever daemon is second finds the socket taken and leaves, and both clients
talk to the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fluxctl import screen
from fluxctl.exchange import NobodyThere
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from fluxctl.exchange import Connection

ANSWERS_WITHIN_S = 20.0
_OTHER_WITHIN_S = 2.0
_ASK_AGAIN_AFTER_S = 0.02
_SERVICE_WITHIN_S = 10.0
SYSTEMD_UNIT = "fluxd.socket"
LAUNCHD_LABEL = "com.flux.fluxd"
# What belongs to one shell, and would outlive it in a daemon.
_OF_THE_SHELL = ("FLUX_", "NEXT_PUBLIC_FLUX_", "PG", "DATABASE_URL", "DOCKER_", "SSH_")
# What a service manager told the shell's own process, and would mislead the daemon.
_OF_A_SERVICE = ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")


def until_it_answers(connect: Callable[[], Connection]) -> Connection:
    """
    Start fluxd and connect to it.

    Raises:
        Problem: fluxd_not_running, with what the daemon said last.
    """
    if not os.environ.get("FLUXD_SOCKET") and _by_service_manager():
        found = _poll(connect, ANSWERS_WITHIN_S)
        if found is not None:
            return found
        screen.note("The service manager did not start it; starting it without.")
    with tempfile.TemporaryFile() as said:
        daemon = _detached(said.fileno())
        found = _poll(connect, ANSWERS_WITHIN_S, lambda: os.waitpid(daemon, os.WNOHANG)[0] == 0)
        # Ours has ended where it found another one at work, which may still be about to answer.
        found = found or _poll(connect, _OTHER_WITHIN_S)
        if found is None:
            raise Problem("fluxd_not_running", detail=_last_words(said))
        return found


def environment_of_daemon() -> dict[str, str]:
    """The shell's environment without what belongs to this shell alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_SHELL + _OF_A_SERVICE)}


def _poll(
    connect: Callable[[], Connection], within_s: float, hopeful: Callable[[], bool] = lambda: True
) -> Connection | None:
    """Connect as soon as somebody is there; None when time is over, or nobody was there after the last hope."""
    until = time.monotonic() + within_s
    while True:
        again = hopeful() and time.monotonic() < until
        try:
            return connect()
        except NobodyThere:
            if not again:
                return None
        time.sleep(_ASK_AGAIN_AFTER_S)


def _detached(said: int) -> int:
    """
    Start fluxd in a session of its own, its stderr to the file *said*; answers its pid.

    Not subprocess.Popen, which complains when we leave before it ends.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, source in enumerate((nothing, nothing, said)):
            os.dup2(source, number)
        os.closerange(3, 1 << 16)
        argv = [sys.executable, "-P", "-m", "fluxd"]
        os.execve(sys.executable, argv, environment_of_daemon())  # noqa: S606 - ourselves
    finally:
        os._exit(127)


def service_question() -> list[str] | None:
    """What to ask the service manager to start fluxd; None where no unit of ours is installed."""
    return _launchd_question() if sys.platform == "darwin" else _systemd_question()


def _by_service_manager() -> bool:
    """True when it was asked and said yes."""
    asked = service_question()
    if asked is None:
        return False
    try:
        done = subprocess.run(asked, capture_output=True, timeout=_SERVICE_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _systemd_question() -> list[str] | None:
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    places = [f"{config}/systemd/user", "/etc/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user"]
    if not any(Path(place, SYSTEMD_UNIT).is_file() for place in places):
        return None
    return ["systemctl", "--user", "start", SYSTEMD_UNIT]


def _launchd_question() -> list[str] | None:
    if not Path.home().joinpath("Library/LaunchAgents", f"{LAUNCHD_LABEL}.plist").is_file():
        return None
    return ["launchctl", "kickstart", f"gui/{os.getuid()}/{LAUNCHD_LABEL}"]


def _last_words(said: IO[bytes]) -> str | None:
    said.seek(0)
    lines = said.read(64 * 1024).decode("utf-8", "replace").strip().splitlines()
    return "\n".join(lines[-3:]) or None

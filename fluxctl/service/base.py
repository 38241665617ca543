"""What every service manager can be asked, and what they share: the daemon that runs without one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from fluxctl import environment
from fluxctl.client import Client
from fluxctl.exchange import Connection, NobodyThere
from fluxctl.problem import Problem
from fluxctl.progress import Meter
from fluxd import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

# A daemon drains for 20 s at most; systemd's own limit is TimeoutStopSec=30.
STOPS_WITHIN_S = 40.0
ASKED_WITHIN_S = 90.0
_ASK_AGAIN_AFTER_S = 0.05
_ANSWERS_WITHIN_S = 5.0
_TOLD_EVERY_S = 0.5


class Manager(ABC):
    """One kind of service manager. `install`, `uninstall` and `restart` tell what they did, line by line."""

    name: str

    @abstractmethod
    def install(self) -> Iterator[str]: ...

    @abstractmethod
    def uninstall(self) -> Iterator[str]: ...

    @abstractmethod
    def restart(self) -> Iterator[str]: ...

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """
        `manager`, `installed`, `enabled`, `state` (running | waiting | stopped | failed), `pid`, `restarts`, `files`.

        waiting: not running, but the first command starts it.
        """

    @abstractmethod
    def logs(self, lines: int, *, follow: bool) -> list[str]:
        """The argv that shows the log."""


def running_pid() -> int | None:
    """The pid of the fluxd that answers on this shell's socket; None if none does. Starts none."""
    if not _somebody_listens():
        return None
    return Client(environment.of_shell(), starts=False).status()["pid"]


def announce_restart(pid: int) -> str:
    """
    Tell the fluxd *pid* that it will be restarted; answers what is kept then.

    An older one does not know the word, one that hangs hears none, and FLUXD_SOCKET may name another one's socket: then
    it is stopped as for good.
    """
    client = Client(environment.of_shell(), starts=False, answer_within_s=_ANSWERS_WITHIN_S)
    try:
        heard = client.status()["pid"] == pid
        if heard:
            client.expect_restart()
    except Problem:
        heard = False
    if heard:
        return "ports, tunnels and temporary roles were kept."
    return "ports were kept, declared and v1 tunnels come back, temporary roles have ended."


def _somebody_listens() -> bool:
    try:
        Connection(address.socket_path(), answer_within_s=1.0).__exit__()
    except (NobodyThere, PermissionError):
        return False
    return True


def stop_detached(pid: int) -> str:
    """
    Stop the daemon *pid* that no service manager runs, and wait until it is gone.

    Raises:
        Problem: service_failed, it does not go.
    """
    gone = _watch(pid)
    os.kill(pid, signal.SIGTERM)
    with Meter() as meter:
        while not gone():
            if meter.took_s > STOPS_WITHIN_S:
                raise Problem("service_failed", f"fluxd (pid {pid}) does not stop.")
            meter.show_time("Stopping fluxd")
            time.sleep(_ASK_AGAIN_AFTER_S)
    return f"Stopped the fluxd that a command had started (pid {pid})."


def _watch(pid: int) -> Callable[[], bool]:
    """Whether *pid* has ended. On Linux by a pidfd, which also sees one whose parent has not looked yet."""
    if not hasattr(os, "pidfd_open"):
        return lambda: not _is_there(pid)
    import select  # noqa: PLC0415 - Linux only

    watched = os.pidfd_open(pid)
    return lambda: bool(select.select([watched], [], [], 0)[0])


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(argv: Sequence[str], *, may_fail: bool = False) -> str:
    """
    What *argv* prints.

    Raises:
        Problem: service_failed, with what it said; with *may_fail* its exit code is passed over.
    """
    words = " ".join(argv)
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asked:
            said, complaint = _patiently(asked, words)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Problem("service_failed", f"`{words}` did not work.", detail=str(error)) from error
    if asked.returncode and not may_fail:
        raise Problem("service_failed", f"`{words}` did not work.", detail=complaint.strip() or None)
    return said


def _patiently(asked: subprocess.Popen[str], words: str) -> tuple[str, str]:
    """What it says, a terminal being told after a second what takes so long."""
    with Meter() as meter:
        while True:
            try:
                return asked.communicate(timeout=_TOLD_EVERY_S)
            except subprocess.TimeoutExpired:
                if meter.took_s > ASKED_WITHIN_S:
                    asked.kill()
                    raise
                meter.show_time(words)


def clear_runtime_dir() -> Iterator[str]:
    """Remove what a stopped daemon leaves beside its socket."""
    place = Path(address.runtime_dir())
    (place / "fluxd.sock.lock").unlink(missing_ok=True)
    try:
        place.rmdir()
    except OSError:
        return
    yield f"Removed {place}"

"""What systemd wants to hear (sd_notify(3)): ready, stopping, still alive. Without systemd every call does nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell *state* (`READY=1`, …) to the service manager; whether one was listening."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_manager:
        try:
            to_manager.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often `WATCHDOG=1` has to be told, in seconds: twice as often as the manager asks; None if it does not."""
    wanted, meant_for = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
    if not wanted.isdecimal() or meant_for != str(os.getpid()):
        return None
    return int(wanted) / 1_000_000 / 2

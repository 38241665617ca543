"""
The sockets that launchd opened for this process: launch_activate_socket(3), by way of ctypes.

Each name in the agent's ``Sockets`` may be asked for once. launchd has no store for other descriptors, no readiness and
no watchdog, so that this is all. Written from the manual page and <launch.h>; it was not run under a real launchd.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from typing import Any


def activated(name: str) -> list[socket.socket]:
    """The sockets under *name*, now the caller's; none where launchd did not start this process, or has none."""
    return _activated(ctypes.CDLL(None), name) if sys.platform == "darwin" else []


def _activated(library: Any, name: str) -> list[socket.socket]:
    fds, count = ctypes.POINTER(ctypes.c_int)(), ctypes.c_size_t()
    # ESRCH: not started by launchd; ENOENT: no such name; EALREADY: asked before.
    if library.launch_activate_socket(name.encode(), ctypes.byref(fds), ctypes.byref(count)) != 0:
        return []
    try:
        return [_owned(fds[place]) for place in range(count.value)]
    finally:
        library.free(fds)


def _owned(fd: int) -> socket.socket:
    found = socket.socket(fileno=fd)
    found.set_inheritable(False)
    return found

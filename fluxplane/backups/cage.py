"""
Becomes another program, that cannot outlive whoever started it: `python cage.py SPEC PROGRAM ARGUMENT…`.

Run as a script of the standard library alone, between fork and exec, where a preexec function would not be safe in a
process with threads. SPEC is JSON: `parent` (pid), `signal` (what the program gets when the parent dies; Linux only),
and where asked `uid` (a user of its own, without groups), `offline` (no network but Unix sockets; Linux, as far as the
kernel lets us) and `limits` (RLIMIT_<name> → number). It holds no secret: it stands on a command line.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWNET = 0x40000000
LOST_PARENT = 113
NOT_FOUND = 127


def enter(spec: dict[str, Any]) -> None:
    """Everything but the exec. The order matters: what needs root first, what a change of user clears last."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None and spec.get("offline"):
        libc.unshare(CLONE_NEWNET)
    if spec.get("uid") is not None:
        os.setgroups([])
        os.setgid(spec["uid"])
        os.setuid(spec["uid"])
    for name, most in spec.get("limits", {}).items():
        _limit(getattr(resource, "RLIMIT_" + name), most)
    if libc is not None:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, spec["signal"], 0, 0, 0)
    if os.getppid() != spec["parent"]:
        sys.exit(LOST_PARENT)


def _limit(which: int, most: int) -> None:
    """Never above what we have."""
    _, hard = resource.getrlimit(which)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (bound, bound))


if __name__ == "__main__":
    enter(json.loads(sys.argv[1]))
    try:
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - that is the point
    except OSError as failure:
        sys.stderr.write(f"{sys.argv[2]}: {failure.strerror}\n")
        sys.exit(NOT_FOUND)

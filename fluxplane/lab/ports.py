"""Which TCP port a server of the lab tries to listen on."""

from __future__ import annotations

import contextlib
import socket

from fluxplane.lab.errors import LabFailed


def free_port(host: str = "127.0.0.1", *, preferred: int | None = None) -> int:
    """
    *preferred* if nobody listens there, else any free TCP port. Only a proposal: bind it soon.

    Raises:
        LabFailed: there is none at all.
    """
    for port in (preferred, 0):
        if port is None:
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    raise LabFailed(f"There is no free TCP port on {host}.", hint="Stop something that listens there.")

"""
The listening sockets of forwards, which may outlive this process.

Where the service manager keeps descriptors (systemd's FDSTORE), each listener is kept there from the moment it is bound
until its tunnel ends. Across a restart or an upgrade the port never comes free: nobody else can take it, and a client
that connects meanwhile waits in the socket's backlog until the next daemon accepts. Elsewhere all this is nothing.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from fluxd.systemd import Manager

from . import forward

# As long as a client waits for an SSH host that is away (`client_waits_s`).
UNTAKEN_S: Final = 30.0
_BOTH: Final = {"127.0.0.1": {"127.0.0.1", "::1"}}


class Listeners:
    """Binds, or takes over what was kept. `free` when a tunnel ends; `hand_over` before the daemon does."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._handing_over = False

    def bind(self, host: str, port: int) -> list[socket.socket]:
        """As `forward.bind`, but what the last daemon left listening there is taken over."""
        name = _name(host, port)
        sockets = self._taken_over(name, host, port) or forward.bind(host, port)
        self._manager.keep(name, sockets)
        return sockets

    def _taken_over(self, name: str, host: str, port: int) -> list[socket.socket]:
        found = self._manager.take(name)
        if found and all(_listens(one, host, port) for one in found):
            for one in found:
                one.setblocking(False)
            return found
        if found:
            self._manager.drop(name)
        for one in found:
            one.close()
        return []

    def free(self, host: str, port: int) -> None:
        """Nobody is to wait there any more: the port comes free with our own sockets."""
        if not self._handing_over:
            self._manager.drop(_name(host, port))

    def hand_over(self) -> None:
        """From now on what is closed stays kept for the next daemon, if there is one; else systemd closes it."""
        self._handing_over = True

    async def discard_untaken(self, *, after_s: float = UNTAKEN_S) -> None:
        """
        Close what the last daemon left, where no tunnel of this one takes it over within *after_s*.

        Not at once: a declared tunnel without a port in the settings needs the control plane before it binds. Not
        never: a client that waits there should be told.
        """
        await asyncio.sleep(after_s)
        self._manager.discard_untaken()


def _name(host: str, port: int) -> str:
    return f"forward-{host.replace(':', '_')}-{port}"


def _listens(candidate: socket.socket, host: str, port: int) -> bool:
    """Whether *candidate* is what `forward.bind` would have bound there."""
    if candidate.family not in (socket.AF_INET, socket.AF_INET6) or candidate.type != socket.SOCK_STREAM:
        return False
    address = candidate.getsockname()
    accepts = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(accepts) and address[0] in _BOTH.get(host, {host}) and address[1] == port

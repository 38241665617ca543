"""
The SSH hosts that tunnels share: one connection for each (address, user, port, identity, known_hosts, pinned keys).

A host is here from its first tunnel until its last one is gone. What happens to it is told to an observer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import FluxError, SSHKeyEncrypted

from .dial import Destination, Dialling, asks_for_passphrase
from .shown import shown_host
from .ssh import Host, Observer

log = logging.getLogger(__name__)


class Hosts:
    """Every SSH host that some tunnel uses, each dialled in the way *how* says."""

    def __init__(self, how: Dialling, clock: Clock, observe: Observer) -> None:
        self._how = how
        self._clock = clock
        self._observe = observe
        self._hosts: dict[tuple[Destination, tuple[str, ...]], Host] = {}

    def __iter__(self) -> Iterator[Host]:
        return iter([*self._hosts.values()])

    def shared(self, destination: Destination, agent: str | None, pinned: Sequence[str]) -> Host:
        """
        The host of *destination* that is trusted by these *pinned* keys: one plan's are not another's.

        It is dialled with *agent* from now on, if one is given.
        """
        key = (destination, tuple(pinned))
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = Host(destination, self._how, self._clock, self._observe, pinned=key[1])
        host.agent = agent or host.agent
        return host

    async def unlocked(self, host: Host) -> None:
        """
        Have a caller told that *host* wants a passphrase while it can still be asked: a tunnel's client cannot.

        Raises:
            SSHKeyEncrypted: a key that it would take is encrypted, and nobody has said what opens it.
        """
        undialled = host.state == "idle" or isinstance(host.last_problem, SSHKeyEncrypted)
        if not undialled or not await asks_for_passphrase(host.destination, self._how):
            return
        try:
            await host.reach()
        except SSHKeyEncrypted:
            raise
        except FluxError as problem:
            log.info("%s is not reached yet: %s", host.destination, problem)

    def doubt(self) -> None:
        """This machine has slept, or its network has changed: what was there before may not be."""
        for host in self:
            host.doubt()

    def shown(self) -> list[wire.HostStatus]:
        return [shown_host(host) for host in self]

    async def release(self, host: Host) -> None:
        """End the connection: nobody shares it any more."""
        self._hosts.pop((host.destination, host.pinned), None)
        await host.aclose()

    async def aclose(self) -> None:
        for host in self:
            await host.aclose()

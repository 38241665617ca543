"""
The ports of declared tunnels before there is a tunnel: a client is taken in at once, and waits.

At login the network, the keyring or the control plane may not be there yet, and without a plan there is no tunnel. A
door listens all the same. Its listener becomes the tunnel's as soon as there is one, and whoever waits goes on through
it. Who has waited as long as a client waits for an SSH host is refused, and the event says what is missing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from fluxd import wire
from fluxd.core import ports
from fluxd.core.errors import FluxError, PlaneUnreachable, PortTaken
from fluxd.portbook import PortBook

from .events import Events
from .forward import LOOPBACK, Channel, Forward, Happening, Observer
from .listeners import Listeners


class Place(NamedTuple):
    """What is declared. Whose account that is comes with the plan."""

    api_base: str
    hash: str
    access: wire.Access


class Through(Protocol):
    """A tunnel's way for a client, who waits for it for *within_s* at most; None: as long as usual."""

    async def __call__(self, protocol: Callable[[], asyncio.Protocol], *, within_s: float | None = None) -> Channel: ...


class Door:
    """One port that listens for the tunnel that *request* declares. `problem` is told to who has waited in vain."""

    def __init__(
        self,
        request: wire.OpenTunnel,
        sockets: list[socket.socket],
        *,
        waits_s: float,
        knocked: Callable[[], None],
        observe: Observer,
        freed: Callable[[], None],
    ) -> None:
        """*knocked* is called whenever a client has come."""
        self.request = request
        self.problem: FluxError | None = None
        self.forward = Forward(sockets, open_channel=self._wait, observe=observe, freed=freed)
        self._waits_s = waits_s
        self._knocked = knocked
        self._through: asyncio.Future[Through] = asyncio.get_running_loop().create_future()

    @property
    def port(self) -> int:
        return self.forward.port

    def lead(self, through: Through, observe: Observer) -> None:
        """There is a tunnel: the forward is its own from now on, and whoever waits goes on *through* it."""
        self.forward.lead(through, observe)
        self._through.set_result(through)

    async def _wait(self, protocol: Callable[[], asyncio.Protocol]) -> Channel:
        self._knocked()
        clock = asyncio.get_running_loop().time
        until = clock() + self._waits_s
        try:
            async with asyncio.timeout_at(until):
                through = await asyncio.shield(self._through)
        except TimeoutError as error:
            raise self.problem or PlaneUnreachable("The control plane has not answered yet.") from error
        return await through(protocol, within_s=max(0.0, until - clock()))


class Doors:
    """Every door there is."""

    def __init__(self, listeners: Listeners, book: PortBook, events: Events, *, waits_s: float) -> None:
        self._listeners = listeners
        self._book = book
        self._events = events
        self._waits_s = waits_s
        self._doors: dict[Place, Door] = {}

    async def open(self, place: Place, request: wire.OpenTunnel, knocked: Callable[[], None]) -> Door | None:
        """
        The door of what *request* declares, listening; None where no port is known yet: nobody can be waiting there.

        Raises:
            PortTaken: it is another project's, or somebody else listens there.
            TooManyOpenFiles: no socket can be had.
        """
        # Two accounts' projects of one hash are not told apart without a token.
        port = request.local_port or self._book.usual(*place)
        if place in self._doors or port is None:
            return self._doors.get(place)
        owner = ports.owner_of(port, self._book.owned)
        if owner is not None and (owner.api_base, owner.hash) != (place.api_base, place.hash):
            raise PortTaken(f"Local port {port} is kept for another project.")

        def observe(happening: Happening, problem: FluxError | None) -> None:
            about = f"The declared tunnel to {request.project} ({place.hash}) on port {port} is not open yet."
            self._events.emit(happening, problem=problem, message=about)

        door = self._doors[place] = Door(
            request,
            self._listeners.bind(LOOPBACK, port),
            waits_s=self._waits_s,
            knocked=knocked,
            observe=observe,
            freed=lambda: self._listeners.free(LOOPBACK, port),
        )
        door.forward.start()
        return door

    def find(self, api_base: str, project_hash: str, access: wire.Access, *, dedicated: bool) -> Door | None:
        """The door that is declared for such a tunnel; a v1 project has one, whatever access is asked for."""
        for place, door in self._doors.items():
            if place[:2] == (api_base, project_hash) and (dedicated or place.access == access):
                return door
        return None

    def of(self, api_base: str, project_hash: str | None) -> Door | None:
        """Any door of that project."""
        return next((door for place, door in self._doors.items() if place[:2] == (api_base, project_hash)), None)

    def has(self, door: Door) -> bool:
        """Whether it is neither closed nor a tunnel's."""
        return door in self._doors.values()

    def taken(self, door: Door) -> bool:
        """Its forward is a tunnel's now; False if it was before."""
        known = len(self._doors)
        self._doors = {place: other for place, other in self._doors.items() if other is not door}
        return len(self._doors) < known

    async def close(self, door: Door) -> None:
        """Listen there no more; who waits is sent away. A door that leads to a tunnel is left alone."""
        if self.taken(door):
            door.forward.stop_listening()
            await door.forward.close_relays(within_s=0)

    async def aclose(self) -> None:
        for door in list(self._doors.values()):
            await self.close(door)

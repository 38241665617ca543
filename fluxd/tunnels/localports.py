"""
Which local port is whose: sticky ones from the port book, bound by the listeners.

A project's port is its own for ever; when another program holds it the next free one does for this time, and that is
said. `core.ports` proposes, the kernel decides.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from fluxd.core import ports
from fluxd.core.errors import NoPortLeft, PortTaken
from fluxd.journal import Key
from fluxd.portbook import PortBook

from .facts import Facts
from .forward import LOOPBACK, bind
from .listeners import Listeners

NOBODY: Final = Key("", "", "", "readonly")


class LocalPorts:
    """The ports in *book*, and what *listeners* can have of them, from *first* upwards."""

    def __init__(self, book: PortBook, listeners: Listeners, *, first: int) -> None:
        self._book = book
        self._listeners = listeners
        self._first = first
        # A port is proposed, bound and written down before the next one is.
        self._binding = asyncio.Lock()

    def usual(self, key: Key) -> int | None:
        return self._book.owned.get(key)

    def owner_of(self, port: int) -> Key | None:
        return ports.owner_of(port, self._book.owned)

    def first_tried(self, key: Key, requested: int | None) -> int | None:
        """What `bind` would try first; None where it would fail."""
        try:
            return ports.propose_port(key, owned=self._book.owned, requested=requested, first=self._first)
        except (PortTaken, NoPortLeft):
            return None

    async def bind(self, facts: Facts, *, requested: int | None, strict: bool) -> list[socket.socket]:
        """
        Listening sockets for a tunnel, on its own port; the first time, and when that is busy, on the next free one.

        Raises:
            PortTaken, NoPortLeft, TooManyOpenFiles, LocalHostForbidden: nothing listens.
        """
        async with self._binding:
            port, sockets = self._bound(facts.key, facts.local_host, requested, strict=strict)
            try:
                await self.keep(facts, port, requested)
            except BaseException:
                for listener in sockets:
                    listener.close()
                self._listeners.free(facts.local_host, port)
                raise
            return sockets

    def _bound(self, key: Key, host: str, requested: int | None, *, strict: bool) -> tuple[int, list[socket.socket]]:
        busy = set[int]()
        while True:
            port = ports.propose_port(
                key, owned=self._book.owned, busy=busy, requested=requested, strict=strict, first=self._first
            )
            try:
                return port, self._listeners.bind(host, port)
            except PortTaken:
                busy.add(port)

    async def keep(self, facts: Facts, port: int, requested: int | None) -> None:
        """Write *port* down as the tunnel's, if it has no other; else say that it is another one this time."""
        usual = self.usual(facts.key)
        if usual in (None, port):
            await self._book.keep(facts.key, port, facts.project, dedicated=facts.pooled is None)
        elif requested is None:
            facts.say_once(f"Port {usual} is this project's, but another program holds it; this time it is {port}.")
        else:
            facts.say_once(f"Port {port}, as was asked for; without asking it stays {usual}.")

    def free_now(self, wanted: tuple[str, str, str | None] | None) -> tuple[int, int | None]:
        """
        A port that can be bound now for a key that begins with *wanted*, or for a new one; the usual one, if busy.

        Raises:
            NoPortLeft, TooManyOpenFiles: there is none.
        """
        key = next((one for one in self._book.owned if one[:3] == wanted), NOBODY)
        usual, busy = self.usual(key), set[int]()
        while True:
            port = ports.propose_port(key, owned=self._book.owned, busy=busy, first=self._first)
            try:
                for listener in bind(LOOPBACK, port):
                    listener.close()
            except PortTaken:
                busy.add(port)
            else:
                return port, usual if usual in busy else None

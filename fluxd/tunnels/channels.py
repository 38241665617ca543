"""
The channels of one SSH host: asyncssh's, with asyncio's manners.

A channel is an `asyncio.Transport` that may be written to at any time, and whose protocol may fail without harm to the
connection. One whose opening was given up is closed when it comes; whoever writes waits for the connection too, and not
for the channel's window alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import asyncssh

from fluxd.core.errors import SSHBusy, SSHLost
from fluxd.core.target import clean

from .failures import channel_problem

T = TypeVar("T")

log = logging.getLogger(__name__)

# A host that answers none of its openings is not to fill our memory with them.
OPENINGS_AT_ONCE: Final = 1000
# Who sends this much at once fills whole segments, which nothing holds back.
BULK: Final = 4096


class Channels:
    """
    What they share.

    `heard` is set by whatever shows that somebody is there: bytes that come, and room for those that go. While the
    connection is `congested` nobody may write. `hasten` acknowledges at once what came over it.
    """

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self.sessions: set[_Session] = set()
        self.congested = False
        self.hasten: Callable[[], None] = lambda: None
        self._opening: set[asyncio.Task[Any]] = set()
        self._watched: asyncssh.SSHClientConnection | None = None

    def __len__(self) -> int:
        """How many are open."""
        return len(self.sessions)

    @property
    def in_use(self) -> bool:
        return bool(self.sessions or self._opening)

    def watch(self, connection: asyncssh.SSHClientConnection) -> None:
        """
        Have clients wait while what they sent waits for the socket of *connection*, the one in use from now on.

        asyncssh does not: it would keep in memory all that the host's windows allow, and it is the host who sets those.
        """

        def congest(whether: bool, usual: Callable[[], None]) -> None:
            usual()
            if connection is self._watched:
                self.congested = whether
                if not whether:  # what was sent has been taken
                    self.heard.set()
                for session in list(self.sessions):
                    session.congested(whether)

        pause, resume = connection.pause_writing, connection.resume_writing
        self._watched, self.congested, self.hasten = connection, False, _hastening(connection)
        connection.pause_writing = lambda: congest(True, pause)  # type: ignore[method-assign]
        connection.resume_writing = lambda: congest(False, resume)  # type: ignore[method-assign]

    async def open(
        self,
        connection: asyncssh.SSHClientConnection,
        protocol_factory: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
    ) -> ChannelTransport:
        """
        A channel to *host*:*port*. Safe to cancel.

        Raises:
            SSHForwardingRefused, UpstreamRefused, UpstreamUnreachable, SSHBusy, SSHLost: what the host says to it.
        """
        return await self.opened(self._create(connection, protocol_factory, host, port), ChannelTransport.abort)

    async def opened(self, opening: Coroutine[Any, Any, T], end: Callable[[T], None]) -> T:
        """
        What *opening* makes of a channel. Cancelled, it goes on without us, and *end* is called with what came of it.

        SSH cannot take back what it asked for, and asyncssh forgets to close what comes after it was cancelled.
        """
        if len(self._opening) >= OPENINGS_AT_ONCE:
            opening.close()
            raise SSHBusy(f"{OPENINGS_AT_ONCE} channels wait for the SSH host's answer already.")
        task = asyncio.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(functools.partial(_abandon, end))
            raise

    async def opened_all(self) -> None:
        """Return when none is being opened; they all end with the connection."""
        while self._opening:
            await asyncio.wait(self._opening)

    async def _create(
        self,
        connection: asyncssh.SSHClientConnection,
        protocol_factory: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
    ) -> ChannelTransport:
        session = _Session(self, protocol_factory())
        try:
            await connection.create_connection(lambda: session, host, port)
        except asyncssh.ChannelOpenError as error:
            raise channel_problem(error, f"{host}:{port}", lost=connection.is_closed()) from error
        except (asyncssh.Error, OSError) as error:
            raise SSHLost(detail=clean(str(error))) from error
        return session.transport


class ChannelTransport(asyncio.Transport):
    """An asyncssh channel with asyncio's manners: writing to one that is ending is no error, it goes nowhere."""

    def __init__(self, channel: asyncssh.SSHTCPChannel[bytes]) -> None:
        super().__init__()
        # While what came earlier, and was not wanted then, is handed on.
        self.catching_up = False
        self._channel = channel

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with contextlib.suppress(OSError):
            self._channel.write(bytes(data))

    def write_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._channel.close()

    def abort(self) -> None:
        self._channel.abort()

    def is_closing(self) -> bool:
        return self._channel.is_closing()

    def pause_reading(self) -> None:
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        self.catching_up = True
        try:
            self._channel.resume_reading()
        finally:
            self.catching_up = False

    def get_write_buffer_size(self) -> int:
        return self._channel.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._channel.get_extra_info(name, default)


class _Session(asyncssh.SSHTCPSession[bytes]):
    """
    asyncssh's callbacks, passed on to an asyncio protocol.

    What a protocol raises ends its own channel: asyncssh would end the connection, and every other tunnel with it.
    """

    def __init__(self, channels: Channels, protocol: asyncio.Protocol) -> None:
        self._channels = channels
        self._protocol = protocol
        # Either may have it wait: the channel's window, or the connection.
        self._full = False
        self._congested = False

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self.transport = ChannelTransport(chan)
        self._channels.sessions.add(self)
        self._channels.hasten()
        self._tell(self._protocol.connection_made, self.transport)
        self.congested(self._channels.congested)

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002 - there is one kind
        if not self.transport.catching_up:
            self._channels.heard.set()
            if len(data) < BULK:
                self._channels.hasten()
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - told, and contained
            self._failed(error)

    def eof_received(self) -> bool:
        return bool(self._tell(self._protocol.eof_received))

    def pause_writing(self) -> None:
        self._wait(full=True, congested=self._congested)

    def resume_writing(self) -> None:
        self._channels.heard.set()
        self._wait(full=False, congested=self._congested)

    def congested(self, whether: bool) -> None:
        self._wait(full=self._full, congested=whether)

    def _wait(self, *, full: bool, congested: bool) -> None:
        waited = self._full or self._congested
        self._full, self._congested = full, congested
        if waited != (full or congested):
            self._tell(self._protocol.resume_writing if waited else self._protocol.pause_writing)

    def connection_lost(self, exc: Exception | None) -> None:
        self._channels.sessions.discard(self)
        self._channels.hasten()
        # asyncssh's errors are no OSErrors; who reads a stream expects one.
        broken = exc is not None and not isinstance(exc, OSError)
        self._tell(self._protocol.connection_lost, ConnectionResetError(str(exc)) if broken else exc)

    def _tell(self, callback: Callable[..., object], *arguments: object) -> object:
        try:
            return callback(*arguments)
        except Exception as error:  # noqa: BLE001 - told, and contained
            self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        log.error("a channel's protocol failed; the channel is ended", exc_info=error)
        self.transport.abort()


def _hastening(connection: asyncssh.SSHClientConnection) -> Callable[[], None]:
    """
    What acknowledges at once whatever came over *connection*, where the kernel can (Linux, tcp(7): TCP_QUICKACK).

    sshd leaves Nagle's algorithm on for a connection without a terminal: what it has for one client would wait until
    the acknowledgement of what it sent another arrives, and the kernel delays that by up to 40 ms.
    """
    sock = connection.get_extra_info("socket")
    option = getattr(socket, "TCP_QUICKACK", None)
    if option is None or sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return lambda: None

    def hasten() -> None:
        with contextlib.suppress(OSError):  # it is closed already
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)

    return hasten


def _abandon(end: Callable[[T], None], opening: asyncio.Task[T]) -> None:
    """Nobody waits any more for this channel."""
    if not opening.cancelled() and opening.exception() is None:
        end(opening.result())

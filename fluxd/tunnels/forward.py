"""
The local end: a listener on loopback and its relays, each one client joined to one borrowed channel.

It survives everything that happens to the SSH connection: it knows no ssh, only a function that opens a channel and may
take its time. Not ``asyncssh.forward_local_port``: that listener closes with the connection, and it leaks the channel
of a client that leaves early (asyncssh#823).

Bytes go from callback to callback, without a task or a copy of our own: each side pauses the other when its buffer is
full, and passes on the other's end of stream while it still sends itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol, cast

from fluxd.core.errors import FluxError, LocalHostForbidden, PortTaken, TooManyOpenFiles

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
# What a client may send before its channel is open.
EARLY_BYTES: Final = 64 * 1024
BACKLOG: Final = 512
# How long a client that reads nothing may keep the last bytes of an ended upstream in our memory.
LINGER_S: Final = 30.0
# No client is taken for so long when even the spare descriptor is gone.
EXHAUSTED_S: Final = 1.0
OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Happening = Literal["client_connected", "client_refused", "client_left"]


class Channel(Protocol):
    """The half of `asyncio.Transport` that a relay uses: what `open_channel` answers."""

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


# Joins the protocol to a new channel to upstream, as `loop.create_connection` would; safe to cancel.
OpenChannel = Callable[[Callable[[], asyncio.Protocol]], Awaitable[Channel]]
Observer = Callable[[Happening, "FluxError | None"], None]


def bind(host: str, port: int) -> list[socket.socket]:
    """
    Listening sockets on *host*:*port*, not accepting yet; for 127.0.0.1 also on ::1, where there is one.

    Both, because "localhost" means either, and whoever holds the other one would be told passwords.

    Raises:
        PortTaken: somebody listens there.
        LocalHostForbidden: *host* is not an address of this machine's loopback.
        TooManyOpenFiles: no socket can be had.
    """
    sockets = [_listen(host, port)]
    if host == LOOPBACK:
        try:
            sockets.append(_listen("::1", sockets[0].getsockname()[1]))
        except LocalHostForbidden:
            pass  # no IPv6 on this machine
        except FluxError:
            sockets[0].close()
            raise
    return sockets


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _bind_problem(error, host, port) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_problem(error, host, port) from error
    return listener


def _bind_problem(error: OSError, host: str, port: int) -> FluxError:
    if error.errno in OUT_OF_DESCRIPTORS:
        return TooManyOpenFiles()
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return PortTaken(f"Local port {port} is in use.")
    return LocalHostForbidden(f"Nothing can listen on {host}.", detail=error.strerror)


class Forward:
    """One listener and its relays. `start` accepts, `stop_listening` no longer does, `close_relays` ends the rest."""

    def __init__(
        self,
        sockets: list[socket.socket],
        *,
        open_channel: OpenChannel,
        observe: Observer,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        """*freed* is called once the port is given up."""
        self._freed = freed
        self.port = int(sockets[0].getsockname()[1])
        self._sockets = sockets
        self._meeting: set[asyncio.Task[None]] = set()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        # Given up for as long as it takes to turn a client away when there is no other.
        self._spare: int | None = None
        self._open_channel = open_channel
        self._observe = observe
        self._relays: set[Relay] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self._gone.set()
        self.relays_total = 0
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def relays(self) -> int:
        return len(self._relays)

    def lead(self, open_channel: OpenChannel, observe: Observer) -> None:
        """From the next client on, open channels another way and tell another observer."""
        self._open_channel, self._observe = open_channel, observe

    def start(self) -> None:
        """Accept clients; those that came since the port was bound are waiting already. Again changes nothing."""
        self._keep_spare()
        for listener in self._sockets:
            self._watch(listener)

    def stop_listening(self) -> None:
        """Free the port at once. Relays go on."""
        for listener in self._sockets:
            if listener.fileno() != -1:
                asyncio.get_running_loop().remove_reader(listener)
            if pause := self._paused.pop(listener, None):
                pause.cancel()
            listener.close()
        self._give_spare()
        self._freed()

    # Not asyncio.start_server: without a descriptor left it leaves clients waiting and logs a hundred traces a second.

    def _watch(self, listener: socket.socket) -> None:
        if pause := self._paused.pop(listener, None):
            pause.cancel()
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BACKLOG):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except (InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS or not self._turn_away(listener):
                    self._pause(listener)
                return
            client.setblocking(False)
            meeting = asyncio.create_task(self._meet(client))
            self._meeting.add(meeting)
            meeting.add_done_callback(self._meeting.discard)

    async def _meet(self, client: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Relay(self), client)
        except OSError:
            client.close()

    def _turn_away(self, listener: socket.socket) -> bool:
        """Refuse the client that waits first; False if there was not even a descriptor for that."""
        self._give_spare()
        try:
            client, _address = listener.accept()
        except OSError as error:
            return error.errno == errno.EAGAIN
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
            self._observe("client_refused", TooManyOpenFiles())
            return True
        finally:
            self._keep_spare()

    def _pause(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._paused[listener] = loop.call_later(EXHAUSTED_S, self._watch, listener)

    def _keep_spare(self) -> None:
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    async def close_relays(self, *, within_s: float = 1.0) -> None:
        """End every relay: what Postgres said last is still delivered, then no client is waited for."""
        while self._meeting:
            await asyncio.wait(self._meeting)
        for relay in list(self._relays):
            relay.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        for relay in list(self._relays):
            relay.abort()
        while self._opening:
            await asyncio.wait(self._opening)
        await self._gone.wait()

    async def relays_gone(self) -> None:
        """Return when there is no relay."""
        await self._gone.wait()

    def _accepted(self, relay: Relay) -> None:
        self._relays.add(relay)
        self._gone.clear()
        self.relays_total += 1
        relay.opening = asyncio.create_task(self._join(relay))
        self._opening.add(relay.opening)
        relay.opening.add_done_callback(self._opening.discard)

    async def _join(self, relay: Relay) -> None:
        try:
            channel = await self._open_channel(lambda: Upstream(relay))
        except FluxError as problem:
            self._refuse(relay, problem)
        except Exception as error:
            log.exception("a channel could not be opened for a reason that nobody thought of")
            self._refuse(relay, FluxError(detail=type(error).__name__))
        else:
            relay.joined(channel)
            self._observe("client_connected", None)

    def _refuse(self, relay: Relay, problem: FluxError) -> None:
        self._observe("client_refused", problem)
        relay.abort()

    def _left(self, relay: Relay) -> None:
        self._relays.discard(relay)
        if relay.was_joined:
            self._observe("client_left", None)
        if not self._relays:
            self._gone.set()


class Relay(asyncio.Protocol):
    """A client's side of a relay."""

    __slots__ = (
        "_channel",
        "_client",
        "_early",
        "_ended",
        "_forward",
        "_full",
        "_linger",
        "_upstream_ended",
        "opening",
    )

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._client: asyncio.Transport | None = None
        self._channel: Channel | None = None
        self._early: list[bytes] = []
        self._ended = False
        # The channel takes no more just now.
        self._full = False
        self._upstream_ended = False
        self._linger: asyncio.TimerHandle | None = None
        self.opening: asyncio.Task[None] | None = None

    # ---- the client's socket says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast("asyncio.Transport", transport)
        self._forward._accepted(self)  # noqa: SLF001 - the two are one thing in two classes

    def data_received(self, data: bytes) -> None:
        self._forward.bytes_up += len(data)
        if self._channel is not None:
            self._channel.write(data)
            return
        self._early.append(data)
        if self._client is not None and sum(map(len, self._early)) >= EARLY_BYTES:
            self._client.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        if self._channel is not None:
            self._channel.write_eof()
            self._both_ended()
        # Without a word said it has left; with some (a CancelRequest) it waits for what they do.
        return self._channel is not None or bool(self._early)

    def pause_writing(self) -> None:
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_writing(self) -> None:
        if self._channel is not None:
            self._channel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if self.opening is not None:
            self.opening.cancel()
        if self._channel is not None:
            # Let go of politely after a proper end: what the client sent last may still be on its way.
            self._channel.close() if exc is None else self._channel.abort()
        self._client = None
        self._forward._left(self)  # noqa: SLF001

    # ---- the forward and the channel say

    @property
    def was_joined(self) -> bool:
        return self._channel is not None

    def joined(self, channel: Channel) -> None:
        self._channel = channel
        if self._client is None:
            channel.abort()
            return
        if not self._full:
            self.resume_client()  # before the writes: the channel may want a pause at once
        for data in self._early:
            channel.write(data)
        self._early = []
        if self._ended:
            channel.write_eof()

    def from_upstream(self, data: bytes) -> None:
        self._forward.bytes_down += len(data)
        if self._client is not None:
            self._client.write(data)

    def upstream_ended(self) -> None:
        self._upstream_ended = True
        if self._client is not None and not self._client.is_closing():
            with contextlib.suppress(OSError):  # it has been reset, and that is on its way to us
                self._client.write_eof()
        self._both_ended()

    def pause_client(self) -> None:
        self._full = True
        if self._client is not None:
            self._client.pause_reading()

    def resume_client(self) -> None:
        self._full = False
        if self._client is not None and not self._ended:
            self._client.resume_reading()

    def close(self) -> None:
        """Deliver what upstream said, then end; after `LINGER_S` end all the same."""
        if self.opening is not None:
            self.opening.cancel()
        if self._client is not None and self._linger is None:
            self._client.close()
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        if self._client is not None:
            self._client.abort()

    def _both_ended(self) -> None:
        if self._ended and self._upstream_ended and self._channel is not None:
            self._channel.close()
            self.close()


class Upstream(asyncio.Protocol):
    """A channel's side of a relay."""

    __slots__ = ("_relay",)

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def data_received(self, data: bytes) -> None:
        self._relay.from_upstream(data)

    def eof_received(self) -> bool:
        self._relay.upstream_ended()
        return True

    def pause_writing(self) -> None:
        self._relay.pause_client()

    def resume_writing(self) -> None:
        self._relay.resume_client()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the client's end is the same
        self._relay.close()

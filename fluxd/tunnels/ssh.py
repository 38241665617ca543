"""
One SSH host and its one shared connection: dial, keep, redial; ask questions, open channels.

Many tunnels share a host. It is dialled when somebody needs it, and while a tunnel is open it is redialled for ever, by
`core.backoff`, or at once when a client connects. What sits behind `Host.open_channel` is the data plane; today that is
asyncssh's own channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import asyncssh

from fluxd.clock import Clock
from fluxd.core.backoff import Backoff
from fluxd.core.errors import (
    FluxError,
    ResolverFailed,
    SSHBusy,
    SSHLost,
    SSHUnreachable,
    UpstreamUnreachable,
)
from fluxd.core.resolver import Answer
from fluxd.core.target import clean

from .dial import Destination, Dialling, dial
from .failures import channel_problem

log = logging.getLogger(__name__)

# sshd's MaxSessions is 10, and others may be logged in over the same connection's account.
QUESTIONS_AT_ONCE: Final = 4
QUESTION_S: Final = 15.0
LONGEST_ANSWER: Final = 64 * 1024
# For so long a host without room for a session is asked again.
BUSY_S: Final = 5.0
BUSY_PAUSE_S: Final = 0.1
CHANNEL_S: Final = 15.0
# A connection that lasted this long was a good one: the next redial starts from the shortest delay.
GOOD_AFTER_S: Final = 10.0
LEAST_PAUSE_S: Final = 0.05
# The clock that counts sleep is compared with the one that does not so often, and so much apart they have slept.
LOOK_S: Final = 1.0
SLEPT_S: Final = 2.0
# Interval and count of keepalives to a connection that was slept over: 0.75 s.
WAKE_KEEPALIVE: Final = (0.25, 2)
# And to one under which the network changed, for so long: 1.2 s, since most changes touch no connection of ours.
CHANGE_KEEPALIVE: Final = (0.4, 2)
CHANGE_S: Final = 2.0
# A dial that the network changes under is begun again so often; a network that never rests is not to keep us from it.
DIALS_ANEW: Final = 3

State = Literal["idle", "connecting", "up", "waiting"]
Observer = Callable[["Host", Literal["host_up", "host_lost", "host_failed", "host_idle"]], None]


class Host:
    """
    One destination, at most one connection to it.

    `generation` grows with every connection: what was learnt about upstream over an older one is to be learnt again.
    """

    def __init__(self, destination: Destination, how: Dialling, clock: Clock, observe: Observer) -> None:
        self.destination = destination
        self.agent: str | None = None
        self.pinned: Sequence[str] = ()
        self.state: State = "idle"
        self.generation = 0
        self.channels = 0
        self.latency_s: float | None = None
        self.connected_at: datetime | None = None
        self.last_problem: FluxError | None = None
        self._how = how
        self._clock = clock
        self._observe = observe
        self._connection: asyncssh.SSHClientConnection | None = None
        self._backoff = Backoff()
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._asking = 0
        self._keeper: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[FluxError | None] = asyncio.get_running_loop().create_future()
        self._poked = asyncio.Event()
        self._opening: set[asyncio.Task[ChannelTransport]] = set()
        self._dialling: asyncio.Timeout | None = None
        self._changed = asyncio.Event()

    # ------------------------------------------------------------ the connection

    async def reach(self) -> None:
        """
        Be connected; if not, dial now and answer for that one try.

        Raises:
            FluxError: why that try failed.
        """
        problem = await self._next_outcome(hurry=True)
        if problem is not None:
            raise problem

    async def wait_up(self) -> None:
        """Be connected, however many tries it takes: bound it. The first try is made at once."""
        hurry = True
        while await self._next_outcome(hurry=hurry) is not None:
            hurry = False

    @property
    def key_fingerprint(self) -> str | None:
        """Of the host key that the connection was made with; None without one."""
        key = self._connection.get_server_host_key() if self._connection is not None else None
        return key.get_fingerprint() if key is not None else None

    def network_changed(self) -> None:
        """
        A link, an address or a route of this machine is another than before.

        The connection has to show that it is still there. Without one, the next try is made now: also in place of one
        under way, which may wait for an answer on a way that is no more.
        """
        if self.state == "up":
            self._changed.set()
        elif self.state == "waiting":
            self._poked.set()
        elif self._dialling is not None:
            self._dialling.reschedule(asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """End the connection, with every channel in it, and dial no more."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._settle(SSHLost("The connection to the SSH host was closed."))
        while self._opening:
            await asyncio.wait(self._opening)

    async def _next_outcome(self, *, hurry: bool) -> FluxError | None:
        """What the try that is under way, or the next one, comes to; None: connected."""
        if self.state == "up":
            self._used_at = self._clock.awake()
            return None
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
            self._keeper.add_done_callback(self._kept)
        if hurry:
            self._poked.set()
        return await asyncio.shield(self._outcome)

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """It keeps for ever, unless told to end. After a bug nobody may wait for it, and a new one may try."""
        if keeper.cancelled() or keeper.exception() is None:
            return
        log.error("the connection to %s could not be kept", self.destination, exc_info=keeper.exception())
        self._keeper, self._connection, self.state = None, None, "idle"
        self.last_problem = FluxError(detail=type(keeper.exception()).__name__)
        self._settle(self.last_problem)

    async def _keep(self) -> None:
        """Dial, live with the connection until it ends, dial again."""
        while True:
            self.state = "connecting"
            self._poked.clear()
            try:
                connection = await self._dial()
            except FluxError as problem:
                await self._failed(problem)
                continue
            try:
                self._up(connection)
                await self._live_with(connection)
                unused = self._is_unused()
                if unused:
                    self._rest()
            finally:
                await _ended(connection)
            if unused:
                await self._poked.wait()
                continue
            await self._lost()

    async def _dial(self) -> asyncssh.SSHClientConnection:
        for _ in range(DIALS_ANEW):
            with contextlib.suppress(TimeoutError):  # the network has changed; `dial` raises none
                try:
                    async with asyncio.timeout(None) as self._dialling:
                        return await dial(self.destination, self._how, agent=self.agent, pinned=self.pinned)
                finally:
                    self._dialling = None
        return await dial(self.destination, self._how, agent=self.agent, pinned=self.pinned)

    def _up(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        self.generation += 1
        self.state, self.last_problem, self.connected_at = "up", None, self._clock.wall()
        self._up_since, self._used_at = self._clock.now(), self._clock.awake()
        self._settle(None)
        self._observe(self, "host_up")

    async def _live_with(self, connection: asyncssh.SSHClientConnection) -> None:
        """
        Until it ends. After this machine has slept it has less than a second to show that it is still there, after a
        change of the network less than two.

        Its keepalives would take their time: they are timed by a clock that stood still, and begin with patience.
        """
        closing = asyncio.create_task(connection.wait_closed())
        kept = usual = (self._how.keepalive_interval_s, self._how.keepalive_count)
        self._changed.clear()
        doubted_until = self._clock.awake()
        try:
            while not closing.done() and not self._is_unused():
                slept = await self._slept_before(closing)
                if self._changed.is_set():
                    self._changed.clear()
                    doubted_until = self._clock.awake() + CHANGE_S
                doubted = self._clock.awake() < doubted_until
                wanted = WAKE_KEEPALIVE if slept else CHANGE_KEEPALIVE if doubted else usual
                if wanted != kept and not closing.done():
                    kept = wanted
                    connection.set_keepalive(*wanted)
        finally:
            closing.cancel()
            await asyncio.wait([closing])

    def _is_unused(self) -> bool:
        """Whether nobody has needed the connection for as long as it may idle; our own sleep does not count."""
        now = self._clock.awake()
        if self.channels or self._opening or self._asking:
            self._used_at = now
        return now - self._used_at >= self._how.idle_s

    def _rest(self) -> None:
        """Be without a connection until somebody needs one; nobody has lost anything."""
        self._connection, self.connected_at = None, None
        self._poked.clear()
        self.state, self._backoff = "idle", self._backoff.reset()
        self._observe(self, "host_idle")

    async def _slept_before(self, ended: asyncio.Future[None]) -> bool:
        """Wait for *ended*, or a change of the network, a second at most; whether this machine slept meanwhile."""
        before = self._clock.now() - self._clock.awake()
        changing: asyncio.Future[Any] = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({ended, changing}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changing.cancel()
        return self._clock.now() - self._clock.awake() - before > SLEPT_S

    async def _failed(self, problem: FluxError) -> None:
        self.state, self.last_problem = "waiting", problem
        self._backoff = self._backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter
        self._poked.clear()
        self._settle(problem)
        self._observe(self, "host_failed")
        await self._pause()

    async def _lost(self) -> None:
        self._connection, self.connected_at = None, None
        self.state, self.last_problem = "waiting", SSHLost(f"The connection to {self.destination} was lost.")
        if self._clock.now() - self._up_since >= GOOD_AFTER_S:
            self._backoff = self._backoff.reset()
        self._poked.clear()
        self._observe(self, "host_lost")
        await self._pause()
        self._backoff = self._backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter

    async def _pause(self) -> None:
        """Until the next try is due, or somebody cannot wait; but never quite at once, for somebody may be many."""
        await asyncio.sleep(LEAST_PAUSE_S)
        while (left_s := self._backoff.wait_s(self._clock.now())) > 0 and not self._poked.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S)):  # a timeout does not count sleep, `left_s` does
                    await self._poked.wait()

    def _settle(self, outcome: FluxError | None) -> None:
        settled, self._outcome = self._outcome, asyncio.get_running_loop().create_future()
        settled.set_result(outcome)

    def _live(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise self.last_problem or SSHLost(f"There is no connection to {self.destination}.")
        return self._connection

    # --------------------------------------------------------------- questions

    async def ask(self, command: str) -> Answer:
        """
        What the host's shell answers to *command*, of each stream at most 64 KiB. At most four are asked at a time.

        Raises:
            SSHBusy: it has no room for another session, several tries long.
            ResolverFailed: it did not answer in time.
            SSHLost: the connection ended meanwhile.
        """
        async with self._question():
            patience = self._clock.now() + BUSY_S
            while True:
                try:
                    async with asyncio.timeout(QUESTION_S):
                        return await _run(self._live(), command)
                except asyncssh.ChannelOpenError as error:
                    if self._clock.now() > patience:
                        raise SSHBusy(detail=clean(error.reason)) from error
                except TimeoutError as error:
                    raise ResolverFailed(f"The SSH host did not answer within {QUESTION_S:.0f} s.") from error
                except (asyncssh.Error, OSError) as error:
                    raise SSHLost(detail=clean(str(error))) from error
                await asyncio.sleep(BUSY_PAUSE_S)

    @contextlib.asynccontextmanager
    async def _question(self) -> AsyncIterator[None]:
        self._asking += 1
        try:
            async with self._questions:
                yield
        finally:
            self._asking -= 1

    # ---------------------------------------------------------------- channels

    async def open_channel(
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> ChannelTransport:
        """
        A channel to *host*:*port* as the SSH host sees them, joined to a protocol as `loop.create_connection` would.

        Cancel it whenever you like: a channel that arrives after that is closed.

        Raises:
            SSHForwardingRefused, UpstreamRefused, UpstreamUnreachable, SSHBusy, SSHLost: what the host says to it.
        """
        opening = asyncio.create_task(self._create(protocol_factory, host, port))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            async with asyncio.timeout(CHANNEL_S):
                return await asyncio.shield(opening)
        except TimeoutError as error:
            opening.add_done_callback(_abandon)
            raise UpstreamUnreachable(f"{host}:{port} did not answer within {CHANNEL_S:.0f} s.") from error
        except asyncio.CancelledError:
            opening.add_done_callback(_abandon)
            raise

    async def open_stream(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A channel as a reader and a writer, for conversations of our own. Raises as `open_channel` does."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LONGEST_ANSWER, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport = await self.open_channel(lambda: protocol, host, port)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _create(self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int) -> ChannelTransport:
        connection = self._live()
        session = _Session(self, protocol_factory())
        begun = time.monotonic()
        try:
            await connection.create_connection(lambda: session, host, port)
        except asyncssh.ChannelOpenError as error:
            raise channel_problem(error, f"{host}:{port}", lost=connection.is_closed()) from error
        except (asyncssh.Error, OSError) as error:
            raise SSHLost(detail=clean(str(error))) from error
        self.latency_s = time.monotonic() - begun
        return session.transport


class ChannelTransport(asyncio.Transport):
    """An asyncssh channel with asyncio's manners: writing to one that is ending is no error, it goes nowhere."""

    def __init__(self, channel: asyncssh.SSHTCPChannel[bytes]) -> None:
        super().__init__()
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
        self._channel.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._channel.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._channel.get_extra_info(name, default)


class _Session(asyncssh.SSHTCPSession[bytes]):
    """
    asyncssh's callbacks, passed on to an asyncio protocol.

    What a protocol raises ends its own channel: asyncssh would end the connection, and every other tunnel with it.
    """

    def __init__(self, host: Host, protocol: asyncio.Protocol) -> None:
        self._host = host
        self._protocol = protocol

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self.transport = ChannelTransport(chan)
        self._host.channels += 1
        self._tell(self._protocol.connection_made, self.transport)

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002 - there is one kind
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - told, and contained
            self._failed(error)

    def eof_received(self) -> bool:
        return bool(self._tell(self._protocol.eof_received))

    def pause_writing(self) -> None:
        self._tell(self._protocol.pause_writing)

    def resume_writing(self) -> None:
        self._tell(self._protocol.resume_writing)

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.channels -= 1
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


def _abandon(opening: asyncio.Task[ChannelTransport]) -> None:
    """Nobody waits any more for this channel."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()


async def _run(connection: asyncssh.SSHClientConnection, command: str) -> Answer:
    process = await connection.create_process(command, stdin=asyncssh.DEVNULL, encoding="utf-8", errors="replace")
    try:
        out, err = await asyncio.gather(_read(process.stdout), _read(process.stderr))
        if len(out) < LONGEST_ANSWER and len(err) < LONGEST_ANSWER:
            await process.wait_closed()
    finally:
        process.close()
    return Answer(process.exit_status if process.exit_signal is None else None, out, err)


async def _read(stream: asyncssh.SSHReader[str]) -> str:
    """To the end, or to `LONGEST_ANSWER`: it is another machine that talks."""
    read = ""
    while len(read) < LONGEST_ANSWER and (more := await stream.read(LONGEST_ANSWER)):
        read += more
    return read[:LONGEST_ANSWER]


async def _ended(connection: asyncssh.SSHClientConnection) -> None:
    connection.abort()
    await connection.wait_closed()


def unreachable(host: Host, waited_s: float) -> FluxError:
    """What to tell a client that waited *waited_s* for *host* in vain."""
    return host.last_problem or SSHUnreachable(f"{host.destination} did not come back within {waited_s:.0f} s.")

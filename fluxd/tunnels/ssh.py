"""
One SSH host and its one shared connection: dial, keep, redial; ask questions, open channels.

Many tunnels share a host. It is dialled when somebody needs it, and while a tunnel is open it is redialled for ever, by
`core.backoff`, or at once when a client connects. What sits behind `Host.open_channel` is the data plane; today that is
asyncssh's own channels (`channels`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
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

from .channels import Channels, ChannelTransport
from .dial import Destination, Dialling, dial

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
# So often it is looked at whether anybody uses the connection, and, on a clock that counts sleep, whether a try is due.
LOOK_S: Final = 1.0
# A doubted connection that has said nothing for so long, or for twice what its last channel took, is dialled beside.
ANSWERS_S: Final = 0.5
MOST_PATIENT_S: Final = 5.0
# A dial that the network changes under is begun again so often; a network that never rests is not to keep us from it.
DIALS_ANEW: Final = 3
# What asyncssh's keepalives ask. It has no public word for it: where this one is gone, doubts are left to keepalives.
PING: Final = getattr(asyncssh.SSHClientConnection, "_make_global_request", None)

State = Literal["idle", "connecting", "up", "waiting"]
Observer = Callable[["Host", Literal["host_up", "host_lost", "host_failed", "host_idle"]], None]


class Host:
    """
    One destination, at most one connection to it.

    `generation` grows with every connection: what was learnt about upstream over an older one is to be learnt again.
    """

    def __init__(
        self,
        destination: Destination,
        how: Dialling,
        clock: Clock,
        observe: Observer,
        *,
        pinned: tuple[str, ...] = (),
    ) -> None:
        self.destination = destination
        self.agent: str | None = None
        self.pinned = pinned
        self.state: State = "idle"
        self.generation = 0
        self.latency_s: float | None = None
        self.connected_at: datetime | None = None
        self.last_problem: FluxError | None = None
        self._how = how
        self._clock = clock
        self._observe = observe
        self._connection: asyncssh.SSHClientConnection | None = None
        self._backoff = Backoff()
        self._channels = Channels()
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._asking = 0
        self._keeper: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[FluxError | None] = asyncio.get_running_loop().create_future()
        self._poked = asyncio.Event()
        self._dialling: asyncio.Timeout | None = None
        self._dials_anew = 0
        self._doubted = asyncio.Event()
        self._hearing: asyncio.Task[None] | None = None
        self._closed = False

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

    async def wait_up(self, *, hurry: bool = True) -> None:
        """Be connected, however many tries it takes: bound it. With *hurry* the first of them is made at once."""
        while await self._next_outcome(hurry=hurry) is not None:
            hurry = False

    @property
    def channels(self) -> int:
        """How many are open."""
        return len(self._channels)

    @property
    def key_fingerprint(self) -> str | None:
        """Of the host key that the connection was made with; None without one."""
        key = self._connection.get_server_host_key() if self._connection is not None else None
        return key.get_fingerprint() if key is not None else None

    def doubt(self) -> None:
        """
        This machine has slept, or a link, an address or a route of it is another than before.

        The connection has to show that it is still there. Without one, the next try is made now: also in place of one
        under way, which may wait for an answer on a way that is no more.
        """
        if self.state == "up":
            self._doubted.set()
        elif self.state == "waiting":
            self._poked.set()
        elif self._dialling is not None and self._dials_anew > 0:
            self._dials_anew -= 1
            self._dial_no_more()

    async def aclose(self) -> None:
        """End the connection, with every channel in it, and dial no more: whoever waits is told that it is lost."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._settle(SSHLost(f"The connection to {self.destination} was closed."))
        await self._channels.opened_all()

    async def _next_outcome(self, *, hurry: bool) -> FluxError | None:
        """What the try that is under way, or the next one, comes to; None: connected."""
        if self._closed:
            raise SSHLost(f"The connection to {self.destination} was closed.")
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
        try:
            while True:
                self.state = "connecting"
                self._poked.clear()
                try:
                    await self._up(await self._dial())
                except FluxError as problem:
                    await self._failed(problem)
                    continue
                await self._live()
                if self._is_unused():
                    await self._rest()
                else:
                    await self._lost()
        finally:
            await self._hang_up()

    async def _dial(self) -> asyncssh.SSHClientConnection:
        """A new connection; or, if it answers first, the one that is doubted."""
        self._dials_anew = DIALS_ANEW
        while not self._has_answered:
            with contextlib.suppress(TimeoutError):  # told to dial no more; `dial` raises none
                try:
                    async with asyncio.timeout(None) as self._dialling:
                        other = await dial(self.destination, self._how, agent=self.agent, pinned=self.pinned)
                finally:
                    self._dialling = None
                if not self._has_answered:
                    return other
                await _ended(other)
        return self._use()

    def _dial_no_more(self) -> None:
        """End the dial under way, if there is one that is not ending already."""
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.reschedule(asyncio.get_running_loop().time())

    async def _up(self, connection: asyncssh.SSHClientConnection) -> None:
        if connection is not self._connection:
            old, self._connection = self._connection, connection
            self.generation += 1
            self._up_since, self.connected_at = self._clock.now(), self._clock.wall()
            self._channels.watch(connection)
            if old is not None:
                await _ended(old)
        await self._hear_no_more()
        self.state, self.last_problem = "up", None
        self._used_at = self._clock.awake()
        self._settle(None)
        self._observe(self, "host_up")

    async def _live(self) -> None:
        """Until the connection ends, nobody needs it, or it is doubted and says nothing."""
        connection = self._use()
        closing = asyncio.create_task(connection.wait_closed())
        self._doubted.clear()
        try:
            while not closing.done() and not self._is_unused():
                await self._moment(closing)
                if self._doubted.is_set() and not await self._answers(connection, closing):
                    break
        finally:
            closing.cancel()

    async def _moment(self, closing: asyncio.Task[None]) -> None:
        """Until it closes or is doubted, a second at most."""
        doubting: asyncio.Task[Any] = asyncio.create_task(self._doubted.wait())
        try:
            await asyncio.wait({closing, doubting}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doubting.cancel()

    # Its keepalives would take their time: they are timed by a clock that stood still, and begin with patience. But a
    # link may be slow and a host busy, so that silence does not end what is on the connection: it is told to be lost,
    # another is dialled, and whichever answers first is the one. If neither does, keepalives end it.

    async def _answers(self, connection: asyncssh.SSHClientConnection, closing: asyncio.Task[None]) -> bool:
        """Whether the doubted connection says anything soon; if not, it is listened to further on."""
        self._doubted.clear()
        if PING is None:
            return True
        self._channels.heard.clear()
        self._hearing = asyncio.create_task(self._hear(connection))
        soon_s = min(max(ANSWERS_S, 2 * (self.latency_s or 0.0)), MOST_PATIENT_S)
        await asyncio.wait({closing, self._hearing}, timeout=soon_s, return_when=asyncio.FIRST_COMPLETED)
        if not (closing.done() or self._hearing.done() or self._channels.heard.is_set()):
            return False
        await self._hear_no_more()
        return True

    async def _hear(self, connection: asyncssh.SSHClientConnection) -> None:
        """Ask *connection* for a sign of life, and when there is one end the dial or the pause in its place."""

        def told(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and answer.exception() is None and not connection.is_closed():
                self._channels.heard.set()

        assert PING is not None
        asking = asyncio.ensure_future(PING(connection, b"keepalive@openssh.com"))
        asking.add_done_callback(told)
        try:
            await self._channels.heard.wait()
        finally:
            asking.cancel()
        self._poked.set()
        self._dial_no_more()

    @property
    def _has_answered(self) -> bool:
        """Whether the connection that did not answer in time now has."""
        return self._hearing is not None and self._channels.heard.is_set()

    async def _hear_no_more(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.wait([self._hearing])
            self._hearing = None

    async def _hang_up(self) -> None:
        await self._hear_no_more()
        connection, self._connection, self.connected_at = self._connection, None, None
        if connection is not None:
            await _ended(connection)

    def _is_unused(self) -> bool:
        """Whether nobody has needed the connection for as long as it may idle; our own sleep does not count."""
        now = self._clock.awake()
        if self._channels.in_use or self._asking:
            self._used_at = now
        return now - self._used_at >= self._how.idle_s

    async def _rest(self) -> None:
        """Be without a connection until somebody needs one; nobody has lost anything."""
        self._poked.clear()
        self.state, self._backoff = "idle", self._backoff.reset()
        await self._hang_up()
        self._observe(self, "host_idle")
        await self._poked.wait()

    async def _failed(self, problem: FluxError) -> None:
        self.state, self.last_problem = "waiting", problem
        self._backoff = self._backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter
        self._poked.clear()
        self._settle(problem)
        self._observe(self, "host_failed")
        await self._pause()

    async def _lost(self) -> None:
        self.state = "waiting"
        if self._hearing is None:
            self.last_problem = SSHLost(f"The connection to {self.destination} was lost.")
            await self._hang_up()
        else:
            self.last_problem = SSHLost(f"The connection to {self.destination} does not answer.")
        if self._clock.now() - self._up_since >= GOOD_AFTER_S:
            self._backoff = self._backoff.reset()
        self._poked.clear()
        self._observe(self, "host_lost")
        await self._pause()
        self._backoff = self._backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter

    async def _pause(self) -> None:
        """Until the next try is due, or somebody cannot wait; but never quite at once, for somebody may be many."""
        await asyncio.sleep(LEAST_PAUSE_S)
        while (left_s := self._backoff.wait_s(self._clock.now())) > 0 and not self._is_wanted():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S)):  # a timeout does not count sleep, `left_s` does
                    await self._poked.wait()

    def _is_wanted(self) -> bool:
        return self._poked.is_set() or self._has_answered

    def _settle(self, outcome: FluxError | None) -> None:
        settled, self._outcome = self._outcome, asyncio.get_running_loop().create_future()
        settled.set_result(outcome)

    def _use(self) -> asyncssh.SSHClientConnection:
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
                        return await self._run(command)
                except asyncssh.ChannelOpenError as error:
                    if self._clock.now() > patience:
                        raise SSHBusy(detail=clean(error.reason)) from error
                except TimeoutError as error:
                    raise ResolverFailed(f"The SSH host did not answer within {QUESTION_S:.0f} s.") from error
                except (asyncssh.Error, OSError) as error:
                    raise SSHLost(detail=clean(str(error))) from error
                await asyncio.sleep(BUSY_PAUSE_S)

    async def _run(self, command: str) -> Answer:
        process = await self._channels.opened(_started(self._use(), command), asyncssh.SSHClientProcess.close)
        try:
            out, err = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            if len(out) < LONGEST_ANSWER and len(err) < LONGEST_ANSWER:
                await process.wait_closed()
        finally:
            process.close()
        return Answer(process.exit_status if process.exit_signal is None else None, out, err)

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
        begun = time.monotonic()
        try:
            async with asyncio.timeout(CHANNEL_S):
                channel = await self._channels.open(self._use(), protocol_factory, host, port)
        except TimeoutError as error:
            raise UpstreamUnreachable(f"{host}:{port} did not answer within {CHANNEL_S:.0f} s.") from error
        self.latency_s = time.monotonic() - begun
        return channel

    async def open_stream(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A channel as a reader and a writer, for conversations of our own. Raises as `open_channel` does."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LONGEST_ANSWER, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport = await self.open_channel(lambda: protocol, host, port)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _started(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[str]:
    return await connection.create_process(command, stdin=asyncssh.DEVNULL, encoding="utf-8", errors="replace")


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

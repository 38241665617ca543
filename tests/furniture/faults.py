"""
A TCP proxy that misbehaves: what stands between a laptop and its SSH host, on loopback.

It cuts (RST), hangs up (FIN), stalls (sockets open, nothing passes: a blackhole; in one direction: a half-open link),
refuses, delays.
Not an SSH thing: it knows bytes. Loss and links that go down are nftables' and ip's work; delay is this one's, since
not every kernel has netem.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

import pytest

Direction = Literal["up", "down"]

# Unread bytes of a delayed or stalled direction; then the sender feels the backpressure of a full pipe.
IN_FLIGHT = 64
RST_ON_CLOSE = struct.pack("ii", 1, 0)


class _Flow(dict[Direction, asyncio.Event]):
    """Whether something passes, each way."""

    def __init__(self) -> None:
        super().__init__(up=asyncio.Event(), down=asyncio.Event())
        for flowing in self.values():
            flowing.set()


class FaultProxy:
    """Listens on `host`:`port` and joins every connection to one to *behind*, a port of *behind_host*."""

    def __init__(self, behind: int, *, host: str = "127.0.0.1", port: int = 0, behind_host: str = "127.0.0.1") -> None:
        self.behind = behind
        self.behind_host = behind_host
        self.host = host
        self.port = port
        self.latency_s = 0.0
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = _Flow()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._join, self.host, self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        await self.refuse()
        self.cut()
        for link in list(self._links):
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)

    @property
    def links(self) -> int:
        return len(self._links)

    # ------------------------------------------------------------------ faults

    def cut(self) -> None:
        """RST to both sides of every connection: a bastion that lost its state, an impatient firewall."""
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
        for link in self._links:
            link.cancel()

    def hang_up(self) -> None:
        """FIN to both sides of every connection: each ends when they have closed theirs."""
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.write_eof()

    def stall(self, *directions: Direction) -> None:
        """
        Nothing passes any more, ends of connections neither; new connections are accepted and stall too.

        Named, only what goes *up* to the SSH host, or comes *down* from it: a link that is half-open.
        """
        for direction in directions or ("up", "down"):
            self._flowing[direction].clear()

    def strand(self, *directions: Direction) -> None:
        """Nothing passes any more on the connections there are, for ever; new ones are fine. A firewall forgot them."""
        self.stall(*directions)
        self._flowing = _Flow()

    def flow(self) -> None:
        """Everything passes again, what waited first."""
        for flowing in self._flowing.values():
            flowing.set()

    async def refuse(self) -> None:
        """New connections are refused until `accept`; those there are go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Listen again, on the same port."""
        if self._server is None:
            await self.start()

    # ------------------------------------------------------------------- pumps

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self.accepted += 1
        self._links.add(link)
        ends, flowing = [writer], self._flowing
        self._writers.add(writer)
        try:
            await flowing["up"].wait()
            back, there = await asyncio.open_connection(self.behind_host, self.behind)
            ends.append(there)
            self._writers.add(there)
            up, down = self._pump(reader, there, flowing["up"]), self._pump(back, writer, flowing["down"])
            await asyncio.gather(up, down)
        except (OSError, asyncio.CancelledError):
            pass  # nobody behind, or cut; asyncio's streams take a cancelled handler for a failed one
        finally:
            self._links.discard(link)
            for end in ends:
                self._writers.discard(end)
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        """One direction, until its sender has ended or its receiver is gone."""
        pipe: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        taking = asyncio.create_task(self._take(reader, pipe))
        try:
            await _give(pipe, writer, flowing)
        except (OSError, RuntimeError):
            pass  # gone, or hung up on; the other direction will find out in its own time, as on a real link
        finally:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking

    async def _take(self, reader: asyncio.StreamReader, pipe: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(64 * 1024)
            except OSError:
                data = b""
            await pipe.put((asyncio.get_running_loop().time() + self.latency_s, data))


async def _give(pipe: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
    data = b"-"
    while data:
        due, data = await pipe.get()
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        await flowing.wait()
        if data:
            writer.write(data)
            await writer.drain()
    writer.write_eof()


@contextlib.asynccontextmanager
async def fault_proxy(
    behind: int, *, host: str = "127.0.0.1", port: int = 0, behind_host: str = "127.0.0.1"
) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(behind, host=host, port=port, behind_host=behind_host)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


@pytest.fixture
async def faulty_ssh(ssh_host):
    """`ssh_host` behind a fault proxy: its own furniture now names the proxy's port. `.proxy` makes the faults."""
    async with fault_proxy(ssh_host.port) as proxy:
        ssh_host.proxy, ssh_host.port = proxy, proxy.port
        ssh_host.write_known_hosts()
        yield ssh_host

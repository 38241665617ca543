"""
A real link to an SSH host: a veth pair between two network namespaces, this thread in one of them, sshd in the other.

The namespaces have no names: they are gone with this process, however it ends. Addresses are of 198.18.0.0/15, which
is for such tests (RFC 2544), and are known only in there. Faults are the kernel's own: `ip link set down`, nftables.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.furniture.needs import needs_program
from tests.furniture.sshd import OpenSSH, serving

CLONE_NEWNET = 0x40000000
NEAR, FAR = "198.18.7.1", "198.18.7.2"
DEVICE = "flux0"


class Namespace:
    """A network namespace of its own, its loopback up. `close` lets go of it."""

    def __init__(self) -> None:
        self.descriptor = self._made()
        self.run("ip", "link", "set", "lo", "up")

    @staticmethod
    def _made() -> int:
        made: list[int] = []

        def make() -> None:
            _must(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET))
            made.append(_own())

        thread = threading.Thread(target=make)  # it alone goes there, and ends
        thread.start()
        thread.join()
        return made[0]

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in there, and what it starts: never across an `await`, except for a test's whole length."""
        home = _own()
        _enter(self.descriptor)
        try:
            yield
        finally:
            _enter(home)
            os.close(home)

    def run(self, *argv: str) -> str:
        with self.inside():
            return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def listen(self, host: str, port: int) -> socket.socket:
        with self.inside():
            return socket.create_server((host, port))

    def close(self) -> None:
        os.close(self.descriptor)


def _own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(descriptor: int) -> None:
    _must(ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET))


def _must(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Link:
    """The link from `near`, where this thread is, to `far`. Its faults strike both directions."""

    def __init__(self, near: Namespace, far: Namespace) -> None:
        self.near, self.far = near, far
        near.run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", far.path)
        near.run("ip", "address", "add", f"{NEAR}/30", "dev", DEVICE)
        far.run("ip", "address", "add", f"{FAR}/30", "dev", DEVICE)
        for end in (near, far):
            # No address of its own making, which would be told of seconds later, when it is known to be the only one.
            end.run("ip", "link", "set", DEVICE, "addrgenmode", "none")
        self.up("near")
        self.up("far")

    def up(self, end: str = "near") -> None:
        self._end(end).run("ip", "link", "set", DEVICE, "up")

    def down(self, end: str = "near") -> None:
        """Near: the interface is switched off, its routes go. Far: the cable is pulled, the near end has no carrier."""
        self._end(end).run("ip", "link", "set", DEVICE, "down")

    def _end(self, end: str) -> Namespace:
        return {"near": self.near, "far": self.far}[end]

    def drop(self, percent: int = 100) -> None:
        """Of the packets that arrive at either end, so many are dropped, by chance; no interface changes."""
        chance = "" if percent == 100 else f"numgen random mod 100 < {percent}"
        rules = (
            "add table inet faults; add chain inet faults arriving { type filter hook input priority 0; }; "
            f'add rule inet faults arriving iifname "{DEVICE}" {chance} counter drop'
        )
        for end in (self.near, self.far):
            end.run("nft", rules)

    def dropped(self) -> int:
        """Packets so far."""
        said = [end.run("nft", "list", "table", "inet", "faults") for end in (self.near, self.far)]
        return sum(int(one.split("counter packets ")[1].split()[0]) for one in said)

    def flow(self) -> None:
        for end in (self.near, self.far):
            end.run("nft", "delete", "table", "inet", "faults")


class FarSSH(OpenSSH):
    """sshd at the far end. It reaches on its own loopback what is passed there."""

    host = FAR

    def __init__(self, home: Path, far: Namespace) -> None:
        super().__init__(home)
        self._far = far
        self.server.host = FAR

    async def start(self) -> None:
        await asyncio.to_thread(self._start)
        self.port = self.server.port or 0

    def _start(self) -> None:
        with self._far.inside():
            self.server.start()


@contextlib.asynccontextmanager
async def passed(namespace: Namespace, port: int, home: Namespace) -> AsyncIterator[None]:
    """In *namespace* 127.0.0.1:*port* is what it is in *home*."""
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.add(task)
        with home.inside():
            there = socket.create_connection(("127.0.0.1", port))
        there_reader, there_writer = await asyncio.open_connection(sock=there)
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            for one in (writer, there_writer):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()
            relays.discard(task)

    server = await asyncio.start_server(relay, sock=namespace.listen("127.0.0.1", port))
    try:
        yield
    finally:
        server.close()
        for one in relays:
            one.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class Home(Namespace):
    """Where this thread is now."""

    def __init__(self) -> None:
        self.descriptor = _own()


def can_make_namespaces() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and _unshare_works()


def _unshare_works() -> bool:
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    with contextlib.ExitStack() as stack:
        made = [Namespace() for _ in range(count)]
        for one in made:
            stack.callback(one.close)
        yield made


@contextlib.asynccontextmanager
async def linked(ssh_home: Path, port: int) -> AsyncIterator[tuple[Link, FarSSH]]:
    """
    A link and the SSH host at its far end. Inside the block this thread is at the near end.

    In both namespaces 127.0.0.1:*port* is what it is here.
    """
    if not can_make_namespaces():
        pytest.skip("network namespaces are not to be had here: they need Linux and root with CAP_SYS_ADMIN")
    needs_program("ip")
    needs_program("nft")
    async with contextlib.AsyncExitStack() as stack:
        near, far = stack.enter_context(namespaces(2))
        home = Home()
        stack.callback(home.close)
        link = Link(near, far)
        for one in (near, far):
            await stack.enter_async_context(passed(one, port, home))
        host = await stack.enter_async_context(serving(FarSSH(ssh_home, far)))
        stack.enter_context(near.inside())
        yield link, host

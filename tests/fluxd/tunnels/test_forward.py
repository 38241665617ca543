"""Relays: every byte once, in order, to the right client; nothing left when a client has gone."""

import asyncio
import contextlib
import gc
import hashlib
import os
import socket

import pytest

from fluxd.clock import Clock
from fluxd.core.errors import LocalHostForbidden, PortTaken, SSHUnreachable
from fluxd.core.target import Target
from fluxd.tunnels.dial import Destination, Dialling
from fluxd.tunnels.forward import EARLY_BYTES, Forward, bind
from fluxd.tunnels.ssh import Host
from tests.fluxd.tunnels.rig import until
from tests.fluxd.tunnels.upstreams import Upstream, poured_digest, slam


def destination(host) -> Destination:
    return Destination(Target(host.host, host.user, host.port), str(host.identity_file), str(host.known_hosts))


@contextlib.asynccontextmanager
async def connected(host):
    ours = Host(destination(host), Dialling(config="/nonexistent"), Clock(), lambda *_: None)
    try:
        await ours.reach()
        yield ours
    finally:
        await ours.aclose()


@contextlib.asynccontextmanager
async def forwarding(open_channel, seen=None):
    forward = Forward(
        bind("127.0.0.1", 0),
        open_channel=open_channel,
        observe=lambda *happening: seen.append(happening) if seen is not None else None,
    )
    forward.start()
    try:
        yield forward
    finally:
        forward.stop_listening()
        await forward.close_relays()


@pytest.fixture
async def over_ssh(ssh_host):
    """A function that forwards to an upstream through a real SSH host."""
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(connected(ssh_host))

        async def forward_to(upstream, seen=None):
            ssh_host.know_container("upstream", upstream.port)

            async def open_channel(protocol):
                return await host.open_channel(protocol, "127.0.0.1", upstream.port)

            return await stack.enter_async_context(forwarding(open_channel, seen))

        forward_to.host = host
        yield forward_to


async def connect(forward):
    return await asyncio.open_connection("127.0.0.1", forward.port)


async def bye(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_200_clients_at_once_read_back_their_own_bytes(over_ssh):
    async with Upstream() as upstream:
        forward = await over_ssh(upstream)

        async def client(number):
            mine = hashlib.sha256(str(number).encode()).digest() * 300
            reader, writer = await connect(forward)
            writer.write(mine)
            assert await reader.readexactly(len(mine)) == mine
            await bye(writer)

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(client(number))
        assert upstream.total == 200
        await until(lambda: (forward.relays, over_ssh.host.channels) == (0, 0), "every relay and channel to end")


@pytest.mark.parametrize("leave", [slam, asyncio.StreamWriter.close], ids=["rst", "fin"])
async def test_1000_clients_that_leave_during_the_handshake_leak_no_channel(over_ssh, leave):
    async with Upstream() as upstream:
        forward = await over_ssh(upstream)
        for _ in range(20):
            pairs = await asyncio.gather(*(connect(forward) for _ in range(50)))
            for _, writer in pairs:
                writer.write(b"\x00\x00\x00\x08")
                leave(writer)
            await asyncio.gather(*(bye(writer) for _, writer in pairs))
        await until(
            lambda: (forward.relays, over_ssh.host.channels, upstream.open) == (0, 0, 0),
            "every channel to close",
            within_s=30,
        )
        assert over_ssh.host._connection is not None
        await until(lambda: len(over_ssh.host._connection._channels) == 0, "asyncssh to forget every channel")
        reader, writer = await connect(forward)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        await bye(writer)


async def test_the_end_of_the_clients_stream_reaches_upstream_and_the_answer_comes_back(over_ssh):
    sent = os.urandom(3_000_001)
    async with Upstream("digest") as upstream:
        forward = await over_ssh(upstream)
        reader, writer = await connect(forward)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(sent).digest()
        await bye(writer)
        await until(lambda: forward.bytes_up == len(sent), "the count of bytes up")
        assert forward.bytes_down == 32


async def test_a_big_download_is_byte_exact_and_its_end_is_seen(over_ssh):
    count = 64 * 1024 * 1024 + 17
    async with Upstream("pour", count) as upstream:
        forward = await over_ssh(upstream)
        reader, writer = await connect(forward)
        seen, got = hashlib.sha256(), 0
        while data := await reader.read(1 << 20):
            seen.update(data)
            got += len(data)
        assert got == count
        assert seen.digest() == poured_digest(count)
        assert forward.bytes_down == count
        await bye(writer)


async def test_a_client_that_does_not_read_holds_upstream_back_not_our_memory(over_ssh):
    count = 512 * 1024 * 1024
    async with Upstream("pour", count) as upstream:
        forward = await over_ssh(upstream)
        reader, writer = await connect(forward)
        await reader.readexactly(1000)
        before = -1
        while before != forward.bytes_down:
            before = forward.bytes_down
            await asyncio.sleep(0.3)
        assert forward.bytes_down < 16 * 1024 * 1024
        slam(writer)
        await bye(writer)


async def test_a_relay_still_sends_what_upstream_said_before_it_ended(over_ssh):
    """Postgres says FATAL and hangs up: the client must read it, however slowly."""
    async with Upstream("pour", 900_000) as upstream:
        forward = await over_ssh(upstream)
        reader, writer = await connect(forward)
        await until(lambda: upstream.total == 1 and upstream.open == 0, "upstream to hang up")
        assert len(await reader.read()) == 900_000
        await bye(writer)


# ----------------------------------------------------- without an SSH host


def through(upstream):
    """Channels that are plain TCP: a relay can't tell."""

    async def open_channel(protocol):
        transport, _ = await asyncio.get_running_loop().create_connection(protocol, "127.0.0.1", upstream.port)
        return transport

    return open_channel


async def test_clients_that_come_before_it_starts_are_served_when_it_does():
    async with Upstream() as upstream:
        forward = Forward(bind("127.0.0.1", 0), open_channel=through(upstream), observe=lambda *_: None)
        reader, writer = await connect(forward)
        writer.write(b"early")
        forward.start()
        assert await reader.readexactly(5) == b"early"
        await bye(writer)
        forward.stop_listening()
        await forward.close_relays()


async def test_a_client_that_leaves_without_a_word_never_reaches_upstream():
    waiting, seen = asyncio.Event(), []

    async def open_channel(protocol):
        await waiting.wait()
        raise AssertionError("nobody waits for this channel")

    async with forwarding(open_channel, seen) as forward:
        _, writer = await connect(forward)
        await until(lambda: forward.relays == 1, "the client to be accepted")
        await bye(writer)
        await until(lambda: forward.relays == 0, "the relay to end")
    assert seen == []


async def test_a_cancel_request_whose_client_hung_up_is_still_delivered():
    go = asyncio.Event()
    async with Upstream("digest") as upstream:
        direct = through(upstream)

        async def open_channel(protocol):
            await go.wait()
            return await direct(protocol)

        async with forwarding(open_channel) as forward:
            reader, writer = await connect(forward)
            writer.write(b"cancel")
            writer.write_eof()
            await until(lambda: forward.bytes_up == 6, "the request")
            go.set()
            assert await reader.read() == hashlib.sha256(b"cancel").digest()
            await bye(writer)


async def test_what_a_client_may_say_before_its_channel_is_open_is_bounded():
    async def never(protocol):
        await asyncio.Event().wait()

    async with forwarding(never) as forward:
        _, writer = await connect(forward)
        for _ in range(64):
            writer.write(bytes(1 << 20))
        before = -1
        while before != forward.bytes_up:
            before = forward.bytes_up
            await asyncio.sleep(0.1)
        assert forward.bytes_up < 4 * EARLY_BYTES + 256 * 1024
        slam(writer)
        await bye(writer)


async def test_a_refused_client_is_told_to_the_observer_and_cut_off():
    seen = []

    async def open_channel(protocol):
        raise SSHUnreachable("it is away")

    async with forwarding(open_channel, seen) as forward:
        reader, writer = await connect(forward)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await bye(writer)
        await until(lambda: len(seen) == 1, "the happening")
    assert seen[0][0] == "client_refused"
    assert seen[0][1].code == "ssh_unreachable"


async def test_a_bug_while_a_channel_is_opened_cuts_its_client_off_and_nobody_else():
    seen = []
    async with Upstream() as upstream:
        direct = through(upstream)

        async def open_channel(protocol):
            if not seen:
                raise RuntimeError("nobody thought of this")
            return await direct(protocol)

        async with forwarding(open_channel, seen) as forward:
            async with asyncio.timeout(5):
                reader, writer = await connect(forward)
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                await bye(writer)
                assert [(happening, problem.code) for happening, problem in seen] == [
                    ("client_refused", "internal_error")
                ]
                reader, writer = await connect(forward)
                writer.write(b"fine")
                assert await reader.readexactly(4) == b"fine"
                await bye(writer)


async def test_stop_listening_refuses_at_once_and_leaves_relays_alone():
    async with Upstream() as upstream, forwarding(through(upstream)) as forward:
        reader, writer = await connect(forward)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        forward.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            await connect(forward)
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        await bye(writer)


async def test_close_relays_waits_for_no_client():
    async with Upstream("pour", 256 * 1024 * 1024) as upstream, forwarding(through(upstream)) as forward:
        reader, writer = await connect(forward)
        await reader.readexactly(10)
        forward.stop_listening()
        begun = asyncio.get_running_loop().time()
        await forward.close_relays(within_s=0.2)
        assert asyncio.get_running_loop().time() - begun < 2
        assert forward.relays == 0
        await bye(writer)


async def test_localhost_by_either_family_is_ours():
    sockets = bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    assert len(sockets) == (2 if socket.has_ipv6 else 1)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))
    for one in sockets:
        one.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_somebody_listens_on_is_taken(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as other:
        other.bind((address, 0))
        other.listen()
        with pytest.raises(PortTaken):
            bind("127.0.0.1", other.getsockname()[1])
    gc.collect()


def test_an_address_that_is_not_this_machines_is_refused():
    with pytest.raises(LocalHostForbidden):
        bind("192.0.2.1", 0)


async def test_more_clients_than_the_accept_queue_holds_are_all_served(monkeypatch):
    """Those beyond it the kernel has try again; nobody is lost, and nobody is told that nobody is there."""
    monkeypatch.setattr("fluxd.tunnels.forward.BACKLOG", 2)
    async with Upstream() as upstream:

        async def open_channel(protocol):
            transport, _ = await asyncio.get_running_loop().create_connection(protocol, "127.0.0.1", upstream.port)
            return transport

        forward = Forward(bind("127.0.0.1", 0), open_channel=open_channel, observe=lambda *_: None)
        clients = [asyncio.create_task(connect(forward)) for _ in range(8)]
        await until(lambda: sum(one.done() for one in clients) == 3, "the queue to be full")
        forward.start()
        async with asyncio.timeout(20):
            for reader, writer in await asyncio.gather(*clients):
                writer.write(b"here")
                assert await reader.readexactly(4) == b"here"
                await bye(writer)
        forward.stop_listening()
        await forward.close_relays()

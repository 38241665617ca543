"""The way to the SSH host breaks; the listener stays, and who connects anew has an answer."""

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from fluxd.clock import Clock
from fluxd.core.backoff import Backoff
from fluxd.core.errors import SSHLost
from fluxd.core.target import Target
from fluxd.tunnels.dial import Destination, Dialling
from fluxd.tunnels.forward import Forward, bind
from fluxd.tunnels.ssh import Host
from tests.fluxd.tunnels.rig import V1_HASH, Rig, until
from tests.furniture.faults import fault_proxy
from tests.furniture.provoked import provoked


@pytest.fixture
async def faulty_rig(faulty_ssh, contract_plane, pool18, tmp_path):
    """A rig on both kinds of SSH host, with a fault proxy (`rig.host.proxy`) before it."""
    rig = Rig(faulty_ssh, contract_plane, pool18, tmp_path / "state")
    yield rig
    await rig.close()


@contextlib.asynccontextmanager
async def told(rig):
    """The names of what happens from here on."""
    names = []

    async def listen():
        async with rig.up.events(tunnel=None, hold=None) as events:
            async for event in events:
                names.append((event.name, event.problem))  # noqa: PERF401 - read while it grows

    listening = asyncio.create_task(listen())
    await until(lambda: names, "the snapshot")
    try:
        yield names
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def listening_inode(port):
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[1] == f"0100007F:{port:04X}":
            return fields[9]
    return None


@pytest.mark.parametrize("fault", ["cut", "hang_up"])
async def test_a_lost_connection_keeps_the_listener_and_the_next_client_works(faulty_rig, fault):
    opened = await faulty_rig.open(V1_HASH)
    listener = listening_inode(opened.tunnel.port)
    async with told(faulty_rig) as names:
        async with await faulty_rig.connect(opened) as connection:
            getattr(faulty_rig.host.proxy, fault)()
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
        assert await faulty_rig.ask(opened) == "postgres"
        await until(lambda: {"host_lost", "host_up"} <= {name for name, _ in names}, "the events of it")
    lost = next(problem for name, problem in names if name == "reconnecting")
    provoked("ssh_lost", lost, says=f"{faulty_rig.host.host}:{faulty_rig.host.port} was lost")
    assert listening_inode(opened.tunnel.port) == listener is not None
    assert faulty_rig.up.show("yeastcoast").state == "up"


async def test_a_client_that_comes_while_the_host_is_away_is_served_when_it_is_back(faulty_rig):
    opened = await faulty_rig.open(V1_HASH)
    await faulty_rig.host.proxy.refuse()
    faulty_rig.host.proxy.cut()
    async with told(faulty_rig) as names:
        asking = asyncio.create_task(faulty_rig.ask(opened))
        await until(lambda: [name for name, _ in names].count("host_lost") or len(names) > 2, "a try that failed")
        assert not asking.done()
        await faulty_rig.host.proxy.accept()
        async with asyncio.timeout(20):
            assert await asking == "postgres"


async def test_a_client_that_waited_in_vain_is_closed_and_the_events_say_why(faulty_rig):
    faulty_rig.settings = replace(faulty_rig.settings, client_waits_s=0.5)
    opened = await faulty_rig.open(V1_HASH)
    await faulty_rig.host.proxy.refuse()
    faulty_rig.host.proxy.cut()
    async with told(faulty_rig) as names:
        with pytest.raises(psycopg.OperationalError):
            await faulty_rig.ask(opened)
        await until(lambda: "client_refused" in {name for name, _ in names}, "the reason")
    problems = [problem for name, problem in names if name == "client_refused"]
    assert problems[0].code.startswith("ssh_")
    assert problems[0].hint


async def test_many_flaps_leave_nothing_behind(faulty_rig):
    """What is left over (tasks, descriptors, threads) fails the test at its end."""
    opened = await faulty_rig.open(V1_HASH)
    assert await faulty_rig.ask(opened) == "postgres"
    before = held()
    for _ in range(30):
        faulty_rig.host.proxy.cut()
        await asyncio.sleep(0.03)
    assert await faulty_rig.ask(opened) == "postgres"
    await until(
        lambda: all(now <= then for now, then in zip(held(), before, strict=True)), f"no more than {before} things"
    )


def held():
    """Descriptors and tasks."""
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())


async def test_eight_clients_lose_only_what_was_in_flight_when_sshd_restarts(rig):
    """Each loses the one transaction it was in, connects anew while the host is away, and goes on."""
    opened = await rig.open(V1_HASH)
    lost, done, over = [], [0] * 8, asyncio.Event()

    async def work(number):
        while not over.is_set():
            connection = await rig.connect(opened)
            try:
                while not over.is_set():
                    await connection.execute("SELECT pg_sleep(0.01)")
                    done[number] += 1
            except psycopg.OperationalError:
                lost.append(number)
            finally:
                await connection.close()

    async with asyncio.TaskGroup() as workers:
        for number in range(8):
            workers.create_task(work(number))
        await until(lambda: min(done) >= 3, "everybody at work")
        await rig.host.restart()
        before = list(done)
        await until(lambda: all(now >= then + 3 for now, then in zip(done, before, strict=True)), "them at work again")
        over.set()
    assert sorted(lost) == list(range(8))


async def test_a_container_that_comes_back_at_another_address_is_found_at_once(rig, pool18):
    """Not only when the address that docker gave is old: nobody listens there any more."""
    container = f"flux-{V1_HASH}-yeastcoast-db"
    async with fault_proxy(pool18.port, host="127.0.0.2", port=pool18.port):
        rig.host.know_container(container, pool18.port, {"flux-network": "127.0.0.2"})
        opened = await rig.open(V1_HASH)
        assert opened.tunnel.upstream == f"127.0.0.2:{pool18.port}"
        assert await rig.ask(opened) == "postgres"
    rig.host.know_container(container, pool18.port)
    assert await rig.ask(opened) == "postgres"
    assert rig.up.show("yeastcoast").upstream == f"127.0.0.1:{pool18.port}"


async def test_where_nobody_listens_anywhere_a_client_is_told(rig, pool18):
    container = f"flux-{V1_HASH}-yeastcoast-db"
    async with fault_proxy(pool18.port, host="127.0.0.2", port=pool18.port):
        rig.host.know_container(container, pool18.port, {"flux-network": "127.0.0.2"})
        opened = await rig.open(V1_HASH)
    async with told(rig) as names:
        with pytest.raises(psycopg.OperationalError):
            await rig.ask(opened)
        await until(lambda: "client_refused" in {name for name, _ in names}, "the reason")
    assert next(problem for name, problem in names if name == "client_refused").code.startswith("upstream_")


async def test_a_dead_host_is_nothing_to_the_tunnels_of_another(faulty_rig, contract_plane, pool18):
    """The second tunnel goes to the same sshd by a way of its own."""
    async with fault_proxy(faulty_rig.host.proxy.behind) as other_way:
        dead = await faulty_rig.open(V1_HASH)
        faulty_rig.host.port = other_way.port
        faulty_rig.host.write_known_hosts()
        contract_plane.ssh["sshPort"] = other_way.port
        faulty_rig.add("millstone", "0c0c0c0", "v1_dedicated")
        alive = await faulty_rig.open("0c0c0c0")
        async with await faulty_rig.connect(alive) as connection:
            faulty_rig.host.proxy.stall()
            asking = asyncio.create_task(faulty_rig.ask(dead))
            for _ in range(20):
                async with asyncio.timeout(2):
                    assert await faulty_rig.ask(alive) == "postgres"
                    await connection.execute("SELECT 1")
            assert not asking.done()
            faulty_rig.host.proxy.flow()
            async with asyncio.timeout(30):
                assert await asking == "postgres"


# ------------------------------------------------------ the host connection alone


@contextlib.asynccontextmanager
async def forwarded(faulty_ssh, how, clock=None):
    """A forward through *faulty_ssh* to its own SSH port, which greets whoever connects."""
    happened = []
    target = Target("127.0.0.1", faulty_ssh.user, faulty_ssh.port)
    destination = Destination(target, str(faulty_ssh.identity_file), str(faulty_ssh.known_hosts))
    host = Host(destination, how, clock or Clock(), lambda _, name: happened.append(name))
    faulty_ssh.know_name("127.0.0.1", faulty_ssh.proxy.behind)

    async def open_channel(protocol):
        await host.wait_up()
        return await host.open_channel(protocol, "127.0.0.1", faulty_ssh.proxy.behind)

    await host.reach()
    forward = Forward(bind("127.0.0.1", 0), open_channel=open_channel, observe=lambda *_: None)
    await forward.start()
    try:
        yield host, forward, happened
    finally:
        forward.stop_listening()
        await forward.close_relays()
        await host.aclose()


async def greeting(forward):
    reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
    try:
        async with asyncio.timeout(15):
            return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()


QUICK = Dialling(keepalive_interval_s=0.2, keepalive_count=2, config=os.devnull)


@pytest.mark.parametrize("fault", ["strand", "stall"])
async def test_a_link_on_which_nothing_passes_is_noticed_by_keepalives(faulty_ssh, fault):
    async with forwarded(faulty_ssh, QUICK) as (host, forward, happened):
        getattr(faulty_ssh.proxy, fault)()
        await until(lambda: "host_lost" in happened, "the loss", within_s=5)
        assert isinstance(host.last_problem, SSHLost) or host.state == "connecting"
        faulty_ssh.proxy.flow()
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        await until(lambda: host.state == "up", "the connection")


async def test_keepalives_of_the_defaults_notice_within_15_s():
    how = Dialling()
    assert how.keepalive_interval_s * (how.keepalive_count + 1) < 15


async def test_a_frozen_sshd_is_noticed_and_a_thawed_one_serves_again(openssh):
    async with fault_proxy(openssh.port) as proxy:
        openssh.proxy, openssh.port = proxy, proxy.port
        openssh.write_known_hosts()
        async with forwarded(openssh, QUICK) as (_, forward, happened):
            openssh.freeze()
            try:
                await until(lambda: "host_lost" in happened, "the loss", within_s=5)
            finally:
                openssh.thaw()
            assert (await greeting(forward)).startswith(b"SSH-2.0-")


class Sleeper(Clock):
    """A laptop's clock: `slept_s` is told by the one that counts sleep alone."""

    slept_s = 0.0

    def now(self):
        return super().now() + self.slept_s


async def test_a_connection_that_died_in_our_sleep_is_noticed_within_2_s_of_waking(faulty_ssh):
    clock = Sleeper()
    async with forwarded(faulty_ssh, Dialling(config=os.devnull), clock) as (host, forward, happened):
        faulty_ssh.proxy.strand()
        clock.slept_s = 8 * 3600.0
        await until(lambda: "host_lost" in happened, "the loss", within_s=2)
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        assert host.state == "up"


async def test_a_connection_that_lived_through_our_sleep_stays(faulty_ssh):
    clock = Sleeper()
    async with forwarded(faulty_ssh, Dialling(config=os.devnull), clock) as (host, _, happened):
        for _ in range(3):
            clock.slept_s += 600.0
            await asyncio.sleep(1.2)  # past the look that sees it
        assert happened == ["host_up"]
        assert host.generation == 1


async def test_a_redial_that_was_due_in_our_sleep_is_made_at_once(faulty_ssh):
    clock = Sleeper()
    async with forwarded(faulty_ssh, Dialling(config=os.devnull), clock) as (host, _, happened):
        host._backoff = Backoff(first_s=3000, cap_s=3000).failed(clock.now(), 0)
        await faulty_ssh.proxy.refuse()
        faulty_ssh.proxy.cut()
        await until(lambda: "host_lost" in happened, "the loss")
        await faulty_ssh.proxy.accept()
        await asyncio.sleep(0.2)
        assert host.state == "waiting"
        clock.slept_s = 8 * 3600.0
        await until(lambda: host.state == "up", "the redial", within_s=3)


async def test_latency_only_delays(faulty_ssh):
    async with forwarded(faulty_ssh, QUICK) as (_, forward, happened):
        faulty_ssh.proxy.latency_s = 0.1
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        assert "host_lost" not in happened


async def test_a_connection_that_nobody_uses_is_closed_and_comes_back_with_the_next_client(rig):
    rig.settings = replace(rig.settings, ssh_idle_s=1.5)
    opened = await rig.open(V1_HASH)
    [host] = rig.up._hosts.values()
    async with await rig.connect(opened) as connection:
        used_until = rig.clock.now() + 3
        await until(lambda: rig.clock.now() > used_until, "twice the time that it may idle")
        assert (host.state, host.generation) == ("up", 1)
        await connection.execute("SELECT 1")
    await until(lambda: host.state == "idle", "the connection to be closed")
    assert rig.up.show(V1_HASH).state == "up"
    assert await rig.ask(opened) == "postgres"
    assert (host.state, host.generation) == ("up", 2)

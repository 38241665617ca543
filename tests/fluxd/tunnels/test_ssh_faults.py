"""The way to the SSH host breaks; the listener stays, and who connects anew has an answer."""

import asyncio
import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path

import asyncssh
import psycopg
import pytest

from fluxd.clock import Clock
from fluxd.core.backoff import Backoff
from fluxd.core.errors import SSHLost
from fluxd.core.target import Target
from fluxd.settings import TunnelSettings
from fluxd.tunnels import ssh
from fluxd.tunnels.dial import Destination, Dialling
from fluxd.tunnels.forward import Forward, bind
from fluxd.tunnels.ssh import ANSWERS_S, Host
from fluxd.tunnels.supervisor import TICK_S
from tests.fluxd.tunnels.rig import V1_HASH, Rig, told, until
from tests.fluxd.tunnels.upstreams import Upstream
from tests.furniture.faults import fault_proxy
from tests.furniture.needs import needs_program
from tests.furniture.provoked import provoked
from tests.furniture.sshd import OpenSSH, serving


@pytest.fixture
async def faulty_rig(faulty_ssh, contract_plane, pool18, tmp_path):
    """A rig on both kinds of SSH host, with a fault proxy (`rig.host.proxy`) before it."""
    rig = Rig(faulty_ssh, contract_plane, pool18, tmp_path / "state")
    yield rig
    await rig.close()


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
    async with told(faulty_rig) as events:
        async with await faulty_rig.connect(opened) as connection:
            getattr(faulty_rig.host.proxy, fault)()
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
        assert await faulty_rig.ask(opened) == "postgres"
        await until(lambda: {"host_lost", "host_up"} <= {*events.names}, "the events of it")
    provoked("ssh_lost", events.problem("reconnecting"), says=f"{faulty_rig.host.host}:{faulty_rig.host.port} was lost")
    assert listening_inode(opened.tunnel.port) == listener is not None
    assert faulty_rig.up.show("yeastcoast").state == "up"


async def test_a_client_that_comes_while_the_host_is_away_is_served_when_it_is_back(faulty_rig):
    opened = await faulty_rig.open(V1_HASH)
    await faulty_rig.host.proxy.refuse()
    faulty_rig.host.proxy.cut()
    async with told(faulty_rig) as events:
        asking = asyncio.create_task(faulty_rig.ask(opened))
        await events.happens("host_failed")
        assert not asking.done()
        await faulty_rig.host.proxy.accept()
        async with asyncio.timeout(20):
            assert await asking == "postgres"


async def test_a_client_is_no_less_served_for_how_long_the_host_has_been_away(faulty_rig):
    """The next try by itself is an hour away: the client makes it now. Meanwhile `status` says how things stand."""
    opened = await faulty_rig.open(V1_HASH)
    [host] = faulty_rig.up._hosts
    host._backoff = Backoff(first_s=3600, cap_s=3600).failed(faulty_rig.clock.now(), 0)
    async with told(faulty_rig) as events:
        await faulty_rig.host.proxy.refuse()
        faulty_rig.host.proxy.cut()
        await events.happens("reconnecting")
        await faulty_rig.host.proxy.accept()
        [shown] = faulty_rig.up.hosts()
        assert (shown.state, shown.last_problem.code) == ("waiting", "ssh_lost")
        assert faulty_rig.up.show(V1_HASH).state == "reconnecting"
        async with asyncio.timeout(5):
            assert await faulty_rig.ask(opened) == "postgres"
        await events.happens("reconnected")
    [shown] = faulty_rig.up.hosts()
    assert (shown.state, shown.last_problem) == ("up", None)


async def test_closing_a_tunnel_whose_host_is_away_keeps_nobody_waiting(faulty_rig):
    opened = await faulty_rig.open(V1_HASH)
    await faulty_rig.host.proxy.refuse()
    faulty_rig.host.proxy.cut()
    waiting = [asyncio.create_task(faulty_rig.connect(opened)) for _ in range(3)]
    await until(lambda: faulty_rig.up.show(V1_HASH).traffic.relays == 3, "clients that wait")
    async with asyncio.timeout(3):
        await faulty_rig.up.close(V1_HASH)
        assert all(
            isinstance(one, psycopg.OperationalError) for one in await asyncio.gather(*waiting, return_exceptions=True)
        )
    assert faulty_rig.up.list() == []
    await until(lambda: faulty_rig.up.hosts() == [], "nobody to dial the host any more")


async def test_a_client_that_waited_in_vain_is_closed_and_the_events_say_why(faulty_rig):
    faulty_rig.settings = replace(faulty_rig.settings, client_waits_s=0.5)
    opened = await faulty_rig.open(V1_HASH)
    await faulty_rig.host.proxy.refuse()
    faulty_rig.host.proxy.cut()
    async with told(faulty_rig) as events:
        with pytest.raises(psycopg.OperationalError):
            await faulty_rig.ask(opened)
        await events.happens("client_refused")
    problem = events.problem("client_refused")
    assert problem.code.startswith("ssh_")
    assert problem.hint


async def test_a_host_that_is_lost_as_the_tunnel_comes_up_still_has_it_listening(small_rig):
    """The loss is told in the loop's next turn, before a step that coming up asked for begins: to redial ends it."""
    opening = asyncio.create_task(small_rig.open(V1_HASH))
    while not small_rig.up._tunnels:
        await asyncio.sleep(0)
    [tunnel] = small_rig.up._tunnels.values()
    assert not tunnel.settled.done()
    tunnel.settled.add_done_callback(lambda _: tunnel.host_lost())
    async with asyncio.timeout(5):
        assert await small_rig.ask(await opening) == "postgres"


async def test_a_host_that_lets_us_in_and_hangs_up_at_once_is_redialled_with_growing_pauses(faulty_rig):
    await faulty_rig.open(V1_HASH)
    [host] = faulty_rig.up._hosts
    before, begun = faulty_rig.host.proxy.accepted, faulty_rig.clock.now()

    def dials() -> int:
        if host.state == "up":
            faulty_rig.host.proxy.cut()
        return faulty_rig.host.proxy.accepted - before

    # However slow this machine is: so many at most in a time, and more when it has passed.
    await until(lambda: dials() >= 2 and faulty_rig.clock.now() > begun + 2.5, "the second dial")
    assert dials() <= 7


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


LEDGER = "flux_ledger_of_this_test"


@contextlib.contextmanager
def ledger(postgres):
    """A table of one row for each transaction of pgbench; a function that counts them."""
    with psycopg.connect(postgres.url().reveal(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {LEDGER} (id bigserial)")
        try:
            yield lambda: connection.execute(f"SELECT count(*) FROM {LEDGER}").fetchone()[0]
        finally:
            connection.execute(f"DROP TABLE {LEDGER}")


async def pgbench(rig, opened, script, *options):
    """Eight clients at work on *script*."""
    user, password = rig.password(opened)
    argv = ["-n", "-c", "8", "-j", "2", "-h", "127.0.0.1", "-p", str(opened.tunnel.port), "-U", user, "-f", str(script)]
    return await asyncio.create_subprocess_exec(
        "pgbench",
        *argv,
        *options,
        "postgres",
        env=os.environ | {"PGPASSWORD": password, "PGSSLMODE": "disable"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def processed(said):
    return int(re.search(rb"transactions actually processed: (\d+)", said)[1])


async def test_of_eight_clients_only_what_was_in_flight_is_lost_when_sshd_restarts(
    openssh, contract_plane, pool18, tmp_path
):
    """And who comes while it is away, or after, loses nothing."""
    needs_program("pgbench")
    script = tmp_path / "script.sql"
    script.write_text(f"INSERT INTO {LEDGER} DEFAULT VALUES;\n")
    rig = Rig(openssh, contract_plane, pool18, tmp_path / "state")
    opened = await rig.open(V1_HASH)
    with ledger(pool18) as rows:
        async with told(rig) as events, asyncio.timeout(60):
            before = await pgbench(rig, opened, script, "-T", "60")
            await until(lambda: rows() >= 50, "everybody at work", within_s=20)
            await openssh.stop()
            said, _ = await before.communicate()
            assert before.returncode != 0
            done = rows()
            assert processed(said) <= done <= processed(said) + 8
            after = await pgbench(rig, opened, script, "-t", "20")
            await until(lambda: rig.up.show(V1_HASH).traffic.relays > 0, "clients to wait")
            await openssh.start()
            said, complained = await after.communicate()
        assert (after.returncode, processed(said)) == (0, 8 * 20), complained.decode()
        assert rows() - done == 8 * 20
        assert "client_refused" not in events.names
    await rig.close()


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


async def test_upstream_is_located_again_after_a_reconnect(faulty_rig, pool18):
    """Over one connection a name stays a name, which sshd resolves; behind the next host it may be none."""
    container = f"flux-{V1_HASH}-yeastcoast-db"
    faulty_rig.host.forget(container)
    faulty_rig.host.know_name(container, pool18.port)
    opened = await faulty_rig.open(V1_HASH)
    assert (opened.tunnel.resolution_method, await faulty_rig.ask(opened)) == ("getent", "postgres")
    faulty_rig.host.forget(container)
    faulty_rig.host.know_container(container, pool18.port)
    faulty_rig.host.proxy.cut()
    async with told(faulty_rig) as events:
        assert await faulty_rig.ask(opened) == "postgres"
        assert faulty_rig.up.show(V1_HASH).resolution_method == "docker_inspect"
        assert "client_refused" not in events.names


async def test_where_nobody_listens_anywhere_a_client_is_told(rig, pool18):
    container = f"flux-{V1_HASH}-yeastcoast-db"
    async with fault_proxy(pool18.port, host="127.0.0.2", port=pool18.port):
        rig.host.know_container(container, pool18.port, {"flux-network": "127.0.0.2"})
        opened = await rig.open(V1_HASH)
    async with told(rig) as events:
        with pytest.raises(psycopg.OperationalError):
            await rig.ask(opened)
        await events.happens("client_refused")
    assert events.problem("client_refused").code.startswith("upstream_")


@contextlib.asynccontextmanager
async def dead(host, manner):
    """*host*, an sshd behind a fault proxy, is."""
    if manner == "blackholed":
        host.proxy.stall()
    elif manner == "refusing":
        await host.proxy.refuse()
        host.proxy.cut()
    else:
        host.freeze()
    try:
        yield
    finally:
        host.proxy.flow()
        await host.proxy.accept()
        host.thaw()


@pytest.mark.parametrize("manner", ["blackholed", "refusing", "stopped"])
async def test_of_two_hosts_one_is_dead_and_tunnels_of_the_other_notice_nothing(
    openssh, ssh_home, contract_plane, pool18, tmp_path, manner
):
    (ssh_home / "other").mkdir()
    async with serving(OpenSSH(ssh_home / "other")) as other, fault_proxy(openssh.port) as proxy:
        openssh.proxy, openssh.port = proxy, proxy.port
        openssh.write_known_hosts()
        rig = Rig(openssh, contract_plane, pool18, tmp_path / "state")
        rig.settings = replace(rig.settings, ssh_keepalive_s=0.3)
        lost = await rig.open(V1_HASH)
        rig.host = other
        contract_plane.ssh["sshPort"] = other.port
        rig.add("millstone", "0c0c0c0", "v1_dedicated")
        alive = await rig.open("0c0c0c0")
        async with told(rig) as events, await rig.connect(alive) as connection, dead(openssh, manner):
            waiting = [asyncio.create_task(rig.ask(lost)) for _ in range(10)]
            await events.happens("host_lost", within_s=5)
            for _ in range(20):
                async with asyncio.timeout(2):
                    await connection.execute("SELECT 1")
                    assert await rig.ask(alive) == "postgres"
            assert rig.up.show("0c0c0c0").state == "up"
            assert rig.up.show(V1_HASH).state == "reconnecting"
            assert not any(one.done() for one in waiting)
            about_the_other = {
                event.name for event, _ in events.events if (event.host and event.host.port) == other.port
            }
            assert about_the_other == set()
        async with asyncio.timeout(30):
            assert await asyncio.gather(*waiting) == ["postgres"] * 10
        await rig.close()


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
    forward.start()
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


@pytest.mark.parametrize("directions", [(), ("up",), ("down",)], ids=["both", "up", "down"])
@pytest.mark.parametrize("fault", ["strand", "stall"])
async def test_a_link_on_which_nothing_passes_is_noticed_by_keepalives(faulty_ssh, fault, directions):
    """Half-open links, either way round, as well as those on which nothing passes in either."""
    async with forwarded(faulty_ssh, QUICK) as (host, forward, happened):
        getattr(faulty_ssh.proxy, fault)(*directions)
        await until(lambda: "host_lost" in happened, "the loss", within_s=5)
        assert isinstance(host.last_problem, SSHLost) or host.state == "connecting"
        faulty_ssh.proxy.flow()
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        await until(lambda: host.state == "up", "the connection")


def test_keepalives_of_the_defaults_notice_within_15_s():
    assert TunnelSettings().ssh_keepalive_s * (Dialling().keepalive_count + 1) < 15


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


@pytest.fixture
async def sleepy_rig(faulty_ssh, contract_plane, pool18, tmp_path):
    """On a laptop that may be put to sleep: `rig.clock.slept_s`."""
    rig = Rig(faulty_ssh, contract_plane, pool18, tmp_path / "state", clock=Sleeper())
    yield rig
    await rig.close()


async def test_a_connection_that_died_in_our_sleep_is_noticed_within_2_s_of_waking(sleepy_rig):
    opened = await sleepy_rig.open(V1_HASH)
    async with told(sleepy_rig) as events, await sleepy_rig.connect(opened) as connection:
        sleepy_rig.host.proxy.strand()
        sleepy_rig.clock.slept_s = 8 * 3600.0
        await events.happens("host_lost", within_s=2)
        assert await sleepy_rig.ask(opened) == "postgres"
        # Who was connected over the old one is told at once, not when keepalives find out.
        with pytest.raises(psycopg.OperationalError):
            async with asyncio.timeout(1):
                await connection.execute("SELECT 1")


async def test_a_connection_that_lived_through_our_sleep_stays(sleepy_rig):
    opened = await sleepy_rig.open(V1_HASH)
    async with told(sleepy_rig) as events, await sleepy_rig.connect(opened) as connection:
        for _ in range(2):
            sleepy_rig.clock.slept_s += 600.0
            await asyncio.sleep(TICK_S + ANSWERS_S)  # past the look that sees it, and the time to answer
        await connection.execute("SELECT 1")
        [host] = sleepy_rig.up.hosts()
        assert host.state == "up"
    assert "host_lost" not in events.names


async def test_a_lease_that_ended_in_our_sleep_ends_its_tunnel_though_the_host_is_dead(sleepy_rig):
    opened = await sleepy_rig.open()
    await sleepy_rig.host.proxy.refuse()
    sleepy_rig.host.proxy.cut()
    waiting = asyncio.create_task(sleepy_rig.connect(opened))
    await until(lambda: sleepy_rig.up.show("foundry").traffic.relays == 1, "a client that waits")
    sleepy_rig.clock.slept_s = 8 * 3600.0
    await until(lambda: sleepy_rig.up.list() == [], "the tunnel to end", within_s=4)
    with pytest.raises(psycopg.OperationalError):
        await waiting
    await until(lambda: sleepy_rig.roles() == set(), "the role to end")
    assert listening_inode(opened.tunnel.port) is None
    await until(lambda: sleepy_rig.up.hosts() == [], "nobody to dial the host any more")


async def test_a_redial_that_was_due_in_our_sleep_is_made_at_once(sleepy_rig):
    await sleepy_rig.open(V1_HASH)
    [host] = sleepy_rig.up._hosts
    host._backoff = Backoff(first_s=3000, cap_s=3000).failed(sleepy_rig.clock.now(), 0)
    await sleepy_rig.host.proxy.refuse()
    sleepy_rig.host.proxy.cut()
    await until(lambda: host.state == "waiting", "the loss")
    await sleepy_rig.host.proxy.accept()
    assert host._backoff.wait_s(sleepy_rig.clock.now()) > 1000
    sleepy_rig.clock.slept_s = 8 * 3600.0
    await until(lambda: host.state == "up", "the redial", within_s=3)


async def test_a_dial_that_was_under_way_when_we_fell_asleep_is_begun_again(sleepy_rig):
    await sleepy_rig.open(V1_HASH)
    [host] = sleepy_rig.up._hosts
    before = sleepy_rig.host.proxy.accepted
    sleepy_rig.host.proxy.stall()
    sleepy_rig.host.proxy.cut()
    await until(lambda: sleepy_rig.host.proxy.accepted > before, "the dial on which nothing passes")
    sleepy_rig.host.proxy.strand()
    assert host.state == "connecting"
    sleepy_rig.clock.slept_s = 8 * 3600.0
    await until(lambda: host.state == "up", "the redial", within_s=3)


# ------------------------------------------- doubted, and only slow: nobody loses anything


async def test_an_asyncssh_that_cannot_be_asked_leaves_doubts_to_keepalives(faulty_rig, monkeypatch):
    assert ssh.PING is not None  # the one that is installed can
    monkeypatch.setattr(ssh, "PING", None)
    opened = await faulty_rig.open(V1_HASH)
    [host] = faulty_rig.up._hosts
    async with await faulty_rig.connect(opened) as connection:
        host.doubt()
        await until(lambda: not host._doubted.is_set(), "it to be looked at")
        await connection.execute("SELECT 1")
    assert (host.state, host.generation) == ("up", 1)


@pytest.mark.parametrize("round_trip_s", [1.5, 3.0])
async def test_a_slow_link_loses_nobody_when_it_is_doubted(faulty_rig, round_trip_s):
    """However quick it was before: no dial can be as quick as the answer of the connection that there is."""
    opened = await faulty_rig.open(V1_HASH)
    [host] = faulty_rig.up._hosts
    async with told(faulty_rig) as events, await faulty_rig.connect(opened) as connection:
        faulty_rig.host.proxy.latency_s = round_trip_s / 2
        host.doubt()
        await events.happens("host_lost", within_s=2)
        assert faulty_rig.up.show(V1_HASH).state == "reconnecting"
        await events.happens("host_up", within_s=round_trip_s + 2)
        faulty_rig.host.proxy.latency_s = 0
        await connection.execute("SELECT 1")
        assert (host.state, host.generation) == ("up", 1)
        await until(lambda: faulty_rig.up.show(V1_HASH).state == "up", "the tunnel")


async def test_a_host_that_stands_still_for_a_moment_loses_nobody_when_it_is_doubted(
    openssh, contract_plane, pool18, tmp_path
):
    rig = Rig(openssh, contract_plane, pool18, tmp_path / "state")
    opened = await rig.open(V1_HASH)
    [host] = rig.up._hosts
    async with told(rig) as events, await rig.connect(opened) as connection:
        openssh.freeze()
        try:
            host.doubt()
            await events.happens("host_lost", within_s=2)
        finally:
            openssh.thaw()
        await events.happens("host_up")
        await connection.execute("SELECT 1")
    await rig.close()


async def test_closing_while_it_is_doubted_leaves_nothing(faulty_ssh):
    async with forwarded(faulty_ssh, Dialling(config=os.devnull)) as (host, forward, happened):
        faulty_ssh.proxy.stall()
        host.doubt()
        await until(lambda: "host_lost" in happened, "the doubt", within_s=2)
        await until(lambda: faulty_ssh.proxy.accepted == 2, "the dial beside it")
        waiting = asyncio.create_task(greeting(forward))
        await until(lambda: forward.relays == 1, "a client")
    assert await waiting == b""
    with pytest.raises(SSHLost):
        await host.reach()


async def test_a_link_known_to_be_slow_is_given_the_time_it_takes(faulty_ssh):
    async with forwarded(faulty_ssh, Dialling(config=os.devnull)) as (host, forward, happened):
        faulty_ssh.proxy.latency_s = 0.4
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        assert host.latency_s > 0.8
        host.doubt()
        await until(lambda: host._hearing is not None, "the question")
        await until(lambda: host._hearing is None, "the answer")
        assert happened == ["host_up"]
        faulty_ssh.proxy.latency_s = 0


async def test_a_doubted_connection_ends_when_another_is_there(faulty_ssh):
    async with forwarded(faulty_ssh, Dialling(config=os.devnull)) as (host, forward, happened):
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        assert await reader.readline()
        faulty_ssh.proxy.strand()
        host.doubt()
        await until(lambda: host.generation == 2 and host.state == "up", "the other", within_s=3)
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()
        assert happened == ["host_up", "host_lost", "host_up"]
        await until(lambda: host.channels == 0, "the old channel to end")


async def test_a_doubted_connection_ends_by_keepalives_where_no_other_can_be_made(faulty_ssh):
    async with forwarded(faulty_ssh, QUICK) as (host, forward, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        assert await reader.readline()
        await faulty_ssh.proxy.refuse()
        faulty_ssh.proxy.strand()
        host.doubt()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        await faulty_ssh.proxy.accept()
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        assert host.generation == 2


class Boundless(asyncssh.SSHServer):
    """Promises to take a gigabyte at once on every channel; it opens them while `opens` is set."""

    opens: asyncio.Event
    waiting = 0

    def connection_made(self, conn):
        self._connection = conn

    def connection_requested(self, *_):
        return self._connection.create_tcp_channel(window=1 << 30), self._session()

    async def _session(self):
        Boundless.waiting += 1
        await self.opens.wait()
        Boundless.waiting -= 1
        return asyncssh.SSHTCPSession()


@contextlib.asynccontextmanager
async def boundless(furniture):
    """*furniture* names such a host, behind a fault proxy."""
    keys = asyncssh.import_authorized_keys(furniture.client_key.export_public_key().decode())
    Boundless.opens = asyncio.Event()
    Boundless.opens.set()
    server = await asyncssh.create_server(
        Boundless, "127.0.0.1", 0, server_host_keys=[furniture.host_key], authorized_client_keys=keys
    )
    async with server, fault_proxy(server.get_port()) as proxy:
        furniture.proxy, furniture.port = proxy, proxy.port
        furniture.write_known_hosts()
        yield


async def all_that_is_taken(forward, writer):
    """How much of 64 MB, and of what there was before."""
    for _ in range(64):
        writer.write(bytes(1 << 20))
    before = -1
    while before != forward.bytes_up:
        before = forward.bytes_up
        await asyncio.sleep(0.3)
    return before


async def test_what_a_host_does_not_take_stays_with_the_clients(embedded):
    """However much it promised to take: a link on which nothing passes does not fill our memory."""
    how = Dialling(config=os.devnull)
    async with boundless(embedded), forwarded(embedded, how) as (host, forward, _):
        _, first = await asyncio.open_connection("127.0.0.1", forward.port)
        await until(lambda: host.channels == 1, "the channel")
        Boundless.opens.clear()
        _, second = await asyncio.open_connection("127.0.0.1", forward.port)
        await until(lambda: Boundless.waiting == 1, "the question for another")
        embedded.proxy.stall("up")
        taken = await all_that_is_taken(forward, first)
        assert taken < 24 << 20
        # Its channel opens when nobody can send any more; but for what it may say before that, it waits as well.
        Boundless.opens.set()
        await until(lambda: host.channels == 2, "the other channel")
        assert await all_that_is_taken(forward, second) < taken + (1 << 20)
        embedded.proxy.flow()
        await until(lambda: forward.bytes_up == 128 << 20, "the rest to pass", within_s=30)
        for writer in (first, second):
            writer.transport.abort()


class OnePieceAtATime(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, _):
        self.transport.pause_reading()


async def test_what_came_before_the_doubt_is_no_answer_to_it(faulty_ssh):
    """A client that reads slowly has much of it left to read."""
    async with (
        Upstream("pour", 64 << 20) as upstream,
        forwarded(faulty_ssh, Dialling(config=os.devnull)) as (host, _, told),
    ):
        faulty_ssh.know_container("upstream", upstream.port)
        channel = await host.open_channel(OnePieceAtATime, "127.0.0.1", upstream.port)
        await until(host._channels.heard.is_set, "the first piece")
        await asyncio.sleep(0.5)  # for as many more as the window allows
        faulty_ssh.proxy.strand()
        host.doubt()
        for _ in range(20):
            await asyncio.sleep(0.05)
            channel.resume_reading()
        assert "host_lost" in told


async def test_an_upload_that_goes_on_is_an_answer_too(embedded):
    """What fills the way delays every answer; here none comes at all. But somebody takes it, so nothing is lost."""
    how = Dialling(config=os.devnull)
    async with boundless(embedded), forwarded(embedded, how) as (host, forward, _):
        _, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        await until(lambda: host.channels == 1, "the channel")

        async def upload():
            while True:
                writer.write(bytes(1 << 20))
                await writer.drain()

        uploading = asyncio.create_task(upload())
        try:
            embedded.proxy.latency_s = 0.05
            await until(lambda: host._channels.congested, "the way to be full")
            embedded.proxy.stall("down")
            host.doubt()
            await asyncio.sleep(2 * ANSWERS_S)
            await until(lambda: host.state == "up", "it to be believed", within_s=3)
            assert host.generation == 1
        finally:
            uploading.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
            writer.transport.abort()


async def test_latency_only_delays(faulty_ssh):
    async with forwarded(faulty_ssh, QUICK) as (_, forward, happened):
        faulty_ssh.proxy.latency_s = 0.1
        assert (await greeting(forward)).startswith(b"SSH-2.0-")
        assert "host_lost" not in happened


async def test_a_connection_that_nobody_uses_is_closed_and_comes_back_with_the_next_client(rig):
    rig.settings = replace(rig.settings, ssh_idle_s=0.6)
    opened = await rig.open(V1_HASH)
    [host] = rig.up._hosts
    async with await rig.connect(opened) as connection:
        used_until = rig.clock.now() + 1.2
        await until(lambda: rig.clock.now() > used_until, "twice the time that it may idle")
        assert (host.state, host.generation) == ("up", 1)
        await connection.execute("SELECT 1")
    await until(lambda: host.state == "idle", "the connection to be closed")
    assert rig.up.show(V1_HASH).state == "up"
    assert await rig.ask(opened) == "postgres"
    assert (host.state, host.generation) == ("up", 2)

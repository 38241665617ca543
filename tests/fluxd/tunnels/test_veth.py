"""A real link to the SSH host, whose cable is pulled, whose packets are dropped; the listener stays."""

import asyncio
import logging
import time
from dataclasses import replace

import pytest

from fluxd.core.backoff import Backoff
from fluxd.tunnels.netwatch import APART_S, NetWatch
from fluxplane.lab.keys import known_hosts_line
from tests.fluxd.tunnels.rig import V1_HASH, Rig, told, until
from tests.furniture.contract import ContractPlane, serving_contract
from tests.furniture.faults import fault_proxy
from tests.furniture.namespaces import DEVICE, FAR, linked

log = logging.getLogger(__name__)

# Noticed within 2 s, and what it takes a loaded machine to see that.
NOTICED_S = 2.5
SERVED_S = 20.0


@pytest.fixture
async def far_rig(ssh_home, pool18, tmp_path):
    """`rig.link` leads to the SSH host."""
    async with (
        linked(ssh_home, pool18.port) as (link, host),
        serving_contract(ContractPlane(pool18.url().reveal())) as plane,  # on this side of the link
    ):
        rig = Rig(host, plane, pool18, tmp_path / "state")
        rig.link = link
        try:
            yield rig
        finally:
            await rig.close()


async def served(rig, opened):
    """Seconds until a new client's query was answered."""
    begun = time.monotonic()
    async with asyncio.timeout(SERVED_S):
        assert await rig.ask(opened) == "postgres"
    return time.monotonic() - begun


@pytest.mark.parametrize("end", ["near", "far"])
async def test_a_link_that_goes_down_is_noticed_within_2_s_and_redialled_when_it_is_back(far_rig, end, record_property):
    opened = await far_rig.open(V1_HASH)
    assert await far_rig.ask(opened) == "postgres"
    [host] = far_rig.up._hosts
    # The next try by itself is an hour away: nothing but the link's return brings it.
    host._backoff = Backoff(first_s=3600, cap_s=3600).failed(far_rig.clock.now(), 0)
    async with told(far_rig) as events:
        for flap in range(2):
            down_at = time.monotonic()
            far_rig.link.down(end)
            noticed_s = await events.happens("host_lost", since=down_at, within_s=NOTICED_S)
            assert host.state == "waiting"
            up_at = time.monotonic()
            far_rig.link.up(end)
            redialled_s = await events.happens("host_up", since=up_at, within_s=NOTICED_S)
            log.info("%s, flap %d: noticed after %.2f s, redialled after %.2f s", end, flap, noticed_s, redialled_s)
            assert await served(far_rig, opened) < NOTICED_S
    assert far_rig.up.show("yeastcoast").state == "up"


async def test_a_client_that_comes_while_the_link_is_down_is_served_when_it_is_up(far_rig):
    opened = await far_rig.open(V1_HASH)
    far_rig.link.down()
    async with told(far_rig) as events:
        asking = asyncio.create_task(served(far_rig, opened))
        await events.happens("host_failed", within_s=SERVED_S)
        assert not asking.done()
        far_rig.link.up()
        async with asyncio.timeout(NOTICED_S):
            await asking


async def test_packets_that_are_dropped_for_some_seconds_lose_nobody(far_rig):
    """No interface says anything: TCP sends again what was lost, and the connection stays."""
    opened = await far_rig.open(V1_HASH)
    async with told(far_rig) as events, await far_rig.connect(opened) as connection:
        far_rig.link.drop()
        asking = asyncio.create_task(served(far_rig, opened))
        await asyncio.sleep(4)
        assert far_rig.link.dropped() > 0
        assert not asking.done()
        far_rig.link.flow()
        assert await asking < SERVED_S
        async with asyncio.timeout(SERVED_S):
            await connection.execute("SELECT 1")
    assert "host_lost" not in events.names


async def test_a_link_that_drops_everything_is_noticed_by_keepalives_and_served_when_it_flows(far_rig):
    far_rig.settings = replace(far_rig.settings, ssh_keepalive_s=0.5)
    opened = await far_rig.open(V1_HASH)
    async with told(far_rig) as events:
        far_rig.link.drop()
        await events.happens("host_lost", within_s=5)
        far_rig.link.flow()
        await served(far_rig, opened)


async def test_under_random_loss_every_client_is_served(far_rig):
    opened = await far_rig.open(V1_HASH)
    async with told(far_rig) as events:
        far_rig.link.drop(20)
        for _ in range(5):
            await served(far_rig, opened)
        assert far_rig.link.dropped() > 0
        far_rig.link.flow()
    assert "tunnel_closed" not in events.names


async def test_a_change_that_does_not_touch_the_connection_leaves_it(far_rig):
    opened = await far_rig.open(V1_HASH)
    [host] = far_rig.up._hosts
    async with told(far_rig) as events, await far_rig.connect(opened) as connection:
        for number in range(10, 13):
            far_rig.link.near.run("ip", "address", "add", f"198.18.8.{number}/32", "dev", DEVICE)
            await asyncio.sleep(0.5)
        await connection.execute("SELECT 1")
        assert (host.state, host.generation) == ("up", 1)
    assert "host_lost" not in events.names


async def test_a_change_on_a_slow_link_loses_nobody(far_rig):
    """The connection has not answered yet when it is to be judged, and no other can be made sooner."""
    async with fault_proxy(far_rig.host.port, behind_host=FAR) as proxy:
        with far_rig.host.known_hosts.open("a") as known:
            known.write(known_hosts_line("127.0.0.1", proxy.port, far_rig.host.host_key))
        far_rig.plane.ssh |= {"sshHost": "127.0.0.1", "sshPort": proxy.port}
        opened = await far_rig.open(V1_HASH)
        async with told(far_rig) as events, await far_rig.connect(opened) as connection:
            proxy.latency_s = 1.0
            far_rig.link.near.run("ip", "address", "add", "198.18.8.10/32", "dev", DEVICE)
            await events.happens("host_lost", within_s=NOTICED_S)
            await events.happens("host_up", within_s=5)
            proxy.latency_s = 0.0
            await connection.execute("SELECT 1")
            assert [host.generation for host in far_rig.up._hosts] == [1]
        await far_rig.up.close(V1_HASH)


async def test_many_changes_are_told_as_few_and_none_after_the_end(far_rig):
    changes = []
    watch = NetWatch(lambda: changes.append(time.monotonic()))
    watch.start()
    try:
        begun = time.monotonic()
        for _ in range(20):
            far_rig.link.down()
            far_rig.link.up()
        await until(lambda: changes, "a change", within_s=1)
        lasted = time.monotonic() - begun
        await asyncio.sleep(1.5)
        assert len(changes) <= 2 + lasted / APART_S
    finally:
        watch.close()
    count = len(changes)
    far_rig.link.down()
    await asyncio.sleep(0.3)
    assert len(changes) == count

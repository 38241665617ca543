"""Leases: they warn, they end on time on a clock that counts sleep, and Postgres itself tells the client."""

import asyncio
import contextlib
from datetime import timedelta

import psycopg
import pytest

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core import errors
from tests.fluxd.tunnels.rig import V1_HASH, V2_HASH, Rig, until
from tests.furniture.provoked import provoked


class ShiftedClock(Clock):
    """The real clock, and whatever sleep or wrong wall clock a test adds."""

    def __init__(self):
        self.slept_s = 0.0
        self.wall_shift = timedelta()

    def now(self):
        return super().now() + self.slept_s

    def wall(self):
        return super().wall() + self.wall_shift


@pytest.fixture
async def shifted(embedded, contract_plane, pool18, tmp_path):
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state", clock=ShiftedClock())
    yield rig
    await rig.close()


@contextlib.asynccontextmanager
async def watching(rig, hold=None):
    """Every event from here on, as a list that grows."""
    seen = []
    started = asyncio.Event()

    async def watch():
        async with rig.up.events(tunnel=None, hold=hold) as stream:
            async for event in stream:
                seen.append(event)
                started.set()

    task = asyncio.create_task(watch())
    await started.wait()
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def names(seen):
    return [event.name for event in seen]


async def test_at_the_end_postgres_tells_the_client_and_the_role_is_gone(rig):
    opened = await rig.open(ttl_s=3)
    connection = await rig.connect(opened)
    ends_at = rig.clock.now() + opened.credential.remaining_s
    with pytest.raises(psycopg.OperationalError) as caught:
        await connection.execute("SELECT pg_sleep(20)")
    assert rig.clock.now() - ends_at <= 1
    assert caught.value.sqlstate == "57P01"
    await until(lambda: rig.roles() == set(), "the role to be gone", within_s=2 - (rig.clock.now() - ends_at))
    await connection.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(opened.tunnel.host, opened.tunnel.port)
    await until(lambda: rig.up.list() == [], "the tunnel to close")


async def test_without_revoke_the_client_is_cut_off_on_time_all_the_same(small_rig):
    small_rig.plane.extensions = ()
    opened = await small_rig.open(ttl_s=3)
    connection = await small_rig.connect(opened)
    ends_at = small_rig.clock.now() + opened.credential.remaining_s
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT pg_sleep(20)")
    assert -0.1 <= small_rig.clock.now() - ends_at - 1 <= 0.7
    await connection.close()


async def test_it_warns_ten_and_two_minutes_before_the_end(shifted):
    await shifted.open()
    async with watching(shifted) as seen:
        for slept_s in (2999, 3001, 3481, 3599):
            shifted.clock.slept_s = slept_s
            await asyncio.sleep(1.2)
        assert names(seen).count("lease_expiring") == 2
        tunnel = next(event.tunnel for event in seen if event.name == "lease_expiring")
        assert tunnel.lease.state == "expiring"
        assert 590 < tunnel.lease.remaining_s < 600


async def test_a_lease_that_ended_while_the_laptop_slept_is_over_within_a_second_of_waking(shifted):
    opened = await shifted.open()
    connection = await shifted.connect(opened)
    async with watching(shifted) as seen:
        shifted.clock.slept_s = 8 * 3600
        with pytest.raises(psycopg.OperationalError) as caught:
            async with asyncio.timeout(3):
                await connection.execute("SELECT pg_sleep(20)")
        assert caught.value.sqlstate == "57P01"
        await until(lambda: "closed" in names(seen), "the tunnel to close")
    assert names(seen)[-3:] == ["lease_over", "closing", "closed"] or "client_left" in names(seen)
    await connection.close()


@pytest.mark.parametrize("minutes", [-10, 10, 60 * 24 * 365])
async def test_a_wall_clock_that_is_wrong_or_jumps_changes_nothing(shifted, minutes):
    shifted.clock.wall_shift = timedelta(minutes=minutes)
    shifted.plane.skew = timedelta(minutes=minutes / 7)
    opened = await shifted.open()
    assert 3590 < opened.credential.remaining_s <= 3601  # the plane's Date knows no fractions
    shifted.clock.wall_shift = -shifted.clock.wall_shift
    await asyncio.sleep(1.2)
    assert shifted.up.show("foundry").state == "up"
    assert 3580 < shifted.up.show("foundry").lease.remaining_s <= 3601


async def test_an_earlier_grants_end_ends_only_its_role(small_rig):
    long = await small_rig.open()
    short = await small_rig.open(credential="new", ttl_s=2)
    assert short.tunnel.lease.remaining_s > 3000
    connection = await small_rig.connect(long)
    await until(lambda: small_rig.roles() == {long.credential.username}, "the short role to end")
    assert small_rig.up.show("foundry").state == "up"
    assert small_rig.up.show("foundry").grants == 1
    assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)
    await connection.close()


async def test_a_later_grant_keeps_the_listener(small_rig):
    await small_rig.open(ttl_s=2)
    long = await small_rig.open(credential="new")
    await until(lambda: small_rig.roles() == {long.credential.username}, "the short role to end")
    assert await small_rig.ask(long) == long.credential.username


async def test_renewing_moves_the_end_for_the_same_role(small_rig):
    opened = await small_rig.open(ttl_s=3)
    connection = await small_rig.connect(opened)
    tunnel = await small_rig.up.renew("foundry", wire.RenewTunnel(ttl_s=600), small_rig.caller)
    assert 590 < tunnel.lease.remaining_s <= 600
    await asyncio.sleep(3.2)
    assert (await (await connection.execute("SELECT current_user")).fetchone()) == (opened.credential.username,)
    await connection.close()


async def test_renewing_stops_at_eight_hours_after_the_mint(shifted):
    await shifted.open()
    tunnel = await shifted.up.renew("foundry", wire.RenewTunnel(ttl_s=28800), shifted.caller)
    assert 28700 < tunnel.lease.remaining_s <= 28800
    assert not tunnel.lease.renewable
    with pytest.raises(errors.RenewLimit) as caught:
        await shifted.up.renew("foundry", wire.RenewTunnel(), shifted.caller)
    provoked("renew_limit", caught.value)


async def test_a_plane_that_cannot_renew_says_so(small_rig):
    small_rig.plane.extensions = ()
    await small_rig.open()
    with pytest.raises(errors.NotSupportedByPlane):
        await small_rig.up.renew("foundry", wire.RenewTunnel(), small_rig.caller)


async def test_a_v1_tunnel_has_nothing_to_renew(small_rig):
    await small_rig.open(V1_HASH)
    with pytest.raises(errors.WrongMode):
        await small_rig.up.renew(V1_HASH, wire.RenewTunnel(), small_rig.caller)


# ---------------------------------------------------------------------- holds


async def test_a_held_tunnel_closes_with_its_holder(rig):
    opened = await rig.open(credential="new", hold=True)
    assert opened.hold
    assert not opened.tunnel.kept
    async with watching(rig, hold=opened.hold) as seen:
        assert await rig.ask(opened) == opened.credential.username
        assert seen[0].name == "snapshot"
        assert rig.up.show("foundry").holds == 1
    await until(lambda: rig.up.list() == [], "the tunnel to close")
    await until(lambda: rig.roles() == set(), "the role to end")


async def test_a_hold_that_nobody_takes_up_ends_after_five_seconds(small_rig):
    opened = await small_rig.open(credential="new", hold=True)
    await asyncio.sleep(4)
    assert small_rig.up.show("foundry").state == "up"
    await until(lambda: small_rig.up.list() == [], "the tunnel to close", within_s=2.5)
    await until(lambda: small_rig.roles() == set(), "the role to end")
    with pytest.raises(errors.HoldUnknown):
        async with small_rig.up.events(tunnel=None, hold=opened.hold):
            pass


async def test_one_holders_end_is_not_the_others(small_rig):
    first = await small_rig.open(credential="new", hold=True)
    async with watching(small_rig, hold=first.hold):
        second = await small_rig.open(credential="new", hold=True)
        async with watching(small_rig, hold=second.hold):
            assert small_rig.up.show("foundry").holds == 2
        await until(lambda: small_rig.roles() == {first.credential.username}, "the second's role to end")
        assert await small_rig.ask(first) == first.credential.username
    await until(lambda: small_rig.up.list() == [], "the tunnel to close")


async def test_a_tunnel_that_is_kept_outlives_its_holder(small_rig):
    kept = await small_rig.open()
    held = await small_rig.open(credential="new", hold=True)
    async with watching(small_rig, hold=held.hold):
        pass
    await until(lambda: small_rig.roles() == {kept.credential.username}, "the holder's role to end")
    assert await small_rig.ask(kept) == kept.credential.username


async def test_opening_it_unheld_keeps_a_held_tunnel(small_rig):
    held = await small_rig.open(credential="new", hold=True)
    async with watching(small_rig, hold=held.hold):
        kept = await small_rig.open()
        assert kept.tunnel.kept
    await until(lambda: small_rig.up.show("foundry").holds == 0, "the hold to end")
    assert small_rig.up.show("foundry").state == "up"


async def test_a_hold_is_taken_up_once(small_rig):
    opened = await small_rig.open(credential="new", hold=True)
    async with watching(small_rig, hold=opened.hold):
        with pytest.raises(errors.HoldUnknown):
            async with small_rig.up.events(tunnel=None, hold=opened.hold):
                pass
        assert small_rig.up.show("foundry").holds == 1


async def test_a_held_v1_tunnel_closes_with_its_holder_too(small_rig):
    opened = await small_rig.open(V1_HASH, hold=True)
    async with watching(small_rig, hold=opened.hold):
        assert await small_rig.ask(opened) == "postgres"
    await until(lambda: small_rig.up.list() == [], "the tunnel to close")


# ---------------------------------------------------------------- bare grants


def bare(**more):
    return wire.MintGrant(**more)


async def test_a_bare_grant_ends_by_closing_its_project(small_rig):
    minted = await small_rig.up.mint(V2_HASH, bare(), small_rig.caller)
    assert small_rig.roles() == {minted.credential.username}
    closed = await small_rig.up.close("foundry")
    assert closed.tunnel is None
    assert closed.revoked
    assert small_rig.roles() == set()


async def test_closing_the_tunnel_by_its_project_ends_the_bare_grants_too(small_rig):
    await small_rig.up.mint(V2_HASH, bare(), small_rig.caller)
    await small_rig.open()
    assert (await small_rig.up.close(V2_HASH)).revoked
    assert small_rig.roles() == set()


async def test_a_bare_grant_ends_at_its_expiry(small_rig):
    await small_rig.up.mint(V2_HASH, bare(ttl_s=1), small_rig.caller)
    await until(lambda: small_rig.roles() == set(), "the role to end", within_s=3)


async def test_a_v1_project_has_no_bare_grants(small_rig):
    with pytest.raises(errors.WrongMode):
        await small_rig.up.mint(V1_HASH, bare(), small_rig.caller)


# ---------------------------------------------------------------- revocations


async def test_a_revocation_is_retried_until_the_plane_confirms_it(small_rig):
    opened = await small_rig.open()
    small_rig.plane.refuse["revoke"] = (503, {"error": "restarting"})
    closing = asyncio.ensure_future(small_rig.up.close("foundry"))
    await until(lambda: small_rig.plane.asked["revoke"] >= 2, "a second try")
    assert small_rig.up.pending_revocations() == 1
    assert small_rig.roles() == {opened.credential.username}
    del small_rig.plane.refuse["revoke"]
    await until(lambda: small_rig.up.pending_revocations() == 0, "the confirmation")
    assert small_rig.roles() == set()
    await closing


async def test_a_drain_ends_everything_and_leaves_nothing(rig):
    await rig.open()
    await rig.open(V1_HASH)
    await rig.up.mint(V2_HASH, bare(), rig.caller)
    up = rig.up
    await up.aclose()
    assert rig.roles() == set()
    assert up.list() == []
    assert up.hosts() == []
    assert up.pending_revocations() == 0
    rig.supervisor = None

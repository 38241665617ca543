"""A daemon that ended comes back: tunnels on their ports, leases on their clock, and no role that nobody can use."""

import asyncio
import contextlib

import psycopg
import pytest

from fluxd.core import errors
from tests.fluxd.tunnels.rig import V1_HASH, Rig, until
from tests.fluxd.tunnels.test_leases import ShiftedClock
from tests.furniture.provoked import provoked


class OtherBoot(ShiftedClock):
    """The machine was switched off meanwhile: the clock that counts sleep began anew."""

    def now(self):
        return super().now() - 100_000

    def boot_id(self):
        return "another boot"


async def crash(rig: Rig) -> None:
    """What a kill -9 leaves: the files. Nothing is revoked, nothing is said."""
    old, rig.supervisor = rig.supervisor, None
    old._ticker.cancel()
    old._network.close()
    tasks = [old._ticker]
    for tunnel in old._tunnels.values():
        tunnel.holds.clear()
        tunnel.forward.stop_listening()
        await tunnel.forward.close_relays(within_s=0)
        tunnel.finished.set()
    for host in list(old._hosts):
        await host.aclose()
    await asyncio.gather(*tasks, return_exceptions=True)
    while old._tasks:
        await asyncio.wait(old._tasks)


async def crashed_and_back(rig: Rig) -> None:
    await crash(rig)
    await rig.up.start()


async def test_a_kept_tunnel_comes_back_on_its_port_and_its_role_still_works(rig):
    opened = await rig.open()
    await rig.open(V1_HASH)
    await crashed_and_back(rig)
    back = rig.up.show("foundry")
    assert (back.id, back.port, back.state) == (opened.tunnel.id, opened.tunnel.port, "up")
    assert [host.state for host in rig.up.hosts()] == ["idle"]
    assert back.username == opened.credential.username
    assert 3500 < back.lease.remaining_s <= 3601
    assert await rig.ask(opened) == opened.credential.username
    assert rig.roles() == {opened.credential.username}


async def test_after_a_restart_its_lease_still_ends_on_time(small_rig):
    opened = await small_rig.open(ttl_s=4)
    await crashed_and_back(small_rig)
    connection = await small_rig.connect(opened)
    with pytest.raises(psycopg.OperationalError) as caught:
        await connection.execute("SELECT pg_sleep(20)")
    assert caught.value.sqlstate == "57P01"
    await until(lambda: small_rig.roles() == set(), "the role to end")
    await connection.close()


async def test_a_lease_that_ended_meanwhile_brings_nothing_back(embedded, contract_plane, pool18, tmp_path):
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state", clock=ShiftedClock())
    await rig.open()
    await crash(rig)
    rig.clock.slept_s = 3700
    await rig.up.start()
    assert rig.up.list() == []
    await until(lambda: rig.roles() == set(), "the role to end")
    await rig.close()


async def test_after_another_boot_the_wall_clock_decides(embedded, contract_plane, pool18, tmp_path):
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state", clock=ShiftedClock())
    opened = await rig.open()
    await crash(rig)
    rig.clock = OtherBoot()
    await rig.up.start()
    assert 3500 < rig.up.show("foundry").lease.remaining_s <= 3601
    assert await rig.ask(opened) == opened.credential.username
    await rig.close()


async def test_a_held_tunnel_waits_ten_seconds_for_its_holder(small_rig):
    opened = await small_rig.open(credential="new", hold=True)
    async with small_rig.up.events(tunnel=None, hold=opened.hold) as stream:
        assert (await anext(stream)).name == "snapshot"
        await crash(small_rig)
    await small_rig.up.start()
    assert small_rig.up.show("foundry").holds == 1
    async with small_rig.up.events(tunnel=None, hold=opened.hold) as stream:
        assert (await anext(stream)).tunnels[0].id == opened.tunnel.id
        assert await small_rig.ask(opened) == opened.credential.username
    await until(lambda: small_rig.up.list() == [], "the tunnel to close")
    await until(lambda: small_rig.roles() == set(), "the role to end")


async def test_a_holder_that_does_not_come_back_ends_it(embedded, contract_plane, pool18, tmp_path):
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state", clock=ShiftedClock())
    await rig.open(credential="new", hold=True)
    await crashed_and_back(rig)
    assert rig.up.show("foundry").state == "up"
    rig.clock.slept_s += 10
    await until(lambda: rig.up.list() == [], "the tunnel to close")
    await until(lambda: rig.roles() == set(), "the role to end")
    await rig.close()


async def test_revocations_go_on_after_a_restart_without_any_token(small_rig):
    await small_rig.open()
    small_rig.plane.refuse["revoke"] = (503, {"error": "restarting"})
    small_rig.up._tunnels[next(iter(small_rig.up._tunnels))].close()
    await until(lambda: small_rig.up.list() == [], "the tunnel to close")
    await small_rig.up._grants.aclose(within_s=0)
    await crash(small_rig)
    del small_rig.plane.refuse["revoke"]
    await small_rig.up.start()
    await until(lambda: small_rig.up.pending_revocations() == 0, "the confirmation")
    assert small_rig.roles() == set()


async def test_a_v1_tunnel_that_is_kept_outlives_an_orderly_stop(small_rig):
    opened = await small_rig.open(V1_HASH)
    await small_rig.open()
    await small_rig.up.aclose()
    small_rig.supervisor = None
    await small_rig.up.start()
    assert [(one.hash, one.port) for one in small_rig.up.list()] == [(V1_HASH, opened.tunnel.port)]
    assert await small_rig.ask(opened) == "postgres"
    assert small_rig.roles() == set()


async def announced_and_back(rig: Rig) -> None:
    rig.up.expect_restart()
    await rig.up.aclose()
    rig.supervisor = None
    await rig.up.start()


async def test_a_restart_that_was_announced_keeps_tunnels_and_their_roles(small_rig):
    opened = await small_rig.open()
    await small_rig.open(V1_HASH)
    await announced_and_back(small_rig)
    back = small_rig.up.show("foundry")
    assert (back.id, back.port, back.username) == (
        opened.tunnel.id,
        opened.tunnel.port,
        opened.credential.username,
    )
    assert await small_rig.ask(opened) == opened.credential.username
    assert {one.hash for one in small_rig.up.list()} == {V1_HASH, "5774112"}
    assert [one["event"] for one in small_rig.plane.reports] == ["opened", "opened"]


async def test_who_holds_a_tunnel_finds_it_again_after_a_restart_that_was_announced(small_rig):
    opened = await small_rig.open(credential="new", hold=True)
    async with small_rig.up.events(tunnel=None, hold=opened.hold) as stream:
        await anext(stream)
        small_rig.up.expect_restart()
    await small_rig.up.aclose()
    small_rig.supervisor = None
    await small_rig.up.start()
    async with small_rig.up.events(tunnel=None, hold=opened.hold) as stream:
        assert (await anext(stream)).tunnels[0].id == opened.tunnel.id
        assert await small_rig.ask(opened) == opened.credential.username
    await until(lambda: small_rig.up.list() == [], "the tunnel to close")
    await until(lambda: small_rig.roles() == set(), "the role to end")


async def test_a_hold_that_ends_before_the_restart_comes_is_found_again_or_ends(
    embedded, contract_plane, pool18, tmp_path
):
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state", clock=ShiftedClock())
    opened = await rig.open(credential="new", hold=True)
    async with rig.up.events(tunnel=None, hold=opened.hold) as stream:
        await anext(stream)
        rig.up.expect_restart()
    rig.clock.slept_s += 11
    await until(lambda: rig.up.list() == [], "the tunnel to close")
    await until(lambda: rig.roles() == set(), "the role to end")
    await rig.close()


async def test_a_restart_that_never_came_does_not_keep_a_later_stop_from_ending_roles(
    embedded, contract_plane, pool18, tmp_path
):
    rig = Rig(embedded, contract_plane, pool18, tmp_path / "state", clock=ShiftedClock())
    await rig.open()
    rig.up.expect_restart()
    rig.clock.slept_s += 61
    await rig.up.aclose()
    assert rig.roles() == set()
    rig.supervisor = None
    await rig.up.start()
    assert rig.up.list() == []
    await rig.close()


async def test_a_closed_tunnel_does_not_come_back(small_rig):
    await small_rig.open(V1_HASH)
    await small_rig.open()
    for name in ("yeastcoast", "foundry"):
        await small_rig.up.close(name)
    await crashed_and_back(small_rig)
    assert small_rig.up.list() == []


# ----------------------------------------------------- who is upstream, really


async def test_without_a_token_what_was_proven_behind_the_same_key_stands(small_rig):
    opened = await small_rig.open()
    await crashed_and_back(small_rig)
    assert small_rig.up._tunnels[next(iter(small_rig.up._tunnels))].caller is None
    assert await small_rig.ask(opened) == opened.credential.username
    assert len(small_rig.plane.made) == 1


async def test_without_a_token_a_moved_database_waits_for_one(small_rig):
    opened = await small_rig.open()
    await crash(small_rig)
    container = "flux-5774112-foundry-db"
    small_rig.host.know_container(container, small_rig.postgres.port, {"net": "127.0.0.2"})
    small_rig.host.allow("127.0.0.2", "127.0.0.1", small_rig.postgres.port)
    await small_rig.up.start()
    with pytest.raises(psycopg.OperationalError):
        await small_rig.connect(opened)
    assert small_rig.up.show("foundry").problem.code == "not_authenticated"
    assert small_rig.up.show("foundry").state == "up"
    await small_rig.open()
    assert await small_rig.ask(opened) == opened.credential.username
    assert small_rig.up.show("foundry").problem is None
    # A role was minted to prove it, and ended again.
    await until(lambda: small_rig.roles() == {opened.credential.username}, "the proof's role to end")
    assert len(small_rig.plane.made) == 2


async def test_a_v1_database_must_hold_the_projects_password(small_rig, pg15):
    """Another server, another password: it cannot prove itself."""
    small_rig.add("yeastcoast", V1_HASH, "v1_dedicated", port=pg15.port)
    with another_password(pg15):
        with pytest.raises(errors.UpstreamWrongServer) as caught:
            await small_rig.open(V1_HASH)
        provoked("upstream_wrong_server", caught.value)
        assert small_rig.up.list() == []


@contextlib.contextmanager
def another_password(server):
    """The superuser's, until the end."""
    with psycopg.connect(server.url().reveal(), autocommit=True) as connection:
        connection.execute("ALTER ROLE postgres PASSWORD 'another one'")
        try:
            yield
        finally:
            ours = psycopg.sql.Literal(server.password.reveal())
            connection.execute(psycopg.sql.SQL("ALTER ROLE postgres PASSWORD {}").format(ours))


# ------------------------------------------------------------ renewing by itself


async def test_it_renews_by_itself_while_a_client_is_connected(small_rig):
    opened = await small_rig.open(ttl_s=3, renew=True)
    would_end_at = small_rig.clock.now() + 3
    async with await small_rig.connect(opened) as connection:
        await until(lambda: small_rig.clock.now() > would_end_at + 0.5, "the time at which it would have ended")
        assert (await (await connection.execute("SELECT current_user")).fetchone()) == (opened.credential.username,)
    await until(lambda: small_rig.up.list() == [], "the tunnel to end without a client", within_s=6)
    await until(lambda: small_rig.roles() == set(), "the role to end")


async def test_the_plane_is_told_what_was_opened_and_closed(small_rig):
    opened = await small_rig.open(reason="looking for a lost order")
    await small_rig.ask(opened)
    await small_rig.up.close("foundry")
    await until(lambda: len(small_rig.plane.reports) == 2, "both reports")
    first, last = small_rig.plane.reports
    assert (first["event"], last["event"]) == ("opened", "closed")
    assert last["tunnelId"] == opened.tunnel.id
    assert last["bytesDown"] > 300
    assert last["reason"] == "looking for a lost order"

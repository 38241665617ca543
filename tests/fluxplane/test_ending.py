"""
Whatever a role did, it ends: sessions, objects, the role; and one that resists holds up nobody.

On every supported major version, and on pools nobody prepared: there a role can do the most.
"""

import asyncio
import contextlib
import datetime as dt
import time
from typing import Any

import psycopg
import pytest

from fluxplane.lab.postgres import Server
from tests.fluxplane.conftest import FOUNDRY, Answer, Caller, World, leftovers, login, new_world, roles_in

NEVER = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


async def gone(world: World, name: str, *, within_s: float = 3) -> None:
    give_up_at = time.monotonic() + within_s
    while name in roles_in(world.server, name):
        assert time.monotonic() < give_up_at, f"{name} is still there"
        await asyncio.sleep(0.05)


async def revoke(caller: Caller, credential: dict[str, Any]) -> Answer:
    return await caller.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")


def large_object(session: psycopg.Connection[Any]) -> None:
    session.execute("SET default_transaction_read_only = off")
    session.execute("SELECT lo_create(0)")


def group_of(session: psycopg.Connection[Any]) -> str:
    row = session.execute(
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'flux\\_tenant\\_%' AND pg_has_role(oid, 'USAGE')"
    )
    return str(row.fetchone()[0])  # type: ignore[index]


def temporary_table(session: psycopg.Connection[Any]) -> None:
    session.execute("SET default_transaction_read_only = off")
    session.execute("CREATE TEMP TABLE mine (a int)")
    session.execute("BEGIN")
    session.execute("INSERT INTO mine VALUES (1)")


def advisory_lock(session: psycopg.Connection[Any]) -> None:
    session.execute("SELECT pg_advisory_lock(42)")


def prepared_transaction(session: psycopg.Connection[Any]) -> None:
    session.execute("BEGIN READ WRITE")
    session.execute("SELECT lo_create(0)")
    session.execute(f"PREPARE TRANSACTION 'it''s {session.info.user}'")


def default_privileges(session: psycopg.Connection[Any]) -> None:
    session.execute("SET default_transaction_read_only = off")
    session.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    session.execute("ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC")


def default_privileges_of_the_group(session: psycopg.Connection[Any]) -> None:
    session.execute("SET default_transaction_read_only = off")
    group = group_of(session)
    session.execute(f"ALTER DEFAULT PRIVILEGES FOR ROLE {group} GRANT SELECT ON TABLES TO PUBLIC")
    session.execute(f"ALTER DEFAULT PRIVILEGES FOR ROLE {group} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")


def objects_of_the_group(session: psycopg.Connection[Any]) -> None:
    """Before 16 a member may act as its group."""
    if session.info.server_version >= 160000:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(f"SET ROLE {group_of(session)}")
        return
    session.execute("SET default_transaction_read_only = off")
    session.execute(f"SET ROLE {group_of(session)}")
    session.execute("SELECT lo_create(0)")
    session.execute("ALTER ROLE CURRENT_ROLE SET work_mem = '1GB'")


def an_aborted_transaction(session: psycopg.Connection[Any]) -> None:
    session.execute("BEGIN")
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute("SELECT 1/0")


def a_cursor(session: psycopg.Connection[Any]) -> None:
    session.execute("BEGIN")
    session.execute("DECLARE c CURSOR FOR SELECT * FROM things")
    session.execute("FETCH 1 FROM c")


DEEDS = [
    large_object,
    temporary_table,
    advisory_lock,
    prepared_transaction,
    default_privileges,
    default_privileges_of_the_group,
    objects_of_the_group,
    an_aborted_transaction,
    a_cursor,
]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
async def test_a_role_ends_whatever_it_did(open_world: World, deed):
    async with open_world.serving() as ada:
        before = leftovers(open_world)
        credential = (await ada.mint(FOUNDRY)).body
        with contextlib.closing(login(open_world.server, credential)) as session:
            deed(session)
            answer = await revoke(ada, credential)
            assert (answer.status, answer.body["state"]) == (200, "ended")
            with pytest.raises(psycopg.OperationalError, match="terminating connection"):
                session.execute("SELECT 1")
        assert leftovers(open_world) == before


async def test_what_a_role_left_in_another_database_goes_too(open_world: World):
    with open_world.admin() as link:
        link.execute("DROP DATABASE IF EXISTS elsewhere")
        link.execute("CREATE DATABASE elsewhere")
    try:
        async with open_world.serving() as ada:
            credential = (await ada.mint(FOUNDRY)).body
            with login(open_world.server, credential, dbname="elsewhere") as session:
                session.execute("SET default_transaction_read_only = off")
                session.execute("SELECT lo_create(0)")
                session.execute("BEGIN READ WRITE")
                session.execute("SELECT lo_create(0)")
                session.execute("PREPARE TRANSACTION 'elsewhere'")
            assert (await revoke(ada, credential)).body["state"] == "ended"
        with open_world.admin("elsewhere") as link:
            assert link.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone() == (0,)
            assert link.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone() == (0,)
    finally:
        with open_world.admin() as link:
            link.execute("DROP DATABASE elsewhere")


async def test_a_siblings_rights_survive_an_ending(open_world: World):
    async with open_world.serving() as ada:
        first, second = (await ada.mint(FOUNDRY)).body, (await ada.mint(FOUNDRY)).body
        with login(open_world.server, second) as session:
            with login(open_world.server, first) as leaving:
                default_privileges_of_the_group(leaving)
                objects_of_the_group(leaving)
            assert (await revoke(ada, first)).body["state"] == "ended"
            assert session.execute("SELECT count(*) FROM things").fetchone() == (2,)
        await revoke(ada, second)


async def test_rights_that_others_gave_it_do_not_keep_a_role(world: World):
    async with world.serving() as ada:
        credential = (await ada.mint(FOUNDRY)).body
        with world.admin() as link:
            link.execute(f"SET ROLE {world.neighbour.removesuffix('_api')}_ddl")
            link.execute(f"GRANT SELECT ON {world.neighbour}.things TO {credential['username']}")
        assert (await revoke(ada, credential)).body["state"] == "ended"


async def test_a_role_that_resists_holds_up_neither_others_nor_mints(world: World):
    """Another transaction keeps a lock on the role: its end is put off, and comes once the lock is gone."""
    async with world.serving() as ada:
        stuck, other = (await ada.mint(FOUNDRY)).body, (await ada.mint(FOUNDRY)).body
        with world.admin() as link, link.transaction():
            link.execute(f"GRANT USAGE ON SCHEMA public TO {stuck['username']}")
            begun = time.monotonic()
            held, ended = await asyncio.gather(revoke(ada, stuck), revoke(ada, other))
            assert (held.status, held.body["state"]) == (202, "ending")
            assert (ended.status, ended.body["state"]) == (200, "ended")
            assert (await ada.mint(FOUNDRY)).status == 200
            assert time.monotonic() - begun < 10
        await gone(world, stuck["username"], within_s=15)


async def test_a_foreign_temporary_role_is_left_alone(world: World):
    """The existing platform may mint on the same pool."""
    from fluxplane import catalogue, reaper, roles

    with world.admin() as link:
        link.execute("CREATE ROLE flux_temp_ro_5774112_00000000 LOGIN VALID UNTIL '2020-01-01'")
        try:
            async with catalogue.connect(world.settings) as store, roles.connect(world.settings) as pool_roles:
                assert pool_roles is not None
                await reaper.Reaper(store, pool_roles).sweep()
                with pytest.raises(roles.PoolFailed, match="not a temporary role of this catalogue"):
                    await pool_roles.end("flux_temp_ro_5774112_00000000")
            assert "flux_temp_ro_5774112_00000000" in roles_in(world.server)
        finally:
            link.execute("DROP ROLE flux_temp_ro_5774112_00000000")


async def test_two_catalogues_in_one_pool_cannot_end_each_others_roles(world: World, each_postgres: Server):
    from fluxplane import roles

    other = await asyncio.to_thread(new_world, each_postgres)
    async with world.serving() as ada, roles.connect(other.settings) as strangers:
        credential = (await ada.mint(FOUNDRY)).body
        assert strangers is not None
        assert credential["username"] not in {role.name for role in await strangers.live()}
        for attempt in (strangers.end(credential["username"]), strangers.renew(credential["username"], NEVER)):
            with pytest.raises(roles.PoolFailed):
                await attempt
        with login(world.server, credential) as session:
            session.execute("SELECT 1")

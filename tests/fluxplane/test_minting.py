"""What a minted role may do, and that minting is once, concurrent, flat, and honest about its pool."""

import asyncio
import dataclasses
import secrets
from typing import Any

import psycopg
import pytest

from fluxplane import catalogue, pool, registry
from fluxplane.settings import OperatorError
from tests.fluxplane.conftest import FOUNDRY, USER, Caller, World, login, roles_in


async def mint(caller: Caller, hash_: str = FOUNDRY, **body: Any) -> dict[str, Any]:
    answer = await caller.mint(hash_, **body)
    assert answer.status == 200, answer.body
    credential: dict[str, Any] = answer.body
    return credential


async def test_a_readonly_role_reads_tables_and_sequences_and_writes_nothing(world: World):
    async with world.serving() as ada:
        with login(world.server, await mint(ada)) as session:
            assert session.execute("SELECT name FROM things ORDER BY id").fetchall() == [("anvil",), ("bellows",)]
            assert session.execute("SELECT last_value FROM things_id_seq").fetchone() == (2,)
            session.execute("SET default_transaction_read_only = off")
            for statement in (
                "INSERT INTO things (name) VALUES ('x')",
                "DELETE FROM things",
                "SELECT nextval('things_id_seq')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)


async def test_a_readwrite_role_writes_rows_and_no_schema(world: World):
    async with world.serving(allow_readwrite=True) as ada:
        with login(world.server, await mint(ada, access="readwrite")) as session:
            session.execute("INSERT INTO things (name) VALUES ('tongs')")
            session.execute("UPDATE things SET name = 'pliers' WHERE name = 'tongs'")
            session.execute("DELETE FROM things WHERE name = 'pliers'")
            for statement in (
                "DROP TABLE things",
                f"CREATE TABLE {world.foundry}.x ()",
                "TRUNCATE things",
                "ALTER TABLE things ADD x int",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)


@pytest.mark.parametrize("maker", ["the owner", "the runtime role", "a superuser"])
async def test_a_table_pushed_during_a_session_is_readable_at_once(world: World, maker: str):
    name = "pushed_" + secrets.token_hex(4)
    async with world.serving() as ada:
        with login(world.server, await mint(ada)) as session, world.admin() as link:
            if maker == "the runtime role":
                link.execute(f"GRANT CREATE ON SCHEMA {world.foundry} TO {world.foundry.removesuffix('_api')}_role")
            if maker != "a superuser":
                suffix = "_ddl" if maker == "the owner" else "_role"
                link.execute(f"SET ROLE {world.foundry.removesuffix('_api')}{suffix}")
            link.execute(f"CREATE TABLE {world.foundry}.{name} (id serial)")
            assert session.execute(f"SELECT * FROM {name}").fetchall() == []
            assert session.execute(f"SELECT last_value FROM {name}_id_seq").fetchone() == (1,)
            link.execute(f"DROP TABLE {world.foundry}.{name}")


async def test_a_table_of_somebody_unforeseen_is_readable_after_the_next_look(world: World):
    stranger = "stranger_" + secrets.token_hex(4)
    async with world.serving() as ada:
        with login(world.server, await mint(ada)) as session, world.admin() as link:
            link.execute(f"CREATE ROLE {stranger}")
            link.execute(f"GRANT USAGE, CREATE ON SCHEMA {world.foundry} TO {stranger}")
            link.execute(f"SET ROLE {stranger}")
            link.execute(f"CREATE TABLE {world.foundry}.odd (id int)")
            link.execute("RESET ROLE")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT * FROM odd")
            assert (await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")).status == 200
            assert session.execute("SELECT * FROM odd").fetchall() == []
            link.execute(f"DROP OWNED BY {stranger} CASCADE")
            link.execute(f"DROP ROLE {stranger}")


async def test_the_plan_names_tables_whose_rows_a_policy_hides(world: World):
    async with world.serving() as ada:
        plan = (await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")).body
        assert plan["rlsTables"] == [f"{world.foundry}.secrets"]
        assert any("secrets" in note for note in plan["securityNotes"])
        assert (await mint(ada))["rlsTables"] == [f"{world.foundry}.secrets"]


async def test_the_clear_password_reaches_postgres_in_no_statement(world: World):
    """The server logs every statement with its parameters while a role is minted; none holds the password."""
    with world.admin() as link:
        link.execute("ALTER SYSTEM SET log_statement = 'all'")
        link.execute("SELECT pg_reload_conf()")
    try:
        async with world.serving() as ada:
            credential = await mint(ada)
    finally:
        with world.admin() as link:
            link.execute("ALTER SYSTEM RESET log_statement")
            link.execute("SELECT pg_reload_conf()")
    said = world.server.log.read_text()
    assert credential["username"] in said
    assert credential["password"] not in said


async def test_asking_twice_with_one_id_answers_the_same_role_and_password(world: World):
    async with world.serving() as ada:
        grant_id = secrets.token_hex(16)
        header = {"headers": {"Idempotency-Key": grant_id}}
        where = f"/api/cli/v1/projects/{FOUNDRY}/db-access/temporary-credential"
        first = await ada.post(where, json={"ttlSeconds": 600}, **header)
        again = await ada.post(where, json={"grantId": grant_id}, **header)
        for field in ("username", "password", "expiresAt", "grantId"):
            assert first.body[field] == again.body[field]
        with login(world.server, again.body) as session:
            session.execute("SELECT 1")
        named = [name for name in roles_in(world.server) if name == first.body["username"]]
        assert len(named) == 1


async def test_twenty_at_once_with_one_id_are_one_role(world: World):
    async with world.serving() as ada:
        grant_id = secrets.token_hex(16)
        answers = await asyncio.gather(*(ada.mint(FOUNDRY, grantId=grant_id) for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert len({(answer.body["username"], answer.body["password"]) for answer in answers}) == 1


async def test_an_id_of_another_grant_is_refused(world: World):
    async with world.serving() as ada:
        grant_id = secrets.token_hex(16)
        await mint(ada, grantId=grant_id)
        other = await ada.mint("0a1b2c3", grantId=grant_id)
        assert (other.status, other.body["code"]) == (409, "grant_id_taken")


async def test_an_id_revoked_before_it_was_seen_cannot_be_minted(world: World):
    async with world.serving() as ada:
        for caller in (ada, Caller(ada.base, ada.http, None)):
            grant_id = secrets.token_hex(16)
            revoked = await caller.ask("DELETE", f"/api/cli/v1/grants/{grant_id}")
            assert (revoked.status, revoked.body) == (200, {"grantId": grant_id, "state": "tombstone"})
            again = await caller.ask("DELETE", f"/api/cli/v1/grants/{grant_id}")
            assert again.body["state"] == "tombstone"
            minted = await ada.mint(FOUNDRY, grantId=grant_id)
            assert (minted.status, minted.body["code"]) == (410, "grant_ended")


async def test_knowing_the_id_is_enough_to_end_a_grant_and_for_nothing_else(world: World):
    async with world.serving() as ada:
        nobody = Caller(ada.base, ada.http, None)
        credential = await mint(ada)
        renewed = await nobody.post(f"/api/cli/v1/grants/{credential['grantId']}/renew", json={})
        assert renewed.status == 401
        ended = await nobody.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
        assert (ended.status, ended.body["state"]) == (200, "ended")
        assert "username" not in ended.body
        assert credential["username"] not in roles_in(world.server)


@pytest.mark.parametrize("grant_id", ["x", "A" * 32, "0" * 31, "0" * 33, "../../etc", "%00"])
async def test_a_grant_id_is_32_hex_digits(world18: World, grant_id: str):
    async with world18.serving() as ada:
        assert (await ada.ask("DELETE", f"/api/cli/v1/grants/{grant_id}")).status in {400, 404}
        assert (await ada.mint(FOUNDRY, grantId=grant_id)).status == 400


async def test_a_hundred_at_once_over_ten_tokens_are_a_hundred_roles(world: World):
    """The first mints of a project besides: its groups are made in the same rush."""
    async with catalogue.connect(world.settings) as store:
        tokens = [await registry.create_token(store, USER) for _ in range(10)]
        hash_ = secrets.token_hex(4)[:7]
        project = await registry.create_project(
            store, world.settings, registry.NewProject(user=USER, slug="rush-" + hash_, mode="v2_shared", hash=hash_)
        )
    with world.admin() as link:
        for group in ("ro", "rw"):
            link.execute(f"DROP OWNED BY flux_tenant_{project.id.hex}_{group}")
            link.execute(f"DROP ROLE flux_tenant_{project.id.hex}_{group}")
    async with world.serving() as ada:
        callers = [Caller(ada.base, ada.http, token) for token in tokens for _ in range(10)]
        answers = await asyncio.gather(*(caller.mint(hash_) for caller in callers))
        assert {answer.status for answer in answers} == {200}
        names = {answer.body["username"] for answer in answers}
        assert len(names) == 100
        assert names <= roles_in(world.server)
        ended = await asyncio.gather(
            *(ada.ask("DELETE", f"/api/cli/v1/grants/{answer.body['grantId']}") for answer in answers)
        )
        assert {answer.status for answer in ended} <= {200, 202}


async def test_an_unprepared_pool_is_minted_in_and_said_to_be_open(world18: World, pool18):
    """What PUBLIC may do is the cluster's: a scratch server of its own."""
    from tests.fluxplane.conftest import new_world
    from tests.furniture.postgres import installation, running

    with running(installation(16)) as server:
        unprepared = await asyncio.to_thread(new_world, server, prepared=False)
        async with unprepared.serving() as ada:
            credential = await mint(ada)
            assert len(credential["notEnforced"]) >= 3
            plan = (await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")).body
            assert any("not been closed" in note for note in plan["securityNotes"])
            with login(server, credential) as session:
                assert session.execute("SELECT count(*) FROM things").fetchone() == (2,)


async def test_without_the_functions_a_mint_fails_and_says_so(world18: World):
    async with world18.serving() as ada:
        with world18.admin() as link:
            link.execute("ALTER SCHEMA flux_plane RENAME TO hidden")
            try:
                answer = await ada.mint(FOUNDRY)
            finally:
                link.execute("ALTER SCHEMA hidden RENAME TO flux_plane")
        assert answer.status == 500
        assert answer.body["error"].startswith("Could not create temporary database credentials: ")
        assert (await ada.mint(FOUNDRY)).status == 200


async def test_prepare_run_again_changes_nothing_and_a_dry_run_changes_less(world: World):
    async with catalogue.connect(world.settings) as store:
        await pool.prepare(world.settings, store)  # other tests have made databases since
        again = await pool.prepare(world.settings, store)
        assert [change for change in again if not change.startswith("--")] == []
        with world.admin() as link:
            link.execute("DROP DATABASE IF EXISTS late")
            link.execute("CREATE DATABASE late")
        try:
            would = await pool.prepare(world.settings, store, dry_run=True)
            assert any('REVOKE CONNECT, TEMPORARY ON DATABASE "late" FROM PUBLIC' in line for line in would)
            with world.admin() as link:
                assert link.execute("SELECT has_database_privilege('public', 'late', 'CONNECT')").fetchone() == (True,)
            did = await pool.prepare(world.settings, store)
            assert [line for line in would if "late" in line] == [line for line in did if "late" in line]
            with world.admin() as link:
                assert link.execute("SELECT has_database_privilege('public', 'late', 'CONNECT')").fetchone() == (False,)
        finally:
            with world.admin() as link:
                link.execute("DROP DATABASE late")


async def test_prepare_keeps_the_platforms_own_roles_able_to_work(world: World):
    suffix = secrets.token_hex(6)
    with world.admin() as link:
        for role in (f"t_{suffix}_role", f"t_{suffix}_ddl", f"flux_tenant_{suffix[:7]}_ro", f"authenticator_{suffix}"):
            link.execute(f"CREATE ROLE {role} LOGIN")
        try:
            async with catalogue.connect(world.settings) as store:
                await pool.prepare(world.settings, store, allow=[f"authenticator_{suffix}"])
                with pytest.raises(OperatorError, match="no role"):
                    await pool.prepare(world.settings, store, allow=["nobody-" + suffix])

            def may(role: str, privilege: str) -> bool:
                row = link.execute("SELECT has_database_privilege(%s, 'postgres', %s)", [role, privilege]).fetchone()
                return bool(row[0])

            def may_lock(role: str) -> bool:
                query = "SELECT has_function_privilege(%s, 'pg_advisory_lock(bigint)', 'EXECUTE')"
                return bool(link.execute(query, [role]).fetchone()[0])

            for role in (f"t_{suffix}_role", f"t_{suffix}_ddl", f"authenticator_{suffix}"):
                assert (may(role, "CONNECT"), may(role, "TEMP"), may_lock(role)) == (True, True, True)
            group = f"flux_tenant_{suffix[:7]}_ro"
            assert (may(group, "CONNECT"), may(group, "TEMP"), may_lock(group)) == (True, False, False)
        finally:
            for role in (
                f"t_{suffix}_role",
                f"t_{suffix}_ddl",
                f"flux_tenant_{suffix[:7]}_ro",
                f"authenticator_{suffix}",
            ):
                link.execute(f"DROP ROLE {role}")


async def test_prepare_says_which_login_it_shuts_out(world: World):
    name = "bystander_" + secrets.token_hex(4)
    with world.admin() as link:
        link.execute(f"CREATE ROLE {name} LOGIN")
    try:
        async with catalogue.connect(world.settings) as store:
            assert any(name in line and "--allow" in line for line in await pool.prepare(world.settings, store))
    finally:
        with world.admin() as link:
            link.execute(f"DROP ROLE {name}")


async def test_a_login_that_serves_another_catalogue_is_refused(world18: World):
    from fluxplane import keychain
    from tests.fluxplane.conftest import settings_for

    thief = dataclasses.replace(
        settings_for(world18.server), pool_url=world18.settings.pool_url, key=keychain.new_key()
    )
    await catalogue.migrate(thief)
    async with catalogue.connect(thief) as store:
        with pytest.raises(OperatorError, match="another catalogue"):
            await pool.prepare(thief, store)

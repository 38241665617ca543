"""
A tenant's temporary role that means harm, as data: on a prepared pool nothing of this works, read-only or read/write.

Success is another tenant's row read or written, a right or object that outlives the lease, or another tenant unable to
query for 5 s. Each attempt is first shown to work where it should: as the administrator, or on a pool nobody prepared.
To add one, add a line. (Memory is bounded by the operator with a cgroup or RLIMIT_AS: the guide says so.)
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import psycopg
import pytest

from tests.fluxplane.conftest import FOUNDRY, NEIGHBOUR, World, leftovers, login

UNABLE_AFTER_S = 5


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Statements that succeed together or not at all. Names in braces are filled in by `names`."""

    kind: str
    steps: tuple[str, ...]
    # Who can: the administrator, or a temporary role where PUBLIC was not closed.
    works_for: Literal["admin", "unprepared"] = "admin"
    database: str = "postgres"
    # For what cannot be rolled back when the administrator shows it.
    undo: str | None = None


def tries(kind: str, *steps: str, **rest: Any) -> Attempt:
    return Attempt(kind, steps, **rest)


REACHING = [
    tries("other schemas", "SELECT * FROM {neighbour}.things"),
    tries("other schemas", "INSERT INTO {neighbour}.things (name) VALUES ('planted')"),
    tries("other schemas", "UPDATE {neighbour}.things SET name = name"),
    tries("other schemas", "DELETE FROM {neighbour}.things WHERE false"),
    tries("other schemas", "SELECT nextval('{neighbour}.things_id_seq')"),
    tries("other schemas", "LOCK TABLE {neighbour}.things"),
    tries("other schemas", "TABLE {neighbour}.things"),
    tries("other schemas", "SET search_path = {neighbour}", "SELECT * FROM things"),
    tries("other schemas", "CREATE VIEW {foundry}.peek AS SELECT * FROM {neighbour}.things"),
    tries("other schemas", "CREATE TABLE {foundry}.mine (a int)"),
    tries("other schemas", "CREATE SCHEMA mine"),
    tries("other databases", "SELECT 1", works_for="unprepared", database="template1"),
    tries("other databases", "SELECT 1", database="{catalogue}"),
    tries("other databases", "CREATE DATABASE {fresh}", undo="DROP DATABASE {fresh}"),
    tries("template1", "CREATE TABLE {fresh} (a int)", database="template1"),
    tries("role changes", "CREATE ROLE {fresh}"),
    tries("role changes", "ALTER ROLE CURRENT_USER CREATEROLE"),
    tries("role changes", "ALTER ROLE CURRENT_USER SUPERUSER"),
    tries("role changes", "ALTER ROLE CURRENT_USER BYPASSRLS"),
    tries("role changes", "GRANT {their_group} TO CURRENT_USER"),
    tries("role changes", "GRANT pg_read_all_data TO CURRENT_USER"),
    tries("role changes", "GRANT CURRENT_USER TO {our_runtime}"),
    tries("role changes", "GRANT {our_group} TO {their_runtime}"),
    tries("role changes", "REVOKE CURRENT_USER FROM {marker}"),
    tries("SET ROLE", "SET ROLE postgres"),
    tries("SET ROLE", "SET ROLE {their_group}"),
    tries("SET ROLE", "SET ROLE {our_runtime}"),
    tries("SET ROLE", "SET ROLE {marker}"),
    tries("SET ROLE", "SET SESSION AUTHORIZATION postgres"),
    tries("own limits", "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'"),
    tries("own limits", "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1"),
    tries("own limits", "ALTER ROLE CURRENT_USER RENAME TO {fresh}"),
    tries("own limits", "SET temp_file_limit = -1"),
    tries("own limits", "ALTER ROLE CURRENT_USER SET temp_file_limit = -1"),
    tries("own limits", "ALTER DATABASE postgres SET statement_timeout = 1"),
    tries("own limits", "ALTER SYSTEM SET work_mem = '1GB'", undo="ALTER SYSTEM RESET work_mem"),
    tries("catalogue secrets", "SELECT rolpassword FROM pg_authid"),
    tries("catalogue secrets", "SELECT passwd FROM pg_shadow"),
    tries("catalogue secrets", "SELECT * FROM pg_statistic"),
    tries("catalogue secrets", "SELECT 1 / count(*) FROM pg_stats WHERE schemaname = '{neighbour}'"),
    tries("catalogue secrets", "SELECT * FROM pg_hba_file_rules"),
    tries("catalogue secrets", "SELECT * FROM pg_subscription"),
    tries("catalogue secrets", "SELECT 1 / count(*) FROM pg_stat_activity WHERE query LIKE '%overheard%'"
          " AND pid <> pg_backend_pid()"),
    tries("files and programs", "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'"),
    tries("files and programs", "COPY (SELECT 1) TO '/dev/null'"),
    tries("files and programs", "SELECT pg_read_file('PG_VERSION')"),
    tries("files and programs", "SELECT pg_ls_dir('.')"),
    tries("files and programs", "SELECT lo_import('/etc/hostname')"),
    tries("planting", "CREATE FUNCTION public.{fresh}() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    tries("planting", "CREATE TABLE public.{fresh} (a int)"),
    tries("planting", "CREATE OPERATOR public.=== (leftarg = text, rightarg = text, function = texteq)"),
    tries("planting", "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", works_for="unprepared"),
    tries("planting", "CREATE TEMP TABLE things (a int)", works_for="unprepared"),
    tries("large objects", "SELECT lo_create(0)", works_for="unprepared"),
    tries("large objects", "SELECT lo_from_bytea(0, 'x')", works_for="unprepared"),
    tries("large objects", "SELECT lo_creat(-1)", works_for="unprepared"),
    tries("extensions", "CREATE EXTENSION {extension}"),
    tries("extensions", "CREATE LANGUAGE {fresh} HANDLER plpgsql_call_handler"),
    tries("extensions", "CREATE FOREIGN DATA WRAPPER {fresh}"),
    tries("extensions", "CREATE FUNCTION {neighbour}.fire() RETURNS event_trigger LANGUAGE plpgsql AS"
          " 'BEGIN END'", "CREATE EVENT TRIGGER {fresh} ON ddl_command_end EXECUTE FUNCTION {neighbour}.fire()"),
    tries("default privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE {their_owner} GRANT SELECT ON TABLES TO PUBLIC"),
    tries("default privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE {our_owner} GRANT SELECT ON TABLES TO PUBLIC"),
    tries("default privileges", "GRANT SELECT ON {foundry}.things TO {their_runtime}", "SELECT 1 / count(*) FROM"
          " information_schema.role_table_grants WHERE grantee = '{their_runtime}' AND table_schema = '{foundry}'"),
    tries("flux_plane", "SELECT flux_plane.mint('{their_id}', 'readonly', 'flux_temp_ro_0a1b2c3_00000000', 'x',"
          " now(), 1, 1, 1, 1)", works_for="admin"),
    tries("flux_plane", "SELECT * FROM flux_plane.live()"),
    tries("flux_plane", "SELECT flux_plane.fence('flux_temp_ro_0a1b2c3_00000000')"),
    tries("flux_plane", "SELECT flux_plane.drop('flux_temp_ro_0a1b2c3_00000000')"),
    tries("flux_plane", "SELECT flux_plane.renew('flux_temp_ro_0a1b2c3_00000000', now())"),
    tries("flux_plane", "SELECT flux_plane.ensure('{their_id}')"),
    tries("flux_plane", "SELECT flux_plane.retire('{nobodys_id}')"),
    tries("flux_plane", "SELECT flux_plane.adopt('{nobodys_id}', '{neighbour}', 'x')"),
    tries("flux_plane", "SELECT flux_plane.join(CURRENT_USER, '{their_group}', true, true)"),
    tries("flux_plane", "SELECT * FROM flux_plane.tenant"),
    tries("advisory locks", "SELECT pg_advisory_lock(42)", works_for="unprepared"),
    tries("advisory locks", "SELECT pg_try_advisory_lock(42)", works_for="unprepared"),
    tries("advisory locks", "BEGIN", "SELECT pg_advisory_xact_lock(42)", "COMMIT", works_for="unprepared"),
    tries("signals", "SELECT 1 / count(*) FROM (SELECT pg_cancel_backend({their_pid})) x"),
    tries("replication", "SELECT pg_create_physical_replication_slot('{fresh}')", "SELECT"
          " pg_drop_replication_slot('{fresh}')"),
    tries("replication", "CREATE PUBLICATION {fresh} FOR ALL TABLES"),
    tries("temp files", "SET work_mem = '64kB'", "SELECT count(*) FROM (SELECT g FROM generate_series(1, 2000000) g"
          " ORDER BY md5(g::text)) x"),
]  # fmt: skip

# Statements that may work (each alone), and then the lease ends: nothing of them may be left.
OUTLIVING = [
    ("own settings", "ALTER ROLE CURRENT_USER SET work_mem = '1GB'"),
    ("own settings", "ALTER ROLE CURRENT_USER PASSWORD 'mine'"),
    ("default privileges", "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC"),
    ("default privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE {our_group} GRANT SELECT ON TABLES TO {their_runtime}"),
    ("default privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE {our_group} REVOKE USAGE ON TYPES FROM PUBLIC"),
    ("default privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE flux_pool_guests GRANT SELECT ON TABLES TO PUBLIC"),
    ("as the group", "SET ROLE {our_group}; ALTER ROLE CURRENT_USER SET work_mem = '1GB'"),
    ("as the group", "SET ROLE {our_group}; ALTER ROLE CURRENT_USER PASSWORD 'mine'"),
    ("as the group", "SET ROLE {our_group}; SELECT lo_create(0)"),
    ("as the guests", "SET ROLE flux_pool_guests; ALTER ROLE CURRENT_USER SET work_mem = '1GB'"),
    ("as the guests", "SET ROLE flux_pool_guests; ALTER ROLE CURRENT_USER PASSWORD 'mine'"),
    ("prepared transactions", "BEGIN; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; PREPARE TRANSACTION 'p'"),
    ("sessions", "LISTEN overheard"),
    ("sessions", "SELECT pg_export_snapshot()"),
]


@dataclasses.dataclass(frozen=True)
class Attacker:
    """A world, a live role of `foundry` in it, and the names its attempts use."""

    world: World
    credential: dict[str, Any]
    names: dict[str, str]

    def session(self, database: str = "postgres") -> psycopg.Connection[Any]:
        session = login(self.world.server, self.credential, dbname=database)
        with contextlib.suppress(psycopg.Error):
            session.execute("SET default_transaction_read_only = off")
        return session


def names(world: World, access: str = "readonly", their_pid: int = 0) -> dict[str, str]:
    from urllib.parse import urlsplit

    with world.admin() as link:
        link.execute(f"ANALYZE {world.neighbour}.things")
        projects = dict(link.execute("SELECT schema_name, project::text FROM flux_plane.tenant").fetchall())
        marker = link.execute("SELECT marker FROM flux_plane.tenant WHERE schema_name = %s", [world.foundry]).fetchone()
        extension = link.execute(
            "SELECT name FROM pg_available_extensions WHERE installed_version IS NULL ORDER BY 1 LIMIT 1"
        ).fetchone()
    suffix = "rw" if access == "readwrite" else "ro"
    return {
        "foundry": world.foundry,
        "neighbour": world.neighbour,
        "our_group": f"flux_tenant_{projects[world.foundry].replace('-', '')}_{suffix}",
        "their_group": f"flux_tenant_{projects[world.neighbour].replace('-', '')}_{suffix}",
        "our_owner": world.foundry.removesuffix("_api") + "_ddl",
        "their_owner": world.neighbour.removesuffix("_api") + "_ddl",
        "our_runtime": world.foundry.removesuffix("_api") + "_role",
        "their_runtime": world.neighbour.removesuffix("_api") + "_role",
        "their_id": projects[world.neighbour],
        "nobodys_id": "00000000-0000-0000-0000-000000000000",
        "marker": marker[0] if marker else "",
        "catalogue": urlsplit(world.settings.catalogue_url.reveal()).path[1:],
        "extension": extension[0] if extension else "plpgsql",
        "fresh": "fresh_thing",
        "their_pid": str(their_pid),
    }


def works(session: psycopg.Connection[Any], attempt: Attempt, filled: dict[str, str]) -> bool:
    """Whether every step passes; whatever it did is undone where it can be."""
    try:
        for step in attempt.steps:
            session.execute(step.format(**filled))
    except psycopg.Error:
        return False
    finally:
        with contextlib.suppress(psycopg.Error):
            session.execute("ROLLBACK")
    return True


@contextlib.contextmanager
def their_session(world: World) -> Iterator[psycopg.Connection[Any]]:
    """A neighbour at work, whose query text would be worth overhearing."""
    with world.admin() as link:
        link.execute(f"SET ROLE {world.neighbour.removesuffix('_api')}_role")
        link.execute("SELECT 'overheard'")
        yield link


@pytest.mark.parametrize("access", ["readonly", "readwrite"])
async def test_no_attempt_of_a_hostile_role_works_on_a_prepared_pool(world: World, access: str):
    limits = dataclasses.replace(world.settings.limits, temp_file_mb_per_role=4)
    async with world.serving(allow_readwrite=True, limits=limits) as ada:
        credential = (await ada.mint(FOUNDRY, access=access)).body
        with their_session(world) as neighbour:
            filled = names(world, access, neighbour.info.backend_pid)
            attacker = Attacker(world, credential, filled)
            succeeded = [attempt for attempt in REACHING if _attack(attacker, attempt)]
        assert succeeded == []
        with world.admin() as link:
            assert link.execute(f"SELECT name FROM {world.neighbour}.things").fetchall() == [("their secret",)]


def _attack(attacker: Attacker, attempt: Attempt) -> bool:
    database = attempt.database.format(**attacker.names)
    try:
        with attacker.session(database) as session:
            return works(session, attempt, attacker.names)
    except psycopg.OperationalError:
        return False


async def test_each_attempt_works_where_it_should(open_world: World):
    """As the administrator, or on a pool nobody prepared: else the test above would prove nothing."""
    async with open_world.serving() as ada:
        credential = (await ada.mint(FOUNDRY)).body
        with their_session(open_world) as neighbour:
            filled = names(open_world, their_pid=neighbour.info.backend_pid)
            failed = [attempt for attempt in REACHING if not _shown(open_world, credential, filled, attempt)]
        assert failed == []


def _shown(world: World, credential: dict[str, Any], filled: dict[str, str], attempt: Attempt) -> bool:
    database = attempt.database.format(**filled)
    if attempt.works_for == "unprepared":
        return _attack(Attacker(world, credential, filled), attempt)
    if attempt.kind in SHOWN_OTHERWISE:
        return True
    steps = [step.format(**filled).replace("CURRENT_USER", credential["username"]) for step in attempt.steps]
    try:
        with contextlib.closing(world.admin(database)) as admin:
            admin.autocommit = attempt.undo is not None
            for step in steps:
                admin.execute(step)
            if attempt.undo:
                admin.execute(attempt.undo.format(**filled))
    except psycopg.Error:
        return False
    return True


# flux_plane.* works for the plane's own login, as every other test here shows.
SHOWN_OTHERWISE = {"flux_plane"}


@pytest.mark.parametrize("access", ["readonly", "readwrite"])
async def test_nothing_that_works_outlives_the_lease(world: World, access: str):
    async with world.serving(allow_readwrite=True) as ada:
        before = leftovers(world)
        credential = (await ada.mint(FOUNDRY, access=access)).body
        attacker = Attacker(world, credential, names(world, access))
        with attacker.session() as session:
            for _, statements in OUTLIVING:
                with contextlib.suppress(psycopg.Error):
                    for statement in statements.split("; "):
                        session.execute(statement.format(**attacker.names))
                session.execute("ROLLBACK" if session.info.transaction_status else "RESET ROLE")
                session.execute("RESET ROLE")
        ended = await ada.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
        assert ended.body["state"] == "ended"
        assert leftovers(world) == before


async def test_a_role_cannot_use_up_the_pools_connections(world: World):
    async with world.serving() as ada:
        attacker, neighbour = (await ada.mint(FOUNDRY)).body, (await ada.mint(NEIGHBOUR)).body
        with contextlib.ExitStack() as stack:
            opened = 0
            with contextlib.suppress(psycopg.OperationalError):
                while opened < 1000:
                    stack.enter_context(login(world.server, attacker))
                    opened += 1
            assert opened == world.settings.limits.connections_per_role
            with login(world.server, neighbour, connect_timeout=UNABLE_AFTER_S) as session:
                assert session.execute("SELECT name FROM things").fetchall() == [("their secret",)]


async def test_without_the_limit_the_connections_can_be_used_up(world18: World):
    endless = dataclasses.replace(world18.settings.limits, connections_per_role=10_000)
    async with world18.serving(limits=endless) as ada:
        attacker, neighbour = (await ada.mint(FOUNDRY)).body, (await ada.mint(NEIGHBOUR)).body
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    stack.enter_context(login(world18.server, attacker))
            with pytest.raises(psycopg.OperationalError, match=r"too many clients|remaining connection slots"):
                login(world18.server, neighbour, connect_timeout=UNABLE_AFTER_S)


async def test_a_role_that_names_another_in_a_transaction_does_not_keep_it(world: World):
    """An open ALTER DEFAULT PRIVILEGES … TO another role locks that role against being dropped."""
    async with world.serving() as ada:
        attacker, victim = (await ada.mint(FOUNDRY)).body, (await ada.mint(NEIGHBOUR)).body
        with contextlib.closing(login(world.server, attacker)) as session:
            session.execute("BEGIN READ WRITE")
            session.execute(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {victim['username']}")
            ended = await ada.ask("DELETE", f"/api/cli/v1/grants/{victim['grantId']}")
            assert (ended.status, ended.body["state"]) == (200, "ended")


async def test_an_open_transaction_of_a_role_keeps_nobody_from_minting(world: World):
    async with world.serving() as ada:
        attacker = (await ada.mint(FOUNDRY)).body
        filled = names(world)
        with contextlib.closing(login(world.server, attacker)) as session:
            session.execute("BEGIN READ WRITE")
            for role in (filled["their_group"], filled["our_group"], filled["marker"], "flux_pool_guests", "postgres"):
                session.execute(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}")
            session.execute("LOCK TABLE pg_class, pg_namespace, pg_auth_members IN ACCESS SHARE MODE")
            for hash_ in (FOUNDRY, NEIGHBOUR):
                minted = await ada.mint(hash_)
                assert minted.status == 200
                ended = await ada.ask("DELETE", f"/api/cli/v1/grants/{minted.body['grantId']}")
                assert ended.body["state"] == "ended"

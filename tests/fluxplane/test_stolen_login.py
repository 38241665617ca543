"""What somebody with the plane's own pool login can do: mint for adopted tenants, for eight hours, and no more."""

import secrets
from typing import Any

import psycopg
import pytest

from fluxplane import catalogue, registry
from tests.fluxplane.conftest import FOUNDRY, USER, World

VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
ROLE = "flux_temp_ro_5774112_0badcafe"
MINT = "SELECT flux_plane.mint({project}, {access}, {role}, {verifier}, {until}, {connections}, 1, 60, 60)"
FINE = {
    "project": "'{project}'",
    "access": "'readonly'",
    "role": f"'{ROLE}'",
    "verifier": f"'{VERIFIER}'",
    "until": "now() + interval '1 hour'",
    "connections": "1",
}


@pytest.fixture
def thief(world: World):
    assert world.settings.pool_url is not None
    with psycopg.connect(world.settings.pool_url.reveal(), autocommit=True) as link:
        yield link


@pytest.fixture
async def project(world: World) -> str:
    async with catalogue.connect(world.settings) as store:
        found = await registry.find_project(store, USER, FOUNDRY)
    assert found is not None
    return str(found.id)


def mint(of: str, **changes: str) -> str:
    return MINT.format(**FINE | changes).format(project=of)


def test_it_can_mint_and_end(thief: psycopg.Connection[Any], project: str):
    thief.execute(mint(project))
    thief.execute("SELECT flux_plane.fence(%s)", [ROLE])
    assert thief.execute("SELECT flux_plane.drop(%s)", [ROLE]).fetchone() == (True,)


BAD_MINTS = [
    {"project": "'00000000-0000-0000-0000-000000000000'"},
    {"project": "NULL"},
    {"access": "'owner'"},
    {"access": "'readwrite'"},  # the role's name says ro
    {"access": "NULL"},
    {"role": "'postgres'"},
    {"role": "'flux_temp_ro_5774112_0badcafe; DROP TABLE x'"},
    {"role": "'flux_tenant_x'"},
    {"role": "NULL"},
    {"verifier": "'a clear password'"},
    {"verifier": "'md5' || md5('x')"},
    {"verifier": "NULL"},
    {"until": "'infinity'"},
    {"until": "now() + interval '9 hours'"},
    {"until": "NULL"},
    {"connections": "-1"},
    {"connections": "NULL"},
]


@pytest.mark.parametrize("changes", BAD_MINTS, ids=str)
def test_it_cannot_mint_what_the_plane_would_not(thief: psycopg.Connection[Any], project: str, changes: dict[str, str]):
    with pytest.raises(psycopg.Error):
        thief.execute(mint(project, **changes))
    assert thief.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone() == (0,)


DENIED = [
    "CREATE ROLE mine",
    "ALTER ROLE postgres PASSWORD 'x'",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "SET ROLE {neighbour_owner}",
    "SELECT * FROM {neighbour}.things",
    "SELECT rolpassword FROM pg_authid",
    "SELECT flux_plane.adopt('{project}', 'pg_catalog', CURRENT_USER)",
    "SELECT flux_plane.join(CURRENT_USER, 'postgres', true, true)",
    "UPDATE flux_plane.tenant SET schema_name = 'pg_catalog'",
    "UPDATE flux_plane.service SET login = 'x'",
    "SELECT flux_plane.fence('postgres')",
    "SELECT flux_plane.fence('{neighbour_owner}')",
    "SELECT flux_plane.drop('postgres')",
    "SELECT flux_plane.renew('postgres', now())",
    "CREATE OR REPLACE FUNCTION flux_plane.marker() RETURNS name LANGUAGE sql AS 'SELECT NULL::name'",
    "CREATE TABLE flux_plane.mine ()",
    "CREATE SCHEMA mine",
    "CREATE TABLE public.mine ()",
]


@pytest.mark.parametrize("statement", DENIED)
def test_it_owns_nothing_of_the_pool(world: World, thief: psycopg.Connection[Any], project: str, statement: str):
    names = {"project": project, "neighbour": world.neighbour}
    names["neighbour_owner"] = world.neighbour.removesuffix("_api") + "_ddl"
    with pytest.raises(psycopg.Error) as failure:
        thief.execute(statement.format(**names))
    # Refused for who asks or for the name, not for a slip of this test.
    assert failure.value.sqlstate in {"42501", "42602"}


def test_it_cannot_drop_a_role_that_may_still_log_in(thief: psycopg.Connection[Any], project: str):
    thief.execute(mint(project))
    try:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            thief.execute("SELECT flux_plane.drop(%s)", [ROLE])
    finally:
        thief.execute("SELECT flux_plane.fence(%s)", [ROLE])
        thief.execute("SELECT flux_plane.drop(%s)", [ROLE])


@pytest.mark.parametrize("schema", ["pg_catalog", "pg_toast", "information_schema", "public", "flux_plane"])
def test_not_even_a_superuser_adopts_a_system_schema(world: World, schema: str):
    login = str(world.settings.pool_url.reveal()).split("//")[1].split(":")[0]  # type: ignore[union-attr]
    with world.admin() as link, pytest.raises(psycopg.errors.InvalidName):
        link.execute("SELECT flux_plane.adopt(gen_random_uuid(), %s, %s)", [schema, login])


def test_functions_find_nothing_that_was_planted(world: World, thief: psycopg.Connection[Any], project: str):
    """A temporary schema and `public` come first on the caller's path; what stands there is not called."""
    planted = "planted_" + secrets.token_hex(3)
    with world.admin() as link:
        link.execute("CREATE SCHEMA " + planted)
        link.execute(f"GRANT USAGE, CREATE ON SCHEMA {planted} TO PUBLIC")
        try:
            thief.execute(f"CREATE FUNCTION {planted}.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS"
                          " 'BEGIN RAISE ''planted''; END'")  # fmt: skip
            thief.execute(f"CREATE FUNCTION {planted}.quote_ident(name) RETURNS text LANGUAGE plpgsql AS"
                          " 'BEGIN RAISE ''planted''; END'")  # fmt: skip
            thief.execute(f"SET search_path = {planted}, pg_catalog")
            thief.execute(mint(project))
            thief.execute("SELECT flux_plane.fence(%s)", [ROLE])
            thief.execute("SELECT flux_plane.drop(%s)", [ROLE])
        finally:
            link.execute(f"DROP SCHEMA {planted} CASCADE")

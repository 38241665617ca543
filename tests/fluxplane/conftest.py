"""The plane's own furniture: a catalogue and a prepared pool per server, a plane that serves, people to ask it."""

import asyncio
import contextlib
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import psycopg
import pytest

from fluxplane import api, catalogue, keychain, pool, registry
from fluxplane.lab.postgres import Server
from fluxplane.settings import Limits, Settings
from fluxplane.wire import Secret
from tests.furniture import leaks
from tests.furniture.postgres import installation, running

USER = "ada@example.test"
HIGH = Limits(
    reads_per_minute=10**6,
    sensitive_per_minute=10**6,
    writes_per_minute=10**6,
    audit_per_minute=10**6,
    anonymous_per_minute=10**6,
    live_roles_per_user=10**4,
    live_roles_per_project=10**4,
    connections_per_role=8,
)


def url(server: Server, user: str, password: str, database: str = "postgres") -> Secret:
    return Secret(f"postgresql://{user}:{password}@127.0.0.1:{server.port}/{database}")


def settings_for(server: Server, **changes: Any) -> Settings:
    """A plane with a catalogue and a service login of its own on *server*, which is its pool too."""
    name = "plane_" + secrets.token_hex(4)
    settings = Settings(
        catalogue_url=url(server, f"{name}_catalogue", "catalogue-pw", name),
        catalogue_admin_url=server.url(),
        pool_url=url(server, f"{name}_pool", "pool-pw"),
        pool_admin_url=server.url(),
        key=keychain.new_key(),
        ssh_host="203.0.113.7",
        limits=HIGH,
    )
    return dataclasses.replace(settings, **changes)


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Caller:
    """Somebody with a token (or without) who asks a plane over HTTP."""

    base: str
    http: aiohttp.ClientSession
    token: Secret | None

    async def ask(self, method: str, path: str, *, data: bytes | None = None, **kwargs: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.token.reveal()}"} if self.token else {}
        headers |= kwargs.pop("headers", {})
        async with self.http.request(method, self.base + path, data=data, headers=headers, **kwargs) as response:
            text = await response.read()
            return Answer(response.status, json.loads(text) if text else None, dict(response.headers))

    async def get(self, path: str, **kwargs: Any) -> Answer:
        return await self.ask("GET", path, **kwargs)

    async def post(self, path: str, **kwargs: Any) -> Answer:
        return await self.ask("POST", path, **kwargs)

    async def mint(self, hash_: str, **body: Any) -> Answer:
        return await self.post(f"/api/cli/v1/projects/{hash_}/db-access/temporary-credential", json=body)


@contextlib.asynccontextmanager
async def serving(settings: Settings, token: Secret | None = None) -> AsyncIterator[Caller]:
    """One replica of the plane, and somebody who asks it."""
    async with (
        api.serve(settings, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
    ):
        yield Caller(f"http://127.0.0.1:{port}", http, token)


async def furnish(settings: Settings, *, prepared: bool = True) -> Secret:
    """Catalogue, pool, a user's token; projects `foundry` and `neighbour` (v2) of the same user."""
    await catalogue.migrate(settings)
    async with catalogue.connect(settings) as store:
        await pool.prepare(settings, store, functions_only=not prepared)
        await registry.create_user(store, USER)
        token = await registry.create_token(store, USER)
        for slug, hash_ in (("foundry", "5774112"), ("neighbour", "0a1b2c3")):
            await registry.create_project(
                store, settings, registry.NewProject(user=USER, slug=slug, mode="v2_shared", hash=hash_)
            )
    return token


async def schema_of(settings: Settings, hash_: str) -> str:
    async with catalogue.connect(settings) as store:
        project = await registry.find_project(store, USER, hash_)
        assert project is not None
        return project.api_schema


def fill(server: Server, schema: str, *rows: str) -> None:
    """Push a table with a serial column, and one under row-level security, as the tenant's owner does."""
    owner = schema.removesuffix("_api") + "_ddl"
    with psycopg.connect(server.url().reveal(), autocommit=True) as link:
        link.execute(f"SET ROLE {owner}")
        link.execute(f"CREATE TABLE {schema}.things (id serial PRIMARY KEY, name text)")
        for row in rows:
            link.execute(f"INSERT INTO {schema}.things (name) VALUES (%s)", [row])
        link.execute(f"CREATE TABLE {schema}.secrets (id int)")
        link.execute(f"ALTER TABLE {schema}.secrets ENABLE ROW LEVEL SECURITY")


def login(server: Server, credential: dict[str, Any], **kwargs: Any) -> psycopg.Connection[Any]:
    """A session of a temporary role."""
    return psycopg.connect(
        host="127.0.0.1",
        port=server.port,
        user=credential["username"],
        password=credential["password"],
        **{"dbname": "postgres", "autocommit": True} | kwargs,
    )


def roles_in(server: Server, pattern: str = "flux_temp_%") -> set[str]:
    with psycopg.connect(server.url().reveal()) as link:
        return {row[0] for row in link.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [pattern])}


@dataclasses.dataclass(frozen=True)
class World:
    """A server with a prepared pool and a catalogue; `foundry` and `neighbour` each have tables and rows."""

    server: Server
    settings: Settings
    token: Secret
    foundry: str
    neighbour: str

    def admin(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url(database).reveal(), autocommit=True)

    def serving(self, **changes: Any) -> contextlib.AbstractAsyncContextManager[Caller]:
        return serving(dataclasses.replace(self.settings, **changes), self.token)


FOUNDRY = "5774112"
NEIGHBOUR = "0a1b2c3"


def new_world(server: Server, *, prepared: bool = True, **changes: Any) -> World:
    async def furnished() -> tuple[Settings, Secret, str, str]:
        settings = settings_for(server, **changes)
        token = await furnish(settings, prepared=prepared)
        return settings, token, await schema_of(settings, FOUNDRY), await schema_of(settings, NEIGHBOUR)

    settings, token, foundry, neighbour = asyncio.run(furnished())
    fill(server, foundry, "anvil", "bellows")
    fill(server, neighbour, "their secret")
    return World(server, settings, token, foundry, neighbour)


@pytest.fixture(scope="session")
def world(each_postgres: Server) -> World:
    """On every supported major version; tests leave it as they found it."""
    return new_world(each_postgres)


@pytest.fixture(scope="session")
def world18(pool18: Server) -> World:
    return new_world(pool18)


@pytest.fixture(scope="session", params=[18, 16, 15])
def open_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A pool with our functions only: PUBLIC may do what it may by default."""
    with contextlib.ExitStack() as stack:
        with leaks.lasting():
            server = stack.enter_context(running(installation(request.param)))
        yield new_world(server, prepared=False)


def leftovers(world: World) -> dict[str, set[Any]]:
    """Everything in the cluster that a temporary role or its group could have left."""
    with world.admin() as link:
        return {
            what: set(link.execute(query).fetchall())
            for what, query in {
                "large objects": "SELECT oid FROM pg_largeobject_metadata",
                "prepared": "SELECT gid FROM pg_prepared_xacts",
                "default privileges": "SELECT defaclrole::regrole::text, defaclobjtype::text, defaclacl::text"
                " FROM pg_default_acl",
                "settings": "SELECT setrole::regrole::text, setconfig::text FROM pg_db_role_setting WHERE setrole <> 0",
                "roles": "SELECT rolname FROM pg_roles",
                "passwords": "SELECT rolname FROM pg_authid WHERE rolpassword IS NOT NULL",
                "memberships": "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members",
            }.items()
        }  # fmt: skip

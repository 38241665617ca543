"""The plane's own furniture: a catalogue and a prepared pool per server, a plane that serves, people to ask it."""

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


@pytest.fixture
def admin(each_postgres: Server) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(each_postgres.url().reveal(), autocommit=True) as link:
        yield link

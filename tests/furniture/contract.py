"""
A control plane written from the contract's text, for tests of fluxd alone.

It mints real roles in a real Postgres and serves real HTTP; it shares no code with `fluxplane`, so that fluxd is not
only tested against its own sibling. `extensions` empty: it is the existing platform, as far as the contract tells.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from aiohttp import web
from psycopg import sql

from fluxd.core.errors import KeyringUnavailable

EXTENSIONS = ("renew", "revoke", "grant_id", "audit", "host_keys", "rls_tables")
TOKEN = "flx_live_0123456789abcdef0123456789abcdef_33b0"
DATABASE_FACTS = {"databaseName": "postgres", "sslMode": "disable"}
CAPABILITIES = dict.fromkeys(
    ("tunnel", "guiConfig", "shell", "dump", "restore", "readonly", "readwrite", "temporaryCredentials"), True
)


@dataclass
class Project:
    slug: str
    hash: str
    mode: str
    internal_host: str
    internal_port: int
    container: str
    schema: str = "t_0123456789ab_api"


@dataclass
class Role:
    username: str
    password: str
    ends_at: datetime
    limit: datetime
    access: str
    hash: str


@dataclass
class ContractPlane:
    """
    `admin_url`: where roles are made. `asked`: how often each route was. `refuse`: route → (status, body).
    """

    admin_url: str
    ssh: dict[str, Any] = field(default_factory=dict)
    extensions: tuple[str, ...] = EXTENSIONS
    projects: dict[str, Project] = field(default_factory=dict)
    live: dict[str, Role] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    tombstones: set[str] = field(default_factory=set)
    reports: list[dict[str, Any]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    refuse: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    host_keys: list[str] = field(default_factory=list)
    api_base: str = ""
    # Set it to keep a mint from answering; `minting` says that one has come.
    hold_mints: asyncio.Event | None = None
    minting: asyncio.Event = field(default_factory=asyncio.Event)
    skew: timedelta = timedelta()
    # What answers a mint instead of `mint`.
    _ending: asyncio.Lock = field(default_factory=asyncio.Lock)
    mint_answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._gate])
        base = "/api/cli/v1"
        app.router.add_get(f"{base}/auth/verify", self.verify)
        app.router.add_get(f"{base}/projects/{{hash}}/db-access", self.plan)
        app.router.add_post(f"{base}/projects/{{hash}}/db-access/temporary-credential", self._mint)
        app.router.add_get(f"{base}/projects/{{hash}}/credentials", self.credentials)
        app.router.add_post(f"{base}/projects/{{hash}}/db-access/tunnel-events", self.report)
        app.router.add_delete(f"{base}/grants/{{grant_id}}", self.revoke)
        app.router.add_post(f"{base}/grants/{{grant_id}}/renew", self.renew)
        return app

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        route = handler.__name__.strip("_")
        self.asked[route] += 1
        if route != "revoke" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if route in self.refuse:
            status, body = self.refuse[route]
            return web.json_response(body, status=status)
        response = await handler(request)
        response.headers["Date"] = self.now().strftime("%a, %d %b %Y %H:%M:%S GMT")
        return response

    def now(self) -> datetime:
        return datetime.fromtimestamp(datetime.now(UTC).timestamp(), UTC) + self.skew  # noqa: TID251

    async def verify(self, _request: web.Request) -> web.Response:
        who = {"user": "ada@example.com", "plan": "pro", "defaultMode": "v2_shared", "cliRole": "operator"}
        return web.json_response({"ok": True, **who})

    async def plan(self, request: web.Request) -> web.Response:
        project = self.projects.get(request.match_info["hash"])
        if project is None:
            return web.json_response({"error": "Project not found"}, status=404)
        common = {
            "mode": project.mode,
            "supported": True,
            "projectName": project.slug,
            "projectHash": project.hash,
            "engine": "postgres",
            "transport": "ssh_tunnel",
            "tunnel": self.ssh | {"recommendedLocalHost": "127.0.0.1", "recommendedLocalPort": 15432},
            "capabilities": CAPABILITIES,
        }
        if self.extensions:
            common |= {"extensions": list(self.extensions), "hostKeys": self.host_keys}
        where = {
            **DATABASE_FACTS,
            "internalHost": project.internal_host,
            "internalPort": project.internal_port,
            "containerName": project.container,
        }
        return web.json_response(
            common | (self._v1(where) if project.mode == "v1_dedicated" else self._v2(project, where))
        )

    @staticmethod
    def _v1(where: dict[str, Any]) -> dict[str, Any]:
        return {
            "scope": "whole_database",
            "credentialStrategy": "project_postgres_password",
            "database": where | {"username": "postgres", "dockerNetworkName": "flux-net"},
        }

    @staticmethod
    def _v2(project: Project, where: dict[str, Any]) -> dict[str, Any]:
        return {
            "scope": "tenant_schema",
            "tenantSchema": project.schema,
            "credentialStrategy": "temporary_project_scoped_role",
            "defaultAccess": "readonly",
            "securityNotes": ["Schema grants are the boundary."],
            "database": where | {"searchPath": [project.schema, "public"]},
        }

    async def _mint(self, request: web.Request) -> web.StreamResponse:
        return await (self.mint_answer or self.mint)(request)

    async def mint(self, request: web.Request) -> web.Response:
        body = await request.json()
        grant_id = body.get("grantId") or secrets.token_hex(16)
        self.minting.set()
        if self.hold_mints is not None:
            await self.hold_mints.wait()
        if grant_id in self.tombstones:
            return web.json_response({"error": "This grant was revoked"}, status=410)
        role = self.live.get(grant_id) or await self._make(request.match_info["hash"], body)
        self.live[grant_id] = role
        project = self.projects[role.hash]
        answer = {
            "username": role.username,
            "password": role.password,
            "access": role.access,
            "expiresAt": role.ends_at.isoformat().replace("+00:00", "Z"),
            "tenantSchema": project.schema,
            "searchPath": [project.schema, "public"],
        }
        if "grant_id" in self.extensions:
            answer |= {"grantId": grant_id, "maxExpiresIn": (role.limit - self.now()).total_seconds()}
        return web.json_response(answer)

    async def _make(self, project_hash: str, body: dict[str, Any]) -> Role:
        ttl_s = body.get("ttlSeconds") or 3600
        now = self.now()
        kind = "ro" if body["access"] == "readonly" else "rw"
        role = Role(
            username=f"flux_temp_{kind}_{project_hash}_{secrets.token_hex(4)}",
            password=secrets.token_urlsafe(24),
            ends_at=now + timedelta(seconds=ttl_s),
            limit=now + timedelta(hours=8),
            access=body["access"],
            hash=project_hash,
        )
        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
            sql.Identifier(role.username), sql.Literal(role.password)
        )
        await self._execute(statement)
        # The pool may have been prepared meanwhile: then CONNECT is nobody's unless it is granted.
        await self._execute(sql.SQL("GRANT CONNECT ON DATABASE postgres TO {}").format(sql.Identifier(role.username)))
        self.made.append(role.username)
        return role

    async def revoke(self, request: web.Request) -> web.Response:
        if "revoke" not in self.extensions:
            return web.json_response({"error": "Not found"}, status=404)
        grant_id = request.match_info["grant_id"]
        role = self.live.get(grant_id)
        if role is None:
            self.tombstones.add(grant_id)
            return web.json_response({"grantId": grant_id, "state": "tombstone"})
        # Whoever asked may be gone by now; what was begun is finished.
        await asyncio.shield(self._end_once(grant_id, role))
        return web.json_response({"grantId": grant_id, "state": "ended"})

    async def _end_once(self, grant_id: str, role: Role) -> None:
        async with self._ending:
            if self.live.get(grant_id) is role:
                await self.end(role)
                del self.live[grant_id]

    async def end(self, role: Role) -> None:
        await self._execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role.username)))
        await self._execute(
            sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {}").format(
                sql.Literal(role.username)
            )
        )
        await self._execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role.username)))
        await self._execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role.username)))

    async def renew(self, request: web.Request) -> web.Response:
        role = self.live.get(request.match_info["grant_id"])
        if role is None:
            return web.json_response({"error": "This grant has ended"}, status=410)
        body = await request.json()
        role.ends_at = min(role.limit, self.now() + timedelta(seconds=body.get("ttlSeconds") or 3600))
        return web.json_response(
            {
                "grantId": request.match_info["grant_id"],
                "username": role.username,
                "access": role.access,
                "expiresAt": role.ends_at.isoformat(),
                "expiresIn": (role.ends_at - self.now()).total_seconds(),
                "maxExpiresIn": (role.limit - self.now()).total_seconds(),
            }
        )

    async def credentials(self, request: web.Request) -> web.Response:
        project = self.projects[request.match_info["hash"]]
        parts = urlsplit(self.admin_url)
        return web.json_response(
            {
                "mode": project.mode,
                "slug": project.slug,
                "hash": project.hash,
                "postgresConnectionString": f"postgres://{parts.netloc.rpartition('@')[0]}@{project.container}:5432/postgres",
            }
        )

    async def report(self, request: web.Request) -> web.Response:
        self.reports.append(await request.json())
        return web.json_response({"ok": True})

    async def _execute(self, statement: sql.Composable) -> None:
        async with await psycopg.AsyncConnection.connect(self.admin_url, autocommit=True) as connection:
            await connection.execute(statement)

    async def drop_everything(self) -> None:
        for role in list(self.live.values()):
            await self.end(role)
        self.live.clear()


@contextlib.asynccontextmanager
async def serving_contract(plane: ContractPlane):
    """*plane* on a port of its own; its `api_base` says where."""
    runner = web.AppRunner(plane.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    plane.api_base = f"http://127.0.0.1:{runner.addresses[0][1]}/api"
    try:
        yield plane
    finally:
        await runner.cleanup()
        await plane.drop_everything()


class NoKeyring:
    """This machine has none."""

    async def get(self, api_base: str) -> None:
        raise KeyringUnavailable


@pytest.fixture
async def contract_plane(open18):
    async with serving_contract(ContractPlane(open18.url().reveal())) as plane:
        yield plane

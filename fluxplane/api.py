"""
The control plane's HTTP: a route table, bearer tokens, rate limits, errors in the contract's shapes.

Bodies are `wire`'s; every act is `access`'s. The order of a request: token, rate, what the body says, whose project.
Nothing here answers 500 for what a client sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import importlib.metadata
import ipaddress
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from fluxplane import access, audit, catalogue, grants, policy, rates, registry, roles, wire
from fluxplane.access import Plane
from fluxplane.audit import Actor
from fluxplane.backups import handlers, jobs
from fluxplane.backups.jobs import Backups
from fluxplane.catalogue import DatabaseAway, describe
from fluxplane.policy import Refusal
from fluxplane.rates import Tier
from fluxplane.reaper import Reaper
from fluxplane.registry import Bearer, Project
from fluxplane.settings import MAX_BODY_BYTES, OperatorError, Settings, is_true
from fluxplane.wire import Secret

log = logging.getLogger(__name__)

SHUTDOWN_WITHIN_S: Final = 5.0
BODY_WITHIN_S: Final = 15.0
_BEARER: Final = re.compile(r"\s*Bearer\s+(\S+)", re.IGNORECASE)
_PLANE: Final = web.AppKey("plane", Plane)
_HEADERS: Final = {"Cache-Control": "private, no-store"}
P: Final = "/api/cli/v1/projects/{hash}"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request."""

    request: web.Request
    plane: Plane
    bearer: Bearer
    actor: Actor

    @property
    def store(self) -> catalogue.Catalogue:
        return self.plane.store

    @property
    def backups(self) -> Backups:
        return self.plane.backups

    @property
    def contract_only(self) -> bool:
        return self.plane.settings.contract_only

    async def project(self) -> Project:
        """
        The project the path names.

        Raises:
            Refusal: 400 no hash; 404 not a project of this user's.
        """
        hash_ = policy.project_hash(self.request.match_info["hash"])
        return await registry.project_of(self.plane.store, self.bearer.user_id, hash_)

    async def body(self) -> dict[str, Any]:
        """The contract's reading of a body: what is no JSON object is an empty one."""
        try:
            read = json.loads(await _read(self.request), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return {}
        return read if isinstance(read, dict) else {}


async def _read(request: web.Request) -> bytes:
    """
    Raises:
        Refusal: 408, the body does not come.
    """
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise Refusal(408, "The request's body did not come in time.") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


# ---------------------------------------------------------------------- routes


def _routes(settings: Settings) -> list[web.RouteDef]:
    routes = [
        web.get("/api/health", _health),
        web.get("/metrics", _metrics),
        web.get("/api/install/cli/version", _version),
        web.get("/api/cli/v1/auth/verify", _authenticated(_verify, "read")),
        web.get("/api/cli/v1/list", _authenticated(_list, "read")),
        web.get(P, _authenticated(_project, "read")),
        web.delete(P, _authenticated(_delete_project, "write")),
        web.get(P + "/db-access", _authenticated(_plan, "read")),
        web.post(P + "/db-access/temporary-credential", _authenticated(_grant, "sensitive")),
        web.get(P + "/credentials", _authenticated(_credentials, "read")),
        web.get(P + "/activity", _authenticated(_activity, "read")),
    ]
    routes += [
        web.route(method, path, _authenticated(handler, tier), allow_head=False)
        if method == "GET"
        else web.route(method, path, _authenticated(handler, tier))
        for method, path, handler, tier in handlers.routes(contract_only=settings.contract_only)
    ]
    return routes if settings.contract_only else routes + _extension_routes()


def _extension_routes() -> list[web.RouteDef]:
    """What the existing platform does not have; `--contract-only` answers 404 for these."""
    return [
        web.get(P + "/db-access/temporary-credentials", _authenticated(_live, "read")),
        web.post(P + "/db-access/tunnel-events", _authenticated(_report, "write")),
        web.delete("/api/cli/v1/grants/{grant_id}", _revoke),
        web.post("/api/cli/v1/grants/{grant_id}/renew", _authenticated(_renew, "write")),
        web.get("/api/cli/v1/audit", _authenticated(_audit, "audit")),
    ]


async def _health(request: web.Request) -> web.Response:
    try:
        async with asyncio.timeout(2):
            await request.app[_PLANE].store.db.fetchval("SELECT 1")
    except DatabaseAway:
        return _answer({"ok": False, "error": "the catalogue is away"}, status=503)
    return _answer({"ok": True})


async def _metrics(request: web.Request) -> web.Response:
    """For Prometheus: numbers only. Not below /api, which is all that a proxy shows to the world."""
    census = await grants.census(request.app[_PLANE].store)
    lines = [f'fluxplane_roles{{state="{state}"}} {getattr(census, state)}' for state in ("minting", "live", "ending")]
    lines += [f"fluxplane_roles_resisting {census.resisting}", f"fluxplane_role_overdue_seconds {census.overdue_s:.3f}"]
    kinds = [
        f"# TYPE {name} gauge"
        for name in ("fluxplane_roles", "fluxplane_roles_resisting", "fluxplane_role_overdue_seconds")
    ]
    return web.Response(text="\n".join([*kinds, *lines, ""]), headers=_HEADERS)


async def _version(_: web.Request) -> web.Response:
    return _answer({"version": importlib.metadata.version("flux-db-access")})


async def _verify(call: Call) -> web.Response:
    bearer = call.bearer
    return _answer(
        wire.Verified(
            ok=True, user=bearer.user, plan=bearer.plan, default_mode=bearer.default_mode, cli_role=bearer.cli_role
        )
    )


async def _list(call: Call) -> web.Response:
    return _answer(await access.listed(call.plane, call.bearer.user_id))


async def _project(call: Call) -> web.Response:
    project = await call.project()
    return _answer(
        {
            "slug": project.slug,
            "hash": project.hash,
            "mode": project.mode,
            "apiSchema": project.api_schema,
            "description": project.description,
            "brief": project.brief,
        }
    )


async def _delete_project(call: Call) -> web.Response:
    project = await call.project()
    if (named := call.request.query.get("slug", "").strip()) and named != project.slug:
        raise Refusal(400, f"The slug does not match: the project is {project.slug}.")
    skip = is_true(call.request.query.get("skipBackupCheck"))
    await access.delete(call.plane, call.actor, project, skip_backup_check=skip)
    return _answer({"ok": True, "mode": "catalog", "slug": project.slug, "hash": project.hash})


async def _plan(call: Call) -> web.Response:
    project = await call.project()
    policy.awake(project.lifecycle)
    return _answer(await access.plan(call.plane, call.actor, project, call.request.query))


async def _grant(call: Call) -> web.Response:
    settings = call.plane.settings
    body = await call.body()
    header = None if settings.contract_only else call.request.headers.get("Idempotency-Key")
    if settings.contract_only:
        body = {key: body[key] for key in ("access", "ttlSeconds") if key in body}
    hash_ = call.request.match_info["hash"].strip().lower()
    try:
        ask = policy.asked(body, allow_readwrite=settings.allow_readwrite, header_grant_id=header)
        project = await call.project()
        policy.grantable(project.mode, project.lifecycle)
        return _answer(await access.grant(call.plane, call.actor, project, ask))
    except Refusal as refusal:
        if refusal.status < 500 and refusal.status != 404:
            await audit.record(call.plane.store, "grant_minted", "refused", call.actor, hash_=hash_[:7])
        raise


async def _credentials(call: Call) -> web.Response:
    return _answer(await access.credentials(call.plane, call.actor, await call.project()))


async def _activity(call: Call) -> web.Response:
    project = await call.project()
    limit = policy.parse_int(call.request.query.get("limit")) or 50
    events = await registry.activity(call.plane.store, project, limit=limit)
    return _answer(wire.Activity(project_slug=project.slug, hash=project.hash, events=events))


async def _live(call: Call) -> web.Response:
    return _answer({"credentials": await access.live(call.plane, await call.project())})


async def _report(call: Call) -> web.Response:
    project = await call.project()
    try:
        told = wire.decode(await _read(call.request), wire.TunnelReport)
    except (msgspec.DecodeError, RecursionError) as failure:
        raise Refusal(400, f"Not a tunnel event: {failure}") from failure
    await access.report(call.plane, call.actor, project, _checked(told))
    return _answer({"ok": True})


def _checked(told: wire.TunnelReport) -> wire.TunnelReport:
    if told.grant_id is not None:
        _grant_id(told.grant_id)
    reason_fits = told.reason is None or (len(told.reason) <= policy.REASON_MAX and told.reason.isprintable())
    if not (0 <= told.bytes_up < 2**63 and 0 <= told.bytes_down < 2**63 and reason_fits):
        raise Refusal(400, "Not a tunnel event: out of bounds.")
    return told


async def _renew(call: Call) -> web.Response:
    grant_id = _grant_id(call.request.match_info["grant_id"])
    asked = (await call.body()).get("ttlSeconds")
    ttl_s = policy.ttl(asked, default=0) or None
    return _answer(await access.renew(call.plane, call.actor, grant_id, ttl_s))


async def _audit(call: Call) -> web.Response:
    query = call.request.query
    project = None
    if text := query.get("hash"):
        project = await registry.project_of(call.plane.store, call.bearer.user_id, policy.project_hash(text))
    since = _moment(query.get("since"))
    return _answer({"events": await audit.read(call.plane.store, call.bearer.user_id, project=project, since=since)})


def _moment(text: str | None) -> dt.datetime | None:
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError) as failure:
        raise Refusal(400, "since must be a date and time such as 2026-01-31T12:00:00Z.") from failure


async def _revoke(request: web.Request) -> web.Response:
    """With or without a token: 128 random bits are enough to end that one grant, and for nothing else."""
    plane = request.app[_PLANE]
    bearer = await _bearer(plane, request) if "Authorization" in request.headers else None
    await rates.spend(plane.store, plane.settings.limits, *_bucket(plane, request, bearer, "write"))
    grant_id = _grant_id(request.match_info["grant_id"])
    revoked = await access.revoke(plane, _actor(plane, request, bearer), grant_id)
    return _answer(revoked, status=202 if revoked.state == "ending" else 200)


def _grant_id(text: str) -> str:
    if not re.fullmatch(wire.GRANT_ID_PATTERN, text):
        raise Refusal(400, "A grant id is 32 lower-case hexadecimal digits.")
    return text


# --------------------------------------------------------------- token and rate


def _authenticated(handler: Handler, tier: Tier) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        plane = request.app[_PLANE]
        bearer = await _bearer(plane, request)
        await rates.spend(plane.store, plane.settings.limits, *_bucket(plane, request, bearer, tier))
        if bearer is None:
            raise Refusal(401, "Unauthorized")
        return await handler(Call(request, plane, bearer, _actor(plane, request, bearer)))

    return handle


async def _bearer(plane: Plane, request: web.Request) -> Bearer | None:
    match = _BEARER.match(request.headers.get("Authorization", ""))
    return await registry.bearer(plane.store, Secret(match[1])) if match else None


def _bucket(plane: Plane, request: web.Request, bearer: Bearer | None, tier: Tier) -> tuple[str, Tier]:
    if bearer is None:
        return f"address {_address(plane.settings, request)}", "anonymous"
    return f"token {bearer.token_id}", tier


def _actor(plane: Plane, request: web.Request, bearer: Bearer | None) -> Actor:
    return Actor(
        user_id=bearer.user_id if bearer else None,
        user=bearer.user if bearer else None,
        token_id=bearer.token_id if bearer else None,
        source_address=_address(plane.settings, request),
        request_id=uuid.uuid4(),
    )


def _address(settings: Settings, request: web.Request) -> str:
    """Where the request came from: the peer, or, when that is a trusted proxy, the last hop it names."""
    peer = request.remote or "unknown"
    if peer in settings.trusted_proxies:
        last = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            pass
    return peer


# --------------------------------------------------------------------- answers


def _answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=wire.encode(body), status=status, content_type="application/json", headers=_HEADERS | (headers or {})
    )


def _refused(refusal: Refusal) -> web.Response:
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    body = wire.ErrorBody(
        error=refusal.error,
        code=refusal.code,
        tier=refusal.tier,
        limit=refusal.limit,
        retry_after_sec=refusal.retry_after_s,
    )
    return _answer(body, status=refusal.status, headers=headers)


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Every error is a JSON object with a string `error`; none shows a traceback."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _refused(refusal)
    except web.HTTPException as answer:
        kept = {name: value for name, value in answer.headers.items() if name == "Allow"}
        return _answer(wire.ErrorBody(error=answer.reason or "Error"), status=answer.status, headers=kept)
    except DatabaseAway as failure:
        log.error("%s %s: the catalogue: %s", request.method, request.rel_url.path, describe(failure))  # noqa: TRY400
        return _answer(wire.ErrorBody(error="The control plane's catalogue is away; try again."), status=503)
    except OperatorError as failure:
        log.error("%s %s: %s", request.method, request.rel_url.path, failure)  # noqa: TRY400
        return _answer(wire.ErrorBody(error=f"The control plane is set up wrongly: {failure}"), status=500)
    except Exception:
        log.exception("%s %s", request.method, request.rel_url.path)
        return _answer(wire.ErrorBody(error="Internal error"), status=500)


# ----------------------------------------------------------------------- serve


@contextlib.asynccontextmanager
async def serve(settings: Settings, host: str, port: int) -> AsyncIterator[int]:
    """
    The control plane and its reaper, until the context is left; yields the bound port.

    Raises:
        OperatorError: the catalogue or the address cannot be had.
    """
    async with (
        catalogue.connect(settings) as store,
        roles.connect(settings) as pool_roles,
        jobs.running(store, settings) as backups,
    ):
        plane = Plane(settings, store, pool_roles, backups)
        async with _reaping(store, pool_roles), _listening(_app(plane), host, port) as bound:
            try:
                yield bound
            finally:
                # First: who waits for one is told, instead of holding us up.
                backups.stop()


def _app(plane: Plane) -> web.Application:
    app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY_BYTES)
    app[_PLANE] = plane
    app.add_routes(_routes(plane.settings))
    return app


@contextlib.asynccontextmanager
async def _reaping(store: catalogue.Catalogue, pool_roles: roles.Roles | None) -> AsyncIterator[None]:
    if pool_roles is None:
        yield
        return
    task = asyncio.create_task(Reaper(store, pool_roles).run(), name="reaper")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _listening(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_WITHIN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield int(runner.addresses[0][1])
    except OSError as failure:
        raise OperatorError(f"Cannot listen on {host}:{port}: {failure.strerror}.") from failure
    finally:
        await runner.cleanup()

"""
May this person have this database, how, and until when: every act of the control plane, without its HTTP.

Each act asks `policy`, reads `registry`, moves `grants`, calls `roles` and tells `audit`: intent before, outcome after.
Refusals are raised as `policy.Refusal`, ready for the wire.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from fluxplane import audit, containers, grants, keychain, policy, registry, wire
from fluxplane.audit import Actor, Details
from fluxplane.backups import gate
from fluxplane.backups.jobs import Backups
from fluxplane.catalogue import Catalogue
from fluxplane.grants import Row
from fluxplane.policy import Refusal
from fluxplane.registry import Project
from fluxplane.roles import PoolFailed, Roles
from fluxplane.settings import Settings
from fluxplane.wire import V1, Secret

log = logging.getLogger(__name__)

FIRST_LOCAL_PORT: Final = 15432
# How long a revocation waits for the role to be gone before it answers "ending".
END_WITHIN_S: Final = 5.0
PROBE_WITHIN_S: Final = 1.0
MINT_FAILED: Final = "Could not create temporary database credentials: "


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """All an act needs. `roles` is None on a plane without a pool."""

    settings: Settings
    store: Catalogue
    roles: Roles | None
    backups: Backups

    def pool(self) -> Roles:
        """
        Raises:
            Refusal: 503, no pool is configured.
        """
        if self.roles is None:
            raise Refusal(503, "This platform has no pooled Postgres configured.")
        return self.roles


# ------------------------------------------------------------------------ plan


async def plan(plane: Plane, actor: Actor, project: Project, query: Mapping[str, str]) -> wire.AccessPlan:
    """What a grant would be, without granting. *query* only changes what is echoed in `tunnel`."""
    common: dict[str, Any] = {
        "supported": True,
        "project_name": project.slug,
        "project_hash": project.hash,
        "engine": "postgres",
        "transport": "ssh_tunnel",
        "tunnel": _tunnel(plane.settings, query),
    }
    if not plane.settings.contract_only:
        common |= {
            "extensions": list(wire.EXTENSIONS),
            "host_keys": list(plane.settings.host_keys),
            "project_id": str(project.id),
        }
    shown = _dedicated(project, common) if project.mode == V1 else await _pooled(plane, project, common)
    await audit.record(plane.store, "plan_viewed", "ok", actor, project)
    return shown


def _tunnel(settings: Settings, query: Mapping[str, str]) -> wire.SSHTarget:
    host = query.get("sshHost", "").strip() or settings.ssh_host
    user = query.get("sshUser", "").strip() or settings.ssh_user
    if (host and not re.fullmatch(wire.HOST_PATTERN, host)) or not re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", user
    ):
        raise Refusal(400, "sshHost or sshUser is not a host name or user name.")
    return wire.SSHTarget(
        ssh_host=host,
        ssh_user=user,
        ssh_port=_port(query.get("sshPort"), settings.ssh_port),
        recommended_local_host="127.0.0.1",
        recommended_local_port=_port(query.get("localPort"), FIRST_LOCAL_PORT),
    )


def _port(text: str | None, default: int) -> int:
    number = policy.parse_int(text)
    return number if number is not None and number <= 65535 else default


def _capabilities(*, pooled: bool, readonly: bool, readwrite: bool) -> wire.Capabilities:
    return wire.Capabilities(  # noqa: S604 - `shell` is a capability here
        tunnel=True,
        gui_config=True,
        shell=True,
        dump=True,
        restore=not pooled,
        readonly=readonly,
        readwrite=readwrite,
        temporary_credentials=pooled,
    )


def dedicated_database(project: Project) -> wire.DedicatedDatabase:
    """Where a v1 project's Postgres is, in the SSH host's words."""
    return wire.DedicatedDatabase(
        database_name="postgres",
        username="postgres",
        internal_host=project.internal_host or project.container_name,
        internal_port=project.internal_port or 5432,
        container_name=project.container_name,
        docker_network_name=project.network_name,
        ssl_mode="disable",
    )


def _dedicated(project: Project, common: dict[str, Any]) -> wire.DedicatedPlan:
    return wire.DedicatedPlan(
        **common,
        scope="whole_database",
        database=dedicated_database(project),
        credential_strategy="project_postgres_password",
        # The one user is a superuser: nothing there is read-only.
        capabilities=_capabilities(pooled=False, readonly=False, readwrite=True),
    )


async def _pooled(plane: Plane, project: Project, common: dict[str, Any]) -> wire.PooledPlan:
    settings = plane.settings
    rls_tables, open_ends = await look_at_pool(plane, project)
    if not settings.contract_only:
        common["rls_tables"] = rls_tables
    return wire.PooledPlan(
        **common,
        scope="tenant_schema",
        tenant_schema=project.api_schema,
        database=wire.PooledDatabase(
            database_name="postgres",
            internal_host=settings.pool_host,
            internal_port=settings.pool_port,
            ssl_mode="disable",
            search_path=search_path(project),
            container_name=settings.pool_container,
        ),
        credential_strategy="temporary_project_scoped_role",
        default_access="readonly",
        security_notes=_notes(rls_tables, open_ends),
        capabilities=_capabilities(pooled=True, readonly=True, readwrite=settings.allow_readwrite),
    )


def search_path(project: Project) -> list[str]:
    return [project.api_schema, "public"]


def _notes(rls_tables: list[str], open_ends: list[str]) -> list[str]:
    notes = [
        "Schema grants and row-level security are the security boundary; search_path is a convenience.",
        "PostgreSQL shows some catalogue metadata (names of schemas, tables and roles) to every connected role.",
    ]
    if rls_tables:
        notes.append("Rows may be hidden by row-level security in: " + ", ".join(rls_tables[:20]) + ".")
    if open_ends:
        notes.append("This pool has not been closed by its operator: " + "; ".join(open_ends) + ".")
    return notes


async def look_at_pool(plane: Plane, project: Project) -> tuple[list[str], list[str]]:
    """
    Tables under row-level security, and what the pool leaves open. A pool that is away hides no plan: both are empty.

    Tables that somebody unforeseen made in the schema are granted to its groups on this occasion.
    """
    if plane.roles is None:
        return [], []
    try:
        survey = await plane.roles.survey(project.id, project.api_schema)
        if survey.unreadable:
            await plane.roles.ensure(project.id)
        return survey.rls_tables, await plane.roles.not_enforced()
    except PoolFailed as failure:
        log.warning("plan of %s: %s", project.hash, failure)
        return [], []


# ---------------------------------------------------------------------- grants


async def grant(plane: Plane, actor: Actor, project: Project, ask: policy.Ask) -> wire.Grant:
    """A temporary role and its password; asked twice with one id, the same again."""
    roles = plane.pool()
    row, fresh = await grants.begin(plane.store, plane.settings.limits, actor, project, ask)
    about = grants.details(row, reason=ask.reason)
    if fresh:
        await audit.record(plane.store, "grant_minted", "intent", actor, project, about)
    if row.state != "live":
        row = await _mint(plane, roles, actor, project, row, about)
    return await _granted(plane, project, row)


async def _mint(plane: Plane, roles: Roles, actor: Actor, project: Project, row: Row, about: Details) -> Row:
    assert row.access is not None
    assert row.username is not None
    assert row.nonce is not None
    verifier = await asyncio.to_thread(plane.store.keys.verifier, row.grant_id, row.nonce)
    try:
        await roles.mint(project.id, row.access, row.username, verifier, row.expires_at)
    except PoolFailed as failure:
        await grants.abandon(plane.store, row.grant_id)
        await audit.record(plane.store, "grant_minted", "failed", actor, project, about)
        raise Refusal(500, MINT_FAILED + str(failure)) from failure
    settled = await grants.settle(plane.store, row.grant_id)
    if settled is None:
        # Revoked, or taken for abandoned, while it was being made. Its end found no role: end it once more.
        await grants.adopt_stray(plane.store, row.username)
        raise Refusal(410, "This grant was ended while it was being made.", code="grant_ended")
    await audit.record(plane.store, "grant_minted", "ok", actor, project, about)
    await registry.note(
        plane.store,
        project,
        actor.user_id,
        "db.temp_credential_issued",
        f"Temporary {row.access} credential issued",
        {"access": row.access, "ttlSeconds": row.ttl_s},
    )
    return settled


async def _granted(plane: Plane, project: Project, row: Row) -> wire.Grant:
    assert row.access is not None
    assert row.username is not None
    assert row.nonce is not None
    extras: dict[str, Any] = {}
    if not plane.settings.contract_only:
        rls_tables, open_ends = await look_at_pool(plane, project)
        extras = {
            "grant_id": row.grant_id,
            "expires_in": row.left_s,
            "max_expires_in": row.max_left_s,
            "rls_tables": rls_tables,
            "not_enforced": open_ends,
        }
    return wire.Grant(
        username=row.username,
        password=plane.store.keys.password(row.grant_id, row.nonce),
        access=row.access,
        expires_at=audit.iso(row.expires_at),
        tenant_schema=project.api_schema,
        search_path=search_path(project),
        **extras,
    )


async def renew(plane: Plane, actor: Actor, grant_id: str, ttl_s: int | None) -> wire.Renewed:
    roles = plane.pool()
    row = await grants.get(plane.store, grant_id)
    project = await registry.project_by_id(plane.store, row.project_id) if row and row.project_id else None
    try:
        renewed = await grants.renew(plane.store, roles, actor, grant_id, ttl_s)
    except Refusal:
        await audit.record(plane.store, "grant_renewed", "refused", actor, project, Details(grant_id=grant_id))
        raise
    except PoolFailed as failure:
        await audit.record(plane.store, "grant_renewed", "failed", actor, project, Details(grant_id=grant_id))
        raise Refusal(500, f"Could not renew the grant: {failure}") from failure
    await audit.record(plane.store, "grant_renewed", "ok", actor, project, grants.details(renewed))
    assert renewed.username is not None
    assert renewed.access is not None
    return wire.Renewed(
        grant_id=grant_id,
        username=renewed.username,
        access=renewed.access,
        expires_at=audit.iso(renewed.expires_at),
        expires_in=renewed.left_s,
        max_expires_in=renewed.max_left_s,
    )


async def revoke(plane: Plane, actor: Actor, grant_id: str) -> wire.Revoked:
    """End one grant, whoever knows its id; an id never seen gets a tombstone. Asked twice: the same answer."""
    if await grants.get(plane.store, grant_id) is None:
        await grants.bury(plane.store, grant_id, actor)
    row = await grants.get(plane.store, grant_id)
    if row is None or row.state == "tombstone":
        return wire.Revoked(grant_id=grant_id, state="tombstone")
    project = await registry.project_by_id(plane.store, row.project_id) if row.project_id else None
    if row.state in {"minting", "live"}:
        await audit.record(plane.store, "grant_revoked", "intent", actor, project, grants.details(row))
        await grants.order_end(plane.store, grant_id, "revoked")
    return wire.Revoked(grant_id=grant_id, state=await _end_now(plane, actor, project, grant_id))


async def _end_now(plane: Plane, actor: Actor, project: Project | None, grant_id: str) -> Any:
    """Ended within END_WITHIN_S, or still ending: then the reaper goes on with it."""
    try:
        async with asyncio.timeout(END_WITHIN_S):
            if await grants.end(plane.store, plane.pool(), grant_id, wait=True):
                await grants.ended(plane.store, grant_id, actor, project)
    except TimeoutError:
        pass
    row = await grants.get(plane.store, grant_id)
    return "ended" if row is None or row.state == "ended" else "ending"


async def live(plane: Plane, project: Project) -> list[wire.LiveCredential]:
    return [
        wire.LiveCredential(
            grant_id=row.grant_id,
            username=str(row.username),
            access=row.access or "readonly",
            state=row.state,  # type: ignore[arg-type]  # of_project answers these three only
            created_at=audit.iso(row.created_at),
            expires_at=audit.iso(row.expires_at),
        )
        for row in await grants.of_project(plane.store, project)
    ]


# ----------------------------------------------------------------- credentials


async def credentials(plane: Plane, actor: Actor, project: Project) -> wire.Credentials:
    """
    Raises:
        Refusal: 500 the v1 container is missing or stopped; 503 docker is away, or v2 has no signing secret.
    """
    if project.mode == V1:
        await audit.record(plane.store, "password_revealed", "intent", actor, project)
    jwt_secret = await registry.jwt_secret(plane.store, project)
    if project.mode != V1:
        if jwt_secret is None:
            raise Refusal(503, "The project has no gateway signing secret yet.")
        return wire.PooledCredentials(
            slug=project.slug,
            hash=project.hash,
            project_jwt_secret=jwt_secret,
            note="Pooled projects have no long-lived Postgres password: open a tunnel for a temporary role.",
        )
    shown = _dedicated_credentials(project, await _dedicated_password(plane, project), jwt_secret)
    await audit.record(plane.store, "password_revealed", "ok", actor, project)
    return shown


async def _dedicated_password(plane: Plane, project: Project) -> Secret:
    if stored := await registry.stored_password(plane.store, project):
        return stored
    try:
        found = await containers.postgres_password(project.container_name)
    except containers.DockerUnreachable as failure:
        raise Refusal(503, f"Docker cannot be reached: {failure}.") from failure
    if found is None:
        raise Refusal(500, f"The container {project.container_name} is missing, stopped or has no password.")
    return found


def _dedicated_credentials(project: Project, password: Secret, jwt_secret: Secret | None) -> wire.DedicatedCredentials:
    host = project.internal_host or project.container_name
    host = f"[{host}]" if ":" in host else host
    secret = quote(password.reveal(), safe="")
    keys = {}
    if jwt_secret is not None:
        keys = {
            "anon_key": keychain.signed_role(jwt_secret, "anon"),
            "service_role_key": keychain.signed_role(jwt_secret, "service_role"),
            "project_jwt_secret": jwt_secret,
        }
    return wire.DedicatedCredentials(
        slug=project.slug,
        hash=project.hash,
        postgres_connection_string=Secret(
            f"postgres://postgres:{secret}@{host}:{project.internal_port or 5432}/postgres"
        ),
        **keys,
    )


# -------------------------------------------------------------------- projects


async def listed(plane: Plane, user_id: uuid.UUID) -> list[wire.ListedProject]:
    """
    Raises:
        Refusal: 503, docker cannot be asked about a v1 project's container.
    """
    projects = await registry.projects(plane.store, user_id)
    try:
        states = await asyncio.gather(*(_status(plane, project) for project in projects))
    except containers.DockerUnreachable as failure:
        raise Refusal(503, f"Docker cannot be reached: {failure}.") from failure
    return [
        wire.ListedProject(
            slug=project.slug,
            hash=project.hash,
            status=state,
            api_url=f"https://api--{project.slug}--{project.hash}.{plane.settings.tenant_domain}",
            lifecycle_state=project.lifecycle if project.lifecycle in {"active", "dormant", "archived"} else None,
            mode=None if plane.settings.contract_only else project.mode,
        )
        for project, state in zip(projects, states, strict=True)
    ]


async def _status(plane: Plane, project: Project) -> str:
    if project.mode != V1:
        return "running" if plane.roles is not None else "missing"
    if not project.has_password:
        return await containers.status(project.container_name)
    try:
        async with asyncio.timeout(PROBE_WITHIN_S):
            _, writer = await asyncio.open_connection(project.reached_host, project.reached_port)
            writer.close()
            return "running"
    except (OSError, TimeoutError):
        return "stopped"


async def delete(plane: Plane, actor: Actor, project: Project, *, skip_backup_check: bool) -> None:
    """
    End the project's roles, drop its group roles, forget it. Its schema and data stay for the operator to remove.

    Raises:
        Refusal: 412 without a restore-verified backup; 500 a role resisted (ask again: it goes on where it stopped).
    """
    found = await plane.backups.shelf.classify(project)
    if found != "restorable" and not skip_backup_check:
        await audit.record(plane.store, "project_deleted", "refused", actor, project)
        raise Refusal(
            412,
            f"{gate.SAYS[found]} Run `flux backup create && flux backup verify --latest`, "
            "or pass skipBackupCheck to delete the project without.",
            code=found,
        )
    await audit.record(plane.store, "project_deleted", "intent", actor, project)
    await registry.set_lifecycle(plane.store, project, "deleting")
    if project.mode != V1:
        await _end_all(plane, actor, project)
    await registry.forget(plane.store, project)
    await audit.record(plane.store, "project_deleted", "ok", actor, project)


async def _end_all(plane: Plane, actor: Actor, project: Project) -> None:
    rows = await grants.of_project(plane.store, project)
    for row in rows:
        await grants.order_end(plane.store, row.grant_id, "revoked")
    for row in rows:
        if await _end_now(plane, actor, project, row.grant_id) != "ended":
            raise Refusal(500, f"The role {row.username} could not be ended yet; try again.")
    try:
        await plane.pool().retire(project.id)
    except PoolFailed as failure:
        raise Refusal(500, f"The project's group roles could not be dropped: {failure}") from failure


# -------------------------------------------------------- activity and reports


async def report(plane: Plane, actor: Actor, project: Project, told: wire.TunnelReport) -> None:
    """What fluxd says about a tunnel: the audit takes its word, and says that it was told."""
    about = Details(
        access=told.access,
        reason=told.reason,
        grant_id=told.grant_id,
        bytes_up=told.bytes_up,
        bytes_down=told.bytes_down,
    )
    await audit.record(plane.store, f"tunnel_{told.event}", "ok", actor, project, about)
    if told.event == "opened":
        await registry.note(
            plane.store, project, actor.user_id, "db.tunnel_opened", "Database tunnel opened", {"access": told.access}
        )

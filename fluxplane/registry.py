"""
Users, their tokens, their projects, and where each project's Postgres lives.

Secrets come in as `Secret`, are sealed by the keychain and leave as `Secret`. A token is stored as its SHA-256 only.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import re
import secrets
import uuid
from typing import Any, Final
from urllib.parse import unquote

import asyncpg

from fluxplane import policy, pool
from fluxplane.catalogue import Catalogue
from fluxplane.settings import OperatorError, Settings, password_of, split_url
from fluxplane.wire import IDENTIFIER_PATTERN, V1, V2, ActivityEvent, Mode, Secret

_TOKEN: Final = re.compile(r"flx_live_([a-f0-9]{32})_([a-f0-9]{4})", re.IGNORECASE)
_SECRET_KEY: Final = re.compile(r"password|secret|token|jwt|credential|authorization|api_?key", re.IGNORECASE)
_PROJECT: Final = (
    "id, user_id, slug, hash, mode, api_schema, lifecycle, description, brief, internal_host, internal_port, container,"
    " reached_host, reached_port, sealed_password IS NOT NULL AS has_password"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Bearer:
    """Who a token speaks for."""

    user_id: uuid.UUID
    user: str
    plan: str
    default_mode: str
    cli_role: str
    token_id: uuid.UUID


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; `last_used_at` is at most an hour old."""

    id: uuid.UUID
    created_at: dt.datetime
    last_used_at: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class Project:
    """A row of the catalogue, without its secrets."""

    id: uuid.UUID
    user_id: uuid.UUID
    slug: str
    hash: str
    mode: Mode
    api_schema: str
    lifecycle: str
    description: str | None
    brief: str | None
    internal_host: str | None
    internal_port: int | None
    container: str | None
    reached_host: str | None
    reached_port: int | None
    has_password: bool

    @property
    def short_id(self) -> str:
        return short_id(self.id)

    @property
    def owner_role(self) -> str:
        return f"t_{self.short_id}_ddl"

    @property
    def runtime_role(self) -> str:
        return f"t_{self.short_id}_role"

    @property
    def container_name(self) -> str:
        return self.container or f"flux-{self.hash}-{self.slug}-db"

    @property
    def network_name(self) -> str:
        return f"flux-{self.hash}-{self.slug}-net"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewProject:
    """
    What to register.

    v1: `postgres_url` (its password is sealed), or neither: then the password is read from the running container's
    environment whenever it is asked for. v2: `schema` adopts an existing one instead of the default's name.
    """

    user: str
    slug: str
    mode: Mode
    hash: str | None = None
    id: uuid.UUID | None = None
    postgres_url: Secret | None = None
    internal_host: str | None = None
    internal_port: int | None = None
    container: str | None = None
    schema: str | None = None
    description: str | None = None
    jwt_secret: Secret | None = None


def short_id(project_id: uuid.UUID) -> str:
    return project_id.hex[:12]


async def create_user(
    store: Catalogue, name: str, *, cli_role: str = "operator", plan: str = "hobby", ensure: bool = False
) -> uuid.UUID:
    """
    Raises:
        OperatorError: the name is empty or taken (unless *ensure*: then the user there is).
    """
    if not name.strip() or not name.isprintable():
        raise OperatorError("A user needs a name of printable characters, such as an e-mail address.")
    made = await store.db.fetchval(
        "INSERT INTO users (name, cli_role, plan) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING RETURNING id",
        name.strip(),
        cli_role,
        plan,
    )
    if made is None and not ensure:
        raise OperatorError(f"The user {name} exists already.")
    return uuid.UUID(str(made or await _user_id(store, name)))


async def _user_id(store: Catalogue, name: str) -> uuid.UUID:
    found = await store.db.fetchval("SELECT id FROM users WHERE name = $1", name.strip())
    if found is None:
        raise OperatorError(f"There is no user {name}: `fluxplane user create {name}`.")
    return uuid.UUID(str(found))


async def create_token(store: Catalogue, user: str) -> Secret:
    """
    A new token, shown this once.

    Raises:
        OperatorError: no such user.
    """
    token = new_token()
    await store.db.execute(
        "INSERT INTO tokens (user_id, sha256) VALUES ($1, $2)", await _user_id(store, user), _sha256(token)
    )
    return token


async def tokens(store: Catalogue, user: str) -> list[Token]:
    """A user's tokens that were not revoked, oldest first."""
    rows = await store.db.fetch(
        "SELECT id, created_at, last_used_at FROM tokens WHERE user_id = $1 AND revoked_at IS NULL ORDER BY created_at",
        await _user_id(store, user),
    )
    return [Token(row["id"], row["created_at"], row["last_used_at"]) for row in rows]


async def revoke_token(store: Catalogue, token_id: uuid.UUID) -> None:
    """
    Raises:
        OperatorError: no such token, or it is revoked already.
    """
    done = await store.db.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL", token_id)
    if done == "UPDATE 0":
        raise OperatorError("There is no such live token.")


def new_token() -> Secret:
    stem = "flx_live_" + secrets.token_hex(16)
    return Secret(f"{stem}_{_checksum(stem)}")


def well_formed(token: str) -> bool:
    """Shape and checksum, so that most wrong tokens never reach the database."""
    match = _TOKEN.fullmatch(token)
    return bool(match) and _checksum("flx_live_" + token[9:41].lower()) == token[42:].lower()


async def bearer(store: Catalogue, token: Secret) -> Bearer | None:
    """Whose token this is; None for one that is malformed, unknown or revoked."""
    if not well_formed(token.reveal()):
        return None
    row = await store.db.fetchrow(
        "SELECT u.id AS user_id, u.name AS user, u.plan, u.default_mode, u.cli_role, t.id AS token_id,"
        " t.last_used_at IS NULL OR t.last_used_at < now() - interval '1 hour' AS stale"
        " FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.sha256 = $1 AND t.revoked_at IS NULL",
        _sha256(token),
    )
    if row is None:
        return None
    if row["stale"]:
        await store.db.execute("UPDATE tokens SET last_used_at = now() WHERE id = $1", row["token_id"])
    return Bearer(**{field.name: row[field.name] for field in dataclasses.fields(Bearer)})


def _checksum(stem: str) -> str:
    return hashlib.sha256(stem.encode()).hexdigest()[:4]


def _sha256(token: Secret) -> str:
    return hashlib.sha256(token.reveal().lower().encode()).hexdigest()


async def create_project(store: Catalogue, settings: Settings, new: NewProject) -> Project:
    """
    Register a project; for v2 also make its schema and roles in the pool and adopt it there.

    Raises:
        OperatorError: something of it is taken or malformed, or the pool refused.
    """
    row = _row(store, new, await _user_id(store, new.user))
    names = ", ".join(row)
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    try:
        async with store.db.acquire() as link, link.transaction():
            made = await link.fetchrow(
                f"INSERT INTO projects ({names}) VALUES ({places}) RETURNING {_PROJECT}",
                *row.values(),
            )
            assert made is not None
            project = _project(made)
            created = f"Project {project.slug} created"
            await _note(link, project, project.user_id, "project.created", created, {"mode": project.mode})
            if project.mode == V2:
                # Inside the transaction: a pool that refuses leaves no project behind.
                await pool.make_tenant(settings, project.id, project.api_schema, project.short_id)
    except asyncpg.UniqueViolationError as failure:
        raise OperatorError(f"{new.user} has a project with this slug or hash already.") from failure
    return project


async def note(
    store: Catalogue, project: Project, user_id: uuid.UUID | None, kind: str, summary: str, metadata: dict[str, Any]
) -> None:
    """One event of the project's activity, as people see it (the audit is another thing)."""
    await _note(store.db, project, user_id, kind, summary, metadata)


async def _note(
    link: Any, project: Project, user_id: uuid.UUID | None, kind: str, summary: str, metadata: dict[str, Any]
) -> None:
    await link.execute(
        "INSERT INTO activity (project_id, user_id, kind, summary, metadata) VALUES ($1, $2, $3, $4, $5)",
        project.id,
        user_id,
        kind,
        summary,
        json.dumps(metadata),
    )


async def activity(store: Catalogue, project: Project, *, limit: int) -> list[ActivityEvent]:
    """Newest first, at most *limit* (held to 1..100)."""
    rows = await store.db.fetch(
        "SELECT id, project_id, user_id, kind, summary, metadata, created_at FROM activity"
        " WHERE project_id = $1 ORDER BY created_at DESC LIMIT $2",
        project.id,
        min(max(limit, 1), 100),
    )
    return [
        ActivityEvent(
            id=str(row["id"]),
            project_id=str(row["project_id"]),
            user_id=str(row["user_id"]) if row["user_id"] else None,
            kind=row["kind"],
            summary=row["summary"],
            metadata=_shown(json.loads(row["metadata"])),
            created_at=row["created_at"].astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        for row in rows
    ]


def _shown(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without keys that may name a secret; strings cut at 500."""
    return {
        key: value[:500] if isinstance(value, str) else value
        for key, value in metadata.items()
        if not _SECRET_KEY.search(key)
    }


async def forget(store: Catalogue, project: Project) -> None:
    """The project leaves the catalogue; its audit stays."""
    await store.db.execute("DELETE FROM projects WHERE id = $1", project.id)


def _row(store: Catalogue, new: NewProject, user_id: uuid.UUID) -> dict[str, Any]:
    project_id = new.id or uuid.uuid4()
    try:
        slug = policy.slug(new.slug)
        hash_ = policy.project_hash(new.hash or secrets.token_hex(4)[:7])
    except (ValueError, policy.Refusal) as failure:
        raise OperatorError(f"{failure}") from failure
    schema = new.schema or ("api" if new.mode == V1 else f"t_{short_id(project_id)}_api")
    if not re.fullmatch(IDENTIFIER_PATTERN, schema):
        raise OperatorError("The schema must be a plain identifier.")
    common = {
        "id": project_id,
        "short_id": short_id(project_id),
        "user_id": user_id,
        "slug": slug,
        "hash": hash_,
        "mode": new.mode,
        "api_schema": schema,
        "description": new.description,
        "sealed_jwt_secret": store.keys.seal(
            new.jwt_secret or Secret(secrets.token_hex(32)), purpose=sealed_for("jwt", project_id)
        ),
    }
    return common | (_dedicated(store, new, project_id) if new.mode == V1 else {})


def _dedicated(store: Catalogue, new: NewProject, project_id: uuid.UUID) -> dict[str, Any]:
    where = {"internal_host": new.internal_host, "internal_port": new.internal_port, "container": new.container}
    if new.postgres_url is None:
        return where
    parts = split_url(new.postgres_url, "The project's Postgres URL")
    if unquote(parts.username or "") != "postgres":
        raise OperatorError("A v1 project's user is postgres; the URL names another.")
    password = password_of(new.postgres_url, "The project's Postgres URL")
    return where | {
        "reached_host": parts.hostname,
        "reached_port": parts.port or 5432,
        "sealed_password": store.keys.seal(password, purpose=sealed_for("password", project_id)),
    }


async def find_project(store: Catalogue, user: str, hash_: str) -> Project | None:
    row = await store.db.fetchrow(
        f"SELECT {_PROJECT} FROM projects WHERE hash = $2 AND user_id = (SELECT id FROM users WHERE name = $1)",
        user,
        hash_,
    )
    return None if row is None else _project(row)


async def project_of(store: Catalogue, user_id: uuid.UUID, hash_: str) -> Project:
    """
    Raises:
        policy.Refusal: 404; somebody else's project is none.
    """
    row = await store.db.fetchrow(
        f"SELECT {_PROJECT} FROM projects WHERE user_id = $1 AND hash = $2",
        user_id,
        hash_,
    )
    if row is None:
        raise policy.Refusal(404, "Project not found")
    return _project(row)


async def project_by_id(store: Catalogue, project_id: uuid.UUID) -> Project | None:
    row = await store.db.fetchrow(f"SELECT {_PROJECT} FROM projects WHERE id = $1", project_id)
    return None if row is None else _project(row)


async def projects(store: Catalogue, user_id: uuid.UUID | None = None) -> list[Project]:
    """Sorted by slug; everybody's when *user_id* is None."""
    rows = await store.db.fetch(
        f"SELECT {_PROJECT} FROM projects WHERE $1::uuid IS NULL OR user_id = $1 ORDER BY slug, hash",
        user_id,
    )
    return [_project(row) for row in rows]


async def owned(store: Catalogue, user: str | None = None) -> list[tuple[str, Project]]:
    """Every project with its owner's name, or one owner's."""
    rows = await store.db.fetch("SELECT id, name FROM users")
    names = {row["id"]: str(row["name"]) for row in rows}
    everything = [(names[project.user_id], project) for project in await projects(store)]
    return [(name, project) for name, project in everything if user in {None, name}]


async def set_lifecycle(store: Catalogue, project: Project, lifecycle: str) -> None:
    await store.db.execute("UPDATE projects SET lifecycle = $2 WHERE id = $1", project.id, lifecycle)


async def stored_password(store: Catalogue, project: Project) -> Secret | None:
    """The v1 password registered by URL; None when it is the container's."""
    return await _unsealed(store, project, "password")


async def jwt_secret(store: Catalogue, project: Project) -> Secret | None:
    return await _unsealed(store, project, "jwt")


async def _unsealed(store: Catalogue, project: Project, which: str) -> Secret | None:
    column = {"password": "sealed_password", "jwt": "sealed_jwt_secret"}[which]
    sealed = await store.db.fetchval(f"SELECT {column} FROM projects WHERE id = $1", project.id)
    return None if sealed is None else store.keys.unseal(bytes(sealed), purpose=sealed_for(which, project.id))


def sealed_for(which: str, project_id: uuid.UUID) -> str:
    """What a project's secret is sealed for, so that it cannot be moved to another's row."""
    return f"projects/{which}/{project_id}"


def _project(row: asyncpg.Record) -> Project:
    return Project(**{field.name: row[field.name] for field in dataclasses.fields(Project)})


async def move_project(
    store: Catalogue, project: Project, *, postgres_url: Secret, internal_host: str, internal_port: int
) -> None:
    """
    Say anew where a v1 project's Postgres is: for us (its password is sealed again) and for the SSH host.

    Raises:
        OperatorError: the URL is none of a v1 project's.
    """
    new = NewProject(
        user="",
        slug=project.slug,
        mode=project.mode,
        postgres_url=postgres_url,
        internal_host=internal_host,
        internal_port=internal_port,
        container=project.container,
    )
    row = _dedicated(store, new, project.id)
    places = ", ".join(f"{name} = ${number}" for number, name in enumerate(row, start=2))
    await store.db.execute(f"UPDATE projects SET {places} WHERE id = $1", project.id, *row.values())

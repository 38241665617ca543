"""
Who had access to what: append-only, and without a column a secret could stand in.

The service may call `record` and read; it owns neither table nor function (`schema.sql`). Acts that change something
are recorded as *intent* before and as *ok*, *refused* or *failed* after: what crashed between can be seen.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from typing import Any, Literal

from fluxplane.catalogue import Catalogue
from fluxplane.registry import Project
from fluxplane.wire import AuditEvent

Outcome = Literal["intent", "ok", "refused", "failed"]
READ_AT_MOST = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: from the token, the connection and the request. The plane itself has no user."""

    user_id: uuid.UUID | None
    user: str | None
    token_id: uuid.UUID | None
    source_address: str | None
    request_id: uuid.UUID


PLANE_ITSELF = "fluxplane"


def plane() -> Actor:
    """The plane acting by itself: a lease that is over, a role nobody knows."""
    return Actor(None, PLANE_ITSELF, None, None, uuid.uuid4())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What an event is about, beside actor and project."""

    access: str | None = None
    reason: str | None = None
    grant_id: str | None = None
    username: str | None = None
    ttl_seconds: int | None = None
    expires_at: dt.datetime | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None


NOTHING = Details()


async def record(
    store: Catalogue,
    event: str,
    outcome: Outcome,
    actor: Actor,
    project: Project | None = None,
    details: Details = NOTHING,
    *,
    hash_: str | None = None,
) -> None:
    """Append one event. *hash_* is what was asked for when it is no project of the actor's."""
    await store.db.execute(
        f"SELECT flux.record({', '.join(f'${number}' for number in range(1, 19))})",
        event,
        outcome,
        project.hash if project else hash_,
        project.id if project else None,
        project.mode if project else None,
        details.access,
        actor.user_id,
        actor.user,
        actor.token_id,
        actor.source_address,
        details.reason,
        actor.request_id,
        details.grant_id,
        details.username,
        details.ttl_seconds,
        details.expires_at,
        details.bytes_up,
        details.bytes_down,
    )


def continued(actor: Actor, request_id: uuid.UUID) -> Actor:
    """The same actor, going on with what an earlier request of theirs began."""
    return dataclasses.replace(actor, request_id=request_id)


async def is_open(store: Catalogue, event: str, actor: Actor, project: Project) -> bool:
    """Whether this request's intent was recorded for this actor and project, and no outcome yet."""
    rows = await store.db.fetch(
        "SELECT outcome FROM audit WHERE event = $1 AND request_id = $2 AND actor_id = $3 AND project_id = $4"
        " ORDER BY id LIMIT 2",
        event,
        actor.request_id,
        actor.user_id,
        project.id,
    )
    return [row["outcome"] for row in rows] == ["intent"]


async def read(
    store: Catalogue, user_id: uuid.UUID, *, project: Project | None = None, since: dt.datetime | None = None
) -> list[AuditEvent]:
    """
    Newest first, at most READ_AT_MOST: what this user did, and what happened to this user's projects.

    A deleted project's events stay readable to those who acted.
    """
    rows = await store.db.fetch(
        "SELECT * FROM audit WHERE ($2::uuid IS NULL OR project_id = $2) AND ($3::timestamptz IS NULL OR at >= $3)"
        " AND (actor_id = $1 OR project_id IN (SELECT p.id FROM projects p WHERE p.user_id = $1))"
        " ORDER BY id DESC LIMIT $4",
        user_id,
        project.id if project else None,
        since,
        READ_AT_MOST,
    )
    return [_event(dict(row.items())) for row in rows]


def _event(row: dict[str, Any]) -> AuditEvent:
    named = {name: row[name] for name in AuditEvent.__struct_fields__ if name in row}
    for name, value in named.items():
        if isinstance(value, dt.datetime):
            named[name] = iso(value)
        elif isinstance(value, uuid.UUID):
            named[name] = str(value)
    return AuditEvent(**named | {"id": str(row["id"])})


def iso(moment: dt.datetime) -> str:
    """``2025-06-01T12:34:56.789Z``, as JavaScript writes it."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""
A grant's row, from before its role exists until the role is gone.

    minting ──mint──▶ live ──over, revoked──▶ ending ──role gone──▶ ended        (nothing) ──revoked──▶ tombstone
       └────── older than 60 s, failed ────────▲

Every step is one committed transition, so that whoever comes after a crash knows what to do: `due_at` says when to
look. Endings hold the row's lock (SKIP LOCKED for others) in a catalogue no tenant may CONNECT to; a replica that
dies loses the lock with its connection. Time is the catalogue's clock, the same for every replica.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import secrets
import uuid
from typing import Any, Final, Literal

import asyncpg

from fluxplane import audit, policy
from fluxplane.audit import Actor, Details
from fluxplane.catalogue import Catalogue
from fluxplane.policy import Ask, Refusal
from fluxplane.registry import Project
from fluxplane.roles import PoolFailed, Roles
from fluxplane.settings import Limits
from fluxplane.wire import Access

State = Literal["minting", "live", "ending", "ended", "tombstone"]

# A mint that has not ended after this long is not going to: its row is ended like any other.
MINTING_AT_MOST_S: Final = 60
# How long a tombstone of somebody without a token stands; with one it outlives every grant.
ANONYMOUS_TOMBSTONE_S: Final = 600
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
# A replica that hangs while it ends a role loses the row's lock after this long.
HOLD_AT_MOST_S: Final = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of `grants`, and how much time it has by the catalogue's clock."""

    grant_id: str
    project_id: uuid.UUID | None
    user_id: uuid.UUID | None
    username: str | None
    access: Access | None
    state: State
    nonce: bytes | None
    ttl_s: int | None
    created_at: dt.datetime
    expires_at: dt.datetime
    max_expires_at: dt.datetime
    end_reason: str | None
    attempts: int
    last_error: str | None
    left_s: float
    max_left_s: float


_COLUMNS: Final = (
    "grant_id, project_id, user_id, username, access, state, nonce, ttl_s, created_at, expires_at, max_expires_at,"
    " end_reason, attempts, last_error,"
    " extract(epoch FROM expires_at - statement_timestamp())::float8 AS left_s,"
    " extract(epoch FROM max_expires_at - statement_timestamp())::float8 AS max_left_s"
)


def new_id() -> str:
    return secrets.token_hex(16)


async def begin(store: Catalogue, limits: Limits, actor: Actor, project: Project, ask: Ask) -> tuple[Row, bool]:
    """
    The grant's row, committed before its role is made; False: it was there already (asked twice).

    Raises:
        Refusal: 429 too many live roles; 409 the project sleeps, or the id is another grant's; 410 that one has ended.
    """
    grant_id = ask.grant_id or new_id()
    async with store.db.acquire() as link, link.transaction():
        # In this order everywhere; held for a few statements, so that two mints cannot both be the last one allowed.
        await link.execute("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", actor.user_id)
        lifecycle = await link.fetchval("SELECT lifecycle FROM projects WHERE id = $1 FOR NO KEY UPDATE", project.id)
        policy.grantable(project.mode, lifecycle or "deleting")
        if known := await _get(link, grant_id):
            return _same(known, actor, project, ask), False
        await _within_caps(link, limits, actor, project)
        return await _insert(link, grant_id, store.keys.nonce(), actor, project, ask), True


def _same(known: Row, actor: Actor, project: Project, ask: Ask) -> Row:
    if known.state != "tombstone" and (known.user_id, known.project_id, known.access) != (
        actor.user_id,
        project.id,
        ask.access,
    ):
        raise Refusal(409, "This grant id belongs to another grant.", code="grant_id_taken")
    if known.state not in {"minting", "live"} or known.left_s <= 0:
        raise Refusal(410, "This grant has ended; ask for a new one.", code="grant_ended")
    return known


async def _within_caps(link: Any, limits: Limits, actor: Actor, project: Project) -> None:
    for owner, value, limit in (
        ("user_id", actor.user_id, limits.live_roles_per_user),
        ("project_id", project.id, limits.live_roles_per_project),
    ):
        row = await link.fetchrow(
            "SELECT count(*) AS live, extract(epoch FROM min(expires_at) - clock_timestamp())::float8 AS next_s"
            f" FROM grants WHERE state IN ('minting', 'live', 'ending') AND {owner} = $1",
            value,
        )
        if row["live"] >= limit:
            raise Refusal(
                429,
                f"There are {limit} live temporary roles of this {owner.removesuffix('_id')} already: "
                "close a tunnel that is no longer needed, or wait until one expires.",
                code="too_many_live_roles",
                limit=limit,
                retry_after_s=max(1, math.ceil(row["next_s"] or 1)),
            )


async def _insert(link: Any, grant_id: str, nonce: bytes, actor: Actor, project: Project, ask: Ask) -> Row:
    while True:
        username = policy.temporary_username(ask.access, project.hash, secrets.token_hex(4))
        row = await link.fetchrow(
            "INSERT INTO grants (grant_id, project_id, user_id, token_id, username, access, state, nonce, ttl_s,"
            " expires_at, max_expires_at, due_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, 'minting', $7, $8::integer,"
            " statement_timestamp() + make_interval(secs => $8::integer),"
            " statement_timestamp() + make_interval(secs => $9), statement_timestamp() + make_interval(secs => $10))"
            f" ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
            grant_id,
            project.id,
            actor.user_id,
            actor.token_id,
            username,
            ask.access,
            nonce,
            ask.ttl_s,
            policy.MAX_TTL_S,
            min(MINTING_AT_MOST_S, ask.ttl_s),
        )
        if row is not None:
            return _row(row)
        if await _get(link, grant_id):
            # Revoked, or asked for, in the very same moment.
            raise Refusal(410, "This grant has ended; ask for a new one.", code="grant_ended")


async def settle(store: Catalogue, grant_id: str) -> Row | None:
    """The role exists: minting becomes live. None: the row was ended meanwhile, and the role must go."""
    row = await store.db.fetchrow(
        "UPDATE grants SET state = 'live', due_at = expires_at WHERE grant_id = $1 AND state IN ('minting', 'live')"
        f" RETURNING {_COLUMNS}",
        grant_id,
    )
    return None if row is None else _row(row)


async def get(store: Catalogue, grant_id: str) -> Row | None:
    return await _get(store.db, grant_id)


async def _get(link: Any, grant_id: str) -> Row | None:
    row = await link.fetchrow(f"SELECT {_COLUMNS} FROM grants WHERE grant_id = $1", grant_id)
    return None if row is None else _row(row)


async def of_project(store: Catalogue, project: Project) -> list[Row]:
    """The grants whose roles exist or may, newest first."""
    rows = await store.db.fetch(
        f"SELECT {_COLUMNS} FROM grants WHERE project_id = $1 AND state IN ('minting', 'live', 'ending')"
        " ORDER BY created_at DESC",
        project.id,
    )
    return [_row(row) for row in rows]


async def order_end(store: Catalogue, grant_id: str, reason: str) -> bool:
    """It shall end, now: committed, so that it will, whoever crashes. False: it was ending or ended already."""
    done = await store.db.execute(
        "UPDATE grants SET state = 'ending', due_at = clock_timestamp(), end_reason = $2"
        " WHERE grant_id = $1 AND state IN ('minting', 'live')",
        grant_id,
        reason,
    )
    return bool(done == "UPDATE 1")


async def abandon(store: Catalogue, grant_id: str) -> None:
    """The mint failed: end what there may be of it, unless another request with the same id brought it to life."""
    await store.db.execute(
        "UPDATE grants SET state = 'ending', due_at = clock_timestamp(), end_reason = 'failed'"
        " WHERE grant_id = $1 AND state = 'minting'",
        grant_id,
    )


async def bury(store: Catalogue, grant_id: str, actor: Actor) -> None:
    """A tombstone for an id the plane never saw: a mint that comes later with it is refused."""
    lasts_s = 2 * policy.MAX_TTL_S if actor.user_id else ANONYMOUS_TOMBSTONE_S
    await store.db.execute(
        "INSERT INTO grants (grant_id, user_id, token_id, state, expires_at, max_expires_at)"
        " SELECT $1, $2, $3, 'tombstone', t, t FROM (SELECT clock_timestamp() + make_interval(secs => $4)) AS s (t)"
        " ON CONFLICT (grant_id) DO NOTHING",
        grant_id,
        actor.user_id,
        actor.token_id,
        lasts_s,
    )


async def renew(store: Catalogue, roles: Roles, actor: Actor, grant_id: str, ttl_s: int | None) -> Row:
    """
    A later end for the same role, at most eight hours after its mint; never an earlier one.

    Holds the row's lock, so that it cannot end meanwhile.

    Raises:
        Refusal: 404 not a grant of the actor's; 409 the limit has come or the project sleeps; 410 it has ended.
        PoolFailed: the pool did not do it; nothing has changed.
    """
    async with store.db.acquire() as link, link.transaction():
        row = await link.fetchrow(
            f"SELECT {_COLUMNS} FROM grants WHERE grant_id = $1 AND user_id = $2 FOR UPDATE",
            grant_id,
            actor.user_id,
        )
        if row is None or row["state"] == "tombstone":
            raise Refusal(404, "There is no such grant.", code="grant_unknown")
        known = _row(row)
        if known.state != "live" or known.left_s <= 0:
            raise Refusal(410, "This grant has ended; ask for a new one.", code="grant_ended")
        policy.awake(
            await link.fetchval("SELECT lifecycle FROM projects WHERE id = $1", known.project_id) or "deleting"
        )
        assert known.access is not None
        assert known.username is not None
        more_s = policy.renewed_ttl(ttl_s, known.access, left_of_max_s=known.max_left_s)
        renewed = await link.fetchrow(
            "UPDATE grants SET (expires_at, due_at) = (SELECT t, t FROM (SELECT least(max_expires_at,"
            " greatest(expires_at, statement_timestamp() + make_interval(secs => $2)))) AS s (t))"
            f" WHERE grant_id = $1 RETURNING {_COLUMNS}",
            grant_id,
            more_s,
        )
        assert renewed is not None
        await roles.renew(known.username, renewed["expires_at"])
        return _row(renewed)


async def next_due_in_s(store: Catalogue) -> float | None:
    """Seconds until a row wants to be looked at (not positive: now); None: none does."""
    left = await store.db.fetchval("SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM grants")
    return None if left is None else float(left)


async def order_end_of_due(store: Catalogue) -> None:
    """Leases that are over and mints that never ended begin to end."""
    await store.db.execute(
        "UPDATE grants SET state = 'ending', end_reason = CASE state WHEN 'live' THEN 'expired' ELSE 'abandoned' END"
        " WHERE grant_id IN (SELECT grant_id FROM grants WHERE due_at <= clock_timestamp()"
        " AND state IN ('live', 'minting') FOR UPDATE SKIP LOCKED)"
    )


async def due_to_end(store: Catalogue, *, at_most: int) -> list[str]:
    rows = await store.db.fetch(
        "SELECT grant_id FROM grants WHERE state = 'ending' AND due_at <= clock_timestamp() ORDER BY due_at LIMIT $1",
        at_most,
    )
    return [str(row[0]) for row in rows]


async def end(store: Catalogue, roles: Roles, grant_id: str, *, wait: bool = False) -> bool:
    """
    End the role of a row that is *ending*; False: another replica is at it, it resisted, or there was nothing to end.

    *wait* waits for another replica's turn to be over instead. A role that resists is tried again later, ever more
    seldom, and shows in `doctor`.
    """
    skip = "" if wait else " SKIP LOCKED"
    async with store.db.acquire() as link, link.transaction():
        await link.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{HOLD_AT_MOST_S}s'")
        row = await link.fetchrow(
            f"SELECT {_COLUMNS} FROM grants WHERE grant_id = $1 AND state = 'ending' FOR UPDATE{skip}",
            grant_id,
        )
        if row is None:
            return False
        known = _row(row)
        try:
            await roles.end(str(known.username))
        except PoolFailed as failure:
            await _put_off(link, known, str(failure))
            return False
        await link.execute(
            "UPDATE grants SET state = 'ended', due_at = NULL, ended_at = clock_timestamp(), last_error = NULL"
            " WHERE grant_id = $1",
            grant_id,
        )
    return True


async def _put_off(link: Any, row: Row, error: str) -> None:
    wait_s = min(FIRST_RETRY_S * 2 ** min(row.attempts, 20), LONGEST_RETRY_S)
    await link.execute(
        "UPDATE grants SET attempts = attempts + 1, last_error = $2,"
        " due_at = clock_timestamp() + make_interval(secs => $3) WHERE grant_id = $1",
        row.grant_id,
        error[:500],
        wait_s,
    )


async def adopt_stray(store: Catalogue, username: str) -> str | None:
    """A role with our marker that no row accounts for gets a row, and is ended like any other; None: it has one."""
    grant_id = new_id()
    done = await store.db.execute(
        "INSERT INTO grants (grant_id, username, access, state, expires_at, max_expires_at, due_at, end_reason)"
        " SELECT $1, $2, $3, 'ending', t, t, t, 'stray' FROM (SELECT clock_timestamp()) AS s (t)"
        " ON CONFLICT (username) DO UPDATE SET state = 'ending', due_at = excluded.due_at WHERE grants.state = 'ended'",
        grant_id,
        username,
        "readwrite" if username.startswith("flux_temp_rw_") else "readonly",
    )
    return None if done == "INSERT 0 0" else username


async def forget_old(store: Catalogue) -> None:
    """Rows that say nothing any more: tombstones that have served, ended grants after a day, past rate windows."""
    await store.db.execute(
        "DELETE FROM grants WHERE state = 'tombstone' AND expires_at < now()"
        " OR state = 'ended' AND ended_at < now() - interval '1 day'"
    )
    await store.db.execute("DELETE FROM rates WHERE minute < extract(epoch FROM now()) / 60 - 2")


async def resisting(store: Catalogue) -> list[Row]:
    """Roles that should be gone and are not, for `doctor`."""
    rows = await store.db.fetch(
        f"SELECT {_COLUMNS} FROM grants WHERE state = 'ending'"
        " AND (attempts > 0 OR due_at < clock_timestamp() - interval '2 seconds') ORDER BY created_at"
    )
    return [_row(row) for row in rows]


@dataclasses.dataclass(frozen=True, slots=True)
class Census:
    """How many roles there are by the catalogue, how many resist their end, and by how long the worst is overdue."""

    live: int
    minting: int
    ending: int
    resisting: int
    overdue_s: float


async def census(store: Catalogue) -> Census:
    row = await store.db.fetchrow(
        "SELECT count(*) FILTER (WHERE state = 'live') AS live, count(*) FILTER (WHERE state = 'minting') AS minting,"
        " count(*) FILTER (WHERE state = 'ending') AS ending,"
        " count(*) FILTER (WHERE state = 'ending' AND attempts > 0) AS resisting,"
        " coalesce(greatest(0, extract(epoch FROM clock_timestamp() - min(expires_at))), 0)::float8 AS overdue_s"
        " FROM grants WHERE state IN ('minting', 'live', 'ending')"
    )
    assert row is not None
    return Census(**{field.name: row[field.name] for field in dataclasses.fields(Census)})


def details(row: Row, *, reason: str | None = None) -> Details:
    """What the audit says of a grant."""
    return Details(
        access=row.access,
        reason=reason,
        grant_id=row.grant_id,
        username=row.username,
        ttl_seconds=row.ttl_s,
        expires_at=row.expires_at,
    )


async def ended(store: Catalogue, grant_id: str, actor: Actor, project: Project | None) -> None:
    """Tell the audit that a role is gone, and why."""
    row = await get(store, grant_id)
    if row is not None:
        event = {"revoked": "grant_revoked", "expired": "grant_expired"}.get(row.end_reason or "", "grant_ended")
        await audit.record(store, event, "ok", actor, project, details(row))


def _row(row: asyncpg.Record) -> Row:
    return Row(**{field.name: row[field.name] for field in dataclasses.fields(Row)})

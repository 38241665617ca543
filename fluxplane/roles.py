"""
Temporary roles in the pool, through the service's unprivileged login: mint, renew, end, list.

Nothing here knows the catalogue: a role is a name. Ending takes several calls, because a function can neither commit,
nor roll back a prepared transaction, nor reach another database (product.md §5): fence, end its sessions, tidy every
database where it left something, drop. Each may be repeated after a crash at any point. The functions: `pool.sql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

from fluxplane import pool
from fluxplane.catalogue import DatabaseFailure, close_pool, describe, quoted
from fluxplane.catalogue import connection as one_connection
from fluxplane.settings import Limits, OperatorError, Settings, in_database
from fluxplane.wire import Access, Secret

CLOSE_WITHIN_S: Final = 2
ATTEMPTS: Final = 4
TERMINATE_WITHIN_S: Final = 10.0
_SIXTEEN: Final = 160000


class PoolFailed(Exception):
    """The pool did not do it. The text is one line for an operator and never holds a secret."""


class RoleEnded(PoolFailed):
    """There is no such role (any more)."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiveRole:
    """A role with our catalogue's marker, as the pool has it."""

    name: str
    can_login: bool
    valid_until: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """A tenant's tables: those a row-level policy hides rows of, and whether any is not granted to its groups."""

    rls_tables: list[str]
    unreadable: bool


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Roles | None]:
    """The pool's roles; None when the plane serves v1 projects only."""
    if settings.pool_url is None:
        yield None
        return
    db = await pool.make_asyncpg_pool(settings.pool_url)
    try:
        yield Roles(db, settings.pool_url, settings.limits)
    finally:
        await close_pool(db, within_s=CLOSE_WITHIN_S)


class Roles:
    """Roles of one pool. Every method raises `PoolFailed`, and nothing else, when the pool fails it."""

    def __init__(self, db: asyncpg.Pool[asyncpg.Record], url: Secret, limits: Limits) -> None:
        self._db = db
        self._url = url
        self._limits = limits

    async def mint(self, project: uuid.UUID, access: Access, name: str, verifier: str, valid_until: dt.datetime) -> str:
        """Make the role, or find it made; answers the tenant's schema."""
        limits = self._limits
        schema = await self._call(
            "SELECT flux_plane.mint($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            project,
            access,
            name,
            verifier,
            valid_until,
            limits.connections_per_role,
            limits.temp_file_mb_per_role,
            limits.statement_timeout_s,
            limits.idle_in_transaction_timeout_s,
        )
        return str(schema)

    async def renew(self, name: str, valid_until: dt.datetime) -> None:
        """
        Raises:
            RoleEnded: it is fenced or gone.
        """
        await self._call("SELECT flux_plane.renew($1, $2)", name, valid_until)

    async def ensure(self, project: uuid.UUID) -> None:
        """Grant the tenant's groups what they lack: tables that somebody unforeseen made."""
        await self._call("SELECT flux_plane.ensure($1)", project)

    async def retire(self, project: uuid.UUID) -> None:
        """Drop a deleted project's group roles, once its temporary roles are gone."""
        await self._call("SELECT flux_plane.retire($1)", project)

    async def live(self) -> list[LiveRole]:
        """Every role with our marker."""
        rows = await self._fetch("SELECT role_name, can_login, valid_until FROM flux_plane.live()")
        return [LiveRole(str(row["role_name"]), bool(row["can_login"]), row["valid_until"]) for row in rows]

    async def survey(self, project: uuid.UUID, schema: str) -> Survey:
        """How a tenant's tables look to its temporary roles. Reads no other tenant's entries."""
        rows = await self._fetch(_SURVEY, schema, f"flux_tenant_{project.hex}_ro")
        return Survey(
            rls_tables=[f"{schema}.{row['relname']}" for row in rows if row["relrowsecurity"]],
            unreadable=any(not row["readable"] for row in rows),
        )

    async def not_enforced(self) -> list[str]:
        """What an unprepared pool leaves open; empty on a prepared one."""
        row = (await self._fetch(_OPEN))[0]
        return [text for name, text in _OPEN_TEXTS.items() if row[name]]

    async def foreign(self) -> list[str]:
        """Temporary roles without our marker whose time is over: another plane's leftovers."""
        ours = {role.name for role in await self.live()}
        rows = await self._fetch(
            "SELECT rolname FROM pg_roles WHERE rolname ~ '^flux_temp_' AND rolvaliduntil < now() ORDER BY rolname"
        )
        return [str(row[0]) for row in rows if str(row[0]) not in ours]

    async def may_prepare_transactions(self) -> bool:
        rows = await self._fetch("SELECT current_setting('max_prepared_transactions')::integer > 0")
        return bool(rows[0][0])

    async def end(self, name: str) -> None:
        """
        No login, no session, no object, no role of that name; fine if there never was one.

        Raises:
            PoolFailed: it resisted; everything up to that point stays done, and the call may be repeated.
        """
        oid = await self._call("SELECT flux_plane.fence($1)", name)
        if oid is None:
            return
        await self._end_sessions(int(oid))
        for database in await self._left_something_in(name, int(oid)):
            await self._tidy(database, name)
        await self._call("SELECT flux_plane.drop($1)", name)

    async def _end_sessions(self, oid: int) -> None:
        pause_s = 0.01
        try:
            async with asyncio.timeout(TERMINATE_WITHIN_S):
                while await self._fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = $1", oid
                ):
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.2)
        except TimeoutError:
            raise PoolFailed("a session of the role does not end") from None

    async def _left_something_in(self, name: str, oid: int) -> list[str]:
        """Databases that hold anything of the role's, or (before 16 foremost) anything of its groups' own."""
        rows = await self._fetch(_DATABASES, name, oid)
        return [str(row[0]) for row in rows]

    async def _tidy(self, database: str, name: str) -> None:
        try:
            async with one_connection(in_database(self._url, database), f"Database {database}") as link:
                await link.execute("SET lock_timeout = '5s'")
                groups = [str(row[0]) for row in await link.fetch(_GROUPS, name)]
                await _roll_back_prepared(link, [name, *groups])
                for group in groups:
                    await _tidy_group(link, group, heir=name)
                await link.execute(f"SET ROLE {quoted(name)}")
                await link.execute(f"DROP OWNED BY {quoted(name)} CASCADE")
        except (*DatabaseFailure, OperatorError) as failure:
            raise PoolFailed(f"in database {database}: {describe(failure)}") from failure

    async def _call(self, query: str, *values: Any) -> Any:
        rows = await self._fetch(query, *values)
        return rows[0][0]

    async def _fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return list(await self._db.fetch(query, *values))
            except asyncpg.UndefinedObjectError as failure:
                raise RoleEnded(describe(failure)) from failure
            except DatabaseFailure as failure:
                if attempt == ATTEMPTS or not _passing(failure):
                    raise PoolFailed(describe(failure)) from failure
                await asyncio.sleep(0.02 * 2**attempt)
        raise AssertionError("unreachable")


_GROUPS: Final = """
    WITH RECURSIVE up AS (
        SELECT m.roleid FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = $1
        UNION SELECT m.roleid FROM pg_auth_members m JOIN up ON m.member = up.roleid
    ) SELECT r.rolname FROM up JOIN pg_roles r ON r.oid = up.roleid
"""
_DATABASES: Final = """
    WITH RECURSIVE up AS (
        SELECT m.roleid FROM pg_auth_members m WHERE m.member = $2
        UNION SELECT m.roleid FROM pg_auth_members m JOIN up ON m.member = up.roleid
    )
    SELECT d.datname FROM pg_database d
    WHERE d.datallowconn AND d.datconnlimit <> -2 AND (d.oid IN (
        SELECT s.dbid FROM pg_shdepend s WHERE s.refclassid = 'pg_authid'::regclass
        AND (s.refobjid = $2 OR (s.deptype = 'o' AND s.refobjid IN (SELECT up.roleid FROM up)))
    ) OR d.datname IN (
        SELECT p.database FROM pg_prepared_xacts p
        WHERE p.owner = $1 OR p.owner IN (SELECT r.rolname FROM pg_roles r JOIN up ON up.roleid = r.oid)
    ))
"""


# By pg_depend's index: the price is the tenant's own tables, whatever the others have.
_SURVEY: Final = """
    SELECT c.relname, c.relrowsecurity,
           coalesce(has_table_privilege(to_regrole(quote_ident($2))::oid, c.oid, 'SELECT'), true) AS readable
    FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
    WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace(quote_ident($1))::oid
      AND d.classid = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY c.relname
"""
_OPEN: Final = """
    SELECT EXISTS (SELECT FROM pg_database d
                   WHERE d.datallowconn AND has_database_privilege('public', d.oid, 'CONNECT')) AS databases,
           has_database_privilege('public', current_database(), 'TEMPORARY') AS temporary,
           EXISTS (SELECT FROM pg_namespace n
                   WHERE n.nspname = 'public' AND has_schema_privilege('public', n.oid, 'CREATE')) AS planting,
           has_function_privilege('public', 'lo_create(oid)', 'EXECUTE') AS large_objects,
           has_function_privilege('public', 'pg_advisory_lock(bigint)', 'EXECUTE') AS advisory_locks
"""
_OPEN_TEXTS: Final = {
    "databases": "temporary roles may connect to other databases of this server",
    "temporary": "temporary roles may create temporary tables",
    "planting": "temporary roles may create objects in schema public",
    "large_objects": "temporary roles may create large objects",
    "advisory_locks": "temporary roles may take advisory locks",
}


def _passing(failure: BaseException) -> bool:
    """Two at once met in Postgres' catalogues, or the connection was stale: the next try will pass."""
    return isinstance(failure, _PASSING) or (
        isinstance(failure, asyncpg.InternalServerError) and "concurrently" in str(failure)
    )


_PASSING: Final = (
    ConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.DeadlockDetectedError,
    # The same role at the same time: the next look finds it.
    asyncpg.DuplicateObjectError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
)


async def _roll_back_prepared(link: Any, owners: list[str]) -> None:
    for row in await link.fetch(
        "SELECT gid, owner, quote_literal(gid) AS literal FROM pg_prepared_xacts"
        " WHERE database = current_database() AND owner = ANY($1::text[])",
        owners,
    ):
        await link.execute(f"SET ROLE {quoted(row['owner'])}")
        await link.execute(f"ROLLBACK PREPARED {row['literal']}")
        await link.execute("RESET ROLE")


async def _tidy_group(link: Any, group: str, *, heir: str) -> None:
    """
    What a member made in its group's name: default privileges (any version), objects (before 16, by SET ROLE).

    Never DROP OWNED BY the group: that would revoke its grants under the roles that still live.
    """
    await _undo_default_privileges(link, group)
    if int(await link.fetchval("SELECT current_setting('server_version_num')")) < _SIXTEEN:
        await link.execute(f"REASSIGN OWNED BY {quoted(group)} TO {quoted(heir)}")


_KINDS: Final = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES", "n": "SCHEMAS", "L": "LARGE OBJECTS"}


async def _undo_default_privileges(link: Any, group: str) -> None:
    for row in await link.fetch(
        "SELECT a.defaclobjtype::text AS kind, n.nspname AS schema,"
        " ARRAY(SELECT DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END"
        "       FROM aclexplode(a.defaclacl) x) AS grantees"
        " FROM pg_default_acl a JOIN pg_roles r ON r.oid = a.defaclrole"
        " LEFT JOIN pg_namespace n ON n.oid = a.defaclnamespace WHERE r.rolname = $1",
        group,
    ):
        where = f" IN SCHEMA {quoted(row['schema'])}" if row["schema"] else ""
        head = f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(group)}{where}"
        kind = _KINDS[row["kind"]]
        for grantee in row["grantees"]:
            await link.execute(f"{head} REVOKE ALL ON {kind} FROM {grantee}")
        if not row["schema"]:
            # Back to what Postgres has built in: then the entry itself vanishes.
            await link.execute(f"{head} GRANT ALL ON {kind} TO {quoted(group)}")
            if kind in {"FUNCTIONS", "TYPES"}:
                await link.execute(f"{head} GRANT ALL ON {kind} TO PUBLIC")

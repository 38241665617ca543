"""
What an operator does to a pool, as its superuser: close it, install our functions, make a tenant, look it over.

`prepare` closes what no per-role REVOKE can, because it hangs on PUBLIC. It states what the pool should be and changes
what is not so; everything it runs can be read beforehand (`--dry-run`). What the service does day to day: `roles`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.resources
import uuid
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

import asyncpg

from fluxplane.catalogue import Catalogue, DatabaseFailure, connection, describe, make_login, quoted
from fluxplane.settings import OperatorError, Settings, in_database, password_of, user_of
from fluxplane.wire import Secret

# Who may CONNECT to the pool's database; who may besides make temp tables and large objects, and take advisory locks.
GUESTS: Final = "flux_pool_guests"
TENANTS: Final = "flux_pool_tenants"
OLDEST: Final = 150000
_SERVICE_URL: Final = "FLUXPLANE_POOL_URL"
_BACKUP_URL: Final = "FLUXPLANE_POOL_BACKUP_URL"
_SERVICE_MAY: Final = ("ensure", "mint", "renew", "fence", "drop", "live", "retire")

# Releasing an advisory lock harms nobody, and drivers do it unasked (asyncpg, at every return to its pool).
_OPEN_FUNCTIONS: Final = r"""
    SELECT p.oid::regprocedure::text FROM pg_proc p
    WHERE p.pronamespace = 'pg_catalog'::regnamespace
      AND (p.proname IN ('lo_create', 'lo_creat', 'lo_from_bytea', 'lo_import')
           OR p.proname ~ '^pg_(try_)?advisory_(xact_)?lock')
"""


@dataclasses.dataclass(slots=True)
class Preparation:
    """One run of `prepare` in one database: what it found to change."""

    link: Any
    dry_run: bool
    changes: list[str]
    notes: list[str]

    async def change(self, statement: str, *, shown: str | None = None) -> None:
        self.changes.append(shown or statement)
        await self.link.execute(statement)

    async def names(self, query: str, *values: Any) -> list[str]:
        return [str(row[0]) for row in await self.link.fetch(query, *values)]


@contextlib.asynccontextmanager
async def _transaction(work: Preparation) -> AsyncIterator[None]:
    """All of it or nothing; rolled back when it is a dry run."""
    transaction = work.link.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        await transaction.rollback()
        raise
    await (transaction.rollback() if work.dry_run else transaction.commit())


def marker_role(catalogue_id: str) -> str:
    return f"flux_marker_{catalogue_id}"


async def prepare(
    settings: Settings,
    store: Catalogue,
    *,
    dry_run: bool = False,
    functions_only: bool = False,
    allow: Collection[str] = (),
) -> list[str]:
    """
    Bring the pool to what product and operator's guide say; answers what was (or, dry, would be) changed.

    *allow*: roles of the operator's own that keep CONNECT and the rest. Lines that begin with "--" are remarks.

    Raises:
        OperatorError: no superuser's URL, too old a server, or a statement was refused.
    """
    admin = _admin(settings)
    try:
        async with connection(admin, "The pool") as link:
            await _check_server(link)
            work = Preparation(link, dry_run, [], [])
            async with _transaction(work):
                await _functions(work, settings, store.id)
                await _connect_for_service(work, user_of(settings.pool_url or admin, _SERVICE_URL))
                await _backup_login(work, settings)
                if not functions_only:
                    await _close_cluster(work, allow)
                    await _close_here(work, TENANTS)
            if not functions_only:
                for database in await _other_databases(link):
                    await _close_elsewhere(work, in_database(admin, database), database)
    except DatabaseFailure as failure:
        raise OperatorError(f"The pool could not be prepared: {describe(failure)}.") from failure
    return work.changes + work.notes


def _admin(settings: Settings) -> Secret:
    if settings.pool_admin_url is None:
        raise OperatorError("FLUXPLANE_POOL_ADMIN_URL is not set: this needs a superuser's login on the pool.")
    return settings.pool_admin_url


async def _check_server(link: Any) -> None:
    if int(await link.fetchval("SELECT current_setting('server_version_num')")) < OLDEST:
        # Before 15 a login role may grant membership in itself: nothing here would hold.
        raise OperatorError("The pool must be PostgreSQL 15 or newer.")
    if not await link.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        raise OperatorError("FLUXPLANE_POOL_ADMIN_URL is not a superuser's login.")


async def _functions(work: Preparation, settings: Settings, catalogue_id: str) -> None:
    if settings.pool_url is None:
        raise OperatorError("FLUXPLANE_POOL_URL is not set: it names the service's own, unprivileged login.")
    login, marker = user_of(settings.pool_url, _SERVICE_URL), marker_role(catalogue_id)
    work.changes += await make_login(work.link, login, password_of(settings.pool_url, _SERVICE_URL))
    for role, kind in ((marker, "NOLOGIN NOINHERIT"), (GUESTS, "NOLOGIN"), (TENANTS, "NOLOGIN")):
        if not await work.names("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await work.change(f"CREATE ROLE {quoted(role)} {kind}")
    await _install(work)
    await _enrol(work, login, marker)


async def _install(work: Preparation) -> None:
    text = importlib.resources.files("fluxplane").joinpath("pool.sql").read_text()
    stamp = hashlib.sha256(text.encode()).hexdigest()[:16]
    owner = await work.names(
        "SELECT r.rolname FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner"
        " WHERE n.nspname = 'flux_plane' AND NOT r.rolsuper"
    )
    if owner:
        raise OperatorError(f'The schema flux_plane belongs to "{owner[0]}", who is no superuser: remove it first.')
    if [stamp] == await work.names(
        "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'flux_plane'"
    ):
        return
    await work.change(text, shown=f"install the functions flux_plane.* ({stamp})")
    await work.link.execute(f"COMMENT ON SCHEMA flux_plane IS '{stamp}'")


async def _enrol(work: Preparation, login: str, marker: str) -> None:
    """This login, and no other, serves this catalogue."""
    known = await work.link.fetchrow("SELECT login, marker FROM flux_plane.service WHERE login = $1", login)
    if known is not None and known["marker"] != marker:
        raise OperatorError(
            f'The login "{login}" already serves another catalogue in this pool: give this one a login of its own.'
        )
    if known is None:
        await work.link.execute(
            "INSERT INTO flux_plane.service (login, marker) VALUES ($1, $2)"
            " ON CONFLICT (marker) DO UPDATE SET login = excluded.login",
            login,
            marker,
        )
        work.changes.append(f"{login} serves catalogue {marker.removeprefix('flux_marker_')}")
    role = quoted(login)
    if not await work.link.fetchval("SELECT has_schema_privilege($1, 'flux_plane', 'USAGE')", login):
        await work.change(f"GRANT USAGE ON SCHEMA flux_plane TO {role}")
    for function in await work.names(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'flux_plane'::regnamespace"
        " AND proname = ANY($1) AND NOT has_function_privilege($2, oid, 'EXECUTE') ORDER BY 1",
        list(_SERVICE_MAY),
        login,
    ):
        await work.change(f"GRANT EXECUTE ON FUNCTION {function} TO {role}")


async def _connect_for_service(work: Preparation, login: str) -> None:
    """Everywhere: a temporary role may have left something in any database."""
    for database in await work.names(
        "SELECT d.datname FROM pg_database d WHERE d.datallowconn AND d.datconnlimit <> -2 AND NOT EXISTS ("
        " SELECT FROM aclexplode(d.datacl) a WHERE a.grantee = (SELECT oid FROM pg_roles WHERE rolname = $1)"
        " AND a.privilege_type = 'CONNECT') ORDER BY 1",
        login,
    ):
        await work.change(f"GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(login)}")


async def _backup_login(work: Preparation, settings: Settings) -> None:
    """What dumps whole tenants: may read everything, past row-level security, and change nothing."""
    if settings.pool_backup_url is None:
        return
    login = user_of(settings.pool_backup_url, _BACKUP_URL)
    if settings.pool_url is not None and login == user_of(settings.pool_url, _SERVICE_URL):
        raise OperatorError(f"{_BACKUP_URL} must be a login of its own: the service may not read every tenant.")
    work.changes += await make_login(work.link, login, password_of(settings.pool_backup_url, _BACKUP_URL))
    role = quoted(login)
    if await work.names("SELECT 1 FROM pg_roles WHERE rolname = $1 AND NOT rolbypassrls", login):
        await work.change(f"ALTER ROLE {role} BYPASSRLS")
    if not await work.link.fetchval("SELECT pg_has_role($1, 'pg_read_all_data', 'USAGE')", login):
        await work.change(f"GRANT pg_read_all_data TO {role}")
    if await work.names(
        "SELECT 1 FROM pg_database d WHERE d.datname = current_database() AND NOT EXISTS ("
        " SELECT FROM aclexplode(d.datacl) a WHERE a.grantee = (SELECT oid FROM pg_roles WHERE rolname = $1)"
        " AND a.privilege_type = 'CONNECT')",
        login,
    ):
        here = quoted(str(await work.link.fetchval("SELECT current_database()")))
        await work.change(f"GRANT CONNECT ON DATABASE {here} TO {role}")


async def _close_cluster(work: Preparation, allow: Collection[str]) -> None:
    """What hangs on databases and memberships: shared, so it can be changed from here."""
    here = quoted(str(await work.link.fetchval("SELECT current_database()")))
    for privilege, roles in (("CONNECT", (GUESTS, TENANTS)), ("TEMPORARY", (TENANTS,))):
        for role in roles:
            if not await work.link.fetchval(
                "SELECT has_database_privilege($1, current_database(), $2)"
                " AND NOT has_database_privilege('public', current_database(), $2)",
                role,
                privilege,
            ):
                await work.change(f"GRANT {privilege} ON DATABASE {here} TO {quoted(role)}")
    await _join(work, allow)
    for database in await work.names(
        "SELECT datname FROM pg_database WHERE has_database_privilege('public', oid, 'CONNECT')"
        " OR has_database_privilege('public', oid, 'TEMPORARY') ORDER BY 1"
    ):
        await work.change(f"REVOKE CONNECT, TEMPORARY ON DATABASE {quoted(database)} FROM PUBLIC")
    await _note_shut_out(work)


_UNJOINED: Final = """
    SELECT r.rolname FROM pg_roles r
    WHERE NOT r.rolsuper AND (r.rolname ~ $1 OR r.rolname = ANY($2::text[])) AND NOT EXISTS (
        SELECT FROM pg_auth_members m
        WHERE m.member = r.oid AND m.roleid = (SELECT g.oid FROM pg_roles g WHERE g.rolname = $3)
    ) ORDER BY 1
"""


async def _join(work: Preparation, allow: Collection[str]) -> None:
    if unknown := [role for role in allow if not await work.names("SELECT 1 FROM pg_roles WHERE rolname = $1", role)]:
        raise OperatorError(f'There is no role "{unknown[0]}" to allow.')
    await _join_those(work, TENANTS, r"^t_[a-f0-9]{12}_(role|ddl)$", allow)
    # Groups of temporary roles, ours and the existing platform's: CONNECT, and nothing else that PUBLIC had.
    await _join_those(work, GUESTS, r"^flux_tenant_[a-z0-9_]+_(ro|rw)$", ())


async def _join_those(work: Preparation, joined: str, pattern: str, named: Collection[str]) -> None:
    how = " WITH INHERIT TRUE, SET FALSE" if await _sixteen(work.link) else ""
    for role in await work.names(_UNJOINED, pattern, list(named), joined):
        await work.change(f"GRANT {quoted(joined)} TO {quoted(role)}{how}")


async def _sixteen(link: Any) -> bool:
    return int(await link.fetchval("SELECT current_setting('server_version_num')")) >= 160000


async def _note_shut_out(work: Preparation) -> None:
    """Logins that could connect because everybody could; an operator must decide about each."""
    for role in await work.names(
        "SELECT r.rolname FROM pg_roles r WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname !~ '^flux_temp_'"
        " AND NOT has_database_privilege(r.oid, current_database(), 'CONNECT') ORDER BY 1"
    ):
        work.notes.append(f"-- {role} can no longer connect; if it should: pool prepare --allow {role}")


async def _close_here(work: Preparation, heirs: str | None) -> None:
    """What hangs on this database's own schema `public` and functions; *heirs* keep the functions."""
    if await work.names(
        "SELECT 1 FROM pg_namespace WHERE nspname = 'public' AND has_schema_privilege('public', oid, 'CREATE')"
    ):
        await work.change("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    for function in await work.names(
        _OPEN_FUNCTIONS + " AND has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY 1"
    ):
        await work.change(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        if heirs:
            await work.change(f"GRANT EXECUTE ON FUNCTION {function} TO {quoted(heirs)}")


async def _other_databases(link: Any) -> list[str]:
    rows = await link.fetch(
        "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2"
        " AND datname <> current_database() ORDER BY 1"
    )
    return [str(row[0]) for row in rows]


async def _close_elsewhere(work: Preparation, url: Secret, database: str) -> None:
    async with connection(url, f"The pool's database {database}") as link:
        there = dataclasses.replace(work, link=link, changes=[])
        async with _transaction(there):
            await _close_here(there, None)
    work.changes += [f"{change} -- in {database}" for change in there.changes]


async def make_tenant(settings: Settings, project: uuid.UUID, schema: str, short_id: str) -> None:
    """
    A v2 project's schema, its owner and its runtime role in the pool; adopted for our service, ready to be minted for.

    What exists is kept as it is: a project of the existing platform can be registered.

    Raises:
        OperatorError: the pool is unreachable, was never prepared, or refused.
    """
    admin = _admin(settings)
    if settings.pool_url is None:
        raise OperatorError("FLUXPLANE_POOL_URL is not set: it names the service's own login on the pool.")
    try:
        async with connection(admin, "The pool") as link, link.transaction():
            if not await link.fetchval("SELECT to_regprocedure('flux_plane.ensure(uuid)') IS NOT NULL"):
                raise OperatorError("The pool has none of our functions yet: run `fluxplane pool prepare`.")
            await _make_schema(link, schema, short_id)
            login = user_of(settings.pool_url, _SERVICE_URL)
            await link.execute("SELECT flux_plane.adopt($1, $2, $3)", project, schema, login)
            # As the service will: `ensure` works for the login's own tenants only.
            await link.execute(f"SET LOCAL SESSION AUTHORIZATION {quoted(login)}")
            await link.execute("SELECT flux_plane.ensure($1)", project)
    except DatabaseFailure as failure:
        raise OperatorError(f"The pool refused the project: {describe(failure)}.") from failure


async def _make_schema(link: Any, schema: str, short_id: str) -> None:
    owner, runtime = quoted(f"t_{short_id}_ddl"), quoted(f"t_{short_id}_role")
    how = " WITH INHERIT TRUE, SET FALSE" if await _sixteen(link) else ""
    for role in (f"t_{short_id}_ddl", f"t_{short_id}_role"):
        if not await link.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await link.execute(f"CREATE ROLE {quoted(role)} NOLOGIN")
        await link.execute(f"GRANT {quoted(TENANTS)} TO {quoted(role)}{how}")
    if await link.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
        return
    name = quoted(schema)
    await link.execute(f"CREATE SCHEMA {name} AUTHORIZATION {owner}")
    await link.execute(f"GRANT USAGE ON SCHEMA {name} TO {runtime}")
    default = f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {name} GRANT"
    await link.execute(f"{default} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {runtime}")
    await link.execute(f"{default} USAGE, SELECT ON SEQUENCES TO {runtime}")


async def make_asyncpg_pool(url: Secret) -> asyncpg.Pool[asyncpg.Record]:
    """The service's connections; none is opened before it is needed, so that a plane starts while its pool is down."""
    return await asyncpg.create_pool(
        url.reveal(),
        min_size=0,
        max_size=16,
        timeout=10,
        command_timeout=20,
        server_settings={
            "search_path": "pg_catalog, pg_temp",
            "application_name": "fluxplane",
            "lock_timeout": "5s",
        },
    )

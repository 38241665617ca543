"""
What a database holds, counted in one snapshot: what a restore of its dump must hold too.

The rows are counted in the very snapshot that pg_dump reads (`pg_export_snapshot`), so that a busy table is no excuse.
Sequences are outside every snapshot, and a materialised view is refreshed by the restore: neither is counted. Whoever
counts has more power than the tables' owners, who may swap a table for a view that calls a function of theirs
(CVE-2024-7348): no view and no foreign table is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

import asyncpg
import msgspec

from fluxplane.backups.programs import CONNECT_WITHIN_S, BackupFailed, Login

COUNT_WITHIN_S: Final = 3600
LOCK_WITHIN: Final = "30s"
TOLD_DIFFERENCES: Final = 5

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    `tables`: rows of each, by its quoted name.

    The rest is what a restore needs and the dump does not hold: `roles` (of a schema: those its policies name),
    `extensions` with their schemas, and for a schema `functions`: those of the platform's schema `auth`, which
    policies call.
    """

    server_version: int
    tables: dict[str, int]
    large_objects: int = 0
    roles: list[str] = []
    extensions: dict[str, str] = {}
    functions: list[str] = []

    @property
    def major(self) -> int:
        return self.server_version // 10_000


@contextlib.asynccontextmanager
async def connected(login: Login) -> AsyncIterator[Connection]:
    """
    A connection that finds nothing but what it names, and waits for no lock longer than `LOCK_WITHIN`.

    Raises:
        BackupFailed: it cannot be had.
    """
    settings = {
        "search_path": "",
        "application_name": "fluxplane backup",
        "lock_timeout": LOCK_WITHIN,
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
    try:
        connection = await asyncpg.connect(
            host=login.host,
            port=login.port,
            user=login.user,
            password=login.password.reveal(),
            database=login.database,
            ssl="disable" if login.host.startswith("/") else "prefer",
            timeout=CONNECT_WITHIN_S,
            command_timeout=COUNT_WITHIN_S,
            server_settings=settings,
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failure:
        raise BackupFailed(f"The database cannot be reached: {failure}") from failure
    try:
        yield connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failure:
        raise BackupFailed(f"The database refused: {failure}") from failure
    finally:
        await _closed(connection)


async def _closed(connection: Connection) -> None:
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        connection.terminate()


@contextlib.asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[str]:
    """A read-only transaction, and the name by which pg_dump joins its snapshot while the block runs."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield str(await connection.fetchval("SELECT pg_catalog.pg_export_snapshot()"))


async def take(connection: Connection, schema: str | None) -> Manifest:
    """Of one *schema*, or of the whole database with its large objects. Counts for as long as that takes."""
    await connection.execute(_RESTRICT)
    tables = await connection.fetch(_TABLES, schema)
    return Manifest(
        server_version=int(await connection.fetchval("SHOW server_version_num")),
        tables={row["name"]: await _rows(connection, row["name"]) for row in tables},
        large_objects=0 if schema else await connection.fetchval(_LARGE_OBJECTS),
        roles=[row["name"] for row in await connection.fetch(_ROLES, schema)],
        extensions={row["name"]: row["schema"] for row in await connection.fetch(_EXTENSIONS)},
        functions=[row["text"] for row in await connection.fetch(_FUNCTIONS)] if schema else [],
    )


def differences(dumped: Manifest, restored: Manifest) -> list[str]:
    """What the restore lacks, has too much, or has another number of; empty if it is the same."""
    lost = [f"{name} is missing" for name in dumped.tables if name not in restored.tables]
    extra = [f"{name} should not be there" for name in restored.tables if name not in dumped.tables]
    wrong = [
        f"{name} has {restored.tables[name]} rows instead of {rows}"
        for name, rows in dumped.tables.items()
        if restored.tables.get(name, rows) != rows
    ]
    objects = f"{restored.large_objects} large objects instead of {dumped.large_objects}"
    return lost + extra + wrong + ([objects] if restored.large_objects != dumped.large_objects else [])


async def _rows(connection: Connection, table: str) -> int:
    return int(await connection.fetchval(f"SELECT pg_catalog.count(*) FROM ONLY {table}"))


def quoted(identifier: str) -> str:
    """An SQL identifier that holds anything, and a pg_dump pattern that means only this name."""
    return '"' + identifier.replace('"', '""') + '"'


def encode(manifest: Manifest) -> str:
    return msgspec.json.encode(manifest).decode()


def decode(text: str) -> Manifest:
    return msgspec.json.decode(text, type=Manifest)


# Minor releases before August 2024 do not know the setting.
_RESTRICT: Final = """
SELECT pg_catalog.set_config(name, 'view, foreign-table', false)
FROM pg_catalog.pg_settings WHERE name = 'restrict_nonsystem_relation_kind'
"""
_MEMBER: Final = """
EXISTS (SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
_OURS: Final = "($1::text IS NULL AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' OR n.nspname = $1)"
_TABLES: Final = f"""
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_OURS} AND NOT {_MEMBER}
ORDER BY 1
"""
_LARGE_OBJECTS: Final = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata"
_ROLES: Final = """
SELECT r.rolname::text AS name FROM pg_catalog.pg_roles r
WHERE r.rolname !~ '^pg_' AND ($1::text IS NULL OR EXISTS (
    SELECT FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND r.oid = ANY (p.polroles)))
ORDER BY 1
"""
_FUNCTIONS: Final = """
SELECT pg_catalog.pg_get_functiondef(p.oid) AS text
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE n.nspname = 'auth' AND p.prokind = 'f' AND l.lanname IN ('sql', 'plpgsql') ORDER BY 1
"""
_EXTENSIONS: Final = """
SELECT e.extname::text AS name, n.nspname::text AS schema
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname <> 'plpgsql' ORDER BY 1
"""


def told(found: list[str]) -> str:
    """The first differences in one line."""
    more = len(found) - TOLD_DIFFERENCES
    return "; ".join(found[:TOLD_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")

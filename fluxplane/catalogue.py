"""
The control plane's own database: how it is made, reached and brought up to date.

It is a database of its own, which nobody but the service (and superusers) may CONNECT to. The service's login owns
nothing in it, so that it cannot rewrite the audit. The tables themselves: `schema.sql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.resources
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

from fluxplane import keychain
from fluxplane.settings import OperatorError, Settings, database_of, in_database, password_of, user_of
from fluxplane.wire import Secret

CONNECT_TIMEOUT_S: Final = 10
COMMAND_TIMEOUT_S: Final = 20
_SERVICE: Final = "FLUXPLANE_CATALOGUE_URL"

# What Postgres and the way to it can fail with; everything else is our mistake and may surface.
DatabaseFailure: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

# Of these, those that waiting may mend.
DatabaseAway: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """The catalogue's connections, its id (which names the marker role in pools), and the keychain of its secrets."""

    db: asyncpg.Pool[asyncpg.Record]
    id: str
    keys: keychain.Keychain


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Catalogue]:
    """
    Raises:
        OperatorError: it cannot be reached, was never migrated, or is of another version.
    """
    keys = keychain.load(settings)
    try:
        db = await asyncpg.create_pool(
            settings.catalogue_url.reveal(),
            min_size=1,
            max_size=20,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"search_path": "flux", "application_name": "fluxplane"},
        )
    except DatabaseFailure as failure:
        raise OperatorError(
            f"The catalogue's database cannot be reached: {describe(failure)}. Was `fluxplane migrate` run?"
        ) from failure
    try:
        yield Catalogue(db=db, id=await _identify(db), keys=keys)
    finally:
        await close_pool(db, within_s=CONNECT_TIMEOUT_S)


async def close_pool(db: asyncpg.Pool[asyncpg.Record], *, within_s: float) -> None:
    """
    Politely, and after *within_s* at once.

    A connection whose user was cancelled is still on its way back: asyncpg shields that, and where the connection is
    gone meanwhile, an exception that nobody looks at is logged with its traceback.
    """
    try:
        async with asyncio.timeout(within_s):
            await db.close()
    except TimeoutError:
        db.terminate()


async def _identify(db: asyncpg.Pool[asyncpg.Record]) -> str:
    try:
        row = await db.fetchrow("SELECT id, version FROM catalogue")
    except asyncpg.PostgresError as failure:
        raise OperatorError("The catalogue has no tables yet: run `fluxplane migrate`.") from failure
    if row is None or row["version"] != len(_versions()):
        raise OperatorError("The catalogue's tables are of another version: run `fluxplane migrate`.")
    return str(row["id"])


@contextlib.asynccontextmanager
async def connection(url: Secret, what: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """
    One connection that looks up nothing but pg_catalog, whatever was planted in `public`.

    Raises:
        OperatorError: it cannot be had; *what* is how the text calls the server.
    """
    try:
        link = await asyncpg.connect(
            url.reveal(),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"search_path": "pg_catalog, pg_temp", "application_name": "fluxplane"},
        )
    except DatabaseFailure as failure:
        raise OperatorError(f"{what} cannot be reached: {describe(failure)}.") from failure
    try:
        yield link
    finally:
        await close(link)


async def close(link: asyncpg.Connection[asyncpg.Record]) -> None:
    """Politely for a moment, then at once; never raises."""
    try:
        async with asyncio.timeout(2):
            await link.close()
    except (*DatabaseFailure, asyncio.CancelledError):
        link.terminate()
        raise_if_cancelled()


def raise_if_cancelled() -> None:
    """What was caught may have been our own cancelling; then it passes."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def describe(failure: BaseException) -> str:
    """One line for an operator. Postgres' own text, which names roles and databases but never a password."""
    if isinstance(failure, TimeoutError):
        return "no answer in time"
    text = getattr(failure, "message", None) or getattr(failure, "strerror", None) or str(failure)
    return " ".join(str(text).split()).rstrip(".") or type(failure).__name__


async def migrate(settings: Settings) -> list[str]:
    """
    Make the database and the service's login where they are missing, then run what `schema.sql` has that the database
    has not. Rerunnable; answers what it changed.

    Raises:
        OperatorError: no administrator's URL, or a step was refused.
    """
    admin = _admin(settings)
    database = database_of(settings.catalogue_url, _SERVICE)
    changes: list[str] = []
    try:
        async with connection(admin, "The catalogue's server") as server:
            changes += await _make_login(server, settings)
            changes += await _make_database(server, database)
        async with connection(in_database(admin, database), "The catalogue's database") as link:
            changes += await _bring_up(link, user_of(settings.catalogue_url, _SERVICE), database)
    except DatabaseFailure as failure:
        raise OperatorError(f"The catalogue could not be migrated: {describe(failure)}.") from failure
    return changes


def _admin(settings: Settings) -> Secret:
    if settings.catalogue_admin_url is None:
        raise OperatorError("FLUXPLANE_CATALOGUE_ADMIN_URL is not set: `fluxplane migrate` needs a superuser's login.")
    if user_of(settings.catalogue_admin_url, "FLUXPLANE_CATALOGUE_ADMIN_URL") == user_of(
        settings.catalogue_url, _SERVICE
    ):
        raise OperatorError("FLUXPLANE_CATALOGUE_URL must be a login of its own: a superuser could rewrite the audit.")
    return settings.catalogue_admin_url


async def make_login(link: asyncpg.Connection[asyncpg.Record], login: str, password: Secret) -> list[str]:
    """A login role with this password and no powers; its verifier is sent, never the password."""
    known = await link.fetchrow("SELECT rolpassword, rolcanlogin, rolsuper FROM pg_authid WHERE rolname = $1", login)
    if known is not None and known["rolsuper"]:
        raise OperatorError(f'The service\'s login "{login}" is a superuser; give the service one of its own.')
    if known is not None and known["rolcanlogin"] and keychain.verifies(known["rolpassword"], password):
        return []
    verb = "CREATE" if known is None else "ALTER"
    verifier = keychain.scram_verifier(password, secrets.token_bytes(16))
    await link.execute(f"{verb} ROLE {quoted(login)} LOGIN INHERIT NOCREATEROLE NOCREATEDB PASSWORD '{verifier}'")
    return [f"{verb} ROLE {login} LOGIN"]


async def _make_login(link: asyncpg.Connection[asyncpg.Record], settings: Settings) -> list[str]:
    return await make_login(
        link, user_of(settings.catalogue_url, _SERVICE), password_of(settings.catalogue_url, _SERVICE)
    )


async def _make_database(link: asyncpg.Connection[asyncpg.Record], database: str) -> list[str]:
    if await link.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
        return []
    # From template0: nobody can have planted anything there.
    await link.execute(f"CREATE DATABASE {quoted(database)} TEMPLATE template0 ENCODING 'UTF8'")
    return [f"CREATE DATABASE {database}"]


async def _bring_up(link: asyncpg.Connection[asyncpg.Record], login: str, database: str) -> list[str]:
    async with link.transaction():
        changes = await _close_database(link, login, database)
        await link.execute("CREATE SCHEMA IF NOT EXISTS flux")
        await link.execute(
            "CREATE TABLE IF NOT EXISTS flux.catalogue (id text NOT NULL, version integer NOT NULL,"
            " one boolean PRIMARY KEY DEFAULT true CHECK (one))"
        )
        await link.execute("LOCK TABLE flux.catalogue IN ACCESS EXCLUSIVE MODE")
        await link.execute(
            "INSERT INTO flux.catalogue (id, version) VALUES ($1, 0) ON CONFLICT DO NOTHING", secrets.token_hex(6)
        )
        row = await link.fetchrow("SELECT id, version FROM flux.catalogue")
        assert row is not None
        return changes + await _apply(link, login, str(row["id"]), int(row["version"]))


async def _close_database(link: asyncpg.Connection[asyncpg.Record], login: str, database: str) -> list[str]:
    """Nobody but the service may CONNECT."""
    may = "SELECT has_database_privilege({}, current_database(), 'CONNECT')"
    changes = []
    if await link.fetchval(may.format("'public'")):
        await link.execute(f"REVOKE ALL ON DATABASE {quoted(database)} FROM PUBLIC")
        changes.append(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    if not await link.fetchval(may.format("$1"), login):
        await link.execute(f"GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(login)}")
        changes.append(f"GRANT CONNECT ON DATABASE {database} TO {login}")
    return changes


async def _apply(link: asyncpg.Connection[asyncpg.Record], login: str, catalogue_id: str, version: int) -> list[str]:
    audit = f"flux_audit_{catalogue_id}"
    if not await link.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", audit):
        await link.execute(f"CREATE ROLE {quoted(audit)} NOLOGIN")
    await link.execute(f"GRANT USAGE ON SCHEMA flux TO {quoted(login)}, {quoted(audit)}")
    await link.execute("SET LOCAL search_path = flux")
    changes = []
    for number, text in enumerate(_versions(), start=1):
        if number > version:
            await link.execute(text.replace("{service}", quoted(login)).replace("{audit}", quoted(audit)))
            await link.execute("UPDATE catalogue SET version = $1", number)
            changes.append(f"catalogue version {number}")
    return changes


def _versions() -> list[str]:
    text = importlib.resources.files("fluxplane").joinpath("schema.sql").read_text()
    return re.split(r"^-- version \d+\n", text, flags=re.MULTILINE)[1:]


def quoted(identifier: str) -> str:
    """An SQL identifier that holds anything."""
    return '"' + identifier.replace('"', '""') + '"'


def row_dict(row: asyncpg.Record) -> dict[str, Any]:
    return dict(row.items())

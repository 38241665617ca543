"""
Is the platform as it should be? Each check is one line: ok, warn or fail, and what to do.

It asks again what `pool prepare` and `migrate` did, because new databases come open and roles come later.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Final, Literal

from fluxplane import catalogue, grants, pool, roles
from fluxplane.backups import programs
from fluxplane.backups import store as backup_store
from fluxplane.catalogue import Catalogue, DatabaseFailure, describe
from fluxplane.roles import PoolFailed, Roles
from fluxplane.settings import OperatorError, Settings

SHOWN: Final = 5
Verdict = Literal["ok", "warn", "fail", "skip"]


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    message: str
    hint: str | None = None


async def examine(settings: Settings) -> list[Check]:
    """Every check that can be made; none raises."""
    try:
        async with catalogue.connect(settings) as store:
            return [
                Check("catalogue", "ok", f"reached, catalogue {store.id}"),
                *await _catalogue(store),
                *await _pool(settings, store),
                *await _backups(settings, store),
            ]
    except (OperatorError, *DatabaseFailure) as failure:
        return [Check("catalogue", "fail", str(failure) or describe(failure))]


async def _catalogue(store: Catalogue) -> list[Check]:
    row = await store.db.fetchrow(
        "SELECT has_database_privilege('public', current_database(), 'CONNECT') AS open,"
        " has_table_privilege('flux.audit', 'INSERT, UPDATE, DELETE, TRUNCATE') AS rewrites,"
        " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS super"
    )
    assert row is not None
    checks = [
        Check("catalogue closed", "fail", "everybody may connect to its database", "Run `fluxplane migrate`.")
        if row["open"]
        else Check("catalogue closed", "ok", "only the service may connect"),
        Check("audit", "fail", "the service's login could rewrite it", "Give FLUXPLANE_CATALOGUE_URL a plain login.")
        if row["rewrites"] or row["super"]
        else Check("audit", "ok", "append-only for the service"),
    ]
    resisting = await grants.resisting(store)
    checks += [
        Check("roles", "fail", f"{one.username} resists ({one.attempts} attempts): {one.last_error or 'no answer yet'}")
        for one in resisting
    ]
    return checks if resisting else [*checks, Check("roles", "ok", "none resists its end")]


async def _pool(settings: Settings, store: Catalogue) -> list[Check]:
    async with roles.connect(settings) as pool_roles:
        if pool_roles is None:
            return [Check("pool", "skip", "none is configured (FLUXPLANE_POOL_URL)")]
        try:
            return [*await _service(pool_roles), *await _drift(settings, store)]
        except PoolFailed as failure:
            return [Check("pool", "fail", f"{failure}", "Is it up, and was `fluxplane pool prepare` run?")]


async def _service(pool_roles: Roles) -> list[Check]:
    """What the service's own login can see."""
    checks = [Check("pool", "ok", f"reached; {len(await pool_roles.live())} temporary roles of ours")]
    checks += [
        Check("pool closed", "warn", text, "Run `fluxplane pool prepare`.") for text in await pool_roles.not_enforced()
    ]
    checks += [
        Check("foreign role", "warn", f"{name} has expired and is not ours", "Its own plane must drop it.")
        for name in await pool_roles.foreign()
    ]
    if await pool_roles.may_prepare_transactions():
        message = "temporary roles may prepare transactions, whose locks outlive their sessions"
        checks.append(Check("prepared transactions", "warn", message, "Unless needed: max_prepared_transactions = 0."))
    return checks


async def _drift(settings: Settings, store: Catalogue) -> list[Check]:
    """What a run of `pool prepare` would change now; known only with a superuser's login."""
    if settings.pool_admin_url is None:
        return [Check("pool prepared", "skip", "FLUXPLANE_POOL_ADMIN_URL is not set")]
    try:
        changes = await pool.prepare(settings, store, dry_run=True)
    except OperatorError as failure:
        return [Check("pool prepared", "fail", str(failure))]
    if pending := [change for change in changes if not change.startswith("--")]:
        rest = f" and {len(pending) - SHOWN} more" if len(pending) > SHOWN else ""
        what = "a run would change: " + "; ".join(pending[:SHOWN]) + rest
        return [Check("pool prepared", "warn", what, "Run `fluxplane pool prepare`.")]
    return [Check("pool prepared", "ok", "nothing to change")]


# ----------------------------------------------------------------------- backups


async def _backups(settings: Settings, store: Catalogue) -> list[Check]:
    places = [_directory("backup directory", settings.backups.directory, "FLUX_BACKUPS_LOCAL_DIR")]
    if (offsite := settings.backups.offsite) is not None:
        places.append(_offsite(offsite))
    return [await _programs(), await _backup_login(settings), *places, await _freshness(settings, store)]


async def _programs() -> Check:
    found = sorted((one.major for one in await programs.installations()), reverse=True)
    if not found:
        return Check("backup programs", "warn", "there is no PostgreSQL here to dump and verify with", _INSTALL)
    return Check("backup programs", "ok", f"PostgreSQL {', '.join(map(str, found))}")


_INSTALL: Final = "Install the servers' major version with its contrib package."


async def _backup_login(settings: Settings) -> Check:
    if settings.pool_backup_url is None:
        verdict: Verdict = "skip" if settings.pool_url is None else "warn"
        return Check("backup login", verdict, "FLUXPLANE_POOL_BACKUP_URL is not set: v2 projects have no backups")
    try:
        async with catalogue.connection(settings.pool_backup_url, "The pool, by its login for backups,") as link:
            whole = await link.fetchval(
                "SELECT rolbypassrls AND pg_has_role(oid, 'pg_read_all_data', 'USAGE') AND NOT rolsuper"
                " FROM pg_roles WHERE rolname = current_user"
            )
    except OperatorError as failure:
        return Check("backup login", "fail", str(failure), "Run `fluxplane pool prepare`.")
    if not whole:
        return Check("backup login", "fail", "it reads too little or may do too much", "Run `fluxplane pool prepare`.")
    return Check("backup login", "ok", "reads whole tenants, and no more")


def _offsite(place: Path) -> Check:
    if not place.is_dir():
        why = f"{place} is not there: is it mounted?"
        return Check("backup offsite", "fail", why, "It is never made, so that nothing is copied beside it.")
    return _directory("backup offsite", place, "FLUX_BACKUPS_OFFSITE_DIR")


def _directory(name: str, place: Path, setting: str) -> Check:
    there = next(one for one in (place, *place.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as failure:
        why = f"{place} cannot be written: {failure.strerror}"
        return Check(name, "fail", why, f"See {setting}.")
    free = shutil.disk_usage(there).free
    return Check(name, "ok", f"{place}, {free / 1e9:.1f} GB free")


async def _freshness(settings: Settings, store: Catalogue) -> Check:
    """Warns of active projects without a recent verified backup."""
    stale = await backup_store.without_fresh(store, settings.backups.interval_days)
    if stale:
        some = ", ".join(stale[:SHOWN]) + (f" and {len(stale) - SHOWN} more" if len(stale) > SHOWN else "")
        days = settings.backups.interval_days
        hint = "FLUXPLANE_BACKUP_SCHEDULE=1 makes one an hour."
        return Check("backups", "warn", f"no verified backup of the last {days} days: {some}", hint)
    return Check("backups", "ok", "every active project has a recent verified one")

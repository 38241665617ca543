"""
Is the platform as it should be? Each check is one line: ok, warn or fail, and what to do.

It asks again what `pool prepare` and `migrate` did, because new databases come open and roles come later.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from fluxplane import catalogue, grants, pool, roles
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

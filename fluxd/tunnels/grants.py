"""
Every grant from before it is asked for until its end is confirmed: the ledger over `fluxd.journal`.

Asking is three steps, each durable before the next: written down, asked for, answered. Ending never fails, it only
takes time: a grant that shall end is marked so on disk and the control plane is asked again and again, until it
confirms or the grant would be over anyhow. A plane that cannot revoke is not asked; its roles end at their expiry.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.backoff import Backoff
from fluxd.core.errors import (
    FluxError,
    Forbidden,
    GrantFailed,
    LeaseOver,
    NotAuthenticated,
    NotSupportedByPlane,
    PlaneUnreachable,
    ProjectNotAvailable,
    ProjectNotFound,
    RateLimited,
    ReadwriteDisabled,
    StateUnwritable,
    TTLOutOfRange,
)
from fluxd.core.lease import MAX_LIFE_S, Lease
from fluxd.journal import GrantRecord, Journal, Key
from fluxd.plane import Caller, ControlPlane, Granted, Tokens
from fluxplane.wire import GrantRequest, Secret

log = logging.getLogger(__name__)

# After these the plane has certainly made no role.
_REFUSED: Final = (
    Forbidden,
    NotAuthenticated,
    ProjectNotAvailable,
    ProjectNotFound,
    RateLimited,
    ReadwriteDisabled,
    TTLOutOfRange,
)
REVOCATIONS_AT_ONCE: Final = 4
# The plane ends a role at its expiry by itself; this much later we stop asking.
SLACK_S: Final = 60.0
ASK_TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Terms:
    """What a grant is asked for with."""

    caller: Caller
    key: Key
    project: str
    extensions: Collection[str]
    ttl_s: int | None = None
    reason: str | None = None
    tunnel: str | None = None
    hold: str | None = None


@dataclass(frozen=True, slots=True)
class Minted:
    """A live grant with its password, for the one who asked."""

    record: GrantRecord
    password: Secret
    notices: tuple[str, ...]


class Grants:
    """The ledger. Every change is in the journal before anybody relies on it."""

    def __init__(self, *, control: ControlPlane, tokens: Tokens, journal: Journal, clock: Clock) -> None:
        self._control = control
        self._tokens = tokens
        self._journal = journal
        self._clock = clock
        # In memory only: a restarted daemon has neither.
        self._callers: dict[str, Caller] = {}
        self._passwords: dict[str, Secret] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(REVOCATIONS_AT_ONCE)

    # ------------------------------------------------------------------ asking

    async def write_down(self, terms: Terms) -> GrantRecord:
        """
        A new grant's id, on disk. Nobody has heard of it yet.

        Raises:
            StateUnwritable: then nothing is to be asked for.
        """
        record = GrantRecord(
            grant_id=secrets.token_hex(16),
            key=terms.key,
            project=terms.project,
            state="asked",
            asked_at=self._clock.now(),
            asked_wall=self._clock.wall(),
            boot_id=self._clock.boot_id(),
            revocable={"grant_id", "revoke"} <= set(terms.extensions),
            tunnel=terms.tunnel,
            hold=terms.hold,
        )
        self._journal.grants[record.grant_id] = record
        self._callers[record.grant_id] = terms.caller
        try:
            await self._journal.commit()
        except BaseException:
            self._drop(record)
            raise
        return record

    async def ask(self, record: GrantRecord, terms: Terms) -> Minted:
        """
        The role that was written down as *record*. If this fails or is cancelled, it is ended.

        Raises:
            FluxError: the plane refused or failed.
        """
        try:
            granted = await self._ask(record, terms)
            self._note(record, granted)
            await self._journal.commit()
        except _REFUSED:
            self._drop(record)
            await self.settle()
            raise
        except BaseException:
            self.end(record.grant_id)
            raise
        return Minted(record, granted.grant.password, granted.notices)

    async def _ask(self, record: GrantRecord, terms: Terms) -> Granted:
        request = GrantRequest(
            access=terms.key.access, ttl_seconds=terms.ttl_s, grant_id=record.grant_id, reason=terms.reason
        )
        # With an id, asking twice gives the same role; without one it might give two.
        tries = ASK_TRIES if "grant_id" in terms.extensions else 1
        while True:
            tries -= 1
            try:
                return await self._control.grant(
                    terms.caller, terms.key.hash, request, extensions=list(terms.extensions)
                )
            except PlaneUnreachable:
                if not tries:
                    raise

    def _note(self, record: GrantRecord, granted: Granted) -> None:
        grant = granted.grant
        record.state = "live"
        record.username = grant.username
        record.lease = Lease.granted(
            self._clock.now(), self._clock.wall(), granted.remaining_s, granted.max_remaining_s
        )
        record.tenant_schema, record.search_path = grant.tenant_schema, grant.search_path
        record.rls_tables = grant.rls_tables
        self._passwords[record.grant_id] = grant.password

    # ----------------------------------------------------------------- knowing

    def live(self, tunnel: str) -> list[GrantRecord]:
        """The grants of *tunnel* that may be used, the one that ends last at the end."""
        return sorted((record for record in self.of(tunnel) if record.state == "live" and record.lease), key=_end)

    def of(self, tunnel: str) -> list[GrantRecord]:
        """Every grant of *tunnel* that is not confirmed to have ended, in whatever state."""
        return [record for record in self._journal.grants.values() if record.tunnel == tunnel]

    def bare(self) -> list[GrantRecord]:
        """The live grants that belong to no tunnel."""
        return [one for one in self._journal.grants.values() if one.tunnel is None and one.state == "live"]

    def pending(self) -> int:
        """How many shall end and are not confirmed yet."""
        return sum(record.state == "ending" for record in self._journal.grants.values())

    def password(self, record: GrantRecord) -> Secret | None:
        """Only where this very process asked for it."""
        return self._passwords.get(record.grant_id)

    # ---------------------------------------------------------------- renewing

    async def renew(self, record: GrantRecord, caller: Caller, ttl_s: int | None) -> None:
        """
        A later end for *record*.

        Raises:
            LeaseOver, RenewLimit, FluxError: it keeps the end it has.
        """
        if record.lease is None:
            raise LeaseOver
        if not record.revocable:
            raise NotSupportedByPlane
        asked = record.lease.renewal_ttl_s(self._clock.now(), ttl_s)
        renewal = await self._control.renew(caller, record.grant_id, asked)
        self._callers[record.grant_id] = caller
        if record.state != "live" or record.lease is None:
            raise LeaseOver
        record.lease = record.lease.renewed(self._clock.now(), renewal.remaining_s)
        await self._journal.commit()

    # ------------------------------------------------------------------ ending

    def end(self, grant_id: str) -> None:
        """See to it that this grant ends, however long it takes. Returns at once; a second call changes nothing."""
        record = self._journal.grants.get(grant_id)
        if record is None or grant_id in self._ending:
            return
        record.state = "ending"
        task = asyncio.create_task(self._end(record))
        self._ending[grant_id] = task
        task.add_done_callback(lambda _: self._ending.pop(grant_id, None))

    async def ended(self, grant_ids: Iterable[str], *, within_s: float) -> bool:
        """Wait until these are confirmed to have ended; False when that takes longer."""
        tasks = [self._ending[one] for one in grant_ids if one in self._ending]
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        return not any(one in self._journal.grants for one in grant_ids)

    def recall(self) -> None:
        """After a restart: leases go on, on this boot's clock."""
        now, wall, boot = self._clock.now(), self._clock.wall(), self._clock.boot_id()
        for record in self._journal.grants.values():
            if record.lease is not None:
                record.lease = record.lease.restored(same_boot=record.boot_id == boot, now=now, wall=wall)
            record.boot_id = boot

    def resume(self, tunnels: Collection[str]) -> None:
        """Around a restart: end what shall end, and whatever nobody can use: only *tunnels* are, or will be, back."""
        for record in list(self._journal.grants.values()):
            useless = record.tunnel is not None and record.tunnel not in tunnels
            if record.state != "live" or useless:
                self.end(record.grant_id)

    async def aclose(self, *, within_s: float, leaving: Collection[str] | None = None) -> None:
        """
        End every grant; what is not confirmed within *within_s* stays journaled for the next daemon.

        With *leaving*, live ones of these tunnels, and bare ones, are the next daemon's as they are.
        """
        if leaving is not None:
            self.resume(leaving)
        else:
            for grant_id in list(self._journal.grants):
                self.end(grant_id)
        tasks = list(self._ending.values())
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.settle()

    async def _end(self, record: GrantRecord) -> None:
        await self.settle()
        backoff = Backoff(cap_s=60.0)
        while record.revocable:
            try:
                if await self._revoked(record):
                    break
                pause = 1.0
            except FluxError as problem:
                log.warning("ending a grant of %s: %s (%s)", record.project, problem.message, problem.code)
                backoff = backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter
                pause = max(backoff.wait_s(self._clock.now()), problem.retry_after_s or 0.0)
            if self._surely_over(record):
                break
            await asyncio.sleep(pause)
        self._drop(record)
        await self.settle()

    async def _revoked(self, record: GrantRecord) -> bool:
        """Whether the plane says that there is no such role (any more)."""
        async with self._at_once:
            token = await self._token(record)
            try:
                answer = await self._control.revoke(record.key.api_base, record.grant_id, token)
            except NotAuthenticated:
                if token is None:
                    raise
                # A token that has expired meanwhile is worse than none: the id is enough.
                answer = await self._control.revoke(record.key.api_base, record.grant_id, None)
            except NotSupportedByPlane:
                return True
        return answer.state != "ending"

    async def _token(self, record: GrantRecord) -> Secret | None:
        if record.grant_id in self._callers:
            return self._callers[record.grant_id].token
        try:
            return await self._tokens.token(record.key.api_base)
        except FluxError:
            return None

    def _surely_over(self, record: GrantRecord) -> bool:
        if record.lease is not None:
            return self._clock.now() > record.lease.ends_at + SLACK_S
        asked = (self._clock.wall() - record.asked_wall).total_seconds()
        return asked > MAX_LIFE_S + SLACK_S

    def _drop(self, record: GrantRecord) -> None:
        for kept in (self._journal.grants, self._callers, self._passwords):
            kept.pop(record.grant_id, None)

    async def settle(self) -> None:
        """Write down what only has to be known after a crash: a full disk must not keep a role alive."""
        try:
            await self._journal.commit()
        except StateUnwritable as problem:
            log.warning("%s %s", problem.message, problem.detail)


def _end(record: GrantRecord) -> float:
    return record.lease.ends_at if record.lease is not None else 0.0


def credential(minted: Minted, now: float) -> wire.Credential:
    """What the caller is told, this once."""
    record = minted.record
    if record.lease is None or record.username is None:
        raise GrantFailed
    return wire.Credential(
        username=record.username,
        password=minted.password,
        access=record.key.access,
        expires_at=record.lease.expires_at,
        remaining_s=record.lease.remaining(now),
        tenant_schema=record.tenant_schema or "",
        search_path=record.search_path,
        rls_tables=record.rls_tables,
        grant_id=record.grant_id,
    )

"""
Ends what is over: wakes for the next expiry, and sweeps roles with our marker that the catalogue does not know.

Any number of replicas may run one each: rows are taken with SKIP LOCKED, so no role is ended twice at once, and a role
that resists is put off alone. A replica hears of earlier expiries by NOTIFY-free polling of one indexed minimum, at
most LOOK_EVERY_S apart, because another replica may mint a shorter lease or die in the middle of an ending.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from fluxplane import audit, grants, registry
from fluxplane.catalogue import Catalogue, DatabaseFailure, describe
from fluxplane.roles import PoolFailed, Roles

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
# While a row is due but another replica holds it: it may have died.
LOOK_AGAIN_S: Final = 0.2
SWEEP_EVERY_S: Final = 30.0
AT_ONCE: Final = 8


class Reaper:
    """One replica's timer. `run` until cancelled; `nudge` when something was ordered to end."""

    def __init__(self, store: Catalogue, roles: Roles) -> None:
        self._store = store
        self._roles = roles
        self._nudged = asyncio.Event()
        self._swept_at = float("-inf")

    def nudge(self) -> None:
        self._nudged.set()

    async def run(self) -> None:
        """For ever. A catalogue or pool that is away is waited for, never fatal."""
        while True:
            pause_s = 1.0
            try:
                pause_s = await self.turn()
            except (*DatabaseFailure, PoolFailed) as failure:
                log.warning("reaper: %s", describe(failure))
            except Exception:
                log.exception("reaper: unexpected, going on")
            self._nudged.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._nudged.wait()
            except TimeoutError:
                pass

    async def turn(self) -> float:
        """Once: order what is over to end, end some of it, sweep if it is time. Answers when to look again (s)."""
        await grants.order_end_of_due(self._store)
        due = await grants.due_to_end(self._store, at_most=AT_ONCE)
        async with asyncio.TaskGroup() as group:
            turns = [group.create_task(self._end(grant_id)) for grant_id in due]
        if any(turn.result() for turn in turns):
            return 0.0
        now = asyncio.get_running_loop().time()
        if now - self._swept_at >= SWEEP_EVERY_S:
            self._swept_at = now
            await self.sweep()
        return LOOK_AGAIN_S if due else await self._until_next()

    async def _until_next(self) -> float:
        left_s = await grants.next_due_in_s(self._store)
        return LOOK_EVERY_S if left_s is None else min(max(left_s, 0.0), LOOK_EVERY_S)

    async def _end(self, grant_id: str) -> bool:
        """One role's trouble is its own: it is put off, and the others go on."""
        try:
            if not await grants.end(self._store, self._roles, grant_id):
                return False
            await _tell(self._store, grant_id)
        except DatabaseFailure as failure:
            log.warning("reaper: grant %s: %s", grant_id, describe(failure))
            return False
        return True

    async def sweep(self) -> None:
        """
        Roles with our marker and no row: a mint that came after its row was ended, a catalogue restored from yesterday.

        The pool is read before the catalogue: a role in the first list had its row committed before it was made.
        """
        for role in await self._roles.live():
            if await grants.adopt_stray(self._store, role.name):
                log.warning("reaper: ending %s, which has our marker and no grant", role.name)
        await grants.forget_old(self._store)


async def _tell(store: Catalogue, grant_id: str) -> None:
    row = await grants.get(store, grant_id)
    project = await registry.project_by_id(store, row.project_id) if row and row.project_id else None
    await grants.ended(store, grant_id, audit.plane(), project)

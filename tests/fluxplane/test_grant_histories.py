"""
Any history of mints, repeats, revocations, renewals, expiries and crashes: what a row says is what the pool has.

Against a real catalogue and a real pool; time passes by moving a row's end into the past.
"""

import asyncio
import contextlib
import secrets
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fluxplane import access, audit, catalogue, grants, reaper, registry, roles
from fluxplane.backups import jobs
from fluxplane.policy import Ask, Refusal
from tests.fluxplane.conftest import FOUNDRY, USER, World

IDS = st.integers(0, 5)


class Histories(RuleBasedStateMachine):
    """`expected`: for each id that was used, whether it lives, is being made, must end, or has ended."""

    world: World

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.ids = [secrets.token_hex(16) for _ in range(6)]
        self.expected: dict[str, str] = {}
        self.shown: dict[str, tuple[str, str]] = {}
        self.run(self.open())

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    async def open(self) -> None:
        enter = self.stack.enter_async_context
        store = await enter(catalogue.connect(self.world.settings))
        pool_roles = await enter(roles.connect(self.world.settings))
        assert pool_roles is not None
        backups = await enter(jobs.running(store, self.world.settings, hourly=False))
        self.plane = access.Plane(self.world.settings, store, pool_roles, backups)
        self.reaper = reaper.Reaper(store, pool_roles)
        project = await registry.find_project(store, USER, FOUNDRY)
        assert project is not None
        self.project = project
        self.actor = audit.Actor(project.user_id, USER, None, "test", audit.plane().request_id)

    def ask(self, number: int) -> Ask:
        return Ask("readonly", 3600, None, self.ids[number])

    @rule(number=IDS)
    def mint(self, number: int) -> None:
        grant_id = self.ids[number]
        before = self.expected.get(grant_id)
        try:
            granted = self.run(access.grant(self.plane, self.actor, self.project, self.ask(number)))
        except Refusal as refusal:
            assert (refusal.status, before in {"over", "ended", "tombstone"}) == (410, True)
            return
        assert before in {None, "live", "making"}
        shown = (granted.username, granted.password.reveal())
        assert self.shown.setdefault(grant_id, shown) == shown
        self.expected[grant_id] = "live"

    @rule(number=IDS, made=st.booleans())
    def crash_while_minting(self, number: int, made: bool) -> None:
        """A replica dies after the row, before or after the role."""
        grant_id = self.ids[number]
        if grant_id in self.expected:
            return
        row, _ = self.run(
            grants.begin(self.plane.store, self.plane.settings.limits, self.actor, self.project, self.ask(number))
        )
        if made:
            verifier = self.plane.store.keys.verifier(row.grant_id, row.nonce)
            self.run(self.plane.pool().mint(self.project.id, row.access, row.username, verifier, row.expires_at))
        self.expected[grant_id] = "making"

    @rule(number=IDS)
    def revoke(self, number: int) -> None:
        grant_id = self.ids[number]
        revoked = self.run(access.revoke(self.plane, self.actor, grant_id))
        known = self.expected.get(grant_id)
        self.expected[grant_id] = "tombstone" if known in {None, "tombstone"} else "ended"
        assert revoked.state == self.expected[grant_id]

    @rule(number=IDS)
    def renew(self, number: int) -> None:
        grant_id = self.ids[number]
        try:
            self.run(access.renew(self.plane, self.actor, grant_id, 7200))
            assert self.expected[grant_id] == "live"
        except Refusal as refusal:
            known = self.expected.get(grant_id)
            assert known != "live"
            assert refusal.status == (404 if known in {None, "tombstone"} else 410)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """A live grant reaches its end; one that is being made counts as abandoned."""
        grant_id = data.draw(st.sampled_from(sorted(self.expected)))
        if self.expected[grant_id] not in {"live", "making"}:
            return
        self.run(
            self.plane.store.db.execute(
                "UPDATE grants SET expires_at = clock_timestamp(), due_at = clock_timestamp() WHERE grant_id = $1",
                grant_id,
            )
        )
        self.expected[grant_id] = "over"

    @rule()
    def reap(self) -> None:
        async def turns() -> None:
            while await self.reaper.turn() == 0:
                pass
            await self.reaper.sweep()

        self.run(turns())
        for grant_id, known in self.expected.items():
            if known == "over":
                self.expected[grant_id] = "ended"

    @invariant()
    def what_the_catalogue_says_is_what_the_pool_has(self) -> None:
        there = {role.name for role in self.run(self.plane.pool().live())}
        for grant_id, known in self.expected.items():
            row = self.run(grants.get(self.plane.store, grant_id))
            assert row is not None
            if known in {"ended", "tombstone"}:
                assert row.state == known
                assert row.username not in there
            if known == "live":
                assert row.state == "live"
                assert row.username in there

    @invariant()
    def no_role_is_owned_twice(self) -> None:
        names = [name for name, _ in getattr(self, "shown", {}).values()]
        assert len(names) == len(set(names))

    def teardown(self) -> None:
        async def close() -> None:
            for grant_id, known in self.expected.items():
                if known != "tombstone":
                    await access.revoke(self.plane, self.actor, grant_id)
            await self.reaper.sweep()
            left = {role.name for role in await self.plane.pool().live()}
            await self.stack.aclose()
            ours = {name for name, _ in self.shown.values()}
            assert not left & ours

        if hasattr(self, "plane"):
            self.run(close())
            self.runner.close()


def test_no_history_leaves_a_role_after_its_lease(world18: World):
    """Whatever happens, and in whatever order, a lease that is over has no role, and a live one has one."""
    machine = type("Here", (Histories,), {"world": world18})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

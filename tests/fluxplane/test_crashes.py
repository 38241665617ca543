"""
A replica killed at each transition of open, renew, close and expiry: the other one finishes, and no role outlives it.

Driven, not timed: a lock that the test holds stops the replica exactly there, the replica is killed (-9) while it
waits, the lock is let go. What a dead client had sent may still be carried out by Postgres: that is part of the case.
"""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.fluxplane.conftest import FOUNDRY, Caller, World, login, roles_in
from tests.fluxplane.test_leases import GONE_WITHIN_S, absent, two_replicas, until


def plane_url(world: World) -> str:
    """The catalogue, as its administrator."""
    return world.server.url(urlsplit(world.settings.catalogue_url.reveal()).path[1:]).reveal()


async def until_true(query: str, url: str, *values: Any, within_s: float = 15.0) -> None:
    give_up_at = time.monotonic() + within_s
    with psycopg.connect(url, autocommit=True) as link:
        while not (link.execute(query, values).fetchone() or (False,))[0]:
            assert time.monotonic() < give_up_at, query
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def held(url: str, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """Locks, until the block ends."""
    with psycopg.connect(url) as link:
        for statement in statements:
            link.execute(statement)
        yield link
        link.rollback()


class Crash:
    """Two replicas of one plane; the first one will die."""

    def __init__(self, world: World, process: Any, first: Caller, second: Caller) -> None:
        self.world, self.first, self.second = world, first, second
        self._process = process
        self.pool = world.server.url().reveal()
        self.catalogue = plane_url(world)
        self.grant_id = secrets.token_hex(16)
        self._asked: list[asyncio.Task[Any]] = []

    def ask(self, method: str, path: str, **body: Any) -> None:
        """Something of the first replica that it will not live to answer."""
        self._asked.append(asyncio.create_task(self.first.ask(method, path, json=body)))

    def mint(self, ttl_s: int = 3600) -> None:
        path = f"/api/cli/v1/projects/{FOUNDRY}/db-access/temporary-credential"
        self.ask("POST", path, grantId=self.grant_id, ttlSeconds=ttl_s)

    async def minted(self, ttl_s: int = 3600) -> dict[str, Any]:
        answer = await self.first.mint(FOUNDRY, grantId=self.grant_id, ttlSeconds=ttl_s)
        assert answer.status == 200
        credential: dict[str, Any] = answer.body
        return credential

    async def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for answer in await asyncio.gather(*self._asked, return_exceptions=True):
            assert isinstance(answer, Exception), "the replica answered: it was not stopped where it should have been"

    async def state(self, *states: str) -> None:
        await until_true(
            "SELECT state = ANY(%s) FROM flux.grants WHERE grant_id = %s", self.catalogue, list(states), self.grant_id
        )

    async def waiting(self, query: str, url: str) -> None:
        """Until a backend of the plane waits for a lock in a statement like *query*."""
        await until_true(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s", url, query
        )

    async def again(self) -> dict[str, Any]:
        """The daemon asks once more, with the same id, whoever answers."""
        answer = await self.second.mint(FOUNDRY, grantId=self.grant_id)
        assert answer.status == 200, answer.body
        credential: dict[str, Any] = answer.body
        return credential

    async def revoke(self) -> None:
        answer = await self.second.ask("DELETE", f"/api/cli/v1/grants/{self.grant_id}")
        assert answer.status in {200, 202}
        await self.state("ended", "tombstone")


@pytest.fixture
async def crash(world18: World, tmp_path: Path) -> AsyncIterator[Crash]:
    before = roles_in(world18.server)
    async with two_replicas(world18, tmp_path) as (process, first, second):
        one = Crash(world18, process, first, second)
        yield one
        give_up_at = time.monotonic() + 10
        while left := roles_in(world18.server) - before:
            assert time.monotonic() < give_up_at, f"left: {left}"
            await asyncio.sleep(0.05)


async def test_open_before_the_row_is_written(crash: Crash):
    with held(crash.catalogue, "LOCK TABLE flux.grants IN EXCLUSIVE MODE"):
        crash.mint()
        await crash.waiting("%INSERT INTO grants%", crash.catalogue)
        await crash.kill()
    with login(crash.world.server, await crash.again()) as session:
        session.execute("SELECT 1")
    await crash.revoke()


async def test_open_between_the_row_and_the_role(crash: Crash):
    with held(crash.pool, "LOCK TABLE flux_plane.tenant IN ACCESS EXCLUSIVE MODE"):
        crash.mint()
        await crash.waiting("%flux_plane.mint%", crash.pool)
        await crash.state("minting")
        await crash.kill()
    with login(crash.world.server, await crash.again()) as session:
        session.execute("SELECT 1")
    await crash.revoke()


async def test_open_between_the_row_and_the_role_and_nobody_asks_again(crash: Crash):
    """The lease is over before the row counts as abandoned: then that ends it."""
    with held(crash.pool, "LOCK TABLE flux_plane.tenant IN ACCESS EXCLUSIVE MODE"):
        crash.mint(ttl_s=3)
        await crash.waiting("%flux_plane.mint%", crash.pool)
        await crash.kill()
    await until_true(
        "SELECT state = 'ended' FROM flux.grants WHERE grant_id = %s", crash.catalogue, crash.grant_id, within_s=6
    )


async def role_without_live(crash: Crash, ttl_s: int) -> None:
    """Stop the first replica after its CREATE ROLE has been committed, before `live` is; and kill it."""
    with contextlib.ExitStack() as until_killed:
        with held(crash.pool, "LOCK TABLE flux_plane.tenant IN ACCESS EXCLUSIVE MODE"):
            crash.mint(ttl_s=ttl_s)
            await crash.waiting("%flux_plane.mint%", crash.pool)
            until_killed.enter_context(held(crash.catalogue, "LOCK TABLE flux.grants IN EXCLUSIVE MODE"))
        await crash.waiting("%SET state = 'live'%", crash.catalogue)
        await crash.kill()


async def test_open_between_the_role_and_live(crash: Crash):
    await role_without_live(crash, 3600)
    with login(crash.world.server, await crash.again()) as session:
        session.execute("SELECT 1")
    await crash.revoke()


async def test_open_between_the_role_and_live_and_the_daemon_revokes(crash: Crash):
    await role_without_live(crash, 3600)
    await crash.revoke()


async def test_open_between_the_role_and_live_and_nobody_asks_again(crash: Crash):
    await role_without_live(crash, 3)
    await until_true(
        "SELECT state = 'ended' FROM flux.grants WHERE grant_id = %s", crash.catalogue, crash.grant_id, within_s=6
    )


async def test_open_after_live_before_the_answer(crash: Crash):
    """The daemon never learns the password; with the same id it does."""
    with held(crash.catalogue, "LOCK TABLE flux.activity IN EXCLUSIVE MODE"):
        crash.mint()
        await crash.waiting("%INSERT INTO activity%", crash.catalogue)
        await crash.state("live")
        await crash.kill()
    first, second = await crash.again(), await crash.again()
    assert (first["username"], first["password"]) == (second["username"], second["password"])
    with login(crash.world.server, first) as session:
        session.execute("SELECT 1")
    await crash.revoke()


async def test_renew_while_the_pool_is_asked(crash: Crash):
    """Nothing was promised: the lease ends when it would have, at the latest when it was asked to."""
    credential = await crash.minted(ttl_s=4)
    path = f"/api/cli/v1/grants/{crash.grant_id}/renew"
    with held(crash.pool, f"ALTER ROLE {credential['username']} CONNECTION LIMIT 8"):
        crash.ask("POST", path, ttlSeconds=600)
        await crash.waiting("%flux_plane.renew%", crash.pool)
        await crash.kill()
    await absent(crash.world, credential, within_s=until(credential["expiresAt"]) + GONE_WITHIN_S)


async def test_close_before_it_is_ordered(crash: Crash):
    credential = await crash.minted(ttl_s=5)
    with held(crash.catalogue, "SELECT 1 FROM flux.grants FOR UPDATE"):
        crash.ask("DELETE", f"/api/cli/v1/grants/{crash.grant_id}")
        await crash.waiting("%SET state = 'ending'%", crash.catalogue)
        await crash.kill()
    await crash.revoke()
    await absent(crash.world, credential, within_s=GONE_WITHIN_S)


async def test_close_between_the_order_and_the_fence(crash: Crash):
    credential = await crash.minted()
    with held(crash.pool, f"ALTER ROLE {credential['username']} CONNECTION LIMIT 8"):
        crash.ask("DELETE", f"/api/cli/v1/grants/{crash.grant_id}")
        await crash.waiting("%flux_plane.fence%", crash.pool)
        await crash.state("ending")
        await crash.kill()
    await absent(crash.world, credential, within_s=GONE_WITHIN_S)
    await crash.state("ended")


async def test_close_between_the_fence_and_the_drop(crash: Crash):
    credential = await crash.minted()
    with contextlib.closing(login(crash.world.server, credential)) as session:
        with held(crash.pool, f"GRANT USAGE ON SCHEMA public TO {credential['username']}"):
            crash.ask("DELETE", f"/api/cli/v1/grants/{crash.grant_id}")
            await crash.waiting("%flux_plane.drop%", crash.pool)
            await crash.kill()
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    await absent(crash.world, credential, within_s=GONE_WITHIN_S)
    await crash.state("ended")


async def test_close_between_the_drop_and_ended(crash: Crash):
    credential = await crash.minted()
    with contextlib.ExitStack() as until_killed:
        with held(crash.pool, f"GRANT USAGE ON SCHEMA public TO {credential['username']}"):
            crash.ask("DELETE", f"/api/cli/v1/grants/{crash.grant_id}")
            await crash.waiting("%flux_plane.drop%", crash.pool)
            until_killed.enter_context(held(crash.catalogue, "LOCK TABLE flux.grants IN SHARE MODE"))
        await crash.waiting("%SET state = 'ended'%", crash.catalogue)
        assert credential["username"] not in roles_in(crash.world.server)
        await crash.kill()
    await crash.state("ended")


async def test_expiry_while_a_replica_ends_the_role(crash: Crash):
    """Whichever replica took the row: after the first one's death the second ends it."""
    credential = await crash.minted(ttl_s=2)
    with held(crash.pool, f"GRANT USAGE ON SCHEMA public TO {credential['username']}"):
        await crash.waiting("%flux_plane.drop%", crash.pool)
        await crash.kill()
    await absent(crash.world, credential, within_s=GONE_WITHIN_S)
    await crash.state("ended")

"""A lease ends on time: by the reaper, whatever the role did, whichever replica died; renewals, caps and refusals."""

import asyncio
import contextlib
import datetime as dt
import json
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from fluxplane import catalogue, registry
from fluxplane.settings import Limits, Settings
from fluxplane.wire import Secret
from tests.fluxplane.conftest import FOUNDRY, NEIGHBOUR, USER, Caller, World, leftovers, login, roles_in
from tests.fluxplane.test_ending import advisory_lock, default_privileges, large_object, prepared_transaction
from tests.furniture.processes import clean_environment, command

CUT_WITHIN_S = 1.0
GONE_WITHIN_S = 2.0


def until(moment: str) -> float:
    """Seconds from now to an answer's `expiresAt`."""
    return (dt.datetime.fromisoformat(moment) - dt.datetime.fromtimestamp(time.time(), dt.UTC)).total_seconds()


async def absent(world: World, credential: dict[str, Any], *, within_s: float) -> None:
    """The role and its sessions are gone, at the latest *within_s* from now."""
    give_up_at = time.monotonic() + within_s
    query = (
        "SELECT (SELECT count(*) FROM pg_roles WHERE rolname = %(name)s)"
        " + (SELECT count(*) FROM pg_stat_activity WHERE usename = %(name)s)"
    )
    with world.admin() as link:
        while link.execute(query, {"name": credential["username"]}).fetchone() != (0,):
            assert time.monotonic() < give_up_at, f"{credential['username']} outlives its lease"
            await asyncio.sleep(0.02)


def cut_off(session: psycopg.Connection[Any]) -> str | None:
    """Wait, connected and idle, until the server says something; the SQLSTATE it said it with."""
    try:
        session.execute("SELECT pg_sleep(60)")
    except psycopg.Error as failure:
        return failure.sqlstate
    return None


async def test_a_connected_client_is_told_at_expiry_and_the_role_is_gone(world: World):
    async with world.serving() as ada:
        credential = (await ada.mint(FOUNDRY, ttlSeconds=2)).body
        with contextlib.closing(login(world.server, credential)) as session:
            assert await asyncio.to_thread(cut_off, session) == "57P01"
            late_s = -until(credential["expiresAt"])
            assert 0 <= late_s < CUT_WITHIN_S
        await absent(world, credential, within_s=GONE_WITHIN_S - late_s)


async def test_a_role_that_did_all_it_could_is_gone_on_time(open_world: World):
    async with open_world.serving() as ada:
        before = leftovers(open_world)
        credential = (await ada.mint(FOUNDRY, ttlSeconds=3)).body
        with contextlib.closing(login(open_world.server, credential)) as session:
            for deed in (large_object, default_privileges, prepared_transaction, advisory_lock):
                deed(session)
            session.execute("CREATE TEMP TABLE mine (a int)")
            await asyncio.to_thread(cut_off, session)
        await absent(open_world, credential, within_s=GONE_WITHIN_S + min(0.0, until(credential["expiresAt"])))
        assert leftovers(open_world) == before


async def test_no_login_is_let_in_after_expiry_even_without_a_plane(world: World):
    """Postgres itself refuses: VALID UNTIL is the lease's end."""
    async with world.serving() as ada:
        credential = (await ada.mint(FOUNDRY, ttlSeconds=1)).body
    await asyncio.sleep(max(0.0, until(credential["expiresAt"])) + 0.05)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        login(world.server, credential)
    async with world.serving():
        await absent(world, credential, within_s=5)


# -------------------------------------------------------------------------- renewal


async def renew(caller: Caller, credential: dict[str, Any], **body: Any):
    return await caller.post(f"/api/cli/v1/grants/{credential['grantId']}/renew", json=body)


async def test_a_renewed_role_lives_on_under_the_same_name_and_password(world: World):
    async with world.serving() as ada:
        credential = (await ada.mint(FOUNDRY, ttlSeconds=2)).body
        with login(world.server, credential) as session:
            renewed = await renew(ada, credential, ttlSeconds=600)
            assert (renewed.status, renewed.body["username"]) == (200, credential["username"])
            assert 590 < renewed.body["expiresIn"] <= 600
            await asyncio.sleep(max(0.0, until(credential["expiresAt"])) + 1)
            session.execute("SELECT 1")
            login(world.server, credential).close()
        with world.admin() as link:
            (valid_until,) = link.execute(
                "SELECT rolvaliduntil FROM pg_roles WHERE rolname = %s", [credential["username"]]
            ).fetchone()
        assert abs((valid_until - dt.datetime.fromisoformat(renewed.body["expiresAt"])).total_seconds()) < 0.01


async def test_a_renewal_never_shortens_and_never_passes_eight_hours(world18: World):
    async with world18.serving() as ada:
        credential = (await ada.mint(FOUNDRY, ttlSeconds=3600)).body
        assert credential["maxExpiresIn"] <= 28_800
        shorter = await renew(ada, credential, ttlSeconds=60)
        assert shorter.body["expiresAt"] == credential["expiresAt"]
        longest = await renew(ada, credential, ttlSeconds=28_800)
        assert longest.body["expiresIn"] <= longest.body["maxExpiresIn"] <= 28_800
        again = await renew(ada, credential, ttlSeconds=28_800)
        assert again.body["expiresAt"] == longest.body["expiresAt"]


@pytest.mark.parametrize("ttl", [0, -1, 28_801])
async def test_a_renewal_by_an_impossible_time_is_refused(world18: World, ttl: int):
    async with world18.serving() as ada:
        assert (await renew(ada, (await ada.mint(FOUNDRY)).body, ttlSeconds=ttl)).status == 400


async def test_what_has_ended_cannot_be_renewed_nor_can_somebody_elses(world18: World):
    async with world18.serving() as ada:
        credential = (await ada.mint(FOUNDRY)).body
        async with catalogue.connect(world18.settings) as store:
            await registry.create_user(store, "eve@example.test", ensure=True)
            eve = Caller(ada.base, ada.http, await registry.create_token(store, "eve@example.test"))
        assert (await renew(eve, credential)).status == 404
        assert (await renew(ada, {"grantId": "0" * 32})).status == 404
        await ada.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
        refused = await renew(ada, credential)
        assert (refused.status, refused.body["code"]) == (410, "grant_ended")


async def test_a_plane_serves_while_its_pool_is_away(world18: World):
    away = Secret("postgresql://plane:pw@127.0.0.1:1/postgres")
    async with world18.serving(pool_url=away) as ada:
        assert (await ada.get("/api/health")).status == 200
        assert (await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")).status == 200
        assert (await ada.mint(FOUNDRY)).status == 500


# -------------------------------------------------------------------- caps and rates


def limits(**changes: int) -> Limits:
    return Limits(**{"live_roles_per_user": 1000, "live_roles_per_project": 1000, **changes})


async def another_user(world: World, name: str, slug: str = "forge") -> tuple[str, Secret]:
    """Somebody new with a v2 project `slug`: its hash, and a token."""
    async with catalogue.connect(world.settings) as store:
        await registry.create_user(store, name)
        hash_ = secrets.token_hex(4)[:7]
        new = registry.NewProject(user=name, slug=slug, mode="v2_shared", hash=hash_)
        await registry.create_project(store, world.settings, new)
        return hash_, await registry.create_token(store, name)


@pytest.mark.parametrize("cap", ["live_roles_per_user", "live_roles_per_project"])
async def test_live_roles_are_capped_even_when_asked_for_at_once(world18: World, cap: str):
    hash_, token = await another_user(world18, secrets.token_hex(4) + "@example.test")
    async with world18.serving(limits=limits(sensitive_per_minute=1000, **{cap: 3})) as ada:
        ben = Caller(ada.base, ada.http, token)
        answers = await asyncio.gather(*(ben.mint(hash_) for _ in range(10)))
        assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 7
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.body["code"] == "too_many_live_roles"
        assert refused.body["limit"] == 3
        assert 3500 < int(refused.headers["Retry-After"]) <= 3600
        one = next(answer for answer in answers if answer.status == 200)
        await ben.ask("DELETE", f"/api/cli/v1/grants/{one.body['grantId']}")
        assert (await ben.mint(hash_)).status == 200


async def test_the_rate_is_the_tokens_over_all_replicas(world18: World):
    _, token = await another_user(world18, secrets.token_hex(4) + "@example.test")
    few = limits(reads_per_minute=5)
    async with world18.serving(limits=few) as first, world18.serving(limits=few) as second:
        callers = [Caller(replica.base, replica.http, token) for replica in (first, second)]
        # A window may turn over between two requests: then as many are allowed again.
        answers = [await callers[number % 2].get("/api/cli/v1/auth/verify") for number in range(14)]
        limited = [answer for answer in answers if answer.status == 429]
        assert len(limited) >= 4
        answer = limited[-1]
        assert set(answer.body) == {"error", "tier", "limit", "retryAfterSec"}
        assert (answer.body["error"], answer.body["tier"], answer.body["limit"]) == ("rate limit exceeded", "read", 5)
        assert answer.headers["Retry-After"] == str(answer.body["retryAfterSec"])
        assert 1 <= answer.body["retryAfterSec"] <= 60
        assert (await first.get("/api/cli/v1/auth/verify")).status == 200  # another token's


async def test_invented_tokens_share_their_senders_rate(world18: World):
    async with world18.serving(limits=limits(anonymous_per_minute=5)) as ada:

        async def invented() -> int:
            stem = "flx_live_" + secrets.token_hex(16)
            nobody = Caller(ada.base, ada.http, registry.new_token())
            return (await nobody.get("/api/cli/v1/auth/verify", headers={"X-Forwarded-For": stem})).status

        statuses = [await invented() for _ in range(14)]
        assert set(statuses) == {401, 429}
        assert (await ada.get("/api/cli/v1/auth/verify")).status == 200


async def test_behind_a_trusted_proxy_the_sender_is_the_last_hop(world18: World):
    async with world18.serving(trusted_proxies=("127.0.0.1",)) as ada:
        hops = {"X-Forwarded-For": "198.51.100.9, 203.0.113.5"}
        await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access", headers=hops)
        newest = (await ada.get("/api/cli/v1/audit")).body["events"][0]
        assert newest["sourceAddress"] == "203.0.113.5"


# ------------------------------------------------------------------ lifecycle and deletion


@pytest.mark.parametrize("lifecycle", ["dormant", "archived", "deleting"])
async def test_a_project_that_sleeps_has_no_access(world18: World, lifecycle: str):
    async with catalogue.connect(world18.settings) as store, world18.serving() as ada:
        live = (await ada.mint(NEIGHBOUR)).body
        project = await registry.find_project(store, USER, NEIGHBOUR)
        assert project is not None
        await registry.set_lifecycle(store, project, lifecycle)
        try:
            for answer in (
                await ada.get(f"/api/cli/v1/projects/{NEIGHBOUR}/db-access"),
                await ada.mint(NEIGHBOUR),
                await renew(ada, live),
            ):
                assert (answer.status, answer.body["code"]) == (409, f"project_{lifecycle}")
        finally:
            await registry.set_lifecycle(store, project, "active")


async def test_deleting_a_project_ends_its_roles_and_groups_and_keeps_its_audit(world: World):
    name = secrets.token_hex(4) + "@example.test"
    hash_, token = await another_user(world, name)
    async with world.serving() as ada:
        ben = Caller(ada.base, ada.http, token)
        credentials = [(await ben.mint(hash_)).body for _ in range(3)]
        where = f"/api/cli/v1/projects/{hash_}"
        blocked = await ben.ask("DELETE", where)
        assert blocked.status == 412
        assert isinstance(blocked.body["error"], str)
        assert credentials[0]["username"] in roles_in(world.server)
        assert (await ben.ask("DELETE", where + "?skipBackupCheck=true&slug=other")).status == 400
        with contextlib.closing(login(world.server, credentials[0])) as session:
            deleted = await ben.ask("DELETE", where + "?skipBackupCheck=true")
            assert (deleted.status, deleted.body["ok"], deleted.body["mode"]) == (200, True, "catalog")
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        assert not {credential["username"] for credential in credentials} & roles_in(world.server)
        async with catalogue.connect(world.settings) as store:
            project_id = await store.db.fetchval(
                "SELECT project_id FROM audit WHERE hash = $1 AND project_id IS NOT NULL LIMIT 1", hash_
            )
        assert roles_in(world.server, f"flux_tenant_{project_id.hex}%") == set()
        assert (await ben.get(where)).status == 404
        events = (await ben.get("/api/cli/v1/audit")).body["events"]
        assert {"grant_minted", "project_deleted"} <= {event["event"] for event in events if event.get("hash") == hash_}


# ---------------------------------------------------------------------------- audit


async def test_the_audit_tells_who_did_what_and_holds_no_secret(world18: World):
    async with world18.serving(allow_readwrite=False) as ada:
        await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")
        credential = (await ada.mint(FOUNDRY, reason="looking for the lost order")).body
        await renew(ada, credential)
        await ada.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
        assert (await ada.mint(FOUNDRY, access="readwrite")).status == 403
        report = {
            "access": "readonly",
            "tunnelId": "t-1",
            "grantId": credential["grantId"],
            "bytesUp": 5,
            "bytesDown": 7,
        }
        where = f"/api/cli/v1/projects/{FOUNDRY}/db-access/tunnel-events"
        for event in ("opened", "closed"):
            assert (await ada.post(where, json={"event": event, **report})).status == 200
        events = (await ada.get(f"/api/cli/v1/audit?hash={FOUNDRY}")).body["events"]
        told = [(event["event"], event["outcome"]) for event in reversed(events)]
        expected = [
            ("plan_viewed", "ok"),
            ("grant_minted", "intent"),
            ("grant_minted", "ok"),
            ("grant_renewed", "ok"),
            ("grant_revoked", "intent"),
            ("grant_revoked", "ok"),
            ("tunnel_opened", "ok"),
            ("tunnel_closed", "ok"),
        ]
        assert told[-len(expected) :] == expected
        minted = next(event for event in events if event["event"] == "grant_minted")
        assert (minted["actor"], minted["reason"]) == (USER, "looking for the lost order")
        assert minted["grantId"] == credential["grantId"]
        assert {"tokenId", "sourceAddress", "requestId", "expiresAt", "ttlSeconds"} <= set(minted)
        closed = events[0]
        assert (closed["bytesUp"], closed["bytesDown"]) == (5, 7)
        everything = (await ada.get("/api/cli/v1/audit")).body["events"]
        assert ("grant_minted", "refused") in [(event["event"], event["outcome"]) for event in everything]
        assert credential["password"] not in json.dumps(everything)
        activity = (await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/activity?limit=5")).body["events"]
        assert "db.tunnel_opened" in [event["kind"] for event in activity]


async def test_an_expiry_is_told_too(world18: World):
    async with world18.serving() as ada:
        credential = (await ada.mint(FOUNDRY, ttlSeconds=1)).body
        await asyncio.sleep(1)
        await absent(world18, credential, within_s=3)
        give_up_at = time.monotonic() + 5
        while True:
            events = (await ada.get(f"/api/cli/v1/audit?hash={FOUNDRY}")).body["events"]
            if any((e["event"], e.get("grantId")) == ("grant_expired", credential["grantId"]) for e in events):
                return
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("since", ["2999-01-01T00:00:00Z", "2000-01-01"])
async def test_the_audit_can_be_read_from_a_moment_on(world18: World, since: str):
    async with world18.serving() as ada:
        await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")
        events = (await ada.get(f"/api/cli/v1/audit?since={since}")).body["events"]
        assert bool(events) == since.startswith("2000")


@pytest.mark.parametrize("query", ["since=yesterday", "since=9999-99-99", "hash=xyz"])
async def test_an_audit_question_that_cannot_be_understood_is_400(world18: World, query: str):
    async with world18.serving() as ada:
        assert (await ada.get(f"/api/cli/v1/audit?{query}")).status == 400


async def test_nobody_reads_anothers_audit(world18: World):
    _, token = await another_user(world18, secrets.token_hex(4) + "@example.test")
    async with world18.serving() as ada:
        await ada.get(f"/api/cli/v1/projects/{FOUNDRY}/db-access")
        ben = Caller(ada.base, ada.http, token)
        assert (await ben.get("/api/cli/v1/audit")).body["events"] == []
        assert (await ben.get(f"/api/cli/v1/audit?hash={FOUNDRY}")).status == 404


REWRITES = [
    "DELETE FROM audit",
    "UPDATE audit SET actor = 'x'",
    "TRUNCATE audit",
    "INSERT INTO audit (event, outcome) VALUES ('x', 'ok')",
    "DROP TABLE audit",
    "ALTER TABLE audit ADD x int",
    "DROP FUNCTION record",
    "CREATE OR REPLACE FUNCTION record() RETURNS int LANGUAGE sql AS 'SELECT 1'",
]


@pytest.mark.parametrize("statement", REWRITES)
async def test_the_service_cannot_rewrite_the_audit(world: World, statement: str):
    async with catalogue.connect(world.settings) as store:
        with pytest.raises(Exception, match=r"permission denied|must be owner"):
            await store.db.execute(statement)


async def test_the_audit_has_no_column_for_a_secret(world18: World):
    async with catalogue.connect(world18.settings) as store:
        rows = await store.db.fetch("SELECT column_name FROM information_schema.columns WHERE table_name = 'audit'")
    assert rows
    assert not [row[0] for row in rows if any(word in row[0] for word in ("password", "secret", "verifier", "nonce"))]


BAD_REPORTS = [
    b"", b"null", b"[]", b"{}", b'{"event":"exploded","access":"readonly","tunnelId":"t"}',
    b'{"event":"opened","access":"readonly","tunnelId":"t","bytesUp":-1}',
    b'{"event":"opened","access":"readonly","tunnelId":"t","bytesUp":99999999999999999999}',
    b'{"event":"opened","access":"readonly","tunnelId":"t","grantId":"../x"}',
    b'{"event":"opened","access":"readonly","tunnelId":"t","reason":"\\u0000"}',
    b"[" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_REPORTS, ids=lambda body: body[:60].decode())
async def test_a_malformed_report_is_400(world18: World, body: bytes):
    async with world18.serving() as ada:
        answer = await ada.post(f"/api/cli/v1/projects/{FOUNDRY}/db-access/tunnel-events", data=body)
        assert answer.status == 400


# --------------------------------------------------------------- live roles and strays


async def test_live_roles_are_listed_without_passwords(world18: World):
    hash_, token = await another_user(world18, secrets.token_hex(4) + "@example.test")
    async with world18.serving() as ada:
        ben = Caller(ada.base, ada.http, token)
        credential = (await ben.mint(hash_)).body
        where = f"/api/cli/v1/projects/{hash_}/db-access/temporary-credentials"
        (listed,) = (await ben.get(where)).body["credentials"]
        assert set(listed) == {"grantId", "username", "access", "state", "createdAt", "expiresAt"}
        assert (listed["username"], listed["state"]) == (credential["username"], "live")
        await ben.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
        assert (await ben.get(where)).body["credentials"] == []


async def test_a_role_with_our_marker_and_no_row_is_swept(world: World):
    """As after a catalogue was restored from yesterday."""
    async with world.serving() as ada:
        credential = (await ada.mint(FOUNDRY)).body
    with contextlib.closing(login(world.server, credential)) as session:
        async with catalogue.connect(world.settings) as store:
            await store.db.execute("DELETE FROM grants WHERE grant_id = $1", credential["grantId"])
        async with world.serving():
            await absent(world, credential, within_s=5)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


# ------------------------------------------------------------------------- replicas


def environment(settings: Settings, home: Path) -> dict[str, str]:
    assert settings.pool_url is not None
    assert settings.key is not None
    return clean_environment(
        home,
        FLUXPLANE_CATALOGUE_URL=settings.catalogue_url.reveal(),
        FLUXPLANE_POOL_URL=settings.pool_url.reveal(),
        FLUXPLANE_KEY=settings.key.reveal(),
        FLUXPLANE_LIMIT_SENSITIVE_PER_MINUTE="100000",
        FLUXPLANE_LIMIT_LIVE_ROLES_PER_USER="100000",
        FLUXPLANE_LIMIT_LIVE_ROLES_PER_PROJECT="100000",
    )


@contextlib.contextmanager
def replica_process(world: World, home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`fluxplane serve` as a process of its own, and its address."""
    log = (home / f"replica-{secrets.token_hex(3)}.log").open("wb")
    process = subprocess.Popen(
        [command("fluxplane"), "serve", "--listen", "127.0.0.1:0"],
        env=environment(world.settings, home),
        stdout=subprocess.PIPE,
        stderr=log,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert "listens on" in line
        yield process, line.split()[-1].removesuffix("/api").strip()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        log.close()


@contextlib.asynccontextmanager
async def two_replicas(world: World, home: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], Caller, Caller]]:
    """The first one's process, to be killed, and a caller of each."""
    with replica_process(world, home) as (process, first), replica_process(world, home) as (_, second):
        async with aiohttp.ClientSession() as http:
            yield process, Caller(first, http, world.token), Caller(second, http, world.token)


async def test_a_lease_ends_on_time_when_the_replica_that_minted_it_was_killed(world18: World, tmp_path: Path):
    async with two_replicas(world18, tmp_path) as (process, first, _):
        credentials = [(await first.mint(FOUNDRY, ttlSeconds=3)).body for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        with contextlib.closing(login(world18.server, credentials[-1])) as session:
            assert await asyncio.to_thread(cut_off, session) == "57P01"
            assert -until(credentials[-1]["expiresAt"]) < CUT_WITHIN_S
        for credential in credentials:
            await absent(world18, credential, within_s=GONE_WITHIN_S)


async def test_two_replicas_end_a_hundred_roles_once_each(world18: World):
    async with world18.serving() as first, world18.serving() as second:
        minted = await asyncio.gather(
            *(replica.mint(FOUNDRY, ttlSeconds=4) for replica in (first, second) for _ in range(50))
        )
        assert {answer.status for answer in minted} == {200}
        await asyncio.sleep(max(0.0, *(until(answer.body["expiresAt"]) for answer in minted)))
        ids = {answer.body["grantId"] for answer in minted}
        give_up_at = time.monotonic() + 20
        async with catalogue.connect(world18.settings) as store:
            while True:
                rows = await store.db.fetch(
                    "SELECT grant_id, count(*) AS told FROM audit WHERE event = 'grant_expired' AND grant_id = ANY($1)"
                    " GROUP BY grant_id",
                    list(ids),
                )
                if len(rows) == 100:
                    break
                assert time.monotonic() < give_up_at
                await asyncio.sleep(0.1)
        assert {row["told"] for row in rows} == {1}
        assert not {answer.body["username"] for answer in minted} & roles_in(world18.server)

"""Backups through fluxd and `flux backup`, from a plane written from the contract: good, failing, hostile, torn."""

import asyncio
import hashlib

import pytest
from aiohttp import web

from tests.fluxd.asking import asker
from tests.fluxd.contract_plane import TOKEN, V1_PLAN, VERIFIED, contract_plane
from tests.furniture.daemon import Daemon
from tests.furniture.provoked import provoked

DATA = bytes(range(256)) * 4096
BACKUP = {
    "id": "0b6f3c1e-aaaa-4bbb-8ccc-123456789abc",
    "format": "pg_custom",
    "status": "complete",
    "kind": "project_db",
    "sizeBytes": len(DATA),
    "checksumSha256": hashlib.sha256(DATA).hexdigest(),
    "createdAt": "2025-06-01T12:34:56.789Z",
    "offsiteStatus": "complete",
    "restoreVerificationStatus": "restore_verified",
    "restoreVerificationAt": None,
    "restoreVerificationError": None,
}
ROUTE = "/projects/abc1234/backups"
DOWNLOAD = f"{ROUTE}/{BACKUP['id']}/download"


@pytest.fixture
async def plane():
    async with contract_plane() as serving:
        serving.say("GET /auth/verify", VERIFIED)
        serving.say(f"GET {ROUTE}", {"backups": [BACKUP]})
        yield serving


@pytest.fixture
async def ask(plane, daemon: Daemon):
    """Ask fluxd about this plane."""
    named = {"Flux_Api_Base": plane.base, "Authorization": f"Bearer {TOKEN}"}
    async with asker(daemon.socket) as asking:

        async def one(method, path, body=None):
            if method == "POST":
                given = {"plane": {"api_base": plane.base, "token": TOKEN}} | (body or {})
                return await asking.ask("POST", f"/v1{path}", given)
            return await asking.ask(method, f"/v1{path}", **named)

        yield one


async def flux(daemon, plane, *words):
    env = {"FLUX_API_BASE": plane.base, "FLUX_API_TOKEN": TOKEN}
    return await asyncio.to_thread(daemon.flux, *words, "--hash", "abc1234", env=env)


async def test_a_list_comes_as_the_contract_has_it(plane, ask):
    said = await ask("GET", ROUTE)
    assert said.status == 200
    (one,) = said.body["backups"]
    assert one["sizeBytes"] == len(DATA)
    assert "restoreVerificationAt" not in one


@pytest.mark.parametrize(
    "change",
    [{"id": "../../etc/passwd"}, {"status": "great"}, {"sizeBytes": -1}, {"checksumSha256": "x"}, {"id": None}],
)
async def test_a_list_that_is_not_of_the_contract_is_refused(plane, ask, change):
    plane.say(f"GET {ROUTE}", {"backups": [BACKUP | change]})
    assert (await ask("GET", ROUTE)).code == "plane_answer_invalid"


@pytest.mark.parametrize("path", [ROUTE, f"{ROUTE}/some-id/verify"])
@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (409, {"error": "A backup is already running"}, "backup_running", "already running"),
        (500, {"error": "pg_dump failed"}, "backup_failed", "pg_dump failed"),
        (500, {"message": "said otherwise"}, "backup_failed", "said otherwise"),
        (500, {"detail": "or so"}, "backup_failed", "or so"),
        (500, b"<html>no</html>", "backup_failed", "The backup failed (500)."),
        (404, {"error": "Project not found"}, "project_not_found", None),
        (404, {"error": "Backup not found"}, "backup_not_found", "Backup not found"),
        (429, {"error": "rate limit exceeded", "retryAfterSec": 7}, "rate_limited", None),
    ],
)
async def test_refusals_are_told_as_what_they_are(plane, ask, path, status, body, code, words):
    plane.say(f"POST {path}", body, status=status)
    provoked(code, await ask("POST", path), says=words)


async def test_a_token_that_is_refused_is_told_with_the_way_to_another(plane, ask):
    plane.say(f"POST {ROUTE}", {"error": "Unauthorized"}, status=401)
    provoked("not_authenticated", await ask("POST", ROUTE), hint="Run `fluxctl login --api-base")


async def test_waiting_is_the_planes_default_and_not_ours_to_change(plane, ask):
    plane.say(f"POST {ROUTE}", {"backup": BACKUP})
    await ask("POST", ROUTE)
    await ask("POST", ROUTE + "?wait=0")
    assert [one.query for one in plane.asked if one.method == "POST"] == [{}, {"wait": "0"}]


@pytest.mark.parametrize("path", ["/projects/zzz/backups", f"{ROUTE}/%2e%2e%2fx/download", f"{ROUTE}/a.b/progress"])
async def test_what_is_no_hash_and_no_id_never_reaches_the_plane(plane, ask, path):
    assert (await ask("GET", path)).status in {400, 404}
    assert plane.asked == [] or {one.path for one in plane.asked} == {"/auth/verify"}


async def test_a_download_is_not_led_elsewhere(plane, ask):
    plane.say(f"GET {DOWNLOAD}", {}, status=302, headers={"Location": "http://127.0.0.1:1/else"})
    provoked("plane_redirected", await ask("GET", DOWNLOAD))


# ------------------------------------------------------------- through the client


def pouring(*, breaks=(), honours_ranges=True):
    """An answerer of DATA that tears its first answers after so many bytes."""
    left = list(breaks)

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range") if honours_ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        response = web.StreamResponse(status=206 if asked else 200)
        response.content_length = len(DATA) - start
        await response.prepare(request)
        stop = start + left.pop(0) if left else len(DATA)
        await response.write(DATA[start:stop])
        if stop < len(DATA):
            request.transport.abort()
        else:
            await response.write_eof()
        return response

    return answer


@pytest.mark.parametrize("honours_ranges", [True, False])
async def test_a_download_that_breaks_off_goes_on_by_itself(plane, daemon, honours_ranges):
    plane.do(f"GET {DOWNLOAD}", pouring(breaks=[100_000, 300_000], honours_ranges=honours_ranges))
    done = await flux(daemon, plane, "backup", "download", "acme", "--latest", "-o", "b.dump")
    assert done.returncode == 0, done.stderr
    assert (daemon.home / "b.dump").read_bytes() == DATA
    ranges = [one.headers.get("Range") for one in plane.asked if one.path == DOWNLOAD]
    assert len(ranges) == 3
    assert ranges[0] is None


async def test_a_download_that_never_comes_gives_up_and_keeps_what_came(plane, daemon):
    plane.do(f"GET {DOWNLOAD}", pouring(breaks=[100_000] + [0] * 50))
    done = await flux(daemon, plane, "backup", "download", "acme", "--latest", "-o", "b.dump")
    assert done.returncode == 6
    assert "goes on where it stopped" in done.stderr
    assert not (daemon.home / "b.dump").exists()
    plane.do(f"GET {DOWNLOAD}", pouring())
    again = await flux(daemon, plane, "backup", "download", "acme", "--latest", "-o", "b.dump")
    assert again.returncode == 0, again.stderr
    assert (daemon.home / "b.dump").read_bytes() == DATA


async def test_a_wrong_file_is_thrown_away(plane, daemon):
    plane.say(f"GET {DOWNLOAD}", bytes(reversed(DATA)))
    done = await flux(daemon, plane, "backup", "download", "acme", "--latest", "-o", "b.dump")
    provoked("download_damaged", done)
    assert [path.name for path in daemon.home.iterdir() if "b.dump" in path.name] == []


async def test_a_plain_dump_that_breaks_off_leaves_no_file(plane, daemon):
    torn = pouring(breaks=[500_000] * 9)
    plane.do("GET /projects/abc1234/dump", torn)
    done = await flux(daemon, plane, "dump", "acme", "-o", "a.sql")
    assert (done.returncode, "broke off" in done.stderr) == (8, True)
    assert [path.name for path in daemon.home.iterdir() if "a.sql" in path.name] == []


async def test_a_hostile_name_chooses_no_place_on_the_disk(plane, daemon):
    """The default output is named after the project, as the plane calls it."""
    hostile = V1_PLAN | {"projectName": "../../tmp/evil", "tunnel": V1_PLAN["tunnel"] | {"sshHost": ""}}
    plane.say("GET /projects/abc1234/db-access", hostile)
    done = await flux(daemon, plane, "db", "dump", "acme")
    assert done.returncode == 2
    assert not (daemon.home / "../../tmp/evil.dump").exists()

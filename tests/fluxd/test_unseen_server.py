"""
A control plane that our client has never seen: it plays back what the contract records, and looks at what it is asked.

The installed `flux` and a running fluxd ask. Beside the contract's own requests there is `auth/verify`, whose account
keeps equal hashes of two people apart; what `db shell` and `tunnel` ask before they dial is shown by the lab's
contract-only plane.
"""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator

import pytest

from tests.fluxd.contract_plane import TOKEN, Asked, ContractPlane, contract_plane
from tests.furniture.daemon import Daemon
from tests.furniture.provoked import provoked
from tests.furniture.recorded import EXCHANGES, Exchange

# An hour before the recorded grant ends.
THEN = {"Date": "Sun, 01 Jun 2025 11:34:56 GMT"}
ACME = ("acme", "--hash", "abc1234")
POOLY = ("pooly", "--hash", "def5678")
FLAGS = ("--local-port", "15433", "--ssh-host", "bastion.example", "--ssh-user", "dev", "--ssh-port", "2222")
MINTS = ("db", "gui-config", *POOLY, "--create-temp-credentials")


@pytest.fixture
async def plane() -> AsyncIterator[ContractPlane]:
    async with contract_plane() as serving:
        play(serving, "verify")
        yield serving


def play(plane: ContractPlane, *names: str) -> list[Exchange]:
    exchanges = [EXCHANGES[name] for name in names]
    for one in exchanges:
        plane.say(one.route, one.answers, status=one.status, headers=THEN)
    return exchanges


async def flux(daemon: Daemon, plane: ContractPlane, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"FLUX_API_BASE": plane.base, "FLUX_API_TOKEN": TOKEN}
    return await asyncio.to_thread(daemon.flux, *words, env=env)


def in_short(one: Asked) -> tuple[str, str, object]:
    query = "&".join(f"{name}={value}" for name, value in one.query.items())
    return one.method, one.path + (f"?{query}" if query else ""), one.body


@pytest.mark.parametrize(
    ("words", "names", "says"),
    [
        (("db", "access-plan", *ACME), ["plan v1"], "Scope: whole_database"),
        (("db", "access-plan", *POOLY), ["plan v2"], "Supported: true"),
        (("db", "access-plan", *ACME, *FLAGS), ["plan v1 with flags"], "SSH: dev@bastion.example:2222"),
        (("db", "gui-config", *ACME), ["plan v1"], "Password: flux db password acme --hash abc1234"),
        (MINTS, ["plan v2", "grant"], "User: flux_temp_ro_def5678_deadbeef"),
        ((*MINTS, "--ttl", "600"), ["plan v2", "grant for ten minutes"], "Password: q8sJ3rW0xkTn5vYbLhFzUcQeMdGaPi12"),
        (("db", "tunnel", *POOLY, "--print-config"), ["plan v2", "grant"], "Search path: t_0123456789ab_api, public"),
        (("db", "password", *ACME), ["credentials v1"], "pw/x\n"),
        (("project", "credentials", *ACME), ["credentials v1"], "Service role key: eyJ"),
        (("project", "credentials", *POOLY), ["credentials v2"], "FLUX_GATEWAY_JWT_SECRET=s3cr3t"),
        (("list",), ["list"], "pooly"),
        (("activity", *POOLY, "--limit", "1"), ["activity"], "db.temp_credential_issued"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
async def test_it_asks_what_is_recorded_and_understands_the_answer(daemon, plane, words, names, says):
    exchanges = play(plane, *names)
    done = await flux(daemon, plane, *words)
    assert (done.returncode, says in done.stdout) == (0, True), done.stdout + done.stderr
    asked = [one for one in plane.asked if one.path != "/auth/verify"]
    expected = [(one.method, one.path, one.sends) for one in exchanges]
    each_once = [one for number, one in enumerate(map(in_short, asked)) if one not in map(in_short, asked[:number])]
    assert each_once == expected
    for one in asked:
        assert one.headers["Authorization"] == f"Bearer {TOKEN}"
        assert one.headers["Accept"] == "application/json"
        assert (one.headers.get("Content-Type") == "application/json") == (one.body is not None)


async def test_the_plan_is_passed_on_as_it_is_recorded(daemon, plane):
    """But for the port, which is the tunnel's own."""
    [exchange] = play(plane, "plan v2")
    found = json.loads((await flux(daemon, plane, "db", "access-plan", *POOLY, "--json")).stdout)
    recorded = {**exchange.answers["tunnel"], "recommendedLocalPort": daemon.first_port}
    assert found == {**exchange.answers, "tunnel": recorded}


@pytest.mark.parametrize(
    ("words", "name", "code", "hint"),
    [
        (("db", "access-plan", "ghost", "--hash", "0000000"), "no such project", "project_not_found", None),
        (("list",), "a token that never was", "not_authenticated", "Run `fluxctl login --api-base"),
        (MINTS, "rate limited", "rate_limited", None),
        ((*MINTS, "--readwrite"), "grant of readwrite, which is off", "readwrite_disabled", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_it_understands_a_recorded_refusal(daemon, plane, words, name, code, hint):
    [_, refusal] = play(plane, "plan v2", name)
    said = provoked(code, await flux(daemon, plane, *words), hint=hint)
    assert refusal.answers["error"] in said or refusal.status == 401  # then in ours: whose token, and how to another
    assert ("37 s" in said) == (name == "rate limited")

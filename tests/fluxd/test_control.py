"""fluxd and a control plane of the contract: what is asked, what is believed, what never leaves."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxd.core import errors
from fluxd.plane import Caller, ControlPlane
from fluxplane.wire import DedicatedCredentials, DedicatedPlan, GrantRequest, Secret, TunnelReport
from tests.fluxd.contract_plane import GRANT, TOKEN, V1_CREDENTIALS, V1_PLAN, VERIFIED, ContractPlane, contract_plane

MINT = "POST /projects/def5678/db-access/temporary-credential"


@pytest.fixture
async def plane() -> AsyncIterator[ContractPlane]:
    async with contract_plane() as running:
        yield running


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane() as running:
        yield running


def caller(plane: ContractPlane) -> Caller:
    return Caller(plane.base, Secret(TOKEN), "a@b")


def dated(seconds_ahead: float) -> tuple[dict[str, Any], dict[str, str]]:
    """A grant that ends *seconds_ahead* of the plane's own clock, which is years off ours."""
    now = datetime(2025, 6, 1, 12, 0, 0, tzinfo=UTC)
    end = (now + timedelta(seconds=seconds_ahead)).isoformat().replace("+00:00", "Z")
    return {**GRANT, "expiresAt": end}, {"Date": format_datetime(now, usegmt=True)}


async def test_a_plan_comes_typed_and_as_it_came(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /projects/abc1234/db-access", {**V1_PLAN, "somethingNew": [1]})
    typed, plan = await control.plan(caller(plane), "abc1234")
    assert isinstance(typed, DedicatedPlan)
    assert plan == {**V1_PLAN, "somethingNew": [1]}


async def test_a_request_looks_as_the_contract_says(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /projects/abc1234/db-access", V1_PLAN)
    await control.plan(caller(plane), "abc1234", local_port=15433, ssh_host="h", ssh_user="u", ssh_port=2222)
    asked = plane.asked[0]
    assert list(asked.query.items()) == [
        ("localPort", "15433"),
        ("sshHost", "h"),
        ("sshUser", "u"),
        ("sshPort", "2222"),
    ]
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["Accept"] == "application/json"
    assert "Content-Type" not in asked.headers
    assert asked.headers["User-Agent"].startswith("fluxd/")


async def test_only_what_was_given_is_asked_with(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /projects/abc1234/db-access", V1_PLAN)
    await control.plan(caller(plane), "abc1234")
    assert plane.asked[0].query == {}


async def test_another_projects_plan_is_refused(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /projects/abc1234/db-access", {**V1_PLAN, "projectHash": "0000000"})
    with pytest.raises(errors.PlaneAnswerInvalid):
        await control.plan(caller(plane), "abc1234")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("tunnel", "sshHost"), "-oProxyCommand=id"),
        (("tunnel", "sshUser"), "root -o"),
        (("tunnel", "sshPort"), 0),
        (("database", "internalHost"), "a;id"),
        (("database", "containerName"), "$(id)"),
        (("database", "internalPort"), 70000),
        (("projectName",), "a\u001b[2J"),
        (("supported",), False),
        (("mode",), "v3"),
    ],
)
async def test_a_dangerous_plan_is_refused(plane: ContractPlane, control: ControlPlane, where, value):
    plan = copy.deepcopy(V1_PLAN)
    place = plan if len(where) == 1 else plan[where[0]]
    place[where[-1]] = value
    plane.say("GET /projects/abc1234/db-access", plan)
    with pytest.raises(errors.PlaneAnswerInvalid):
        await control.plan(caller(plane), "abc1234")


async def test_a_grant_counts_its_seconds_on_the_planes_clock(plane: ContractPlane, control: ControlPlane):
    body, headers = dated(3600)
    plane.say(MINT, body, headers=headers)
    granted = await control.grant(caller(plane), "def5678", GrantRequest(access="readonly"), extensions=())
    assert 3590 < granted.remaining_s < 3600
    assert granted.max_remaining_s is None
    assert granted.notices == ()


async def test_a_slow_answer_shortens_the_grant(plane: ContractPlane, control: ControlPlane):
    body, headers = dated(3600)

    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.json_response(body, headers=headers)

    plane.do(MINT, slow)
    granted = await control.grant(caller(plane), "def5678", GrantRequest(access="readonly"), extensions=())
    assert granted.remaining_s <= 3600 - 0.3


async def test_our_extensions_go_only_to_a_plane_that_lists_them(plane: ContractPlane, control: ControlPlane):
    body, headers = dated(60)
    plane.say(MINT, body, headers=headers)
    request = GrantRequest(access="readonly", ttl_seconds=60, grant_id="f" * 32, reason="because")
    await control.grant(caller(plane), "def5678", request, extensions=())
    await control.grant(caller(plane), "def5678", request, extensions=("grant_id", "audit"))
    plain, extended = plane.asked
    assert plain.body == {"access": "readonly", "ttlSeconds": 60}
    assert "Idempotency-Key" not in plain.headers
    assert extended.body == {"access": "readonly", "ttlSeconds": 60, "grantId": "f" * 32, "reason": "because"}
    assert extended.headers["Idempotency-Key"] == "f" * 32


async def test_an_expiry_nobody_can_read_is_taken_as_what_was_asked_and_said(
    plane: ContractPlane, control: ControlPlane
):
    plane.say(MINT, {**GRANT, "expiresAt": "soon"})
    asked = GrantRequest(access="readonly", ttl_seconds=600)
    granted = await control.grant(caller(plane), "def5678", asked, extensions=())
    assert granted.remaining_s == 600
    assert "600 s" in granted.notices[0]


async def test_more_access_than_asked_is_refused(plane: ContractPlane, control: ControlPlane):
    plane.say(MINT, {**GRANT, "access": "readwrite"})
    with pytest.raises(errors.PlaneAnswerInvalid):
        await control.grant(caller(plane), "def5678", GrantRequest(access="readonly"), extensions=())


@pytest.mark.parametrize(
    ("status", "body", "access", "kind"),
    [
        (403, {"error": "read/write is disabled"}, "readwrite", errors.ReadwriteDisabled),
        (403, {"error": "no", "code": "mcp_capability_denied"}, "readwrite", errors.Forbidden),
        (403, {"error": "no"}, "readonly", errors.Forbidden),
        (400, {"error": "ttlSeconds must be at most 28800"}, "readonly", errors.TTLOutOfRange),
        (400, {"error": "not for v1"}, "readonly", errors.PlaneRefused),
        (500, {"error": "Failed to provision: role exists"}, "readonly", errors.GrantFailed),
        (404, {"error": "Project not found"}, "readonly", errors.ProjectNotFound),
    ],
)
async def test_a_refused_grant_says_why(plane: ContractPlane, control: ControlPlane, status, body, access, kind):
    plane.say(MINT, body, status=status)
    with pytest.raises(errors.FluxError) as caught:
        await control.grant(caller(plane), "def5678", GrantRequest(access=access), extensions=())
    assert type(caught.value) is kind


async def test_credentials_show_nothing_in_a_repr(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /projects/abc1234/credentials", V1_CREDENTIALS)
    found = await control.credentials(caller(plane), "abc1234")
    assert isinstance(found, DedicatedCredentials)
    assert "pw" not in repr(found)
    assert found.postgres_connection_string.reveal() == V1_CREDENTIALS["postgresConnectionString"]


async def test_lists_projects_and_activity(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /list", [{"slug": "acme", "hash": "abc1234", "status": "running", "apiUrl": "https://x"}])
    event = {"id": "1", "projectId": "p", "userId": None, "kind": "k", "summary": "s", "metadata": {}, "createdAt": "x"}
    plane.say("GET /projects/abc1234/activity", {"projectSlug": "acme", "hash": "abc1234", "events": [event]})
    assert [one.slug for one in await control.projects(caller(plane))] == ["acme"]
    assert (await control.activity(caller(plane), "abc1234", limit=5)).events[0].user_id is None
    assert plane.asked[1].query == {"limit": "5"}


async def test_verify_says_whose_token_it_is(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /auth/verify", VERIFIED)
    assert (await control.verify(plane.base, Secret(TOKEN))).user == "a@b"


@pytest.mark.parametrize("body", [{**VERIFIED, "ok": False}, {**VERIFIED, "user": " "}])
async def test_a_token_that_is_not_ok_is_not_authenticated(plane: ContractPlane, control: ControlPlane, body):
    plane.say("GET /auth/verify", body)
    with pytest.raises(errors.NotAuthenticated):
        await control.verify(plane.base, Secret(TOKEN))


async def test_without_a_token_nothing_is_asked(plane: ContractPlane, control: ControlPlane):
    with pytest.raises(errors.NotAuthenticated) as caught:
        await control.projects(Caller(plane.base, None, "a@b"))
    assert plane.asked == []
    assert plane.base in (caught.value.hint or "")


@pytest.mark.parametrize("token", ["a b", "a\r\nX-Evil: 1", "tök", ""])
async def test_a_token_that_http_cannot_carry_is_not_sent(plane: ContractPlane, control: ControlPlane, token: str):
    with pytest.raises(errors.NotAuthenticated):
        await control.projects(Caller(plane.base, Secret(token), "a@b"))
    assert plane.asked == []


# ------------------------------------------------------------------- redirects


async def test_a_redirect_to_another_origin_gets_neither_request_nor_token(control: ControlPlane, plane: ContractPlane):
    async with contract_plane() as elsewhere:
        for status in (301, 302, 307, 308):
            plane.say("GET /list", status=status, headers={"Location": f"{elsewhere.base}/cli/v1/list"})
            with pytest.raises(errors.PlaneRedirected):
                await control.projects(caller(plane))
        assert elsewhere.asked == []


async def test_a_redirect_within_the_origin_is_followed(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /list", status=307, headers={"Location": "/api/cli/v1/list2"})
    plane.say("GET /list2", [])
    assert await control.projects(caller(plane)) == []


async def test_a_mint_is_not_turned_into_a_get(plane: ContractPlane, control: ControlPlane):
    plane.say(MINT, status=302, headers={"Location": "/api/cli/v1/elsewhere"})
    with pytest.raises(errors.PlaneRedirected):
        await control.grant(caller(plane), "def5678", GrantRequest(access="readonly"), extensions=())
    assert len(plane.asked) == 1


async def test_redirects_in_circles_end(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /list", status=302, headers={"Location": "/api/cli/v1/list"})
    with pytest.raises(errors.PlaneRedirected):
        await control.projects(caller(plane))


# ------------------------------------------------------------- broken and hostile


async def test_a_short_pause_is_waited_for_once(plane: ContractPlane, control: ControlPlane):
    async def busy_then_well(_request: web.Request) -> web.Response:
        if len(plane.asked) == 1:
            return web.json_response({"error": "rate limit exceeded"}, status=429, headers={"Retry-After": "0"})
        return web.json_response([])

    plane.do("GET /list", busy_then_well)
    assert await control.projects(caller(plane)) == []


async def test_a_long_pause_is_told(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /list", {"error": "rate limit exceeded"}, status=429, headers={"Retry-After": "37"})
    with pytest.raises(errors.RateLimited) as caught:
        await control.projects(caller(plane))
    assert caught.value.retry_after_s == 37
    assert len(plane.asked) == 1


async def test_a_mint_is_never_repeated_by_itself(plane: ContractPlane, control: ControlPlane):
    plane.say(MINT, {"error": "rate limit exceeded"}, status=429, headers={"Retry-After": "0"})
    with pytest.raises(errors.RateLimited):
        await control.grant(caller(plane), "def5678", GrantRequest(access="readonly"), extensions=())
    assert len(plane.asked) == 1


async def test_a_huge_answer_is_not_read_to_its_end(plane: ContractPlane, control: ControlPlane):
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b" " * 1_000_000)
        return response

    plane.do("GET /list", endless)
    with pytest.raises(errors.PlaneAnswerInvalid, match="larger"):
        await control.projects(caller(plane))


async def test_a_plane_that_never_answers_is_given_up(plane: ContractPlane):
    async def never(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    plane.do("GET /list", never)
    async with ControlPlane(answer_within_s=0.2) as control:
        with pytest.raises(errors.PlaneUnreachable):
            await control.projects(caller(plane))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 999999 \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_does_not_speak_http_is_a_problem(control: ControlPlane, answer: bytes):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
        with pytest.raises((errors.PlaneUnreachable, errors.PlaneAnswerInvalid)):
            await control.projects(Caller(base, Secret(TOKEN), "a@b"))


async def test_nobody_there_is_unreachable(control: ControlPlane):
    async with contract_plane() as gone:
        pass
    with pytest.raises(errors.PlaneUnreachable):
        await control.projects(caller(gone))


async def test_plain_http_behind_an_https_address_is_unreachable(plane: ContractPlane, control: ControlPlane):
    base = plane.base.replace("http://", "https://")
    with pytest.raises(errors.PlaneUnreachable):
        await control.projects(Caller(base, Secret(TOKEN), "a@b"))
    assert plane.asked == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def odd_grants(draw: st.DrawFn) -> bytes:
    body = dict(GRANT)
    for name in draw(st.lists(st.sampled_from([*GRANT, "expiresIn", "maxExpiresIn"]), max_size=3)):
        body[name] = draw(JSON)
    for name in draw(st.lists(st.sampled_from(list(GRANT)), max_size=1)):
        body.pop(name, None)
    return json.dumps(body).encode()


@given(
    body=st.binary(max_size=100) | odd_grants() | JSON.map(lambda one: json.dumps(one).encode()),
    status=st.sampled_from([200, 200, 200, 201, 400, 401, 403, 404, 409, 429, 500, 502]),
    kind=st.sampled_from(["application/json", "text/html", "x", ""]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_answer_to_a_mint_is_worse_than_a_clear_problem(body: bytes, status: int, kind: str):
    async def ask() -> None:
        async with contract_plane() as plane, ControlPlane() as control:
            plane.say(MINT, body, status=status, headers={"Content-Type": kind, "Retry-After": "9"})
            await judge(plane, control)

    async def judge(plane: ContractPlane, control: ControlPlane) -> None:
        granted, problem = None, None
        try:
            granted = await control.grant(caller(plane), "def5678", GrantRequest(access="readonly"), extensions=())
        except errors.FluxError as raised:
            problem = raised
        if problem is not None:
            assert problem.message
            assert GRANT["password"] not in f"{problem.message}{problem.detail}"
        if granted is not None:
            assert 0 <= granted.remaining_s <= 28800

    asyncio.run(ask())


async def test_a_deeply_nested_answer_is_a_problem(plane: ContractPlane, control: ControlPlane):
    plane.say("GET /list", b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(errors.PlaneAnswerInvalid):
        await control.projects(caller(plane))


# ---------------------------------------------------------------------- extensions


async def test_a_plane_without_revoke_says_so(plane: ContractPlane, control: ControlPlane):
    with pytest.raises(errors.NotSupportedByPlane):
        await control.revoke(plane.base, "f" * 32, None)
    assert "Authorization" not in plane.asked[0].headers


async def test_revoke_renew_and_report_say_what_they_must(plane: ContractPlane, control: ControlPlane):
    plane.say(f"DELETE /grants/{'f' * 32}", {"grantId": "f" * 32, "state": "ended"})
    renewed = {"grantId": "f" * 32, "username": "u", "access": "readonly", "expiresAt": "x"}
    plane.say(f"POST /grants/{'f' * 32}/renew", {**renewed, "expiresIn": 100, "maxExpiresIn": 200})
    plane.say("POST /projects/def5678/db-access/tunnel-events", None, status=204)
    assert (await control.revoke(plane.base, "f" * 32, Secret(TOKEN))).state == "ended"
    renewal = await control.renew(caller(plane), "f" * 32, 3600)
    assert 99 < renewal.remaining_s <= 100
    assert 199 < (renewal.max_remaining_s or 0) <= 200
    await control.report(caller(plane), "def5678", TunnelReport(event="opened", access="readonly", tunnel_id="t-1"))
    assert plane.asked[1].body == {"ttlSeconds": 3600}
    assert plane.asked[2].body == {"event": "opened", "access": "readonly", "tunnelId": "t-1"}

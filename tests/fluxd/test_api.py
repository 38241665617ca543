"""The socket's contract, asked of a running fluxd: who may ask, what is refused, how a problem is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fluxd.api.heads import HEAD_WITHIN_S
from tests.fluxd.asking import Asker, asker, raw
from tests.fluxd.contract_plane import TOKEN, V1_CREDENTIALS, V1_PLAN, VERIFIED, ContractPlane, contract_plane
from tests.furniture.daemon import Daemon
from tests.furniture.leaks import lasting
from tests.furniture.processes import command, end, wait_until
from tests.furniture.provoked import in_answer, provoked

NOBODY = 65534
EVERYBODYS_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or sys.executable


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    """One fluxd for the tests of this file that change nothing in it."""
    home = Path(tempfile.mkdtemp(prefix="fluxd-"))
    own = Daemon(home)
    with lasting():
        own.start()
    yield own
    own.stop()
    assert "Traceback" not in own.said()
    shutil.rmtree(home)


@pytest.fixture
async def fluxd(running: Daemon) -> AsyncIterator[Asker]:
    async with asker(running.socket) as ask:
        yield ask


@pytest.fixture
async def plane() -> AsyncIterator[ContractPlane]:
    async with contract_plane() as serving:
        serving.say("GET /auth/verify", VERIFIED)
        serving.say("GET /projects/abc1234/db-access", V1_PLAN)
        serving.say("GET /projects/abc1234/credentials", V1_CREDENTIALS)
        yield serving


def at(plane: ContractPlane) -> dict[str, str]:
    return {"Flux_Api_Base": plane.base, "Authorization": f"Bearer {TOKEN}"}


# -------------------------------------------------------------- answers in general


async def test_status_says_who_serves(fluxd: Asker, running: Daemon):
    said = await fluxd.get("/v1/status")
    assert running.process is not None
    assert said.status == 200
    assert (said.body["pid"], said.body["socket"], said.body["tunnels"]) == (
        running.process.pid,
        str(running.socket),
        0,
    )


async def test_every_answer_names_the_contracts_version(fluxd: Asker):
    for path in ("/v1/status", "/nowhere", "/healthz", "/openapi.json"):
        assert (await fluxd.get(path)).headers["Flux-Api-Version"] == "1"


@pytest.mark.parametrize("version", ["1", "1.7"])
async def test_a_client_of_our_version_is_answered(fluxd: Asker, version: str):
    assert (await fluxd.get("/v1/status", Flux_Api_Version=version)).status == 200


@pytest.mark.parametrize("version", ["0", "2", "2.1", "x;y", ""])
async def test_a_client_of_another_version_is_told(fluxd: Asker, version: str):
    said = await fluxd.get("/v1/status", Flux_Api_Version=version)
    assert "x;y" not in provoked("api_version_unsupported", said, says="1")


@pytest.mark.parametrize(
    ("method", "path", "code", "says"),
    [
        ("GET", "/", "route_not_found", None),
        ("GET", "/v1/nowhere", "route_not_found", None),
        ("GET", "/v2/status", "route_not_found", None),
        ("PUT", "/v1/tunnels", "method_not_allowed", None),
        ("TRACE", "/v1/status", "method_not_allowed", None),
        ("GET", "/v1/tunnels/t-0000", "tunnel_not_found", "t-0000"),
        ("DELETE", "/v1/tunnels/t-0000", "tunnel_not_found", "t-0000"),
        ("GET", "/v1/plans/xyz", "bad_request", "hash"),
        ("GET", "/v1/events?hold=nobody", "hold_unknown", None),
        ("GET", "/v1/events?tunnel=nobody", "tunnel_not_found", "nobody"),
    ],
)
async def test_a_refusal_is_a_problem(fluxd: Asker, method: str, path: str, code: str, says: str | None):
    said = await fluxd.ask(method, path)
    provoked(code, said, says=says)
    assert said.headers["Content-Type"] == "application/problem+json"
    assert said.body["exit_code"] > 0


async def test_the_contract_it_serves_is_the_golden_one(fluxd: Asker):
    golden = Path(__file__).parents[2] / "docs" / "api" / "openapi.json"
    assert (await fluxd.get("/openapi.json")).body == json.loads(golden.read_text())


# ----------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'"x"',
        b"[" * 50_000,
        {"hash": "ABC1234"},
        {"hash": "abc1234", "extra": 1},
        {},
    ],
)
async def test_a_malformed_body_is_a_bad_request(fluxd: Asker, body: object):
    said = await fluxd.ask("POST", "/v1/tunnels", body)
    assert (said.status, said.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "-oProxyCommand=id"),
        ("host", "a b"),
        ("user", "$(id)"),
        ("port", 0),
        ("port", 65536),
        ("port", "22"),
        ("agent", "relative"),
        ("identity_file", "/x\x00y"),
        ("password", "x"),
    ],
)
async def test_a_dangerous_ssh_identity_is_refused_before_anything_is_asked(fluxd: Asker, plane, field: str, value):
    asked = {"hash": "abc1234", "plane": {"api_base": plane.base, "token": TOKEN}, "ssh": {field: value}}
    said = await fluxd.ask("POST", "/v1/tunnels", asked)
    assert said.code == "bad_request"
    header = await fluxd.get("/v1/plans/abc1234", **at(plane), Flux_SSH=json.dumps({field: value}))
    assert header.code == "bad_request"
    assert plane.asked == []


async def test_a_wrong_value_is_not_repeated(fluxd: Asker):
    said = await fluxd.ask("POST", "/v1/tunnels", {"hash": "hunter2"})
    assert "$.hash" in said.body["detail"]
    assert "hunter2" not in json.dumps(said.body)


async def test_a_huge_body_is_refused_without_being_read(running: Daemon):
    head = b"POST /v1/tunnels HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
    answer = raw(running.socket, head + b" " * 1_000_000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    provoked("body_too_large", in_answer(answer))


async def test_a_hundred_megabytes_in_chunks_are_refused_and_cost_no_memory(fluxd: Asker, running: Daemon):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1600):
            yield b" " * 65536

    before = resident(running)
    with contextlib.suppress(OSError, Exception):
        async with fluxd.session.post("http://localhost/v1/tunnels", data=chunks()) as response:
            assert response.status == 413
    assert resident(running) - before < 20_000_000
    assert (await fluxd.get("/v1/status")).status == 200


def resident(daemon: Daemon) -> int:
    assert daemon.process is not None
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


async def test_what_does_not_come_is_not_waited_for(running: Daemon):
    """Side by side, since each takes its time: a body, a head, and nothing at all; but who has asked once may pause."""
    body = b"POST /v1/tunnels HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"
    too_slow, silent, slow, polite = await asyncio.gather(
        asyncio.to_thread(raw, running.socket, body),
        asyncio.to_thread(trickled, running, b""),
        asyncio.to_thread(trickled, running, HALF_A_HEAD),
        asyncio.to_thread(asked_twice, running, pause_s=HEAD_WITHIN_S + 1),
    )
    assert too_slow.startswith(b"HTTP/1.1 408 ")
    provoked("body_too_slow", in_answer(too_slow))
    assert (silent, slow) == (b"", b"")
    assert polite.startswith(b"HTTP/1.1 200 ")


HALF_A_HEAD = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def trickled(daemon: Daemon, head: bytes) -> bytes:
    """What is answered to *head* and then a byte now and then; it must not go on for ever."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(head)
        client.settimeout(0.1)
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                return client.recv(100)
            with contextlib.suppress(BrokenPipeError):
                client.sendall(head[-1:])
        raise AssertionError("still connected after 20 s")


def asked_twice(daemon: Daemon, *, pause_s: float) -> bytes:
    """What is answered to the second of two requests on one connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(daemon.socket))
        for before_s in (0.0, pause_s):
            threading.Event().wait(before_s)
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = client.recv(65536)
    return answer


async def test_a_head_without_end_is_refused(running: Daemon):
    line = b"Authorization: Bearer " + TOKEN.encode() * 100 + b"\r\n"
    before = resident(running)
    answer = await asyncio.to_thread(raw, running.socket, HALF_A_HEAD + b"\r\n" + line * 5000)
    assert answer == b"" or b" 400 Bad Request\r\n" in answer
    assert TOKEN not in running.said()
    assert "Traceback" not in running.said()
    assert resident(running) - before < 20 * 1024 * 1024


# ---------------------------------------------------------------------- callers


@pytest.mark.parametrize(
    ("name", "value"),
    [("Origin", "http://localhost"), ("Origin", "null"), ("Referer", "http://x/"), ("Host", "evil.example")],
)
async def test_what_a_browser_would_send_is_refused(fluxd: Asker, name: str, value: str):
    provoked("request_forbidden", await fluxd.get("/v1/tunnels", **{name: value}), says=name)


async def test_a_browsers_form_cannot_open_anything(fluxd: Asker, plane: ContractPlane):
    asked = {"hash": "abc1234", "plane": {"api_base": plane.base, "token": TOKEN}}
    said = await fluxd.ask("POST", "/v1/tunnels", asked, Origin="https://evil.example")
    assert said.code == "request_forbidden"
    assert plane.asked == []


@pytest.mark.parametrize("host", [b"Host: localhost\r\n", b"Host: LOCALHOST\r\n", b"Host:\r\n"])
async def test_localhost_or_an_empty_host_is_answered(running: Daemon, host: bytes):
    request = b"GET /v1/status HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n"
    assert raw(running.socket, request).startswith(b"HTTP/1.1 200 ")


async def test_http_1_0_needs_no_host(running: Daemon):
    assert raw(running.socket, b"GET /v1/status HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
async def test_another_users_process_is_refused_even_where_the_modes_let_it_in(daemon: Daemon):
    daemon.home.chmod(0o755)
    daemon.socket.chmod(0o666)
    program = (
        "import socket; s = socket.socket(socket.AF_UNIX); "
        f"s.connect({str(daemon.socket)!r}); "
        "s.sendall(b'GET /v1/tunnels HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'); "
        "print(s.makefile().read())"
    )
    said = await asyncio.to_thread(
        subprocess.run,
        ["setpriv", "--reuid", str(NOBODY), "--clear-groups", EVERYBODYS_PYTHON, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout.startswith("HTTP/1.1 403 ")
    assert "request_forbidden" in said.stdout
    daemon.home.chmod(0o700)


async def test_no_header_and_no_body_is_ever_logged(daemon_home: Path, plane: ContractPlane):
    own = Daemon(daemon_home)
    own.environment["FLUXD_LOG_LEVEL"] = "debug"
    own.start()
    async with asker(own.socket) as fluxd:
        await fluxd.get("/v1/projects/abc1234/credentials?secretquery=hunter2", **at(plane), X_Test="hunter2")
        await fluxd.ask("POST", "/v1/tunnels", {"hunter2": 1})
    await asyncio.to_thread(own.stop)
    said = own.said()
    assert "/v1/projects/abc1234/credentials" in said
    for secret in ("hunter2", TOKEN, "pw%2Fx", "eyJ"):
        assert secret not in said


# ------------------------------------------------------------------------ paths


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("x")
    return tmp_path


async def plan_with(fluxd: Asker, plane: ContractPlane, **ssh: object):
    return await fluxd.get("/v1/plans/abc1234", **at(plane), Flux_SSH=json.dumps(ssh))


async def test_own_files_may_be_named(fluxd: Asker, plane: ContractPlane, mine: Path):
    key = str(mine / "key")
    assert (await plan_with(fluxd, plane, identity_file=key, known_hosts=key)).status == 200


@pytest.mark.parametrize("name", ["identity_file", "known_hosts"])
@pytest.mark.parametrize("path", ["/nowhere", "/dev/null", "/tmp"])
async def test_what_is_no_file_may_not_be_named(fluxd: Asker, plane: ContractPlane, name: str, path: str):
    said = await plan_with(fluxd, plane, **{name: path})
    assert (said.status, said.code) == (400, "path_not_allowed")
    assert name in said.body["message"]


async def test_an_agent_is_a_socket(fluxd: Asker, plane: ContractPlane, mine: Path, running: Daemon):
    assert (await plan_with(fluxd, plane, agent=str(mine / "key"))).code == "path_not_allowed"
    assert (await plan_with(fluxd, plane, agent=str(running.socket))).status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_somebody_elses_file_may_not_be_named(fluxd: Asker, plane: ContractPlane, mine: Path):
    os.chown(mine / "key", NOBODY, NOBODY)
    assert (await plan_with(fluxd, plane, identity_file=str(mine / "key"))).code == "path_not_allowed"


# -------------------------------------------------------------- the control plane


async def test_a_plan_comes_through_as_it_came(fluxd: Asker, plane: ContractPlane):
    said = await fluxd.get("/v1/plans/ABC1234?local_port=15440", **at(plane))
    assert (said.status, said.body["plan"], said.body["tunnels"]) == (200, V1_PLAN, [])
    assert plane.asked[-1].query == {"localPort": "15440"}


@pytest.mark.parametrize("port", ["0", "65536", "abc", "80abc", "-1", "1.5", ""])
async def test_a_port_that_is_none_is_refused(fluxd: Asker, plane: ContractPlane, port: str):
    assert (await fluxd.get(f"/v1/plans/abc1234?local_port={port}", **at(plane))).code == "bad_request"


async def test_credentials_come_through_for_an_explicit_question(fluxd: Asker, plane: ContractPlane):
    said = await fluxd.get("/v1/projects/abc1234/credentials", **at(plane))
    assert said.body == V1_CREDENTIALS
    assert said.headers["Cache-Control"] == "no-store"


async def test_projects_come_wrapped(fluxd: Asker, plane: ContractPlane):
    plane.say("GET /list", [{"slug": "acme", "hash": "abc1234", "status": "running"}])
    assert (await fluxd.get("/v1/projects", **at(plane))).body["projects"][0]["slug"] == "acme"


async def test_without_a_token_the_way_to_one_is_named(fluxd: Asker, plane: ContractPlane):
    said = await fluxd.get("/v1/projects", Flux_Api_Base=plane.base)
    assert (said.status, said.code) == (401, "not_authenticated")
    assert f"fluxctl login --api-base {plane.base}" in said.body["hint"]
    assert plane.asked == []


async def test_a_plain_http_plane_elsewhere_is_refused(fluxd: Asker):
    said = await fluxd.get("/v1/projects", Flux_Api_Base="http://10.0.0.1", Authorization="Bearer x")
    assert said.code == "insecure_api_base"


@pytest.mark.parametrize("sent", ["Basic eA==", "Bearer", "Bearer a b", "x"])
async def test_only_a_bearer_token_is_one(fluxd: Asker, plane: ContractPlane, sent: str):
    said = await fluxd.get("/v1/projects", Flux_Api_Base=plane.base, Authorization=sent)
    assert said.code == "bad_request"


async def test_a_rate_limits_pause_is_passed_on(fluxd: Asker, plane: ContractPlane):
    plane.say("GET /list", {"error": "rate limit exceeded"}, status=429, headers={"Retry-After": "37"})
    said = await fluxd.get("/v1/projects", **at(plane))
    assert (said.status, said.headers["Retry-After"], said.body["retry_after_s"]) == (429, "37", 37.0)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "plane_refused", "because"),
        (403, "forbidden", "because"),
        (404, "project_not_found", None),
        (409, "project_not_available", "because"),
        (429, "rate_limited", None),
        (500, "plane_failed", "because"),
    ],
)
async def test_what_the_plane_refuses_is_told_in_its_own_words(
    fluxd: Asker, plane: ContractPlane, status: int, code: str, says: str | None
):
    plane.say("GET /projects/abc1234/db-access", {"error": "because", "retryAfterSec": 37}, status=status)
    assert "because" in provoked(code, await fluxd.get("/v1/plans/abc1234", **at(plane)), says=says)


async def test_an_answer_that_is_not_of_the_contract(fluxd: Asker, plane: ContractPlane):
    plane.say("GET /projects/abc1234/db-access", V1_PLAN | {"supported": False})
    provoked("plane_answer_invalid", await fluxd.get("/v1/plans/abc1234", **at(plane)))


async def test_a_login_is_checked_before_it_is_kept(fluxd: Asker, plane: ContractPlane):
    plane.say("GET /auth/verify", {"error": "Unauthorized"}, status=401)
    said = await fluxd.ask("PUT", "/v1/login", {"token": "flx_live_wrong", "api_base": plane.base})
    assert said.code == "not_authenticated"


async def test_without_a_keyring_a_login_is_refused_and_nothing_is_written(
    fluxd: Asker, plane: ContractPlane, running: Daemon
):
    said = await fluxd.ask("PUT", "/v1/login", {"token": TOKEN, "api_base": plane.base})
    provoked("keyring_unavailable", said, says="no system keyring", hint="Set FLUX_API_TOKEN, or have")
    files = [path for path in running.home.rglob("*") if path.is_file()]
    assert all(TOKEN not in path.read_text(errors="replace") for path in files)


# ----------------------------------------------------------------------- health


async def test_the_doctor_names_what_is_missing_and_the_way_out(fluxd: Asker, plane: ContractPlane):
    checks = {one["name"]: one for one in (await fluxd.get("/v1/doctor", Flux_Api_Base=plane.base)).body["checks"]}
    assert (checks["daemon"]["verdict"], checks["socket"]["verdict"]) == ("ok", "ok")
    assert checks["token"]["verdict"] == "fail"
    assert "fluxctl login" in checks["token"]["hint"]


async def test_with_a_token_at_hand_the_doctor_does_not_need_a_keyring(fluxd: Asker, plane: ContractPlane):
    checks = {one["name"]: one for one in (await fluxd.get("/v1/doctor", **at(plane))).body["checks"]}
    assert [checks[name]["verdict"] for name in ("keyring", "token", "control plane")] == ["skip", "ok", "ok"]
    assert "a@b" in checks["control plane"]["message"]


async def test_alive_and_able(fluxd: Asker):
    assert (await fluxd.get("/healthz")).body == {"alive": True, "able": True, "reasons": []}


async def test_events_begin_with_a_snapshot(fluxd: Asker):
    async with fluxd.session.get("http://localhost/v1/events") as stream:
        assert stream.headers["Content-Type"] == "application/x-ndjson"
        first = json.loads(await stream.content.readline())
    assert (first["name"], first["tunnels"]) == ("snapshot", [])


# ---------------------------------------------------------------- birth and death


async def test_a_second_daemon_says_that_there_is_one(running: Daemon):
    done = await asyncio.to_thread(
        subprocess.run,
        [command("fluxd")],
        env=running.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    provoked("fluxd_already_running", done)
    assert running.answers()


def test_it_leaves_no_socket_behind(daemon: Daemon):
    daemon.stop()
    assert not daemon.socket.exists()


def test_after_a_crash_the_next_one_takes_the_place(daemon: Daemon):
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.answers()


def test_sigint_ends_it_too(daemon: Daemon):
    assert daemon.process is not None
    import signal

    assert end(daemon.process, with_signal=signal.SIGINT) == 0


def test_an_open_events_stream_does_not_keep_it_from_stopping(daemon: Daemon):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in client.recv(65536)
        daemon.stop()


def test_an_unsafe_directory_stops_it_before_anything_is_bound(daemon_home: Path):
    daemon_home.chmod(0o755)
    own = Daemon(daemon_home)
    done = subprocess.run(
        [command("fluxd")], env=own.environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert "0755" in provoked("socket_unsafe", done)
    assert not own.socket.exists()


def test_it_says_so_when_a_setting_is_wrong(daemon_home: Path):
    own = Daemon(daemon_home)
    env = own.environment | {"FLUXD_FIRST_PORT": "80abc"}
    done = subprocess.run([command("fluxd")], env=env, capture_output=True, text=True, timeout=30, check=False)
    provoked("settings_invalid", done, says="FLUXD_FIRST_PORT")


def test_the_socket_is_private(running: Daemon):
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd")
def test_it_serves_the_socket_that_systemd_made_and_tells_when_it_is_ready(daemon_home: Path):
    own = Daemon(daemon_home)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(daemon_home / "notify"))
        manager.settimeout(20)
        passed = [f"-E{name}={value}" for name, value in own.environment.items()]
        passed.append(f"-ENOTIFY_SOCKET={daemon_home / 'notify'}")
        call = ["systemd-socket-activate", "-l", str(own.socket), "--fdname=api", *passed, command("fluxd")]
        process = subprocess.Popen(call, stderr=subprocess.DEVNULL)
        try:
            wait_until(own.answers, "systemd's socket")
            assert raw(own.socket, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")
            assert manager.recv(200).startswith(b"READY=1")
        finally:
            assert end(process) == 0
    assert own.socket.exists(), "the service manager goes on listening"

"""
Whatever a control plane answers: a result or a clear error, never a traceback, a half-open tunnel or a burned role.

The real plane behind a proxy that changes one part of one answer.
"""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import wait_until

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")


class Proxy:
    """Passes everything on to *behind*; *change* makes of a parsed answer what is sent, bytes or JSON."""

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.part = "nothing"
        self.change: Callable[[Any], Any] = lambda answer: answer
        self.base = ""

    @contextlib.contextmanager
    def serving(self) -> Iterator["Proxy"]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                status, data = proxy.ask(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = pass_on  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            block_on_close = True

            def finish_request(self, request: Any, client_address: Any) -> None:
                request.settimeout(5)
                with contextlib.suppress(OSError):
                    super().finish_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
                request.close()

        with Server(("127.0.0.1", 0), Handler) as server:
            self.base = f"http://127.0.0.1:{server.server_address[1]}/api"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
        kept = {name: value for name, value in headers.items() if name.lower() not in {"host", "connection"}}
        url = self.behind.removesuffix("/api") + path
        asked = urllib.request.Request(url, data=body, headers=kept, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=20) as response:
                status, data = response.status, response.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()
        if not path.partition("?")[0].endswith(self.part):
            return status, data
        changed = self.change(json.loads(data))
        return status, changed if isinstance(changed, bytes) else json.dumps(changed).encode()


@pytest.fixture
def proxy(lab: Lab) -> Iterator[Proxy]:
    with Proxy(lab.env["FLUX_API_BASE"]).serving() as serving:
        yield serving


text = st.text(max_size=20) | st.sampled_from(
    ["-oProxyCommand=touch /tmp/x", "$(id)", "a;b", "../..", "\x1b[2J", "flux-postgres-v2 x", "::1", "public"]
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@dataclass
class Change:
    """One part of an answer is replaced or left out. `choices` lead to it, as far as they go."""

    choices: list[int]
    drop: bool
    instead: Any

    def __call__(self, answer: Any) -> Any:
        place = answer[0] if isinstance(answer, list) else answer
        for choice in self.choices[:-1]:
            inner = [key for key in sorted(place) if isinstance(place[key], dict)]
            if not inner or choice % 2:
                break
            place = place[inner[choice % len(inner)]]
        # Without its extensions a plane cannot revoke, and a role rightly lives until its expiry.
        keys = sorted(set(place) - {"extensions"})
        self.key = keys[self.choices[-1] % len(keys)]
        place[self.key] = self.instead
        if self.drop:
            del place[self.key]
        return answer


@dataclass
class Bytes:
    """Something else altogether."""

    raw: bytes
    key = None

    def __call__(self, _answer: Any) -> bytes:
        return self.raw


changes = st.builds(Change, st.lists(st.integers(0, 30), min_size=3, max_size=3), st.booleans(), junk) | st.builds(
    Bytes, st.binary(max_size=60)
)


MINTS = ("db", "gui-config", *FOUNDRY, "--create-temp-credentials")
COMMANDS = [
    ("db-access", ("db", "shell", *FOUNDRY, "-c", "SELECT 1")),
    ("db-access", ("db", "shell", *YEASTCOAST, "-c", "SELECT 1")),
    ("db-access", ("db", "access-plan", *FOUNDRY)),
    ("temporary-credential", ("db", "shell", *FOUNDRY, "-c", "SELECT 1")),
    ("db-access", MINTS),
    ("temporary-credential", MINTS),
    ("credentials", ("db", "password", *YEASTCOAST)),
    ("list", ("list",)),
]


@settings(
    max_examples=30,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # each example is a whole journey: none to spare for shrinking
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(change=changes, number=st.integers(0, len(COMMANDS) - 1))
def test_whatever_it_answers(daemon: Daemon, lab: Lab, proxy: Proxy, change, number):
    before = temporary_roles(lab.pool_admin_url)
    proxy.part, words = COMMANDS[number]
    proxy.change = change
    done = daemon.flux(*words, env={**lab.env, "FLUX_API_BASE": proxy.base})
    assert "Traceback" not in done.stdout + done.stderr + daemon.said()
    if done.returncode:
        assert done.stderr.startswith("Error: ") or "psql: error" in done.stderr, done.stderr
        assert "internal_error" not in done.stderr
        assert "in a way it did not expect" not in done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    if words == MINTS and done.returncode == 0:
        assert "Password: " in done.stdout
        ended = daemon.flux("tunnel", "close", "5774112", env=lab.env)
        assert ended.returncode == 0, ended.stderr
    wait_until(lambda: not daemon.listening(), "no port is left open")
    wait_until(lambda: daemon.flux_json("tunnel", "list")["tunnels"] == [], "no tunnel is left half open")
    wait_until(lambda: temporary_roles(lab.pool_admin_url) == before, f"no role is left: {change} {change.key} {done}")

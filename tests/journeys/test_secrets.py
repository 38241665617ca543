"""The pool's admin password appears in no response, log, argv, error or file, except in the lab's own two."""

import http.client
import json
from pathlib import Path

import psycopg
import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.processes import descendants

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
COMMANDS = (
    ("db", "access-plan", *FOUNDRY),
    ("db", "access-plan", *FOUNDRY, "--json"),
    ("db", "gui-config", *FOUNDRY, "--create-temp-credentials", "--json"),
    ("db", "password", *FOUNDRY),
    ("db", "shell", *FOUNDRY, "--command", "SELECT * FROM pg_settings"),
    ("db", "shell", *FOUNDRY, "--command", "SELECT no such thing"),
    ("project", "credentials", *FOUNDRY),
    ("project", "credentials", "yeastcoast", "--hash", "ffca33f"),
    ("tunnel", "list", "--json"),
    ("tunnel", "show", "foundry", "--json"),
    ("status", "--json"),
)
ROUTES = (
    ("GET", "/cli/v1/list", None),
    ("GET", "/cli/v1/projects/5774112", None),
    ("GET", "/cli/v1/projects/5774112/db-access", None),
    ("GET", "/cli/v1/projects/5774112/credentials", None),
    ("GET", "/cli/v1/projects/ffca33f/credentials", None),
    ("GET", "/cli/v1/projects/5774112/activity", None),
    ("POST", "/cli/v1/projects/5774112/db-access/temporary-credential", {"access": "sideways"}),
    ("POST", "/cli/v1/projects/5774112/db-access/temporary-credential", {"access": "readonly", "ttlSeconds": -1}),
    ("POST", "/cli/v1/projects/ffca33f/db-access/temporary-credential", {"access": "readonly"}),
    ("GET", "/cli/v1/projects/0000000/db-access", None),
)


def test_the_pools_admin_password_is_nowhere(each_lab: Lab, daemon: Daemon):
    password = str(psycopg.conninfo.conninfo_to_dict(each_lab.pool_admin_url)["password"])
    with daemon.hold("db", "tunnel", *FOUNDRY, env=each_lab.env) as held:
        said = [held.out, held.err]
        for arguments in COMMANDS:
            done = daemon.flux(*arguments, env=each_lab.env)
            said += [done.stdout, done.stderr]
        said += [answered(each_lab, *route) for route in ROUTES]
        said += (
            command_lines(each_lab.process.pid) + command_lines(daemon.process.pid) + command_lines(held.process.pid)
        )
        daemon.flux("tunnel", "close", "foundry", env=each_lab.env)
    assert "Password:" in said[0]
    assert [text for text in said if password in text] == []
    files = [path for home in (each_lab.directory, daemon.home) for path in home.rglob("*") if path.is_file()]
    holding = [path for path in [*files, each_lab.log] if password.encode() in path.read_bytes()]
    assert holding == [each_lab.directory / "lab.json"]


def answered(lab: Lab, method: str, path: str, body: dict | None) -> str:
    """Head and body of the control plane's answer."""
    address, _, prefix = lab.facts["api_base"].removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        headers = {"Authorization": f"Bearer {lab.facts['token']}"}
        connection.request(method, f"/{prefix}{path}", None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return f"{answer.status} {answer.getheaders()} {answer.read().decode()}"
    finally:
        connection.close()


def command_lines(pid: int) -> list[str]:
    found = []
    for one in (pid, *descendants(pid)):
        try:
            found.append(Path(f"/proc/{one}/cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found

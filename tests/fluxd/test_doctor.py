"""`GET /v1/doctor`: each step of the way to a database, and what is said when it fails; every failure is a real one."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxplane.lab import keys
from tests.fluxd.asking import Asker, asker
from tests.fluxd.tunnels.test_passphrases import encrypt
from tests.furniture.contract import TOKEN, Project
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import asking_md5, temporary_roles

WAY = ["project", "ssh host", "host key", "authentication", "resolver", "postgres"]
ORDER = ["daemon", "socket", "token", "control plane", *WAY, "local port", "keyring", "clock"]
HASH = "ffca33f"

Checks = dict[str, dict[str, Any]]


@pytest.fixture
async def fluxd(daemon: Daemon) -> AsyncIterator[Asker]:
    async with asker(daemon.socket) as ask:
        yield ask


async def asked(fluxd: Asker, project: str | None = HASH, ssh: dict[str, Any] | None = None, **headers: str) -> Checks:
    query = f"?project={project}" if project else ""
    said = await fluxd.get(f"/v1/doctor{query}", Flux_SSH=json.dumps(ssh or {}), **headers)
    assert said.status == 200
    checks = {check["name"]: check for check in said.body["checks"]}
    assert list(checks) == ORDER, "each is told, in the order of the way"
    assert all(check["hint"] for check in checks.values() if check["verdict"] in {"warn", "fail"})
    return checks


async def examined(fluxd: Asker, lab: Lab, hash_: str | None, **changes: Any) -> Checks:
    authorization = f"Bearer {lab.facts['token']}"
    ssh = lab.facts["ssh"] | changes
    return await asked(fluxd, hash_, ssh, Flux_Api_Base=lab.facts["api_base"], Authorization=authorization)


def verdicts(checks: Checks, names: list[str]) -> list[str]:
    return [checks[name]["verdict"] for name in names]


async def test_the_whole_way_of_both_modes_is_well_and_costs_no_role(each_lab: Lab, fluxd: Asker):
    before = await asyncio.to_thread(temporary_roles, each_lab.pool_admin_url)
    for hash_ in ("5774112", HASH):
        checks = await examined(fluxd, each_lab, hash_)
        assert {check["verdict"] for check in checks.values()} == {"ok", "skip"}, checks
        assert verdicts(checks, WAY) == ["ok"] * 6
        assert checks["keyring"]["verdict"] == "skip", "the token comes from the shell"
    assert await asyncio.to_thread(temporary_roles, each_lab.pool_admin_url) == before
    assert (await fluxd.get("/v1/status")).body["hosts"] == []


async def test_without_a_project_the_way_to_the_ssh_host_is_tried(lab: Lab, fluxd: Asker):
    checks = await examined(fluxd, lab, None)
    assert verdicts(checks, WAY) == ["skip", "ok", "ok", "ok", "skip", "skip"]


async def test_a_project_nobody_knows_ends_there(lab: Lab, fluxd: Asker):
    checks = await examined(fluxd, lab, "fffffff")
    assert verdicts(checks, WAY) == ["fail", "ok", "ok", "ok", "skip", "skip"]


def test_a_daemon_that_cannot_start_is_the_failure_and_its_log_is_named(daemon_home: Path):
    daemon = Daemon(daemon_home)
    (config := daemon_home / "config").mkdir()
    (config / "config.toml").write_text("nonsense = 1\n")
    done = daemon.flux("doctor", "--json", program="fluxctl")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert checks["daemon"]["verdict"] == "fail"
    assert "nonsense" in checks["daemon"]["message"]
    assert "Its log: " in checks["daemon"]["message"]
    assert checks["versions"]["verdict"] == "fail"
    assert checks["psql"]["verdict"] in {"ok", "warn"}, "the rest is told all the same"


# ------------------------------------------------------- against a plane that can be anything


@pytest.fixture
async def bench(embedded, contract_plane, pg15):
    """A v1 project on PostgreSQL 15, behind an SSH host of the test's own."""
    embedded.know_container("db", pg15.port)
    contract_plane.ssh = {"sshHost": embedded.host, "sshUser": embedded.user, "sshPort": embedded.port}
    contract_plane.projects[HASH] = Project("yeastcoast", HASH, "v1_dedicated", "db", pg15.port, "db")
    return Bench(embedded, contract_plane)


class Bench:
    def __init__(self, host, plane) -> None:
        self.host = host
        self.plane = plane
        self.ssh = {"identity_file": str(host.identity_file), "known_hosts": str(host.known_hosts)}
        self.headers = {"Flux_Api_Base": plane.api_base, "Authorization": f"Bearer {TOKEN}"}

    async def examined(self, fluxd: Asker, **ssh: Any) -> Checks:
        return await asked(fluxd, HASH, self.ssh | ssh, **self.headers)


async def test_all_is_well_on_it(bench, fluxd: Asker):
    assert set(verdicts(await bench.examined(fluxd), ORDER)) == {"ok", "skip"}


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limit is set by prlimit(2)")
async def test_a_daemon_that_has_few_files_left(bench, fluxd: Asker, daemon: Daemon):
    assert daemon.process is not None
    _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (used + 20, hard))
    check = (await bench.examined(fluxd))["daemon"]
    assert check["verdict"] == "warn"
    assert f"of {used + 20} files" in check["message"]
    assert "ulimit -n" in check["hint"]


async def test_a_socket_that_others_may_open(bench, fluxd: Asker, daemon: Daemon):
    daemon.socket.chmod(0o666)
    check = (await bench.examined(fluxd))["socket"]
    assert check["verdict"] == "fail"
    assert "0666" in check["message"]


async def test_without_a_token_nothing_of_the_plane_is_tried(bench, fluxd: Asker):
    bench.headers.pop("Authorization")
    checks = await bench.examined(fluxd)
    assert verdicts(checks, ["token", "control plane", "project", "resolver", "clock"]) == ["fail", *["skip"] * 4]
    assert "fluxctl login" in checks["token"]["hint"]
    assert checks["keyring"]["verdict"] == "fail", "no keyring here, and nobody else has a token"


async def test_a_token_that_the_plane_refuses(bench, fluxd: Asker):
    bench.headers["Authorization"] = f"Bearer {TOKEN[:-1]}f"
    checks = await bench.examined(fluxd)
    assert verdicts(checks, ["token", "control plane", "project"]) == ["ok", "fail", "skip"]


async def test_a_control_plane_that_is_not_there(bench, fluxd: Asker):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        bench.headers["Flux_Api_Base"] = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
        checks = await bench.examined(fluxd)
    assert verdicts(checks, ["token", "control plane", "project", "clock"]) == ["ok", "fail", "skip", "skip"]
    assert "FLUX_API_BASE" in checks["control plane"]["hint"]


async def test_an_ssh_host_that_has_no_address(bench, fluxd: Asker):
    checks = await bench.examined(fluxd, host="nowhere.invalid")
    assert verdicts(checks, WAY) == ["ok", "fail", "skip", "skip", "skip", "skip"]
    assert "DNS" in checks["ssh host"]["hint"]


async def test_an_ssh_host_that_is_not_there_is_named_and_the_rest_is_not_tried(bench, fluxd: Asker):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        checks = await bench.examined(fluxd, port=nobody.getsockname()[1])
    assert verdicts(checks, WAY) == ["ok", "fail", "skip", "skip", "skip", "skip"]
    assert "FLUX_DB_TUNNEL_SSH_PORT" in checks["ssh host"]["hint"]


async def test_a_host_key_that_is_not_known(bench, fluxd: Asker, daemon: Daemon):
    (nobody := daemon.home / "known").write_text("")
    checks = await bench.examined(fluxd, known_hosts=str(nobody))
    assert verdicts(checks, WAY) == ["ok", "ok", "fail", "skip", "skip", "skip"]
    assert bench.host.host_key.get_fingerprint() in checks["host key"]["message"]
    assert "fluxctl host trust" in checks["host key"]["hint"]
    where = {"host": bench.host.host, "port": bench.host.port, "user": bench.host.user, "known_hosts": str(nobody)}
    alone = await asked(fluxd, None, where, **bench.headers)
    assert alone["host key"]["verdict"] == "warn", "a project's plan may pin it"


async def test_a_host_key_that_has_changed(bench, fluxd: Asker, daemon: Daemon):
    other = keys.private_key(daemon.home / "other")
    (known := daemon.home / "known").write_text(keys.known_hosts_line(bench.host.host, bench.host.port, other))
    checks = await bench.examined(fluxd, known_hosts=str(known))
    assert verdicts(checks, WAY) == ["ok", "ok", "fail", "skip", "skip", "skip"]
    assert "ssh-keygen -R" in checks["host key"]["hint"]


async def test_a_user_that_is_not_let_in(bench, fluxd: Asker):
    checks = await bench.examined(fluxd, user="nobody-at-all")
    assert verdicts(checks, WAY) == ["ok", "ok", "ok", "fail", "skip", "skip"]


async def test_a_key_that_is_encrypted_is_named(bench, fluxd: Asker):
    encrypt(bench.host.identity_file, "a secret")
    checks = await bench.examined(fluxd)
    assert verdicts(checks, WAY) == ["ok", "ok", "ok", "fail", "skip", "skip"]
    assert str(bench.host.identity_file) in checks["authentication"]["message"]
    assert "ssh-add" in checks["authentication"]["hint"]


async def test_a_host_that_does_not_know_the_database(bench, fluxd: Asker):
    bench.host.forget("db")
    checks = await bench.examined(fluxd)
    assert verdicts(checks, WAY) == ["ok", "ok", "ok", "ok", "fail", "skip"]


async def test_a_database_that_does_not_answer(bench, fluxd: Asker):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        bench.host.know_container("db", port)
        bench.plane.projects[HASH].internal_port = port
        checks = await bench.examined(fluxd)
    assert verdicts(checks, WAY) == ["ok", "ok", "ok", "ok", "ok", "fail"]


async def test_a_database_that_only_knows_md5_is_let_through_with_a_word(bench, fluxd: Asker, pg15):
    with asking_md5(pg15):
        checks = await bench.examined(fluxd)
    assert verdicts(checks, WAY) == ["ok", "ok", "ok", "ok", "ok", "warn"]
    assert "asks for md5" in checks["postgres"]["message"]
    assert "scram-sha-256" in checks["postgres"]["hint"]


async def test_a_local_port_that_somebody_else_holds(bench, fluxd: Asker, daemon: Daemon):
    body = {"hash": HASH, "plane": {"api_base": bench.plane.api_base, "token": TOKEN}, "ssh": bench.ssh}
    opened = await fluxd.ask("POST", "/v1/tunnels", body)
    assert opened.status == 201, opened.body
    port = opened.body["tunnel"]["port"]
    assert str(port) in (await bench.examined(fluxd))["local port"]["message"]
    await fluxd.ask("DELETE", f"/v1/tunnels/{HASH}")
    with socket.create_server(("127.0.0.1", port)):
        check = (await bench.examined(fluxd))["local port"]
    assert check["verdict"] == "warn"
    assert f"next opening takes {port + 1}" in check["message"]


@pytest.mark.parametrize(("minutes", "way"), [(10, "behind"), (-10, "ahead of")])
async def test_a_clock_that_disagrees(bench, fluxd: Asker, minutes, way):
    bench.plane.skew = timedelta(minutes=minutes)
    check = (await bench.examined(fluxd))["clock"]
    assert check["verdict"] == "warn"
    assert way in check["message"]

"""Many at once, through the installed commands: tunnels over one SSH connection, clients, and clients that leave."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fluxplane import catalogue, registry
from fluxplane.lab.contents import USER
from fluxplane.lab.directory import Directory
from fluxplane.settings import Settings
from tests.furniture import leaks
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab, running_lab
from tests.furniture.postgres import enterable_directory, no_role_left
from tests.furniture.processes import command, descendants, wait_until

pytestmark = pytest.mark.journey

TUNNELS = 20
CLIENTS = 200
DESERTERS = 1000
CROWD = [(f"crowd-{number:02}", f"c0de{number:03}") for number in range(TUNNELS)]
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")

HALF_A_STARTUP = struct.pack("!ii", 64, 196608) + b"user\0post"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@pytest.fixture(scope="module", params=["embedded", "openssh"])
def crowded_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with twenty more projects."""
    with contextlib.ExitStack() as stack:
        with leaks.lasting():
            home = stack.enter_context(enterable_directory("flux-crowd-"))
            lab = stack.enter_context(running_lab(home / "lab", "--ssh", request.param))
            asyncio.run(create_crowd(lab))
        yield lab


async def create_crowd(lab: Lab) -> None:
    directory = Directory(lab.directory, bytes.fromhex((lab.directory / "seed").read_text()))
    port = psycopg.conninfo.conninfo_to_dict(lab.pool_admin_url)["port"]

    def service(login: str, database: str) -> str:
        return f"postgresql://{login}:{directory.secret(login).reveal()}@127.0.0.1:{port}/{database}"

    settings = Settings.from_environment(
        {
            "FLUXPLANE_CATALOGUE_URL": service("fluxplane", "fluxplane"),
            "FLUXPLANE_POOL_URL": service("flux_plane_service", "postgres"),
            "FLUXPLANE_POOL_ADMIN_URL": lab.pool_admin_url,
            "FLUXPLANE_KEY_FILE": str(lab.directory / "plane.key"),
        }
    )
    async with catalogue.connect(settings) as store:
        for slug, project_hash in CROWD:
            new = registry.NewProject(user=USER, slug=slug, mode="v2_shared", hash=project_hash)
            await registry.create_project(store, settings, new)


@pytest.fixture
def lab(crowded_lab: Lab) -> Iterator[Lab]:
    with no_role_left(crowded_lab.pool_admin_url):
        yield crowded_lab


def logins(lab: Lab) -> int:
    """How often the real sshd let somebody in."""
    return (lab.directory / "sshd/log").read_text().count("Accepted publickey")


def is_openssh(lab: Lab) -> bool:
    return (lab.directory / "sshd").exists()


def test_twenty_tunnels_opened_at_once_share_one_ssh_connection(lab: Lab, daemon: Daemon):
    logins_before = logins(lab) if is_openssh(lab) else 0
    opening = [
        subprocess.Popen(
            [command("fluxctl"), "tunnel", "open", slug, "--hash", project_hash, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=daemon.environment | dict(lab.env),
            cwd=daemon.home,
        )
        for slug, project_hash in CROWD
    ]
    said = [process.communicate(timeout=120) for process in opening]
    assert [process.returncode for process in opening] == [0] * TUNNELS, [err for _, err in said]
    opened = [json.loads(out) for out, _ in said]
    assert len({one["tunnel"]["port"] for one in opened}) == TUNNELS
    assert [one["tunnel"]["project"] for one in opened] == [slug for slug, _ in CROWD]
    assert len(daemon.flux_json("status", env=lab.env)["hosts"]) == 1
    if is_openssh(lab):
        assert logins(lab) - logins_before == 1
    for one in opened:
        assert schema_seen(one) == one["credential"]["tenant_schema"]


def schema_seen(opened: dict) -> str:
    """The tenant schema on the search path of a client that says what a GUI would."""
    credential = opened["credential"]
    with psycopg.connect(
        host=opened["tunnel"]["host"],
        port=opened["tunnel"]["port"],
        user=credential["username"],
        password=credential["password"],
        dbname="postgres",
        connect_timeout=30,
    ) as connection:
        row = connection.execute("SELECT current_schema()::text").fetchone()
    assert row is not None
    return str(row[0])


async def test_two_hundred_clients_each_read_back_their_own_bytes(lab: Lab, daemon: Daemon):
    password = psycopg.conninfo.conninfo_to_dict(lab.dedicated_url)["password"]
    tunnel = (await asyncio.to_thread(daemon.flux_json, "tunnel", "open", *YEASTCOAST, env=lab.env))["tunnel"]
    everybody_is_in = asyncio.Barrier(CLIENTS)

    async def client() -> None:
        connection = await psycopg.AsyncConnection.connect(
            host=tunnel["host"], port=tunnel["port"], user="postgres", password=password, dbname="postgres"
        )
        async with connection:
            await everybody_is_in.wait()
            for size in (1, 5_000, 70_000):
                sent = os.urandom(size)
                row = await (await connection.execute("SELECT %b::bytea", [sent])).fetchone()
                assert row == (sent,)

    async with asyncio.timeout(120), asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(client())


def test_a_thousand_clients_that_leave_during_the_handshake_leak_nothing(lab: Lab, daemon: Daemon):
    daemon.flux_json("tunnel", "open", *YEASTCOAST, env=lab.env)
    tunnel = daemon.flux_json("tunnel", "list", env=lab.env)["tunnels"][0]
    assert daemon.process is not None
    desert(tunnel["port"], 20)
    wait_until(lambda: channels(daemon, lab) == 0, "the first deserters' channels end")
    before, accepted = (open_files(daemon.process.pid), ssh_files(lab)), relays_total(daemon, lab)
    desert(tunnel["port"], DESERTERS)
    wait_until(lambda: channels(daemon, lab) == 0, "every channel ends", within_s=60)
    assert relays_total(daemon, lab) - accepted == DESERTERS
    wait_until(lambda: open_files(daemon.process.pid) <= before[0], "fluxd's descriptors are back", within_s=60)
    wait_until(lambda: ssh_files(lab) <= before[1], "the SSH host's descriptors are back", within_s=60)
    status = daemon.flux_json("status", env=lab.env)
    assert status["relays"] == 0
    done = daemon.flux("db", "shell", *YEASTCOAST, "--command", "SELECT count(*) FROM strains", env=lab.env)
    assert done.returncode == 0, done.stderr
    assert "4" in done.stdout.split()


def desert(port: int, number: int) -> None:
    """Connect, say nothing or half of something, and leave by FIN or RST; a few dozen at a time."""
    leaving = [(b"", False), (b"", True), (HALF_A_STARTUP, False), (HALF_A_STARTUP, True), (SSL_REQUEST, True)]
    crowd: list[socket.socket] = []
    for index in range(number):
        said, abruptly = leaving[index % len(leaving)]
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        if said:
            client.sendall(said)
        if abruptly:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        crowd.append(client)
        if len(crowd) == 40 or index == number - 1:
            for one in crowd:
                one.close()
            crowd.clear()


def channels(daemon: Daemon, lab: Lab) -> int:
    return sum(host["channels"] for host in daemon.flux_json("status", env=lab.env)["hosts"])


def relays_total(daemon: Daemon, lab: Lab) -> int:
    return int(daemon.flux_json("tunnel", "list", env=lab.env)["tunnels"][0]["traffic"]["relays_total"])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def ssh_files(lab: Lab) -> int:
    """Descriptors of whatever serves SSH: the real sshd's processes, or the lab itself."""
    below = [pid for pid in descendants(lab.process.pid) if "sshd" in name_of(pid)]
    return sum(open_files(pid) for pid in below) if is_openssh(lab) else open_files(lab.process.pid)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""

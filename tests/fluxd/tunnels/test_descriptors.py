"""A daemon that may open no more files: it refuses who comes, says why, and serves again when it may."""

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.fluxd.asking import asker
from tests.fluxd.tunnels.rig import V1_HASH, Rig, until
from tests.furniture.contract import TOKEN
from tests.furniture.provoked import provoked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another process's limit is set by prlimit(2)")

ROOM = 3
# More than the room, and than the descriptors that were in use before and may come free.
CLIENTS = 20


@contextlib.contextmanager
def short_of_descriptors(pid):
    """It may open `ROOM` more, or a few."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = [int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(open_now) + 1 + ROOM, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def told(fluxd):
    """The events from here on, as they come."""
    events = []

    async def listen():
        async with fluxd.session.get("http://localhost/v1/events") as stream:
            async for line in stream.content:
                if line.startswith(b"{"):
                    events.append(json.loads(line))  # noqa: PERF401 - read while it grows

    listening = asyncio.create_task(listen())
    await until(lambda: events, "the snapshot")
    try:
        yield events
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def was_refused(client):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            try:
                return await asyncio.get_running_loop().sock_recv(client, 1) == b""
            except ConnectionResetError:
                return True
    return False


async def asked(port, rig):
    connection = await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=port, user="postgres", password=rig.postgres.password.reveal(), connect_timeout=20
    )
    async with connection:
        return (await (await connection.execute("SELECT 1")).fetchone())[0]


async def test_without_descriptors_clients_are_refused_by_name_and_served_when_there_are_some(
    daemon, openssh, contract_plane, pool18, tmp_path
):
    rig = Rig(openssh, contract_plane, pool18, tmp_path / "state")
    ssh = {"identity_file": str(openssh.identity_file), "known_hosts": str(openssh.known_hosts)}
    plane = {"api_base": contract_plane.api_base, "token": TOKEN}
    pid = daemon.process.pid
    async with asyncio.timeout(60), asker(daemon.socket) as fluxd, told(fluxd) as events:
        said = await fluxd.ask("POST", "/v1/tunnels", {"hash": V1_HASH, "plane": plane, "ssh": ssh})
        port = said.body["tunnel"]["port"]
        assert await asked(port, rig) == 1
        with contextlib.ExitStack() as clients, short_of_descriptors(pid):
            sockets = [clients.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CLIENTS)]
            for one in sockets:
                one.setblocking(False)
            refused = sum(await asyncio.gather(*map(was_refused, sockets)))
            assert CLIENTS // 2 < refused < CLIENTS
            before, begun = cpu_s(pid), time.monotonic()
            await asyncio.sleep(2)
            assert (cpu_s(pid) - before) / (time.monotonic() - begun) < 0.5
            problems = [one["problem"] for one in events if one["name"] == "client_refused"]
            assert [one["code"] for one in problems] == ["too_many_open_files"] * refused
            provoked("too_many_open_files", problems[0])
        assert await asked(port, rig) == 1
        assert (await fluxd.ask("DELETE", f"/v1/tunnels/{port}")).status == 200
    await rig.close()

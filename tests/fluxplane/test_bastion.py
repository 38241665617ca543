"""The forwarding-only account: what `fluxplane bastion-config` prints, in a real sshd."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fluxd.core import resolver
from fluxplane.bastion import SCRIPT_PATH, Bastion, Database
from fluxplane.settings import OperatorError
from tests.fluxplane.conftest import USER
from tests.fluxplane.test_command import Operator, set_up
from tests.furniture.sshd import OpenSSH, serving

POOL = Database("flux-postgres-v2", 5432, "flux-postgres-v2")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO7cYkpmI84zmme5pXISEVgZzQklFRzMf5+idmZUV+O3 dev@laptop"


async def run(argv: list[str], **options) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **options,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def echo_server() -> tuple[asyncio.Server, int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"upstream:" + await reader.read(100))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def an_account(home: Path, database: Database):
    """A real sshd with exactly the printed script, block and key line, for the account that runs it."""
    host = OpenSSH(home, forced=False)
    script = home / "flux-bastion"
    made = Bastion(host.user, (database,), keys=(host.client_key.export_public_key().decode().strip(),))
    script.write_text(made.script())
    script.chmod(0o755)
    host.server.authorized_keys = made.authorized_keys().replace(SCRIPT_PATH, str(script))
    host.server.lines = tuple(made.sshd_config().replace(SCRIPT_PATH, str(script)).splitlines()[1:])
    host.names = {database.host: "127.0.0.1", "flux-other-db": "127.0.0.1"}
    host.publish()
    async with serving(host):
        yield host


async def forwarded(host: OpenSSH, name: str, port: int) -> bytes:
    """What a client of `ssh -W name:port` is answered; empty where the channel is refused."""
    process = await asyncio.create_subprocess_exec(
        *host.ssh_argv()[:-1], "-W", f"{name}:{port}", host.destination,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(20):
        out, _ = await process.communicate(b"hello")
    return out


async def through_a_socket(host: OpenSSH, port: int, path: str) -> bytes:
    """What a client of `ssh -L port:path` is answered."""
    forward = await asyncio.create_subprocess_exec(
        *host.ssh_argv()[:-1], "-N", "-L", f"{port}:{path}", host.destination, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            reader, writer = await connected(port)
            answer = await reader.read(1)
            writer.close()
            return answer
    finally:
        forward.terminate()
        await forward.wait()


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Once ssh listens; the caller bounds the wait."""
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)


async def test_the_account_reaches_its_database_by_name_and_nothing_else(ssh_home):
    server, port = await echo_server()
    async with server, an_account(ssh_home, Database("flux-postgres-v2", port)) as host:
        assert b"upstream:hello" == await forwarded(host, "flux-postgres-v2", port)
        assert b"" == await forwarded(host, "flux-other-db", port)
        assert b"" == await forwarded(host, "127.0.0.1", port)
        assert b"" == await forwarded(host, "flux-postgres-v2", host.port)


async def test_the_account_answers_the_resolver_as_fluxd_asks_it(ssh_home):
    async with an_account(ssh_home, POOL) as host:
        question = resolver.getent_question(POOL.host)
        code, out, _ = await run([*host.ssh_argv(), question])
        assert "127.0.0.1" == resolver.read_getent(resolver.Answer(code, out, ""))


OTHER_COMMANDS = (
    "id",
    "getent passwd",
    "getent hosts flux-other-db",
    "getent hosts flux-postgres-v2; id",
    "getent hosts flux-postgres-v2\nid",
    "docker inspect flux-postgres-v2",
    "docker ps",
    "sh -i",
    "/usr/lib/openssh/sftp-server",
    "$(id)",
    "",
)


async def test_the_account_runs_nothing_else(ssh_home):
    async with an_account(ssh_home, POOL) as host:
        for command in OTHER_COMMANDS:
            code, out, err = await run([*host.ssh_argv(), *([command] if command else [])])
            assert (126, "") == (code, out), command
            assert "only forwards" in err


async def test_the_account_listens_nowhere_and_forwards_no_socket(ssh_home):
    async with an_account(ssh_home, POOL) as host:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        backwards = [*host.ssh_argv()[:-1], "-o", "ExitOnForwardFailure=yes", "-N", "-R", f"{port}:127.0.0.1:1"]
        code, _, err = await run([*backwards, host.destination])
        assert (255, True) == (code, "remote port forwarding failed" in err)
        assert await through_a_socket(host, port, "/run/docker.sock") == b""


@pytest.mark.parametrize("name", [POOL.container, "flux-abc1234-acme-db"])
def test_every_docker_question_of_fluxd_is_known_word_for_word(name):
    script = Bastion("flux-tunnel", (Database(name, 5432, name, "flux-abc1234-acme-net"),), docker=True).script()
    for network in (None, "flux-v2-shared", "flux-network", "flux-abc1234-acme-net"):
        for v6 in (False, True):
            question = resolver.docker_question(name, network, v6=v6)
            seen = subprocess.run(
                ["/bin/sh", "-c", script.replace("exec sudo", "exec echo sudo")],
                env={"SSH_ORIGINAL_COMMAND": question, "PATH": os.defpath},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (0, "") == (seen.returncode, seen.stderr)
            assert seen.stdout.startswith("sudo -n /usr/bin/docker inspect -f {{")
            assert seen.stdout.rstrip().endswith(f"--type container {name}")


def test_sudoers_and_sshd_read_what_is_printed(tmp_path):
    made = Bastion("flux-tunnel", (POOL,), keys=(KEY,), docker=True)
    sudoers = tmp_path / "sudoers"
    sudoers.write_text(made.sudoers())
    checked = subprocess.run(["/usr/sbin/visudo", "-cf", sudoers], capture_output=True, text=True, check=False)
    assert 0 == checked.returncode, checked.stderr + checked.stdout
    host_key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(f"HostKey {host_key}\n{Bastion('flux-tunnel', (POOL,)).sshd_config()}")
    who = "user=flux-tunnel,host=laptop,addr=192.0.2.7"
    said = subprocess.run(
        ["/usr/sbin/sshd", "-T", "-f", config, "-C", who], capture_output=True, text=True, check=False
    )
    assert 0 == said.returncode, said.stderr
    effective = dict(line.split(maxsplit=1) for line in said.stdout.splitlines() if " " in line)
    assert "flux-postgres-v2:5432" == effective["permitopen"]
    assert SCRIPT_PATH == effective["forcecommand"]
    assert ["local", "no", "no", "no"] == [
        effective[word] for word in ("allowtcpforwarding", "permittty", "allowstreamlocalforwarding", "permituserrc")
    ]


@pytest.mark.parametrize("name", ["", "-o", "a b", "a;id", "a'b", "$(id)", "a\nb", "*"])
def test_a_name_that_does_not_belong_in_a_script_is_refused(name):
    with pytest.raises(OperatorError):
        Database(name, 5432)


@pytest.mark.parametrize("key", ["", "nonsense", "ssh-ed25519", KEY + "\nssh-ed25519 AAAA", 'command="id" ' + KEY])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(OperatorError):
        Bastion("flux-tunnel", (POOL,), keys=(key,))


def test_the_command_prints_the_pools_account(tmp_path):
    (tmp_path / "id.pub").write_text(KEY + "\n")
    argv = [sys.executable, "-m", "fluxplane", "bastion-config", "--key", str(tmp_path / "id.pub")]
    # Nothing connects to the catalogue for the pool's account.
    catalogue = "postgresql://fluxplane@127.0.0.1:1/fluxplane"
    environment = {
        "FLUXPLANE_CATALOGUE_URL": catalogue,
        "FLUX_SHARED_POSTGRES_TUNNEL_HOST": "flux-postgres-v2",
        "PATH": os.defpath,
    }
    whole = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (0, "") == (whole.returncode, whole.stderr)
    assert 'restrict,port-forwarding,permitopen="flux-postgres-v2:5432"' in whole.stdout
    part = subprocess.run([*argv, "--part", "script"], env=environment, capture_output=True, text=True, check=False)
    assert part.stdout.startswith("#!/bin/sh\n")


def test_the_command_prints_a_projects_account(pool18, tmp_path):
    operator = Operator(pool18, tmp_path)
    set_up(operator)
    told = operator.run(
        *("project", "create", "--user", USER, "--slug", "acme", "--mode", "v1_dedicated", "--hash", "abc1234")
    )
    assert "abc1234" in told
    whole = operator.run("bastion-config", "--user", USER, "--hash", "abc1234")
    assert 'restrict,port-forwarding,permitopen="flux-abc1234-acme-db:5432"' in whole
    assert "getent hosts flux-abc1234-acme-db" in whole
    assert "flux-postgres-v2" not in whole
    assert "--user too" in operator.run("bastion-config", "--hash", "abc1234", code=1)

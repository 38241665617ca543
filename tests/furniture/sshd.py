"""
SSH hosts: a real OpenSSH sshd and the lab's embedded one, behind one interface, so that every SSH test runs on both.

`ssh_host` is each of them in turn, `openssh` and `embedded` one of them. `openssh_with_docker` has no ForceCommand: the
question goes to the real `docker` client, which asks a small fake engine.
"""

import asyncio
import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import asyncssh
import pytest

from fluxplane.lab import keys
from fluxplane.lab.errors import LabFailed
from fluxplane.lab.openssh import OpenSSHHost, find_sshd, force_command
from fluxplane.lab.resolver import Table
from fluxplane.lab.sshhost import EmbeddedHost
from tests.furniture.needs import needs, needs_program

NETWORK = "flux-network"


class SSHHost(ABC):
    """An SSH host on loopback that knows the names and containers it was told, and forwards to their ports."""

    host = "127.0.0.1"
    port: int
    user: str

    def __init__(self, home: Path) -> None:
        self.home = home
        self.identity_file = home / "id_ed25519"
        self.known_hosts = home / "known_hosts"
        self.host_key = keys.private_key(home / "ssh_host_ed25519_key")
        self.client_key = keys.private_key(self.identity_file)
        self.names: dict[str, str] = {}
        self.containers: dict[str, dict[str, str]] = {}
        self.stopped: set[str] = set()

    @property
    def table(self) -> Table:
        return Table(self.names, self.containers)

    def know_name(self, name: str, port: int, address: str = "127.0.0.1") -> None:
        """getent answers *address* for *name*, and channels reach *port* by either."""
        self.names[name] = address
        self.allow(name, address, port)
        self.publish()

    def know_container(self, name: str, port: int, networks: Mapping[str, str] | None = None) -> None:
        """docker answers these addresses (one network's 127.0.0.1 if not told otherwise), and channels reach *port*."""
        self.containers[name] = dict({NETWORK: "127.0.0.1"} if networks is None else networks)
        for address in self.containers[name].values():
            self.allow(address, address, port)
        self.publish()

    def forget(self, name: str) -> None:
        self.names.pop(name, None)
        self.containers.pop(name, None)
        self.publish()

    def write_known_hosts(self) -> None:
        self.known_hosts.write_text(keys.known_hosts_line(self.host, self.port, self.host_key))

    def new_host_key(self) -> None:
        """From the next start on; `known_hosts` keeps the old one."""
        (self.home / "ssh_host_ed25519_key").unlink()
        self.host_key = keys.private_key(self.home / "ssh_host_ed25519_key")

    async def restart(self) -> None:
        """End every session, be away for a moment, and come back on the same port."""
        port = self.port
        await self.stop()
        await self.start()
        assert port == self.port

    def connect_arguments(self) -> dict:
        """What `asyncssh.connect` needs to log in here."""
        return {
            "host": self.host,
            "port": self.port,
            "username": self.user,
            "client_keys": [str(self.identity_file)],
            "known_hosts": str(self.known_hosts),
            "config": None,
        }

    def ssh_argv(self) -> list[str]:
        """`ssh …` up to and including the destination."""
        options = (f"UserKnownHostsFile={self.known_hosts}", "BatchMode=yes", "StrictHostKeyChecking=yes")
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *words, "-i", str(self.identity_file), "-p", str(self.port), self.destination]

    @property
    def destination(self) -> str:
        return f"{self.user}@{self.host}"

    @abstractmethod
    def allow(self, name: str, address: str, port: int) -> None: ...

    @abstractmethod
    def publish(self) -> None: ...

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def stop(self) -> None: ...

    @abstractmethod
    async def hang_up(self) -> None:
        """End every session; who dials again is let in."""


class Embedded(SSHHost):
    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.server = EmbeddedHost(self.host_key, [self.client_key], targets={})
        self.user = self.server.user
        self.port = 0

    def allow(self, name: str, address: str, port: int) -> None:
        there = (address, port)
        self.server.targets = {**self.server.targets, (name, port): there, there: there}

    def publish(self) -> None:
        self.server.table = self.table

    async def start(self) -> None:
        self.server.host_key = self.host_key
        await self.server.start()
        self.port = self.server.port

    async def stop(self) -> None:
        await self.server.stop()

    async def hang_up(self) -> None:
        await self.server.hang_up()


class OpenSSH(SSHHost):
    """
    Debian's sshd. A name must resolve in sshd itself: run by root it sees a hosts file of its own (a mount namespace),
    else only names that the machine knows are of use.
    """

    def __init__(self, home: Path, *, lines: tuple[str, ...] = (), forced: bool = True) -> None:
        super().__init__(home)
        self._table_file = home / "table.json"
        self._hosts_file = home / "hosts"
        self.publish()
        self.server = OpenSSHHost(
            home / "sshd",
            home / "ssh_host_ed25519_key",
            self.client_key.export_public_key().decode(),
            permit_open=("any",),
            force_command=force_command(self._table_file) if forced else None,
            lines=lines,
            wrapper=self._with_hosts_file() if has_mount_namespaces() else (),
        )
        self.user = self.server.user

    def _with_hosts_file(self) -> tuple[str, ...]:
        script = f'mount --bind "{self._hosts_file}" /etc/hosts && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, "sh")

    def allow(self, name: str, address: str, port: int) -> None:
        """PermitOpen is `any` here; what it refuses is the lab's to test."""
        there = name == "localhost" or ":" in name or name.replace(".", "").isdigit() or has_mount_namespaces()
        needs(there, "sshd knows this name only in a mount namespace of its own, which is not to be had")

    def publish(self) -> None:
        self._table_file.write_text(self.table.to_json())
        lines = ["127.0.0.1 localhost", "::1 localhost", *(f"{ip} {name}" for name, ip in self.names.items())]
        self._hosts_file.write_text("\n".join(lines) + "\n")  # in place: the bind mount follows the inode

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)
        self.port = self.server.port or 0

    async def stop(self) -> None:
        await asyncio.to_thread(self.server.stop)

    async def hang_up(self) -> None:
        await asyncio.to_thread(self.server.hang_up)

    def freeze(self) -> None:
        """SIGSTOP to everything: sockets stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in [self.server.process.pid, *self.server.sessions()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@functools.cache
def has_mount_namespaces() -> bool:
    """Root has them, unless in a container without CAP_SYS_ADMIN."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


def has_sshd() -> bool:
    try:
        return bool(find_sshd())
    except LabFailed:
        return False


@contextlib.asynccontextmanager
async def serving(host: SSHHost) -> AsyncIterator[SSHHost]:
    needs(isinstance(host, Embedded) or has_sshd(), "OpenSSH's server is not installed")
    await host.start()
    try:
        host.write_known_hosts()
        yield host
    finally:
        await host.stop()


@pytest.fixture
def ssh_home() -> Iterator[Path]:
    """Short (a Unix socket's path must fit) and private."""
    home = Path(tempfile.mkdtemp(prefix="flux-ssh-"))
    yield home
    shutil.rmtree(home)


@pytest.fixture
async def embedded(ssh_home: Path):
    async with serving(Embedded(ssh_home)) as host:
        yield host


@pytest.fixture
async def openssh(ssh_home: Path):
    async with serving(OpenSSH(ssh_home)) as host:
        yield host


@pytest.fixture(params=["openssh", "embedded"])
async def ssh_host(request: pytest.FixtureRequest, ssh_home: Path):
    kind = {"openssh": OpenSSH, "embedded": Embedded}[request.param]
    async with serving(kind(ssh_home)) as host:
        yield host


# ------------------------------------------------------------------- real docker


class FakeEngine:
    """
    As much of the Docker engine's API as `docker inspect --type container` asks for, on a Unix socket.

    `containers`: name → {network: address}. Each has a password in its environment, which must never be shown.
    """

    PASSWORD = "the container's environment is nobody's business"

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.containers: dict[str, dict[str, str]] = {}
        self.stopped: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def container(self, name: str) -> bytes | None:
        if name not in self.containers:
            return None
        networks = {net: {"IPAddress": ip, "GlobalIPv6Address": ""} for net, ip in self.containers[name].items()}
        env = [f"POSTGRES_PASSWORD={self.PASSWORD}"]
        body = {
            "Id": "0" * 64,
            "Name": f"/{name}",
            "State": {"Running": name not in self.stopped},
            "Config": {"Env": env},
            "NetworkSettings": {"Networks": networks},
        }
        return json.dumps(body).encode()

    @contextlib.contextmanager
    def serving(self) -> Iterator["FakeEngine"]:
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                engine.asked.append(self.path)
                parts = self.path.split("/")
                if self.path == "/_ping":
                    return self.reply(200, b"OK")
                body = engine.container(parts[3]) if parts[2:3] == ["containers"] and parts[-1] == "json" else None
                if body is None:
                    return self.reply(404, json.dumps({"message": f"No such container: {parts[3]}"}).encode())
                return self.reply(200, body)

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Api-Version", "1.43")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def address_string(self) -> str:
                return "docker"

            def log_message(self, *_: object) -> None: ...

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = False

        with Server(str(self.socket), Handler) as server:
            self.socket.chmod(0o666)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
                self.socket.unlink()


@pytest.fixture
def docker_engine(ssh_home: Path) -> Iterator[FakeEngine]:
    with FakeEngine(ssh_home / "docker.sock").serving() as engine:
        yield engine


@pytest.fixture
async def openssh_with_docker(ssh_home: Path, docker_engine: FakeEngine):
    """The shell of a real platform host: `getent` is the machine's, `docker` the real client."""
    needs_program("docker")
    path = os.environ["PATH"]
    lines = (f'SetEnv DOCKER_HOST={docker_engine.url} PATH="{path}"',)
    async with serving(OpenSSH(ssh_home, lines=lines, forced=False)) as host:
        yield host


# ------------------------------------------------------------------- an ssh-agent


class Agent:
    """A real ssh-agent; `socket` is its path."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        needs_program("ssh-agent")
        self.process = await asyncio.create_subprocess_exec(
            "ssh-agent", "-D", "-a", str(self.socket), stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            while not self._listens():
                await asyncio.sleep(0.01)

    def _listens(self) -> bool:
        """The path alone is there a moment earlier."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
            return True
        return False

    async def add(self, key: Path) -> None:
        adding = await asyncio.create_subprocess_exec(
            "ssh-add", "-q", str(key), env={**os.environ, "SSH_AUTH_SOCK": str(self.socket)}
        )
        assert await adding.wait() == 0

    async def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        await self.process.wait()
        self.socket.unlink(missing_ok=True)


@pytest.fixture
async def ssh_agent(ssh_home: Path):
    agent = Agent(ssh_home / "agent.sock")
    await agent.start()
    yield agent
    await agent.stop()


def connect(host: SSHHost, **more: object):
    """An asyncssh client connection to *host*."""
    return asyncssh.connect(**(host.connect_arguments() | more))

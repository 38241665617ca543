"""
The platform in a box: two Postgres servers, an SSH host and the control plane, started, told about, and stopped.

`running` is the whole of it as a context; nothing that it started is left when it ends, however it ends. Which parts
there are and what is in them: `contents`. The control plane is the real one (`api.serve`), only its limits are high.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from fluxplane import api, binaries, catalogue, pool
from fluxplane.lab import contents, keys
from fluxplane.lab.contents import DEDICATED_CONTAINER, POOL_CONTAINER
from fluxplane.lab.directory import Directory
from fluxplane.lab.errors import LabFailed
from fluxplane.lab.openssh import OpenSSHHost, force_command, stop_leftover
from fluxplane.lab.ports import free_port
from fluxplane.lab.postgres import Server
from fluxplane.lab.resolver import Table
from fluxplane.lab.sshhost import EmbeddedHost
from fluxplane.settings import BackupSettings, Limits, Settings
from fluxplane.wire import V1, Secret

T = TypeVar("T")
SSHKind = Literal["embedded", "openssh"]

LOOPBACK: Final = "127.0.0.1"
POSTGRES_PORT: Final = 5432
PLAIN: Final = "?sslmode=disable"  # the lab's servers have no TLS: not even asked for
WATCH_EVERY_S: Final = 0.5

# Addresses that mean something to the embedded host only, as a docker network's do on a real one.
DEDICATED_ADDRESS: Final = "172.29.57.2"
POOL_ADDRESSES: Final = {"flux-network": "172.29.58.2", "flux-v2-shared": "172.29.59.2"}
DEDICATED_NETWORK: Final = "flux-ffca33f-yeastcoast-net"

ENDLESS: Final = 10**6
LIMITS: Final = Limits(
    reads_per_minute=ENDLESS,
    sensitive_per_minute=ENDLESS,
    writes_per_minute=ENDLESS,
    audit_per_minute=ENDLESS,
    anonymous_per_minute=ENDLESS,
    live_roles_per_user=10_000,
    live_roles_per_project=10_000,
    connections_per_role=100,
)


@dataclass(frozen=True)
class Wishes:
    """What the lab's user may choose. `listen` None: loopback, and the port of the last run or any."""

    ssh: SSHKind = "embedded"
    listen: tuple[str, int] | None = None
    allow_readwrite: bool = False
    contract_only: bool = False


@dataclass(frozen=True)
class Lab:
    """A running lab."""

    directory: Directory
    api_base: str
    token: Secret
    dedicated: Server
    pooled: Server
    ssh: EmbeddedHost | OpenSSHHost
    identity_file: Path
    known_hosts: Path

    async def watch(self) -> LabFailed:
        """Return when a part of it ended by itself, with what to say about that."""
        while True:
            for name, log, process in self._processes():
                if process.poll() is not None:
                    return LabFailed(f"The lab's {name} ended by itself.", hint=f"Its log is {log}.")
            await asyncio.sleep(WATCH_EVERY_S)

    def _processes(self) -> Iterator[tuple[str, Path, Any]]:
        yield "dedicated Postgres", self.dedicated.log, self.dedicated.process
        yield "pool Postgres", self.pooled.log, self.pooled.process
        if isinstance(self.ssh, OpenSSHHost):
            yield "sshd", self.ssh.log, self.ssh.process

    def env(self) -> dict[str, str]:
        """What makes fluxctl use this lab."""
        return {
            "FLUX_API_BASE": self.api_base,
            "FLUX_API_TOKEN": self.token.reveal(),
            "FLUX_DB_TUNNEL_SSH_HOST": self.ssh.host,
            "FLUX_DB_TUNNEL_SSH_USER": self.ssh.user,
            "FLUX_DB_TUNNEL_SSH_PORT": str(self.ssh.port),
            "FLUX_DB_TUNNEL_IDENTITY_FILE": str(self.identity_file),
            "FLUX_DB_TUNNEL_KNOWN_HOSTS": str(self.known_hosts),
        }

    def facts(self) -> dict[str, Any]:
        return {
            "api_base": self.api_base,
            "token": self.token.reveal(),
            "ssh": {
                "host": self.ssh.host,
                "port": self.ssh.port,
                "user": self.ssh.user,
                "identity_file": str(self.identity_file),
                "known_hosts": str(self.known_hosts),
            },
            "projects": [{"slug": slug, "hash": hash_, "mode": mode} for slug, hash_, mode in contents.PROJECTS],
            "postgres": {
                "dedicated_url": self.dedicated.url().reveal(),
                "pool_admin_url": self.pooled.url().reveal(),
            },
        }


@contextlib.asynccontextmanager
async def running(directory: Directory, wishes: Wishes) -> AsyncIterator[Lab]:
    """
    A lab in *directory*, ready: `env` and `lab.json` are written.

    Raises:
        LabFailed, OperatorError: a part could not be started; those that were are stopped.
    """
    last = directory.last_ports()
    async with contextlib.AsyncExitStack() as stack:
        dedicated, pooled = await _postgres(stack, directory, last)
        ssh = await _ssh(stack, directory, wishes.ssh, dedicated, pooled, last.get("ssh"))
        settings = _settings(directory, wishes, pooled, ssh)
        token = await _fill(directory, settings, dedicated, ssh)
        host, wanted = wishes.listen or (LOOPBACK, free_port(preferred=last.get("api")))
        port = await stack.enter_async_context(api.serve(settings, host, wanted))
        known_hosts = directory.path / "known_hosts"
        lab = Lab(
            directory=directory,
            api_base=f"http://{f'[{host}]' if ':' in host else host}:{port}/api",
            token=token,
            dedicated=dedicated,
            pooled=pooled,
            ssh=ssh,
            identity_file=_identity_file(directory),
            known_hosts=known_hosts,
        )
        known_hosts.write_text(keys.known_hosts_line(ssh.host, ssh.port or 0, _host_key(directory)))
        directory.write_ports(
            {"dedicated": dedicated.port or 0, "pool": pooled.port or 0, "ssh": ssh.port or 0, "api": port}
        )
        directory.write_env(lab.env())
        directory.write_lab_json(lab.facts())
        yield lab


async def _postgres(
    stack: contextlib.AsyncExitStack, directory: Directory, last: dict[str, int]
) -> tuple[Server, Server]:
    """Both servers, started side by side."""
    who = binaries.runner()
    installation = await _to_its_end(lambda: binaries.reachable(binaries.find(), who, directory.path / "bin"))

    def server(name: str) -> Server:
        password = directory.secret(f"{name} superuser")
        made = Server(directory.path / name, installation, who, password, port=last.get(name))
        stack.push_async_callback(_to_its_end, made.stop)
        return made

    dedicated, pooled = server("dedicated"), server("pool")
    for outcome in await asyncio.gather(
        _to_its_end(dedicated.start), _to_its_end(pooled.start), return_exceptions=True
    ):
        if outcome is not None:
            raise outcome
    return dedicated, pooled


async def _ssh(
    stack: contextlib.AsyncExitStack,
    directory: Directory,
    kind: SSHKind,
    dedicated: Server,
    pooled: Server,
    last_port: int | None,
) -> EmbeddedHost | OpenSSHHost:
    client_key, host_key = keys.private_key(_identity_file(directory)), _host_key(directory)
    ports = (dedicated.port or 0, pooled.port or 0)
    stop_leftover(directory.path / "sshd")
    if kind == "embedded":
        embedded = EmbeddedHost(host_key, [client_key], port=free_port(preferred=last_port))
        embedded.table, embedded.targets = _as_bastion(*ports)
        stack.push_async_callback(embedded.stop)
        await embedded.start()
        return embedded
    table = directory.path / "resolver.json"
    table.write_text(_on_loopback().to_json())
    openssh = OpenSSHHost(
        directory.path / "sshd",
        _host_key_file(directory),
        client_key.export_public_key().decode(),
        permit_open=[f"{LOOPBACK}:{port}" for port in ports],
        force_command=force_command(table),
        port=last_port,
    )
    stack.push_async_callback(_to_its_end, openssh.stop)
    await _to_its_end(openssh.start)
    return openssh


def _as_bastion(dedicated_port: int, pool_port: int) -> tuple[Table, dict[tuple[str, int], tuple[str, int]]]:
    """What the embedded host knows: containers with names and addresses of their own, all on Postgres' usual port."""
    containers = {DEDICATED_CONTAINER: {DEDICATED_NETWORK: DEDICATED_ADDRESS}, POOL_CONTAINER: POOL_ADDRESSES}
    names = {DEDICATED_CONTAINER: DEDICATED_ADDRESS, POOL_CONTAINER: POOL_ADDRESSES["flux-v2-shared"]}
    where = {DEDICATED_CONTAINER: dedicated_port, POOL_CONTAINER: pool_port}
    targets = {
        (host, POSTGRES_PORT): (LOOPBACK, where[name])
        for name, networks in containers.items()
        for host in (name, *networks.values())
    }
    return Table(names, containers), targets


def _on_loopback() -> Table:
    """
    What a real sshd may say: it resolves names itself and knows none of the containers', so that the databases are at
    127.0.0.1 on ports of their own, and only docker knows the names.
    """
    return Table(
        {LOOPBACK: LOOPBACK},
        {
            DEDICATED_CONTAINER: {DEDICATED_NETWORK: LOOPBACK},
            POOL_CONTAINER: dict.fromkeys(POOL_ADDRESSES, LOOPBACK),
        },
    )


def _settings(directory: Directory, wishes: Wishes, pooled: Server, ssh: EmbeddedHost | OpenSSHHost) -> Settings:
    place = f"{LOOPBACK}:{pooled.port}"

    def service(login: str, database: str) -> Secret:
        return Secret(f"postgresql://{login}:{directory.secret(login).reveal()}@{place}/{database}{PLAIN}")

    pool_host, pool_port = _place(POOL_CONTAINER, pooled, ssh)
    return Settings(
        catalogue_url=service("fluxplane", "fluxplane"),
        catalogue_admin_url=pooled.url(),
        pool_url=service("flux_plane_service", "postgres"),
        pool_backup_url=service("flux_plane_backup", "postgres"),
        pool_admin_url=pooled.url(),
        key_file=directory.path / "plane.key",
        ssh_host=ssh.host,
        ssh_user=ssh.user,
        ssh_port=ssh.port or 0,
        host_keys=(keys.public_line(_host_key(directory)),),
        pool_host=pool_host,
        pool_port=pool_port,
        pool_container=POOL_CONTAINER,
        allow_readwrite=wishes.allow_readwrite,
        contract_only=wishes.contract_only,
        limits=LIMITS,
        backups=BackupSettings(directory=directory.path / "backups"),
    )


def _place(container: str, server: Server, ssh: EmbeddedHost | OpenSSHHost) -> tuple[str, int]:
    """`internalHost` and `internalPort` of a plan: where the SSH host finds *server*."""
    return (container, POSTGRES_PORT) if isinstance(ssh, EmbeddedHost) else (LOOPBACK, server.port or 0)


async def _fill(directory: Directory, settings: Settings, dedicated: Server, ssh: EmbeddedHost | OpenSSHHost) -> Secret:
    """Catalogue, pool, user, token, projects and their tables: made where they are missing."""
    await catalogue.migrate(settings)
    async with catalogue.connect(settings) as store:
        await pool.prepare(settings, store)
        token = await contents.ensure_token(store, directory.last_token())
        for slug, hash_, mode in contents.PROJECTS:
            if mode == V1:
                await contents.ensure_dedicated(
                    store, settings, dedicated.url(), slug, hash_, _place(DEDICATED_CONTAINER, dedicated, ssh)
                )
            else:
                await contents.ensure_pooled(store, settings, slug, hash_)
    return token


def _identity_file(directory: Directory) -> Path:
    return directory.path / "id_ed25519"


def _host_key_file(directory: Directory) -> Path:
    return directory.path / "ssh_host_ed25519_key"


def _host_key(directory: Directory) -> Any:
    return keys.private_key(_host_key_file(directory))


async def _to_its_end(work: Callable[[], T]) -> T:
    """*work* in a thread, waited for even when cancelled meanwhile: what it starts must be known to be stopped."""
    running_work = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running_work)
    except asyncio.CancelledError:
        await asyncio.wait([running_work])
        running_work.exception()  # looked at: nobody else will
        raise

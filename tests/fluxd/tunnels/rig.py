"""A supervisor with everything real around it: an SSH host, Postgres, a control plane of the contract."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg

from fluxd import wire
from fluxd.clock import Clock
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxd.settings import TunnelSettings
from fluxd.tunnels.supervisor import Supervisor
from fluxplane.wire import Secret
from tests.furniture.contract import TOKEN, ContractPlane, NoKeyring, Project
from tests.furniture.portranges import port_range

V1_HASH = "ffca33f"
V2_HASH = "5774112"
PATIENCE_S = 10.0


class Rig:
    def __init__(self, host, plane: ContractPlane, postgres, state_dir: Path, *, clock: Clock | None = None) -> None:
        self.host = host
        self.plane = plane
        self.postgres = postgres
        self.state_dir = state_dir
        self.clock = clock or Clock()
        self.settings = TunnelSettings(first_port=port_range())
        self.control = ControlPlane()
        self.supervisor: Supervisor | None = None
        plane.ssh = {"sshHost": host.host, "sshUser": host.user, "sshPort": host.port}
        self.add("yeastcoast", V1_HASH, "v1_dedicated")
        self.add("foundry", V2_HASH, "v2_shared")

    def add(self, slug: str, project_hash: str, mode: str, *, port: int | None = None, known: bool = True) -> None:
        container = f"flux-{project_hash}-{slug}-db"
        port = port or self.postgres.port
        self.plane.projects[project_hash] = Project(slug, project_hash, mode, container, port, container)
        if known:
            self.host.know_container(container, port)

    @property
    def up(self) -> Supervisor:
        if self.supervisor is None:
            tokens = Tokens(control=self.control, keychain=NoKeyring(), state_dir=self.state_dir, environ={})
            self.supervisor = Supervisor(
                control=self.control,
                tokens=tokens,
                state_dir=self.state_dir,
                settings=self.settings,
                clock=self.clock,
            )
        return self.supervisor

    @property
    def caller(self) -> Caller:
        return Caller(self.plane.api_base, Secret(TOKEN), "ada@example.com")

    @property
    def ssh(self) -> wire.SSH:
        return wire.SSH(identity_file=str(self.host.identity_file), known_hosts=str(self.host.known_hosts))

    def request(self, project_hash: str = V2_HASH, **more) -> wire.OpenTunnel:
        more.setdefault("ssh", self.ssh)
        return wire.OpenTunnel(hash=project_hash, **more)

    async def open(self, project_hash: str = V2_HASH, **more) -> wire.TunnelOpened:
        _, opened = await self.up.open(self.request(project_hash, **more), self.caller)
        return opened

    async def close(self) -> None:
        if self.supervisor is not None:
            await self.supervisor.aclose()
            self.supervisor = None
        await self.control.aclose()

    def password(self, opened: wire.TunnelOpened) -> tuple[str, str]:
        if opened.credential is None:
            return "postgres", self.postgres.password.reveal()
        return opened.credential.username, opened.credential.password.reveal()

    async def connect(self, opened: wire.TunnelOpened) -> psycopg.AsyncConnection:
        user, password = self.password(opened)
        return await psycopg.AsyncConnection.connect(
            host=opened.tunnel.host,
            port=opened.tunnel.port,
            user=user,
            password=password,
            dbname="postgres",
            sslmode="disable",
            connect_timeout=20,
            autocommit=True,
        )

    async def ask(self, opened: wire.TunnelOpened, question: str = "SELECT current_user") -> object:
        connection = await self.connect(opened)
        async with connection:
            row = await (await connection.execute(question)).fetchone()
        return row[0]

    def roles(self) -> set[str]:
        """The temporary roles there are, of those this rig's plane made."""
        with psycopg.connect(self.plane.admin_url, autocommit=True) as connection:
            rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [self.plane.made])
            return {str(row[0]) for row in rows}


class Told:
    """What a rig's events told, and when."""

    def __init__(self) -> None:
        self.events: list[tuple[wire.Event, float]] = []

    @property
    def names(self) -> list[str]:
        return [event.name for event, _ in self.events]

    def problem(self, name: str) -> wire.Problem | None:
        """Of the first event called *name*."""
        return next(event.problem for event, _ in self.events if event.name == name)

    async def happens(self, name: str, *, since: float = 0.0, within_s: float = PATIENCE_S) -> float:
        """Wait for an event called *name* that is told after *since*; seconds from there."""

        def at() -> list[float]:
            return [then for event, then in self.events if event.name == name and then >= since]

        await until(at, name, within_s=within_s)
        return at()[0] - since


@contextlib.asynccontextmanager
async def told(rig: Rig) -> AsyncIterator[Told]:
    """What is told from here on."""
    found = Told()

    async def listen() -> None:
        async with rig.up.events(tunnel=None, hold=None) as events:
            async for event in events:
                found.events.append((event, time.monotonic()))

    listening = asyncio.create_task(listen())
    await until(lambda: found.events, "the snapshot")
    try:
        yield found
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def until(condition, what: str, *, within_s: float = PATIENCE_S) -> None:
    """Poll: until *condition* holds, or fail saying *what* was waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.02)
    assert condition(), f"waited {within_s} s for {what}"

"""
One short method per route: decode, call, encode.

Who may ask is decided by ``callers`` before any of these runs; what goes wrong below arrives here as a problem of
``core.errors`` and leaves through ``problems``. The table is in ``routes``, the bodies in ``fluxd.wire``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

from aiohttp import web

from fluxd import wire
from fluxd.api import callers, openapi
from fluxd.api.backups import BackupsApi
from fluxd.api.heads import Heads
from fluxd.api.problems import Handler, answer, spoken, versioned
from fluxd.api.routes import ROUTES
from fluxd.clock import Clock
from fluxd.core import errors
from fluxd.metrics import MEDIA_TYPE, Metrics
from fluxd.plane import BackupRoutes, Caller, ControlPlane, Tokens
from fluxd.settings import FILE_NAME, Settings, shown

VERSION: Final = version("flux-db-access")

PING_EVERY_S: Final = 15.0
# A reader that takes nothing for so long is gone, whatever its socket says.
READ_WITHIN_S: Final = 30.0


class Tunnels(Protocol):
    """What the API needs of the supervisor."""

    async def open(self, request: wire.OpenTunnel, caller: Caller) -> tuple[bool, wire.TunnelOpened]: ...
    def list(self) -> Collection[wire.Tunnel]: ...
    def show(self, name: str) -> wire.Tunnel: ...
    async def close(self, name: str) -> wire.TunnelClosed: ...
    async def renew(self, name: str, request: wire.RenewTunnel, caller: Caller) -> wire.Tunnel: ...
    def ports_for(self, caller: Caller, project_hash: str, *, requested: int | None) -> dict[str, int]: ...
    async def mint(self, project_hash: str, request: wire.MintGrant, caller: Caller) -> wire.GrantMinted: ...
    def events(
        self, *, tunnel: str | None, hold: str | None, since: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[wire.Event]]: ...
    def hosts(self) -> Collection[wire.HostStatus]: ...
    def notices(self) -> Collection[str]: ...
    def pending_revocations(self) -> int: ...
    async def forget(self, name: str) -> None: ...
    def expect_restart(self) -> None: ...


class Logins(Protocol):
    """Where logins are kept: the system keyring, or a file that the user named."""

    kind: str

    async def put(self, api_base: str, token: wire.Secret) -> None: ...
    async def delete(self, api_base: str) -> bool: ...


class Hopeful(Protocol):
    """Tries to open what the configuration declares."""

    def notices(self) -> list[str]: ...
    async def hurry(self) -> None: ...


class Physician(Protocol):
    """Asks each organ how it is."""

    async def examine(self, plane: wire.Plane, ssh: wire.SSH, project: str | None) -> Collection[wire.Check]: ...
    async def host_key(self, ssh: wire.SSH) -> wire.HostKey: ...
    def health(self) -> wire.Health: ...


@dataclass(frozen=True)
class Organs:
    """What the daemon consists of, as the API needs it."""

    tunnels: Tunnels
    control: ControlPlane
    tokens: Tokens
    logins: Logins
    doctor: Physician
    metrics: Metrics
    clock: Clock
    socket: Path
    settings: Settings
    declared: Hopeful


class Api(BackupsApi):
    """Answers the table's routes; each method is the operation of that name."""

    def __init__(self, organs: Organs) -> None:
        self._tunnels = organs.tunnels
        self._control = organs.control
        self._backups = BackupRoutes(organs.control)
        self._tokens = organs.tokens
        self._logins = organs.logins
        self._doctor = organs.doctor
        self._metrics = organs.metrics
        self._clock = organs.clock
        self._socket = organs.socket
        self._settings = organs.settings
        self._declared = organs.declared
        self._started = organs.clock.now()
        self._contract = openapi.text(ROUTES, version=VERSION)
        self.heads = Heads()
        # Set when the daemon stops: new work is refused, streams end.
        self.stopping = asyncio.Event()

    def settings_read_again(self, settings: Settings) -> None:
        self._settings = settings

    def application(self) -> web.Application:
        """The aiohttp application: every route of the table behind the checks of `callers`."""
        app = web.Application(middlewares=[versioned, spoken, self._checked], client_max_size=callers.LARGEST_BODY)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, getattr(self, route.operation))
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.heads.arrived(request)
        callers.check(request)
        if self.stopping.is_set():
            raise errors.ShuttingDown
        return await handler(request)

    # ------------------------------------------------------------------ tunnels

    async def status(self, _request: web.Request) -> web.Response:
        tunnels = self._tunnels.list()
        return answer(
            wire.Status(
                version=VERSION,
                api_version=wire.API_VERSION,
                pid=os.getpid(),
                uptime_s=self._clock.now() - self._started,
                socket=str(self._socket),
                hosts=list(self._tunnels.hosts()),
                tunnels=len(tunnels),
                relays=sum(tunnel.traffic.relays for tunnel in tunnels),
                revocations_pending=self._tunnels.pending_revocations(),
                notices=[*self._tunnels.notices(), *self._declared.notices()],
            )
        )

    async def expect_restart(self, _request: web.Request) -> web.Response:
        self._tunnels.expect_restart()
        return web.Response(status=204)

    async def settings(self, _request: web.Request) -> web.Response:
        chosen = self._settings
        return answer(
            wire.SettingsAnswer(
                file=str(chosen.config_dir / FILE_NAME),
                settings=[wire.Setting(name=name, value=value, source=source) for name, value, source in shown(chosen)],
                declared=[f"{one.project} ({one.hash}) {one.access}" for one in chosen.declared],
            )
        )

    async def list_tunnels(self, _request: web.Request) -> web.Response:
        return answer(wire.TunnelList(tunnels=list(self._tunnels.list())))

    async def open_tunnel(self, request: web.Request) -> web.Response:
        asked = await callers.body(request, wire.OpenTunnel)
        callers.checked(asked.ssh)
        caller = await self._tokens.resolve(asked.plane)
        new, opened = await self._tunnels.open(asked, caller)
        return answer(opened, status=201 if new else 200)

    async def show_tunnel(self, request: web.Request) -> web.Response:
        return answer(wire.TunnelAnswer(tunnel=self._tunnels.show(request.match_info["name"])))

    async def close_tunnel(self, request: web.Request) -> web.Response:
        return answer(await self._tunnels.close(request.match_info["name"]))

    async def renew_tunnel(self, request: web.Request) -> web.Response:
        asked = await callers.body(request, wire.RenewTunnel)
        name = request.match_info["name"]
        named = asked.plane if asked.plane.api_base else wire.Plane(self._tunnels.show(name).api_base)
        caller = await self._tokens.resolve(named)
        return answer(wire.TunnelAnswer(tunnel=await self._tunnels.renew(name, asked, caller)))

    async def forget_port(self, request: web.Request) -> web.Response:
        await self._tunnels.forget(request.match_info["name"])
        return web.Response(status=204)

    async def events(self, request: web.Request) -> web.StreamResponse:
        asked, since = request.query, callers.number(request, "since", wire.Sequence)
        async with self._tunnels.events(tunnel=asked.get("tunnel"), hold=asked.get("hold"), since=since) as events:
            stream = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
            await stream.prepare(request)
            with suppress(ConnectionError, TimeoutError):
                await self._pour(events, stream)
        return stream

    async def _pour(self, events: AsyncIterator[wire.Event], stream: web.StreamResponse) -> None:
        """Write *events* as they come, a ping when none does, until they end, the reader leaves or we stop."""
        seq = 0
        stopping = asyncio.ensure_future(self.stopping.wait())
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                await asyncio.wait({coming, stopping}, timeout=PING_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    event = coming.result()
                    if event is None:
                        return
                    seq = event.seq
                    coming = asyncio.ensure_future(anext(events, None))
                elif stopping.done():
                    return
                else:
                    event = wire.Event(seq=seq, at=self._clock.wall(), name="ping")
                async with asyncio.timeout(READ_WITHIN_S):
                    await stream.write(wire.encode(event) + b"\n")
        finally:
            for task in (coming, stopping):
                task.cancel()
            await asyncio.gather(coming, stopping, return_exceptions=True)

    # -------------------------------------------------------- the control plane

    async def plan(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        ssh = callers.ssh(request)
        local_port = callers.number(request, "local_port", wire.PortNumber)
        caller = await self._tokens.resolve(callers.plane(request))
        _typed, plan = await self._control.plan(
            caller,
            project_hash,
            local_port=local_port,
            ssh_host=ssh.host,
            ssh_user=ssh.user,
            ssh_port=ssh.port,
        )
        tunnels = self._open_for(caller, project_hash)
        ports = self._tunnels.ports_for(caller, project_hash, requested=local_port)
        return answer(wire.PlanAnswer(plan=plan, tunnels=tunnels, ports=ports, notices=[]))

    def _open_for(self, caller: Caller, project_hash: str | None = None) -> list[wire.Tunnel]:
        return [
            tunnel
            for tunnel in self._tunnels.list()
            if (tunnel.api_base, tunnel.account) == (caller.api_base, caller.account)
            and project_hash in {None, tunnel.hash}
        ]

    async def mint_grant(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        asked = await callers.body(request, wire.MintGrant)
        caller = await self._tokens.resolve(asked.plane)
        return answer(await self._tunnels.mint(project_hash, asked, caller))

    async def projects(self, request: web.Request) -> web.Response:
        caller = await self._tokens.resolve(callers.plane(request))
        return answer(wire.ProjectList(projects=await self._control.projects(caller)))

    async def project(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        caller = await self._tokens.resolve(callers.plane(request))
        return answer(await self._control.project(caller, project_hash))

    async def credentials(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        caller = await self._tokens.resolve(callers.plane(request))
        return answer(await self._control.credentials(caller, project_hash))

    async def activity(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        limit = callers.number(request, "limit", wire.ActivityLimit)
        caller = await self._tokens.resolve(callers.plane(request))
        return answer(await self._control.activity(caller, project_hash, limit=limit))

    async def audit(self, request: web.Request) -> web.Response:
        named = request.query.get("hash")
        project_hash = callers.project_hash(named) if named else None
        caller = await self._tokens.resolve(callers.plane(request))
        events = await self._control.audit(caller, project_hash=project_hash, since=request.query.get("since"))
        return answer(wire.AuditTrail(events=events))

    # -------------------------------------------------------------------- login

    async def login(self, request: web.Request) -> web.Response:
        asked = await callers.body(request, wire.Login)
        api_base = self._tokens.base(wire.Plane(asked.api_base, asked.token))
        token = wire.Secret(asked.token.reveal().strip())
        verified = await self._control.verify(api_base, token)
        await self._logins.put(api_base, token)
        self._tokens.remember(api_base, token, verified.user)
        await self._declared.hurry()
        return answer(
            wire.LoginAnswer(
                api_base=api_base,
                user=verified.user,
                plan=verified.plan,
                cli_role=verified.cli_role,
                stored_in=self._logins.kind,
            )
        )

    async def logout(self, request: web.Request) -> web.Response:
        api_base = self._tokens.base(callers.plane(request))
        account = await self._close_all_of(api_base)
        await self._logins.delete(api_base)
        return answer(wire.LoginAnswer(api_base=api_base, user=account, plan=None, cli_role=None, stored_in=None))

    async def _close_all_of(self, api_base: str) -> str:
        """Close what was opened with the kept token: without it, its roles could not be ended early. The account."""
        try:
            caller = await self._tokens.resolve(wire.Plane(api_base))
        except errors.FluxError:
            return ""
        for tunnel in self._open_for(caller):
            with suppress(errors.TunnelNotFound):
                await self._tunnels.close(tunnel.id)
        return caller.account

    # ------------------------------------------------------------------- health

    async def doctor(self, request: web.Request) -> web.Response:
        named = request.query.get("project")
        project = callers.project_hash(named) if named else None
        checks = await self._doctor.examine(callers.plane(request), callers.ssh(request), project)
        return answer(wire.Doctor(checks=list(checks)))

    async def host_key(self, request: web.Request) -> web.Response:
        return answer(await self._doctor.host_key(callers.ssh(request)))

    async def health(self, _request: web.Request) -> web.Response:
        return answer(self._doctor.health())

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": MEDIA_TYPE})

    async def contract(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._contract, content_type="application/json")

"""
The table of tunnels: open, close, list, watch. The only mutable registry of the daemon.

It decides who shares what: one forward per (plane, account, project, access), one connection per SSH host, one port per
forward, any number of grants on it. One clock task tells every tunnel what time it is, at least once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core import ports
from fluxd.core.errors import (
    FluxError,
    HoldUnknown,
    LocalHostForbidden,
    NotSupportedByPlane,
    PortTaken,
    ShuttingDown,
    SSHKeyEncrypted,
    TunnelAmbiguous,
    TunnelNotFound,
    TunnelOpenDifferently,
    WrongMode,
)
from fluxd.core.target import Target, Words, choose_target
from fluxd.journal import Journal, Key, TunnelRecord
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxd.portbook import PortBook
from fluxd.settings import TunnelSettings
from fluxd.systemd import Manager
from fluxplane import wire as plane_wire

from .dial import Destination, Dialling, asks_for_passphrase, overruled
from .events import Events
from .facts import Facts, Wish, recalled
from .forward import Forward, bind
from .grants import Grants, Minted, Terms, credential
from .identity import Identity
from .listeners import Listeners
from .netwatch import NetWatch
from .passphrases import Passphrases
from .shown import shown_host
from .ssh import Host
from .sshconfig import unhonoured
from .tunnel import House, Tunnel, new_id

log = logging.getLogger(__name__)

# The clock that counts sleep is re-read this often: a laptop that wakes finds its leases over within it.
TICK_S: Final = 1.0
REVOKED_WITHIN_S: Final = 5.0
DRAINED_WITHIN_S: Final = 10.0
REPORTED_WITHIN_S: Final = 5.0
DEFAULT_HOST: Final = "127.0.0.1"
NOBODY: Final = Key("", "", "", "readonly")

NO_REVOKE: Final = (
    "This control plane cannot renew or revoke credentials: a role ends at its expiry, not when its tunnel closes."
)


class Supervisor:
    """Every tunnel of this daemon. `start` it in a running loop; `aclose` leaves nothing."""

    def __init__(
        self,
        *,
        control: ControlPlane,
        tokens: Tokens,
        state_dir: Path,
        settings: TunnelSettings,
        clock: Clock,
        listeners: Listeners | None = None,
        passphrases: Passphrases | None = None,
    ) -> None:
        self._control = control
        self._settings = settings
        self._clock = clock
        self._journal = Journal(state_dir)
        self._ports = PortBook(state_dir)
        self._listeners = listeners or Listeners(Manager())
        self._passphrases = passphrases or Passphrases()
        self._events = Events(clock)
        self._grants = Grants(control=control, tokens=tokens, journal=self._journal, clock=clock)
        self._house = House(
            grants=self._grants,
            identity=Identity(control=control, tokens=tokens, grants=self._grants),
            journal=self._journal,
            events=self._events,
            clock=clock,
            client_waits_s=settings.client_waits_s,
            later=self._later,
            report=self._report,
        )
        self._tunnels: dict[Key, Tunnel] = {}
        self._hosts: dict[Destination, Host] = {}
        # One opening at a time for one project; different projects open together.
        self._opening: dict[tuple[str, str, str], asyncio.Lock] = {}
        self._binding = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._network = NetWatch(self._network_changed)
        self._closing = False

    # ------------------------------------------------------------------- starting

    async def start(self) -> None:
        """
        Take up what an earlier daemon left: its tunnels listen again on their ports, and what shall end is ended.

        A tunnel dials when its first client comes. Held ones end if their hold is not found again.
        """
        self._grants.recall()
        restored = []
        for record in list(self._journal.tunnels.values()):
            tunnel = self._recalled(record)
            if tunnel is not None:
                restored.append(tunnel)
        self._grants.resume({tunnel.facts.id for tunnel in restored})
        for tunnel in restored:
            await tunnel.settled
        await self._grants.settle()
        self._start_ticking()

    def _recalled(self, record: TunnelRecord) -> Tunnel | None:
        """The tunnel of *record*, listening again; None if nobody could use it."""
        try:
            facts = recalled(record)
        except msgspec.DecodeError as error:
            log.warning("the tunnel %s to %s does not come back: %s", record.id, record.key.hash, error)
            facts = None
        wanted = record.kept or record.holds
        if facts is None or not wanted or (facts.pooled is not None and not self._usable(record.id)):
            del self._journal.tunnels[record.id]
            return None
        ssh = record.ssh
        destination = Destination(Target(ssh.host, ssh.user, ssh.port), ssh.identity_file, ssh.known_hosts)
        host = self._shared_host(destination, ssh.agent, facts.plan.host_keys)
        tunnel = self._tunnels[facts.key] = Tunnel(facts, host, self._house)
        self._later(self._clean_up_after(tunnel))
        requested = None if self._ports.owned.get(facts.key) == record.port else record.port
        tunnel.restore(record, lambda: self._bound(tunnel, requested, strict=False))
        return tunnel

    def _usable(self, tunnel: str) -> bool:
        """Whether a role of it has time left."""
        leases = [record.lease for record in self._grants.live(tunnel)]
        return any(lease is not None and lease.remaining(self._clock.now()) > 0 for lease in leases)

    # -------------------------------------------------------------------- opening

    async def open(self, request: wire.OpenTunnel, caller: Caller) -> tuple[bool, wire.TunnelOpened]:
        """
        The tunnel that *request* asks for; True when this call opened it.

        Raises:
            FluxError: there is none, and nothing was left behind; or it is open in another way.
        """
        self._must_be_open()
        self._start_ticking()
        await self._passphrases.learn(request.ssh)
        lock = self._opening.setdefault((caller.api_base, caller.account, request.hash), asyncio.Lock())
        async with lock:
            tunnel = self._find(caller, request)
            if tunnel is not None and not tunnel.life.listening:
                await self._gone(tunnel)
                tunnel = None
            if tunnel is not None:
                return False, await self._join(tunnel, request, caller)
            return True, await self._open(request, caller)

    def _find(self, caller: Caller, request: wire.OpenTunnel) -> Tunnel | None:
        """The tunnel open for it. A v1 project has one role, so whatever access is asked for, one forward."""
        for access in (request.access, *_ACCESSES):
            tunnel = self._tunnels.get(Key(caller.api_base, caller.account, request.hash, access))
            if tunnel is not None and (access == request.access or tunnel.facts.pooled is None):
                return tunnel
        return None

    async def _open(self, request: wire.OpenTunnel, caller: Caller) -> wire.TunnelOpened:
        plan, raw = await self._control.plan(
            caller,
            request.hash,
            local_port=request.local_port,
            ssh_host=request.ssh.host,
            ssh_user=request.ssh.user,
            ssh_port=request.ssh.port,
        )
        target = _target(request.ssh, plan)
        notices = [*_notices(request, plan), *await asyncio.to_thread(_not_honoured, target, request.ssh)]
        self._must_be_open()  # it was when we were asked; much may have happened since
        tunnel = self._new(request, caller, plan, raw, target, notices)
        hold = secrets.token_hex(8) if request.hold else None
        tunnel.open(
            Wish(caller, request.ttl_s, request.reason, hold),
            lambda: self._bound(tunnel, request.local_port, strict=request.strict_port),
        )
        try:
            await asyncio.shield(tunnel.settled)
            if not tunnel.life.listening:
                await self._gone(tunnel)
                raise tunnel.problem or TunnelNotFound("The tunnel was closed while it was being opened.")
            opened = await self._opened(tunnel, request, hold, tunnel.first)
            tunnel.report_opened()
            return opened  # noqa: TRY300 - all of it is undone if it is cancelled
        except asyncio.CancelledError:
            tunnel.close()
            raise

    def _new(
        self,
        request: wire.OpenTunnel,
        caller: Caller,
        plan: plane_wire.AccessPlan,
        raw: dict[str, Any],
        target: Target,
        notices: Collection[str],
    ) -> Tunnel:
        pooled = isinstance(plan, plane_wire.PooledPlan)
        key = Key(caller.api_base, caller.account, request.hash, request.access if pooled else "readwrite")
        facts = Facts(
            id=new_id(self._used_ids()),
            key=key,
            plan=plan,
            raw_plan=raw,
            local_host=_loopback(request.local_host),
            opened_at=self._clock.wall(),
            prefer_network=request.ssh.prefer_network,
            renew=request.renew,
            ttl_s=request.ttl_s,
            notices=[*notices],
        )
        destination = Destination(target, request.ssh.identity_file, request.ssh.known_hosts)
        tunnel = Tunnel(facts, self._shared_host(destination, request.ssh.agent, plan.host_keys), self._house, caller)
        self._tunnels[key] = tunnel
        self._later(self._clean_up_after(tunnel))
        return tunnel

    async def _join(self, tunnel: Tunnel, request: wire.OpenTunnel, caller: Caller) -> wire.TunnelOpened:
        """Use the forward that is open, with a grant of one's own where that is asked for."""
        _same_way(tunnel, request)
        tunnel.caller = caller
        if request.ssh.agent is not None:
            tunnel.host.agent = request.ssh.agent
        await self._unlocked(tunnel.host)
        hold = secrets.token_hex(8) if request.hold else None
        minted = None
        if tunnel.facts.pooled is not None and (request.credential == "new" or not tunnel.live()):
            minted = await tunnel.mint(Wish(caller, request.ttl_s, request.reason, hold))
        return await self._opened(tunnel, request, hold, minted)

    async def _opened(
        self, tunnel: Tunnel, request: wire.OpenTunnel, hold: str | None, minted: Minted | None
    ) -> wire.TunnelOpened:
        if hold is None:
            tunnel.facts.kept = True
        else:
            tunnel.hold(hold, minted.record.grant_id if minted else None)
        tunnel.facts.renew |= request.renew
        tunnel.remember()
        await self._grants.settle()
        shown = tunnel.shown()
        return wire.TunnelOpened(
            tunnel=shown,
            credential=credential(minted, self._clock.now()) if minted else None,
            hold=hold,
            plan=_with_port(tunnel.facts.raw_plan, shown.port),
            notices=list(tunnel.facts.notices),
        )

    # ---------------------------------------------------------------------- hosts

    def _shared_host(self, destination: Destination, agent: str | None, pinned: Sequence[str]) -> Host:
        host = self._hosts.get(destination)
        if host is None:
            host = self._hosts[destination] = Host(destination, self._how(), self._clock, self._host_moved)
        host.agent = agent or host.agent
        host.pinned = pinned
        return host

    def _how(self) -> Dialling:
        return Dialling(
            connect_s=self._settings.ssh_connect_s,
            idle_s=self._settings.ssh_idle_s,
            passphrases=self._passphrases,
        )

    async def _unlocked(self, host: Host) -> None:
        """
        Have a caller told that *host* wants a passphrase while it can still be asked: a tunnel's client cannot.

        Raises:
            SSHKeyEncrypted: a key that it would take is encrypted, and nobody has said what opens it.
        """
        undialled = host.state == "idle" or isinstance(host.last_problem, SSHKeyEncrypted)
        if not undialled or not await asks_for_passphrase(host.destination, self._how()):
            return
        try:
            await host.reach()
        except SSHKeyEncrypted:
            raise
        except FluxError as problem:
            log.info("%s is not reached yet: %s", host.destination, problem)

    def _host_moved(self, host: Host, name: str) -> None:
        self._events.emit(name, host=lambda: shown_host(host), problem=host.last_problem)
        if name == "host_lost":
            for tunnel in list(self._tunnels.values()):
                if tunnel.host is host:
                    tunnel.host_lost()

    def _network_changed(self) -> None:
        for host in self._hosts.values():
            host.network_changed()

    def hosts(self) -> list[wire.HostStatus]:
        return [shown_host(host) for host in self._hosts.values()]

    async def _release(self, host: Host) -> None:
        """End the connection that nobody shares any more."""
        if not any(tunnel.host is host for tunnel in self._tunnels.values()):
            self._hosts.pop(host.destination, None)
            await host.aclose()

    # ---------------------------------------------------------------------- ports

    async def _bound(self, tunnel: Tunnel, requested: int | None, *, strict: bool) -> Forward:
        """A forward on the tunnel's own port; the first time, and when that is busy, on the next free one."""
        key, busy, host = tunnel.facts.key, set[int](), tunnel.facts.local_host
        async with self._binding:
            while True:
                port = ports.propose_port(
                    key,
                    owned=self._ports.owned,
                    busy=busy,
                    requested=requested,
                    strict=strict,
                    first=self._settings.first_port,
                )
                try:
                    sockets = self._listeners.bind(host, port)
                    break
                except PortTaken:
                    busy.add(port)
            usual = self._ports.owned.get(key)
            try:
                await self._keep_port(tunnel, port, usual, requested)
            except BaseException:
                for listener in sockets:
                    listener.close()
                self._listeners.free(host, port)
                raise
        return Forward(
            sockets,
            open_channel=tunnel.open_channel,
            observe=tunnel.observe,
            freed=lambda: self._listeners.free(host, port),
        )

    async def _keep_port(self, tunnel: Tunnel, port: int, usual: int | None, requested: int | None) -> None:
        if usual is None:
            await self._ports.keep(tunnel.facts.key, port, tunnel.facts.project)
        elif port != usual and requested is None:
            tunnel.facts.notices.append(
                f"Port {usual} is this project's, but another program holds it; this time it is {port}."
            )
        elif port != usual:
            tunnel.facts.notices.append(f"Port {port} as you asked; without --local-port it stays {usual}.")

    def port_of(self, caller: Caller | None, project_hash: str | None) -> tuple[int, int | None]:
        """
        The local port at which the *caller*'s project is or would be opened, or any new one; the usual one, if busy.

        Raises:
            NoPortLeft, TooManyOpenFiles: there is none.
        """
        wanted = None if caller is None else (caller.api_base, caller.account, project_hash)
        for tunnel in self._tunnels.values():
            if tunnel.facts.key[:3] == wanted and tunnel.life.listening:
                return tunnel.port, None
        key = next((one for one in self._ports.owned if one[:3] == wanted), NOBODY)
        usual, busy = self._ports.owned.get(key), set[int]()
        while True:
            port = ports.propose_port(key, owned=self._ports.owned, busy=busy, first=self._settings.first_port)
            try:
                for listener in bind(DEFAULT_HOST, port):
                    listener.close()
            except PortTaken:
                busy.add(port)
            else:
                return port, usual if usual in busy else None

    # -------------------------------------------------------------------- looking

    def list(self) -> list[wire.Tunnel]:
        return [tunnel.shown() for tunnel in self._tunnels.values()]

    def show(self, name: str) -> wire.Tunnel:
        """
        The tunnel that *name* (an id, slug, hash or port) means.

        Raises:
            TunnelNotFound, TunnelAmbiguous: none, or several.
        """
        return self._named(name).shown()

    def _named(self, name: str) -> Tunnel:
        found = [tunnel for tunnel in self._tunnels.values() if _answers_to(tunnel, name)]
        if not found:
            raise TunnelNotFound(f"No tunnel goes by the name {name!r}.")
        if len(found) > 1:
            ids = ", ".join(f"{tunnel.facts.id} ({tunnel.facts.key.access})" for tunnel in found)
            raise TunnelAmbiguous(f"Several tunnels go by the name {name!r}: {ids}.")
        return found[0]

    def happened(self) -> Mapping[str, int]:
        """How often each event has happened since the daemon's start."""
        return self._events.counts

    def pending_revocations(self) -> int:
        return self._grants.pending()

    def notices(self) -> Collection[str]:
        """What a user should know: state files that could not be read, tunnels that are unproven or in trouble."""
        found = [problem for problem in (self._journal.problem, self._ports.problem) if problem is not None]
        said = [f"{problem.message} {problem.detail} {problem.hint}" for problem in found]
        for tunnel in self._tunnels.values():
            about = (tunnel.facts.unproven, tunnel.problem and f"{tunnel.problem.message} {tunnel.problem.hint or ''}")
            said += [f"{tunnel.facts.project}: {one.strip()}" for one in about if one]
        return said

    @asynccontextmanager
    async def events(
        self, *, tunnel: str | None, hold: str | None, since: int | None = None
    ) -> AsyncIterator[AsyncIterator[wire.Event]]:
        """
        What happens from now on, after a snapshot, or after event number *since* where that is still known.

        With *hold*, leaving the context ends that hold.

        Raises:
            HoldUnknown: it does not exist, was not taken up in time, or another stream keeps it.
            TunnelNotFound, TunnelAmbiguous: of *tunnel*.
        """
        held = self._take_up(hold) if hold is not None else None
        only = self._named(tunnel).facts.id if tunnel is not None else None
        try:
            with self._events.reader(self.list, only=only, since=since) as reader:
                yield reader
        finally:
            if held is not None and hold is not None:
                held.let_go(hold)

    def _take_up(self, name: str) -> Tunnel:
        for tunnel in self._tunnels.values():
            hold = tunnel.holds.get(name)
            if hold is not None and hold.until is not None:
                tunnel.take_up(name)
                return tunnel
        raise HoldUnknown

    # -------------------------------------------------------------------- closing

    async def close(self, name: str) -> wire.TunnelClosed:
        """
        End the tunnel that *name* means, and its grants; a project's bare grants too.

        Raises:
            TunnelNotFound, TunnelAmbiguous: there is neither, or there are several.
        """
        bare = [record for record in self._grants.bare() if name in (record.project, record.key.hash)]
        try:
            tunnel = self._named(name)
        except TunnelNotFound:
            if not bare:
                raise
            tunnel = None
        records = bare + (self._grants.of(tunnel.facts.id) if tunnel else [])
        for record in records:
            self._grants.end(record.grant_id)
        if tunnel is not None:
            tunnel.close()
            await self._gone(tunnel)
        await self._grants.settle()
        revoked = await self._grants.ended([record.grant_id for record in records], within_s=REVOKED_WITHIN_S)
        revocable = all(record.revocable for record in records)
        return wire.TunnelClosed(
            tunnel=tunnel.shown() if tunnel else None,
            revoked=revoked and revocable,
            notices=[] if revocable else [NO_REVOKE],
        )

    async def forget(self, name: str) -> None:
        """
        Give up the port of the project that *name* means; its tunnel is closed first.

        Raises:
            TunnelNotFound, TunnelAmbiguous: nothing, or several projects, go by that name.
        """
        with contextlib.suppress(TunnelNotFound):
            tunnel = self._named(name)
            await self.close(tunnel.facts.id)
            await self._ports.forget(tunnel.facts.key)
            return
        keys = self._ports.named(name)
        if not keys:
            raise TunnelNotFound(f"No port is kept for {name!r}.")
        if len({key[:3] for key in keys}) > 1:
            raise TunnelAmbiguous(f"Ports are kept for several projects called {name!r}: use the port's number.")
        for key in keys:
            await self._ports.forget(key)

    async def _gone(self, tunnel: Tunnel) -> None:
        """Wait until it is over; it stands in the table no longer."""
        await tunnel.finished.wait()
        if self._tunnels.get(tunnel.facts.key) is tunnel:
            del self._tunnels[tunnel.facts.key]

    async def _clean_up_after(self, tunnel: Tunnel) -> None:
        await self._gone(tunnel)
        await self._grants.settle()
        await tunnel.aclose()
        await self._release(tunnel.host)

    async def aclose(self) -> None:
        """Close every tunnel, end every grant, keep nothing running. What could not be confirmed stays journaled."""
        self._closing = True
        self._listeners.hand_over()
        tunnels = list(self._tunnels.values())
        # A v1 tunnel that somebody keeps has no role to end: it comes back with the next daemon.
        lasting = {one.facts.id: one.record() for one in tunnels if one.facts.kept and one.facts.pooled is None}
        for tunnel in tunnels:
            tunnel.close()
        for tunnel in tunnels:
            await tunnel.finished.wait()
        self._journal.tunnels.update(lasting)
        await self._grants.aclose(within_s=DRAINED_WITHIN_S)
        self._network.close()
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        while self._tasks:
            await asyncio.wait(self._tasks)
        for host in list(self._hosts.values()):
            await host.aclose()
        await self._journal.aclose()
        await self._ports.aclose()

    # --------------------------------------------------------------------- grants

    async def mint(self, project_hash: str, request: wire.MintGrant, caller: Caller) -> wire.GrantMinted:
        """
        A bare grant: a role without a tunnel. It ends at its expiry, or by closing the project.

        Raises:
            WrongMode: a v1 project has none.
            FluxError: the plane refused or failed.
        """
        self._must_be_open()
        self._start_ticking()
        plan, raw = await self._control.plan(caller, project_hash)
        if not isinstance(plan, plane_wire.PooledPlan):
            raise WrongMode("A v1 dedicated project has no temporary roles: its password is `flux db password`.")
        key = Key(caller.api_base, caller.account, project_hash, request.access)
        terms = Terms(caller, key, plan.project_name, plan.extensions, request.ttl_s, request.reason)
        minted = await self._grants.ask(await self._grants.write_down(terms), terms)
        return wire.GrantMinted(
            credential=credential(minted, self._clock.now()),
            plan=raw,
            notices=[*minted.notices, *([] if minted.record.revocable else [NO_REVOKE])],
        )

    async def renew(self, name: str, request: wire.RenewTunnel, caller: Caller) -> wire.Tunnel:
        """
        Extend the live grants of the tunnel that *name* means.

        Raises:
            WrongMode: a v1 tunnel has no lease.
            FluxError: the plane refused or failed.
        """
        tunnel = self._named(name)
        if tunnel.facts.pooled is None:
            raise WrongMode("A v1 dedicated project's tunnel has no lease to renew.")
        if "renew" not in tunnel.facts.plan.extensions:
            raise NotSupportedByPlane
        await tunnel.renew(caller, request.ttl_s)
        return tunnel.shown()

    # ----------------------------------------------------------------------- time

    def _start_ticking(self) -> None:
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
            self._network.start()

    async def _tick(self) -> None:
        while True:
            now = self._clock.now()
            due = [tunnel.tick(now) for tunnel in list(self._tunnels.values()) if not tunnel.life.over]
            for record in self._grants.bare():
                if record.lease is not None and now >= record.lease.ends_at:
                    self._grants.end(record.grant_id)
            await asyncio.sleep(max(0.0, min([TICK_S, *(at - self._clock.now() for at in due)])))

    # --------------------------------------------------------------------- itself

    def _must_be_open(self) -> None:
        if self._closing:
            raise ShuttingDown

    def _used_ids(self) -> set[str]:
        used = {tunnel.facts.id for tunnel in self._tunnels.values()}
        return used | {record.tunnel for record in self._journal.grants.values() if record.tunnel}

    async def _report(self, caller: Caller, project_hash: str, report: plane_wire.TunnelReport) -> None:
        try:
            async with asyncio.timeout(REPORTED_WITHIN_S):
                await self._control.report(caller, project_hash, report)
        except (FluxError, TimeoutError) as problem:
            log.info(
                "the control plane was not told that tunnel %s was %s: %s", report.tunnel_id, report.event, problem
            )

    def _later(self, work: Awaitable[None]) -> None:
        """Have *work* done by a task that `aclose` awaits."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_ACCESSES: Final[Sequence[wire.Access]] = ("readonly", "readwrite")


def _loopback(asked: str | None) -> str:
    """
    The address to listen on: loopback only.

    Raises:
        LocalHostForbidden: any other would show the database to the network.
    """
    host = {None: DEFAULT_HOST, "localhost": DEFAULT_HOST, "[::1]": "::1"}.get(asked, asked or DEFAULT_HOST)
    numbers = host.split(".")
    if host == "::1" or (len(numbers) == 4 and numbers[0] == "127" and all(n.isdecimal() for n in numbers)):
        return host
    raise LocalHostForbidden


def _notices(request: wire.OpenTunnel, plan: plane_wire.AccessPlan) -> list[str]:
    said = []
    if request.project is not None and request.project != plan.project_name:
        said.append(f"The project with hash {request.hash} is called {plan.project_name}, not {request.project}.")
    if isinstance(plan, plane_wire.PooledPlan) and not {"revoke", "grant_id"} <= set(plan.extensions):
        said.append(NO_REVOKE)
    return said


def _not_honoured(target: Target, asked: wire.SSH) -> list[str]:
    """What the user's ssh_config says of the host, and fluxd does otherwise. Reads files: for a thread."""
    how = Dialling()
    said = []
    if found := unhonoured(Path(how.config), target.host):
        said.append(f"Your ~/.ssh/config for {target.host} sets what fluxd does not honour: {', '.join(found)}.")
    for keyword, theirs, ours in overruled(target, how):
        if getattr(asked, keyword.lower()) is None:
            said.append(
                f"For {target.host} your ~/.ssh/config says {keyword} {theirs}, the platform {ours}, which counts. "
                f"To use yours, set FLUX_DB_TUNNEL_SSH_{keyword.upper()}={theirs}."
            )
    return said


def _target(asked: wire.SSH, plan: plane_wire.AccessPlan) -> Target:
    return choose_target(
        Words(asked.host, asked.user, asked.port),
        plan=Words(plan.tunnel.ssh_host, plan.tunnel.ssh_user, plan.tunnel.ssh_port),
        docker_host=asked.docker_host,
    )


def _same_way(tunnel: Tunnel, asked: wire.OpenTunnel) -> None:
    """
    That the open tunnel is what *asked* wants, where that says anything.

    Raises:
        TunnelOpenDifferently: naming both.
    """
    target = tunnel.host.destination.target
    wanted: list[tuple[str, object, object]] = [
        ("SSH host", asked.ssh.host, target.host),
        ("SSH user", asked.ssh.user, target.user),
        ("SSH port", asked.ssh.port, target.port),
        ("local port", asked.local_port, tunnel.port),
        ("local address", asked.local_host and _loopback(asked.local_host), tunnel.facts.local_host),
    ]
    for what, want, have in wanted:
        if want is not None and want != have:
            raise TunnelOpenDifferently(
                f"The tunnel {tunnel.facts.id} to {tunnel.facts.project} is open with the {what} {have}, "
                f"and you ask for {want}.",
                hint=f"Close it first (`fluxctl tunnel close {tunnel.facts.id}`), or ask without the differing option.",
            )


def _answers_to(tunnel: Tunnel, name: str) -> bool:
    return name in (tunnel.facts.id, tunnel.facts.project, tunnel.facts.key.hash, str(tunnel.port))


def _with_port(plan: dict[str, Any], port: int) -> dict[str, Any]:
    tunnel = plan.get("tunnel")
    return {**plan, "tunnel": {**(tunnel if isinstance(tunnel, dict) else {}), "recommendedLocalPort": port}}

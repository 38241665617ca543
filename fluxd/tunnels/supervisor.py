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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import (
    FluxError,
    HoldUnknown,
    NotSupportedByPlane,
    PortTaken,
    ShuttingDown,
    TunnelAmbiguous,
    TunnelNotFound,
    WrongMode,
)
from fluxd.core.target import Target
from fluxd.journal import Journal, Key, TunnelRecord
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxd.portbook import PortBook
from fluxd.settings import TunnelSettings
from fluxd.systemd import Manager
from fluxplane import wire as plane_wire

from . import asked
from .dial import Destination, Dialling
from .doors import Door, Doors, Place
from .events import Events
from .facts import Facts, Wish, recalled
from .forward import Forward
from .grants import Grants, Minted, Terms, credential
from .hosts import Hosts
from .identity import Identity
from .listeners import Listeners
from .localports import LocalPorts
from .netwatch import NetWatch
from .passphrases import Passphrases
from .shown import shown_host
from .ssh import Host
from .tunnel import House, Tunnel, new_id

log = logging.getLogger(__name__)

# The clock that counts sleep is re-read this often: a laptop that wakes finds its leases over within it.
TICK_S: Final = 0.5
# So much further than the one that stands still: this machine has slept.
SLEPT_S: Final = 2.0
REVOKED_WITHIN_S: Final = 5.0
DRAINED_WITHIN_S: Final = 10.0
REPORTED_WITHIN_S: Final = 5.0
# Who announces a restart stops us at once.
RESTARTED_WITHIN_S: Final = 60.0


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
        self._book = PortBook(state_dir)
        self._listeners = listeners or Listeners(Manager())
        self._passphrases = passphrases or Passphrases()
        self._events = Events(clock)
        self._ports = LocalPorts(self._book, self._listeners, first=settings.first_port)
        self._doors = Doors(self._listeners, self._book, self._events, waits_s=settings.client_waits_s)
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
        how = Dialling(
            connect_s=settings.ssh_connect_s,
            keepalive_interval_s=settings.ssh_keepalive_s,
            idle_s=settings.ssh_idle_s,
            passphrases=self._passphrases,
        )
        self._hosts = Hosts(how, clock, self._host_moved)
        # One opening at a time for one project; different projects open together.
        self._opening: dict[tuple[str, str, str], asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._network = NetWatch(self._hosts.doubt)
        self._closing = False
        self._restart_until = float("-inf")

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
        host = self._hosts.shared(destination, ssh.agent, facts.plan.host_keys)
        tunnel = self._tunnels[facts.key] = Tunnel(facts, host, self._house)
        self._later(self._clean_up_after(tunnel))
        requested = None if self._ports.usual(facts.key) == record.port else record.port
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
            plan = await self._plan(request, caller)
            door = self._door(request, caller, plan)
            if door is not None:
                return True, await self._join(await self._behind(door, caller, request, plan), request, caller)
            return True, await self._open(request, caller, plan)

    def _find(self, caller: Caller, request: wire.OpenTunnel) -> Tunnel | None:
        """The tunnel open for it. A v1 project has one role, so whatever access is asked for, one forward."""
        for access in (request.access, *_ACCESSES):
            tunnel = self._tunnels.get(Key(caller.api_base, caller.account, request.hash, access))
            if tunnel is not None and (access == request.access or tunnel.facts.pooled is None):
                return tunnel
        return None

    async def _plan(self, request: wire.OpenTunnel, caller: Caller) -> Planned:
        return await self._control.plan(
            caller,
            request.hash,
            local_port=request.local_port,
            ssh_host=request.ssh.host,
            ssh_user=request.ssh.user,
            ssh_port=request.ssh.port,
        )

    async def _open(self, request: wire.OpenTunnel, caller: Caller, planned: Planned) -> wire.TunnelOpened:
        tunnel = await self._new(request, caller, planned)
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

    async def _new(self, request: wire.OpenTunnel, caller: Caller, planned: Planned) -> Tunnel:
        plan, raw = planned
        target = asked.target(request.ssh, plan)
        notices = [*asked.notices(request, plan), *await asyncio.to_thread(asked.not_honoured, target, request.ssh)]
        self._must_be_open()  # it was when we were asked; much may have happened since
        pooled = isinstance(plan, plane_wire.PooledPlan)
        key = Key(caller.api_base, caller.account, request.hash, request.access if pooled else "readwrite")
        facts = Facts(
            id=new_id(self._used_ids()),
            key=key,
            plan=plan,
            raw_plan=raw,
            local_host=asked.loopback(request.local_host),
            opened_at=self._clock.wall(),
            prefer_network=request.ssh.prefer_network,
            renew=request.renew,
            ttl_s=request.ttl_s,
            notices=notices,
        )
        destination = Destination(target, request.ssh.identity_file, request.ssh.known_hosts)
        tunnel = Tunnel(facts, self._hosts.shared(destination, request.ssh.agent, plan.host_keys), self._house, caller)
        self._tunnels[key] = tunnel
        self._later(self._clean_up_after(tunnel))
        return tunnel

    async def _join(self, tunnel: Tunnel, request: wire.OpenTunnel, caller: Caller) -> wire.TunnelOpened:
        """Use the forward that is open, with a grant of one's own where that is asked for."""
        asked.must_be_same(tunnel, request)
        tunnel.caller = caller
        if request.ssh.agent is not None:
            tunnel.host.agent = request.ssh.agent
        await self._take_keys(tunnel, request.ssh)
        await self._hosts.unlocked(tunnel.host)
        await tunnel.reach()
        hold = secrets.token_hex(8) if request.hold else None
        minted = None
        if tunnel.facts.pooled is not None and (request.credential == "new" or not tunnel.live()):
            minted = await tunnel.mint(Wish(caller, request.ttl_s, request.reason, hold))
        return await self._opened(tunnel, request, hold, minted)

    async def _take_keys(self, tunnel: Tunnel, ssh: wire.SSH) -> None:
        """Where nobody was let in yet, go by the files that are named now; who declared it may have named none."""
        before, have = tunnel.host, tunnel.host.destination
        files = (ssh.identity_file or have.identity_file, ssh.known_hosts or have.known_hosts)
        wanted = Destination(have.target, *files)
        if wanted != have and tunnel.is_untried:
            tunnel.go_by(self._hosts.shared(wanted, ssh.agent or before.agent, before.pinned))
            await self._release(before)

    async def _release(self, host: Host) -> None:
        """End its connection, if no tunnel shares it any more."""
        if not any(tunnel.host is host for tunnel in self._tunnels.values()):
            await self._hosts.release(host)

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

    # ------------------------------------------------------------------- declared

    async def listen_for(
        self, request: wire.OpenTunnel, api_base: str, knocked: Callable[[], None]
    ) -> Tunnel | Door | None:
        """
        Listen at once for the tunnel that *request* declares, before anybody is asked for its plan.

        The tunnel where it is open already; None where it has no port yet. *knocked* is called when a client has come.

        Raises:
            TunnelOpenDifferently: open, but not as declared.
            PortTaken, TooManyOpenFiles: nothing listens.
        """
        self._must_be_open()
        self._start_ticking()
        place = Place(api_base, request.hash, request.access)
        for tunnel in self._tunnels.values():
            if _is_at(place, tunnel):
                return _kept(tunnel, request)
        return await self._doors.open(place, request, knocked)

    async def declare(self, request: wire.OpenTunnel, caller: Caller) -> Tunnel:
        """
        The tunnel that *request* declares, listening: through its door, if it has one. Nothing is dialled and no role
        made: the first client has the host dialled, and who wants a role asks for one.

        Raises:
            FluxError: there is no plan, or no port; its door goes on listening.
        """
        async with self._opening.setdefault((caller.api_base, caller.account, request.hash), asyncio.Lock()):
            tunnel = self._find(caller, request)
            if tunnel is not None and tunnel.life.listening:
                return _kept(tunnel, request)
            planned = await self._plan(request, caller)
            door = self._door(request, caller, planned)
            if door is not None:
                return await self._behind(door, caller, request, planned)
            tunnel = await self._new(request, caller, planned)
            bind = lambda: self._bound(tunnel, request.local_port, strict=request.strict_port)  # noqa: E731
            return await self._listening(tunnel, bind)

    async def undeclare(self, door: Door) -> None:
        """Close *door*, unless it has become a tunnel's."""
        await self._doors.close(door)

    def _door(self, request: wire.OpenTunnel, caller: Caller, planned: Planned) -> Door | None:
        dedicated = isinstance(planned[0], plane_wire.DedicatedPlan)
        return self._doors.find(caller.api_base, request.hash, request.access, dedicated=dedicated)

    async def _behind(self, door: Door, caller: Caller, request: wire.OpenTunnel, planned: Planned) -> Tunnel:
        """The tunnel behind *door*, in the way that was declared; *planned* is what *request* was answered."""
        if request != door.request:
            planned = await self._plan(door.request, caller)
        tunnel = await self._new(door.request, caller, planned)
        return await self._listening(tunnel, lambda: self._through(door, tunnel))

    async def _listening(self, tunnel: Tunnel, bind: Callable[[], Awaitable[Forward]]) -> Tunnel:
        tunnel.listen(bind)
        try:
            await asyncio.shield(tunnel.settled)
        except asyncio.CancelledError:
            tunnel.close()
            raise
        if not tunnel.life.listening:
            await self._gone(tunnel)
            raise tunnel.problem or TunnelNotFound("The tunnel was closed while it was being opened.")
        tunnel.facts.kept = True
        tunnel.remember()
        tunnel.report_opened()
        return tunnel

    async def _through(self, door: Door, tunnel: Tunnel) -> Forward:
        """The door's own listener, with whoever waits there, as the tunnel's forward."""
        key = tunnel.facts.key
        if self._ports.owner_of(door.port) not in (None, key) or not self._doors.has(door):
            raise PortTaken(f"Local port {door.port} is kept for another tunnel.")
        await self._ports.keep(tunnel.facts, door.port, door.request.local_port)
        if not self._doors.taken(door):  # closed meanwhile
            raise PortTaken(f"Local port {door.port} is declared no more.")
        door.lead(tunnel.open_channel, tunnel.observe)
        return door.forward

    def _host_moved(self, host: Host, name: str) -> None:
        self._events.emit(name, host=lambda: shown_host(host), problem=host.last_problem)
        if name == "host_lost":
            for tunnel in list(self._tunnels.values()):
                if tunnel.host is host:
                    tunnel.host_lost()

    def hosts(self) -> list[wire.HostStatus]:
        return self._hosts.shown()

    # ---------------------------------------------------------------------- ports

    def ports_for(self, caller: Caller, project_hash: str, *, requested: int | None) -> dict[str, int]:
        """By access, the port that a tunnel of *caller* to this project would try first, where there is one."""
        keys = {access: Key(caller.api_base, caller.account, project_hash, access) for access in _ACCESSES}
        found = {access: self._ports.first_tried(key, requested) for access, key in keys.items()}
        return {access: port for access, port in found.items() if port is not None}

    async def _bound(self, tunnel: Tunnel, requested: int | None, *, strict: bool) -> Forward:
        """A forward on a port of the tunnel's."""
        facts = tunnel.facts
        sockets = await self._ports.bind(facts, requested=requested, strict=strict)
        port = int(sockets[0].getsockname()[1])
        return Forward(
            sockets,
            open_channel=tunnel.open_channel,
            observe=tunnel.observe,
            freed=lambda: self._listeners.free(facts.local_host, port),
        )

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
        door = None if caller is None else self._doors.of(caller.api_base, project_hash)
        return (door.port, None) if door is not None else self._ports.free_now(wanted)

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
        found = [problem for problem in (self._journal.problem, self._book.problem) if problem is not None]
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
                held.lose(hold) if self._restarts() else held.let_go(hold)

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
            notices=[] if revocable else [asked.NO_REVOKE],
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
            await self._book.forget(tunnel.facts.key)
            return
        keys = self._book.named(name)
        if not keys:
            raise TunnelNotFound(f"No port is kept for {name!r}.")
        if len({key[:3] for key in keys}) > 1:
            raise TunnelAmbiguous(f"Ports are kept for several projects called {name!r}: use the port's number.")
        for key in keys:
            await self._book.forget(key)

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

    def expect_restart(self) -> None:
        """If we are stopped within `RESTARTED_WITHIN_S`, it is to be started again: see `aclose`."""
        self._restart_until = self._clock.now() + RESTARTED_WITHIN_S

    def _restarts(self) -> bool:
        return self._clock.now() < self._restart_until

    async def aclose(self) -> None:
        """
        Close every tunnel, end every grant, keep nothing running. What could not be confirmed stays journaled.

        Before a restart that was announced, tunnels that listen and live roles are left to the next daemon.
        """
        self._closing = True
        self._listeners.hand_over()
        await self._doors.aclose()
        leaving = await (self._leave() if self._restarts() else self._close_all())
        await self._grants.aclose(within_s=DRAINED_WITHIN_S, leaving=leaving)
        self._network.close()
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._hosts.aclose()
        await self._journal.aclose()
        await self._book.aclose()

    async def _close_all(self) -> None:
        tunnels = list(self._tunnels.values())
        # A v1 tunnel that somebody keeps has no role to end: it comes back with the next daemon.
        lasting = {one.facts.id: one.record() for one in tunnels if one.facts.kept and one.facts.pooled is None}
        for tunnel in tunnels:
            tunnel.close()
        for tunnel in tunnels:
            await tunnel.finished.wait()
        self._journal.tunnels.update(lasting)

    async def _leave(self) -> set[str]:
        tunnels = list(self._tunnels.values())
        left = {one.facts.id for one in tunnels if one.life.listening}
        for tunnel in tunnels:
            tunnel.hand_over() if tunnel.life.listening else tunnel.close()
        for tunnel in tunnels:
            await tunnel.finished.wait()
        return left

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
            notices=[*minted.notices, *([] if minted.record.revocable else [asked.NO_REVOKE])],
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
        slept_s = self._slept_s()
        while True:
            if self._slept_s() - slept_s > SLEPT_S:
                self._hosts.doubt()
            slept_s = self._slept_s()
            now = self._clock.now()
            due = [tunnel.tick(now) for tunnel in list(self._tunnels.values()) if not tunnel.life.over]
            for record in self._grants.bare():
                if record.lease is not None and now >= record.lease.ends_at:
                    self._grants.end(record.grant_id)
            await asyncio.sleep(max(0.0, min([TICK_S, *(at - self._clock.now() for at in due)])))

    def _slept_s(self) -> float:
        """How much longer than it was awake this machine has been on; where that begins says nothing."""
        return self._clock.now() - self._clock.awake()

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


Planned = tuple[plane_wire.AccessPlan, dict[str, Any]]
_ACCESSES: Final[Sequence[wire.Access]] = ("readonly", "readwrite")


def _kept(tunnel: Tunnel, declared: wire.OpenTunnel) -> Tunnel:
    """
    *tunnel*, which is open, as the one that is *declared*.

    Raises:
        TunnelOpenDifferently: it is not.
    """
    asked.must_be_same(tunnel, declared)
    tunnel.facts.kept = True
    tunnel.facts.renew |= declared.renew
    tunnel.remember()
    return tunnel


def _is_at(place: Place, tunnel: Tunnel) -> bool:
    """Whether *tunnel* listens for what is declared as *place*."""
    key = tunnel.facts.key
    same = (key.api_base, key.hash) == place[:2] and (tunnel.facts.pooled is None or key.access == place.access)
    return same and tunnel.life.listening


def _answers_to(tunnel: Tunnel, name: str) -> bool:
    return name in (tunnel.facts.id, tunnel.facts.project, tunnel.facts.key.hash, str(tunnel.port))


def _with_port(plan: dict[str, Any], port: int) -> dict[str, Any]:
    tunnel = plan.get("tunnel")
    return {**plan, "tunnel": {**(tunnel if isinstance(tunnel, dict) else {}), "recommendedLocalPort": port}}

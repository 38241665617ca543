"""
One tunnel's life: performs the commands of `core.lifecycle` and feeds it the events.

A command that takes time is a step; there is one at a time, and a new one cancels the old: a close during the opening
ends the opening. Nothing here decides what comes next; the table does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import (
    FluxError,
    LeaseOver,
    NotAuthenticated,
    RenewLimit,
    SSHLost,
    TunnelNotFound,
    UpstreamRefused,
    UpstreamUnreachable,
    UpstreamWrongServer,
)
from fluxd.core.lifecycle import Command, Event, Lifecycle, Phase
from fluxd.core.resolver import Upstream
from fluxd.journal import GrantRecord, Journal, SSHRecord, TunnelRecord
from fluxd.plane import Caller
from fluxplane.wire import TunnelReport

from .channels import ChannelTransport
from .events import Events
from .facts import Facts, Hold, Wish
from .forward import Forward, Happening
from .grants import Grants, Minted, Terms
from .identity import Identity
from .probe import prove_postgres
from .shown import shown_lease, shown_traffic
from .ssh import Host, unreachable
from .whereabouts import Whereabouts

log = logging.getLogger(__name__)

# After the lease: this long Postgres has to tell its clients itself.
GRACE_S: Final = 1.0
HOLD_TAKEN_WITHIN_S: Final = 5.0
# After a restart: whoever held it needs a moment to see that we are back.
HOLD_FOUND_AGAIN_WITHIN_S: Final = 10.0
# A tunnel that renews by itself does so this long before its end, or half-way through a shorter lease.
RENEW_BEFORE_S: Final = 600.0
RENEW_AGAIN_S: Final = 15.0

Bind = Callable[[], Awaitable[Forward]]


@dataclass(frozen=True, slots=True)
class House:
    """What every tunnel shares. `later` has work done by a task that is awaited in the end."""

    grants: Grants
    identity: Identity
    journal: Journal
    events: Events
    clock: Clock
    client_waits_s: float
    later: Callable[[Awaitable[None]], None]
    report: Callable[[Caller, str, TunnelReport], Awaitable[None]]


class Tunnel:
    """
    A forward and, for v2, its grants.

    `feed` it what happens. `settled` is done when it is up or will never be; `finished` is set when nothing is left.
    """

    def __init__(self, facts: Facts, host: Host, house: House, caller: Caller | None = None) -> None:
        self.facts = facts
        self.host = host
        # Whoever asked last, with the token to ask the plane with; None after a restart.
        self.caller = caller
        self.holds: dict[str, Hold] = {}
        self.problem: FluxError | None = None
        # What its end came from.
        self.ended_by: Event | None = None
        self.life = Lifecycle()
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finished = asyncio.Event()
        self.forward: Forward | None = None
        # What the opening itself minted, for the one who opened.
        self.first: Minted | None = None
        self._house = house
        self.whereabouts = self._seen_from(host)
        self._bind: Bind | None = None
        self._wish: Wish | None = None
        self._asked: GrantRecord | None = None
        self._step: asyncio.Task[None] | None = None
        self._steps: set[asyncio.Task[None]] = set()
        self._warned: dict[str, set[float]] = {}
        # Half of what each lease was last given.
        self._halves: dict[str, float] = {}
        # No listener outlives the grant that ends last, even if that one was revoked early.
        self._ends_at: float | None = None
        self._renew_at = 0.0

    def _seen_from(self, host: Host) -> Whereabouts:
        return Whereabouts(
            self.facts.plan,
            host,
            self._house.clock,
            proof=lambda: self._house.identity.login(self.facts, lambda: self.caller),
            say=self.facts.say_unproven,
            moved=self.remember,
            prefer_network=self.facts.prefer_network,
        )

    @property
    def is_untried(self) -> bool:
        """Whether it listens and nothing has been reached through it yet."""
        return self.life.phase is Phase.UP and not self.whereabouts.met

    def go_by(self, host: Host) -> None:
        """From now on through *host*, for one that is untried; what was known of upstream is to be proven there."""
        before, self.host = self.whereabouts, host
        self.whereabouts = self._seen_from(host)
        self.whereabouts.recall(before.stood, before.proven_behind)

    # --------------------------------------------------------- what happens to it

    def open(self, wish: Wish, bind: Bind) -> None:
        """Begin; `settled` tells how it ended, `problem` why it failed."""
        self._wish, self._bind = wish, bind
        self._emit("opening")
        self.feed(Event.OPEN_ASKED)

    def restore(self, record: TunnelRecord, bind: Bind) -> None:
        """Listen again as before the daemon ended; the host is dialled by the first client."""
        self.whereabouts.recall(record.upstream, record.proven_behind)
        until = self._house.clock.now() + HOLD_FOUND_AGAIN_WITHIN_S
        held = {one.hold: one.grant_id for one in self.live()}
        self.holds = {name: Hold(held.get(name), until) for name in record.holds}
        for grant in self.live():
            self._note_end(grant)
        self.listen(bind)

    def listen(self, bind: Bind) -> None:
        """Listen without having reached anything: the host is dialled, and upstream proven, for the first client."""
        self._bind = bind
        self.feed(Event.LISTEN_ASKED)

    def close(self) -> None:
        self.feed(Event.CLOSE_ASKED)

    def hand_over(self) -> None:
        """Leave it to the next daemon, with its roles; the journal knows it."""
        self.remember()
        self.feed(Event.HANDED_OVER)

    def host_lost(self) -> None:
        self.feed(Event.HOST_LOST)

    def feed(self, event: Event) -> None:
        """Take note of what happened and begin what the table commands."""
        before = self.life.phase
        self.life, commands = self.life.on(event)
        if self.life.phase is not before:
            self._moved(event)
        for command in commands:
            self._perform(command)

    def _moved(self, event: Event) -> None:
        phase = self.life.phase
        if phase is Phase.UP:
            self._emit("reconnected" if event is Event.HOST_REGAINED else "up")
        elif phase is Phase.RECONNECTING:
            self._emit("reconnecting", self.host.last_problem)
        elif phase is Phase.CLOSING:
            self.ended_by = event
            if event is Event.LEASE_ENDED:
                self._emit("lease_over")
            self._emit("closing", self.problem)
        if phase in (Phase.CLOSING, Phase.FAILED):
            self._house.journal.tunnels.pop(self.facts.id, None)
        if phase in (Phase.UP, Phase.CLOSING) and not self.settled.done():
            self.settled.set_result(None)

    # ------------------------------------------------------------------ commands

    def _perform(self, command: Command) -> None:
        at_once = {
            Command.SERVE: self._serve,
            Command.STOP_LISTENING: self._stop_listening,
            Command.REVOKE_GRANTS: self._revoke_grants,
        }.get(command)
        if at_once is not None:
            at_once()
            return
        step = {
            Command.BIND_PORT: self._bind_port,
            Command.REACH_HOST: self._reach_host,
            Command.LOCATE_UPSTREAM: self._locate_upstream,
            Command.PROVE_UPSTREAM: self._prove_upstream,
            Command.JOURNAL_GRANT: self._journal_grant,
            Command.ASK_GRANT: self._ask_grant,
            Command.PROVE_LOGIN: self._prove_first_login,
            Command.REDIAL: self._redial,
            Command.AWAIT_GRACE: self._await_grace,
            Command.CLOSE_RELAYS: self._close_relays,
        }[command]
        if self._step is not None:
            self._step.cancel()
        self._step = asyncio.create_task(self._take(step))
        self._steps.add(self._step)
        self._step.add_done_callback(self._steps.discard)

    async def _take(self, step: Callable[[], Awaitable[Event | None]]) -> None:
        try:
            event = await step()
        except FluxError as problem:
            self.problem = problem
            event = Event.STEP_FAILED
        except Exception as error:
            log.exception("tunnel %s: a step failed in a way that nobody expected", self.facts.id)
            self.problem = FluxError(detail=type(error).__name__)
            event = Event.STEP_FAILED
        self._step = None
        if event is not None:
            self.feed(event)

    async def _bind_port(self) -> Event:
        assert self._bind is not None
        self.forward = await self._bind()
        return Event.PORT_BOUND

    async def reach(self) -> None:
        """
        For one that listens and has reached nothing yet: what opening it would have shown.

        Raises:
            FluxError: why it cannot be used; it goes on listening.
        """
        if self.whereabouts.met:
            return
        await self._reach_host()
        await self._locate_upstream()
        await self._prove_upstream()

    async def _reach_host(self) -> Event:
        await self.host.reach()
        return Event.HOST_REACHED

    async def _locate_upstream(self) -> Event:
        await self.whereabouts.locate()
        return Event.UPSTREAM_LOCATED

    async def _prove_upstream(self) -> Event:
        await prove_postgres(self.whereabouts.open_stream)
        if self.facts.pooled is None:
            # v2 proves itself by the login of the role that is minted next.
            await self.whereabouts.proven()
        return Event.UPSTREAM_PROVEN

    async def _journal_grant(self) -> Event:
        if self.facts.pooled is None:
            return Event.NO_GRANT_NEEDED
        self._asked = await self._house.grants.write_down(self._terms())
        return Event.GRANT_JOURNALED

    async def _ask_grant(self) -> Event:
        assert self._asked is not None
        self.first = await self._house.grants.ask(self._asked, self._terms())
        return Event.GRANT_ANSWERED

    async def _prove_first_login(self) -> Event:
        assert self.first is not None
        await self._log_in(self.first)
        self._minted(self.first)
        return Event.LOGIN_PROVEN

    def _serve(self) -> None:
        assert self.forward is not None
        self.forward.start()

    async def _redial(self) -> Event:
        while self.host.state != "up":  # it may be lost again before we are told
            await self.host.wait_up(hurry=False)
        return Event.HOST_REGAINED

    def _stop_listening(self) -> None:
        if self.forward is not None:
            self.forward.stop_listening()

    def _revoke_grants(self) -> None:
        for record in self._house.grants.of(self.facts.id):
            self._house.grants.end(record.grant_id)

    async def _await_grace(self) -> Event:
        if self.forward is not None and self.facts.pooled is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await self.forward.relays_gone()
        return Event.GRACE_ELAPSED

    async def _close_relays(self) -> None:
        if self.forward is not None:
            await self.forward.close_relays()
        if self.life.phase is not Phase.LEFT:
            self._emit("failed" if self.life.phase is Phase.FAILED else "closed", self.problem)
        if self.life.phase is Phase.CLOSED:
            self._report("closed")
        if not self.settled.done():
            self.settled.set_result(None)
        self.finished.set()

    async def closed_by_somebody(self) -> bool:
        """Wait for its end; False if its lease was over, or upstream was another's."""
        await self.finished.wait()
        return self.ended_by is Event.CLOSE_ASKED

    async def aclose(self) -> None:
        """Await what is still under way; for a tunnel that is over."""
        while self._steps:
            await asyncio.wait(self._steps)

    # ------------------------------------------------------------------- clients

    async def open_channel(
        self, protocol: Callable[[], asyncio.Protocol], *, within_s: float | None = None
    ) -> ChannelTransport:
        """
        A channel for a client, who waits a while if the host is away just now: *within_s*, else as the settings say.

        Raises:
            FluxError: why there is none.
        """
        try:
            async with asyncio.timeout(self._house.client_waits_s if within_s is None else within_s):
                return await self._channel(protocol)
        except TimeoutError as error:
            raise unreachable(self.host, self._house.client_waits_s) from error

    async def _channel(self, protocol: Callable[[], asyncio.Protocol]) -> ChannelTransport:
        asked_again = False
        while True:
            await self.host.wait_up()
            try:
                upstream = await self._way()
                return await self.host.open_channel(protocol, upstream.connect_to, upstream.port)
            except (UpstreamRefused, UpstreamUnreachable):
                # A container that came back has another address, whose age says nothing about that.
                if asked_again or not self.whereabouts.doubt():
                    raise
                asked_again = True
            except SSHLost:
                # It went while we asked; the client has done nothing wrong and waits on.
                await asyncio.sleep(0.05)

    async def _way(self) -> Upstream:
        try:
            upstream = await self.whereabouts.proven()
        except UpstreamWrongServer as problem:
            self.problem = problem
            self.feed(Event.UPSTREAM_DISPROVEN)
            raise
        except NotAuthenticated as problem:
            self.problem = problem
            raise
        if isinstance(self.problem, NotAuthenticated):
            self.problem = None
        return upstream

    def observe(self, happening: Happening, problem: FluxError | None) -> None:
        """What its forward tells."""
        self._emit(happening, problem)

    # -------------------------------------------------------------------- grants

    def _terms(self, wish: Wish | None = None) -> Terms:
        wish = wish or self._wish
        assert wish is not None
        return Terms(
            caller=wish.caller,
            key=self.facts.key,
            project=self.facts.project,
            extensions=self.facts.plan.extensions,
            ttl_s=wish.ttl_s,
            reason=wish.reason,
            tunnel=self.facts.id,
            hold=wish.hold,
        )

    async def mint(self, wish: Wish) -> Minted:
        """
        One more role on the open forward, proven by a login.

        Raises:
            FluxError: there is none; whatever was made is being ended.
        """
        terms = self._terms(wish)
        grants = self._house.grants
        record = await grants.write_down(terms)
        minted = await grants.ask(record, terms)
        try:
            async with asyncio.timeout(self._house.client_waits_s):
                await self.host.wait_up()
                await self._log_in(minted)
        except TimeoutError as error:
            grants.end(record.grant_id)
            raise unreachable(self.host, self._house.client_waits_s) from error
        except BaseException:
            grants.end(record.grant_id)
            raise
        if not self.life.listening:
            grants.end(record.grant_id)
            raise self.problem or TunnelNotFound("The tunnel was closed meanwhile.")
        self._minted(minted)
        return minted

    async def _log_in(self, minted: Minted) -> None:
        """Prove the role, and by its verifier that this is the project's own Postgres."""
        username = minted.record.username
        assert username is not None
        await self.whereabouts.log_in(username, minted.password)

    def _minted(self, minted: Minted) -> None:
        self._note_end(minted.record)
        for notice in minted.notices:
            self.facts.say_once(notice)
        self._emit("lease_granted")

    def _note_end(self, record: GrantRecord) -> None:
        if record.lease is not None:
            self._ends_at = max(self._ends_at or 0.0, record.lease.ends_at)
            self._halves[record.grant_id] = record.lease.remaining(self._house.clock.now()) / 2

    def live(self) -> list[GrantRecord]:
        """Its live grants; the last one's lease is the tunnel's."""
        return self._house.grants.live(self.facts.id)

    async def renew(self, caller: Caller, ttl_s: int | None) -> None:
        """
        A later end for every live grant.

        Raises:
            FluxError: the first that could not be renewed; others may have been.
        """
        live = self.live()
        if not live:
            raise LeaseOver
        for record in live:
            await self._house.grants.renew(record, caller, ttl_s)
            self._warned.pop(record.grant_id, None)
            self._note_end(record)
        self.caller = caller
        self._emit("lease_renewed")

    async def _renew_by_itself(self) -> None:
        try:
            if self.caller is None:
                raise NotAuthenticated("The tunnel cannot be renewed: fluxd was restarted and has no token for it.")
            await self.renew(self.caller, self.facts.ttl_s)
        except RenewLimit:
            self.facts.renew = False
            self._emit("renew_ended", message="It has reached the limit that no renewal passes.")
        except FluxError as problem:
            self._emit("renew_failed", problem)

    # ---------------------------------------------------------------------- time

    def tick(self, now: float) -> float:
        """What is due at *now*; answers when to come again."""
        self._drop_untaken_holds(now)
        due = [hold.until for hold in self.holds.values() if hold.until is not None]
        due += [self._tick_grant(record, now) for record in self.live()]
        self._renew_when_due(now)
        if self._ends_at is not None and not self.life.over:
            if now >= self._ends_at:
                self.feed(Event.LEASE_ENDED)
            due.append(self._ends_at)
        return min((at for at in due if at > now), default=now + 1.0)

    def _tick_grant(self, record: GrantRecord, now: float) -> float:
        assert record.lease is not None
        if now >= record.lease.ends_at:
            if self._ends_at is None or record.lease.ends_at < self._ends_at:
                self._house.grants.end(record.grant_id)
            return record.lease.ends_at
        given = self._warned.setdefault(record.grant_id, set())
        warning = record.lease.due_warning(now, given)
        if warning is not None:
            given.add(warning)
            left = record.lease.remaining(now)
            self._emit("lease_expiring", message=f"{record.username} ends in {left:.0f} s.")
        return record.lease.next_wake(now)

    def _renew_when_due(self, now: float) -> None:
        used = self.forward is not None and self.forward.relays > 0
        if not (self.facts.renew and used and self.life.listening and now >= self._renew_at):
            return
        for record in self.live():
            soon = min(RENEW_BEFORE_S, self._halves.get(record.grant_id, RENEW_BEFORE_S))
            if record.lease is not None and record.lease.remaining(now) <= soon:
                self._renew_at = now + min(RENEW_AGAIN_S, soon / 4)
                self._house.later(self._renew_by_itself())
                return

    # --------------------------------------------------------------------- holds

    def hold(self, name: str, grant_id: str | None) -> None:
        """Somebody holds it, if they take it up within `HOLD_TAKEN_WITHIN_S`."""
        self.holds[name] = Hold(grant_id, self._house.clock.now() + HOLD_TAKEN_WITHIN_S)
        self.remember()

    def take_up(self, name: str) -> None:
        self.holds[name].until = None

    def let_go(self, name: str) -> None:
        """A hold's end: its grant ends; without any hold left, and nobody who keeps it, so does the tunnel."""
        hold = self.holds.pop(name, None)
        if hold is None:
            return
        if hold.grant_id is not None:
            self._house.grants.end(hold.grant_id)
        self.remember()
        if not self.holds and not self.facts.kept:
            self.close()

    def lose(self, name: str) -> None:
        """A hold's stream has ended because the daemon does: whoever held it may be back soon."""
        if hold := self.holds.get(name):
            hold.until = self._house.clock.now() + HOLD_FOUND_AGAIN_WITHIN_S

    def _drop_untaken_holds(self, now: float) -> None:
        for name, hold in list(self.holds.items()):
            if hold.until is not None and now >= hold.until:
                self.let_go(name)

    # ------------------------------------------------------------------- telling

    def remember(self) -> None:
        """Have the journal know it as it is now; only while it listens is there anything to come back to."""
        if self.life.listening:
            self._house.journal.tunnels[self.facts.id] = self.record()
            self._house.later(self._house.grants.settle())

    def record(self) -> TunnelRecord:
        """What brings it back after a crash."""
        facts, destination = self.facts, self.host.destination
        return TunnelRecord(
            id=facts.id,
            key=facts.key,
            plan=facts.raw_plan,
            ssh=SSHRecord(
                host=destination.target.host,
                user=destination.target.user,
                port=destination.target.port,
                identity_file=destination.identity_file,
                known_hosts=destination.known_hosts,
                agent=self.host.agent,
            ),
            local_host=facts.local_host,
            port=self.port,
            kept=facts.kept,
            holds=list(self.holds),
            renew=facts.renew,
            ttl_s=facts.ttl_s,
            prefer_network=facts.prefer_network,
            opened_at=facts.opened_at,
            upstream=self.whereabouts.stood,
            proven_behind=self.whereabouts.proven_behind,
        )

    def _emit(self, name: str, problem: FluxError | None = None, message: str | None = None) -> None:
        self._house.events.emit(name, tunnel=self.shown, problem=problem, message=message)

    def report_opened(self) -> None:
        """Tell the plane's audit."""
        self._report("opened")

    def _report(self, event: str) -> None:
        if self.caller is None or "audit" not in self.facts.plan.extensions:
            return
        traffic = shown_traffic(self.forward)
        live = self.live()
        report = TunnelReport(
            event="opened" if event == "opened" else "closed",
            access=self.facts.key.access,
            tunnel_id=self.facts.id,
            grant_id=live[-1].grant_id if live else None,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            reason=self._wish.reason if self._wish else None,
        )
        self._house.later(self._house.report(self.caller, self.facts.key.hash, report))

    def shown(self) -> wire.Tunnel:
        """It, as it stands on the wire."""
        facts, pooled, found = self.facts, self.facts.pooled, self.whereabouts.found
        live = self.live()
        latest = live[-1] if live else None
        return wire.Tunnel(
            id=facts.id,
            project=facts.project,
            hash=facts.key.hash,
            mode="v2_shared" if pooled else "v1_dedicated",
            access=facts.key.access,
            state=self.life.shown,
            host=facts.local_host,
            port=self.port,
            lease=shown_lease(latest, self._house.clock.now()),
            database=facts.plan.database.database_name,
            username=latest.username if latest else facts.username,
            tenant_schema=pooled.tenant_schema if pooled else None,
            search_path=pooled.database.search_path if pooled else [],
            rls_tables=(latest.rls_tables if latest else None) or facts.plan.rls_tables,
            api_base=facts.key.api_base,
            account=facts.key.account,
            ssh=str(self.host.destination),
            upstream=str(found) if found else None,
            resolution_method=found.method if found else None,
            opened_at=facts.opened_at,
            holds=len(self.holds),
            kept=facts.kept,
            grants=len(live),
            traffic=shown_traffic(self.forward),
            notices=list(facts.notices),
            problem=wire.problem_of(self.problem) if self.problem else None,
        )

    @property
    def port(self) -> int:
        return self.forward.port if self.forward is not None else 0


def new_id(used: Iterable[str]) -> str:
    """Short and typeable, and like no other in *used*."""
    taken = set(used)
    while (found := f"t-{secrets.token_hex(2)}") in taken:
        pass
    return found

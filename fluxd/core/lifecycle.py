"""
A tunnel's life as a table: what happened, in the past tense, and what to do about it, in the imperative.

The shell (`fluxd.tunnels.tunnel`) performs the commands and feeds the events; nothing is decided there. An event that
has no row in the present phase changes nothing: a host that is lost after the tunnel closed is no news to it.

Opening goes one way, each step by its own event; any failure on it undoes everything that was done, in one row:

    new → binding → reaching → locating → proving → journaling → granting → logging_in → up

`journaling` stands before `granting`, so that a role is known on disk before it is asked for. From `up` there is
`reconnecting` and back, and one way out: stop listening, have the roles ended, give Postgres a moment to tell its
clients so, close what is left. A daemon that is about to be started again leaves it (`left`) as a crash would.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from types import MappingProxyType
from typing import Final, Literal, NamedTuple


class Phase(StrEnum):
    """Where a tunnel stands."""

    NEW = auto()
    STARTING = auto()
    BINDING = auto()
    REACHING = auto()
    LOCATING = auto()
    PROVING = auto()
    JOURNALING = auto()
    GRANTING = auto()
    LOGGING_IN = auto()
    UP = auto()
    RECONNECTING = auto()
    CLOSING = auto()
    CLOSED = auto()
    FAILED = auto()
    LEFT = auto()


class Event(StrEnum):
    """What happened."""

    OPEN_ASKED = auto()
    LISTEN_ASKED = auto()
    PORT_BOUND = auto()
    HOST_REACHED = auto()
    UPSTREAM_LOCATED = auto()
    UPSTREAM_PROVEN = auto()
    GRANT_JOURNALED = auto()
    NO_GRANT_NEEDED = auto()
    GRANT_ANSWERED = auto()
    LOGIN_PROVEN = auto()
    STEP_FAILED = auto()
    HOST_LOST = auto()
    HOST_REGAINED = auto()
    UPSTREAM_DISPROVEN = auto()
    LEASE_ENDED = auto()
    CLOSE_ASKED = auto()
    HANDED_OVER = auto()
    GRACE_ELAPSED = auto()


class Command(StrEnum):
    """What to do."""

    BIND_PORT = auto()
    REACH_HOST = auto()
    LOCATE_UPSTREAM = auto()
    PROVE_UPSTREAM = auto()
    JOURNAL_GRANT = auto()
    ASK_GRANT = auto()
    PROVE_LOGIN = auto()
    SERVE = auto()
    REDIAL = auto()
    STOP_LISTENING = auto()
    REVOKE_GRANTS = auto()
    AWAIT_GRACE = auto()
    CLOSE_RELAYS = auto()


class Step(NamedTuple):
    """A row's right-hand side."""

    phase: Phase
    commands: tuple[Command, ...] = ()


P, E, C = Phase, Event, Command

OPENING: Final = (P.BINDING, P.REACHING, P.LOCATING, P.PROVING, P.JOURNALING, P.GRANTING, P.LOGGING_IN)
LISTENING: Final = (P.UP, P.RECONNECTING)
OVER: Final = (P.CLOSED, P.FAILED, P.LEFT)

_UNDO: Final = Step(P.FAILED, (C.STOP_LISTENING, C.REVOKE_GRANTS, C.CLOSE_RELAYS))
_END: Final = Step(P.CLOSING, (C.STOP_LISTENING, C.REVOKE_GRANTS, C.AWAIT_GRACE))

TABLE: Final = MappingProxyType(
    {
        (P.NEW, E.OPEN_ASKED): Step(P.BINDING, (C.BIND_PORT,)),
        (P.BINDING, E.PORT_BOUND): Step(P.REACHING, (C.REACH_HOST,)),
        (P.REACHING, E.HOST_REACHED): Step(P.LOCATING, (C.LOCATE_UPSTREAM,)),
        (P.LOCATING, E.UPSTREAM_LOCATED): Step(P.PROVING, (C.PROVE_UPSTREAM,)),
        (P.PROVING, E.UPSTREAM_PROVEN): Step(P.JOURNALING, (C.JOURNAL_GRANT,)),
        (P.JOURNALING, E.NO_GRANT_NEEDED): Step(P.UP, (C.SERVE,)),
        (P.JOURNALING, E.GRANT_JOURNALED): Step(P.GRANTING, (C.ASK_GRANT,)),
        (P.GRANTING, E.GRANT_ANSWERED): Step(P.LOGGING_IN, (C.PROVE_LOGIN,)),
        (P.LOGGING_IN, E.LOGIN_PROVEN): Step(P.UP, (C.SERVE,)),
        # A tunnel that was open when the daemon ended, or is declared, listens at once and dials on its first client.
        (P.NEW, E.LISTEN_ASKED): Step(P.STARTING, (C.BIND_PORT,)),
        (P.STARTING, E.PORT_BOUND): Step(P.UP, (C.SERVE,)),
        # The listener never closes for an SSH loss.
        (P.UP, E.HOST_LOST): Step(P.RECONNECTING, (C.REDIAL,)),
        (P.RECONNECTING, E.HOST_REGAINED): Step(P.UP),
        # Every way of failing while opening, and every way out of being open.
        **{(phase, event): _UNDO for phase in (*OPENING, P.STARTING) for event in (E.STEP_FAILED, E.LEASE_ENDED)},
        **{
            (phase, event): _END
            for phase in LISTENING
            for event in (E.LEASE_ENDED, E.CLOSE_ASKED, E.UPSTREAM_DISPROVEN)
        },
        **{(phase, E.CLOSE_ASKED): _END for phase in (*OPENING, P.STARTING)},
        # The daemon restarts: roles live on, and the next one listens again.
        **{(phase, E.HANDED_OVER): Step(P.LEFT, (C.STOP_LISTENING, C.CLOSE_RELAYS)) for phase in LISTENING},
        (P.NEW, E.CLOSE_ASKED): Step(P.CLOSED, (C.REVOKE_GRANTS,)),
        (P.CLOSING, E.GRACE_ELAPSED): Step(P.CLOSED, (C.CLOSE_RELAYS,)),
        # A grant that was on its way when the end came is ended too.
        **{
            (phase, event): Step(phase, (C.REVOKE_GRANTS,))
            for phase in (P.CLOSING, P.CLOSED, P.FAILED)
            for event in (E.GRANT_JOURNALED, E.GRANT_ANSWERED)
        },
    }
)

_SHOWN: Final = MappingProxyType(
    {
        P.UP: "up",
        P.RECONNECTING: "reconnecting",
        P.CLOSING: "closing",
        P.CLOSED: "closed",
        P.FAILED: "failed",
        P.LEFT: "closed",
    }
)


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """One tunnel's place in the table. A value: `on` answers the next one."""

    phase: Phase = Phase.NEW

    def on(self, event: Event) -> tuple[Lifecycle, tuple[Command, ...]]:
        """The life after *event*, and the commands to perform, in their order. No row: this very life, and none."""
        step = TABLE.get((self.phase, event))
        return (self, ()) if step is None else (Lifecycle(step.phase), step.commands)

    @property
    def shown(self) -> Literal["opening", "up", "reconnecting", "closing", "closed", "failed"]:
        """The word for it on the wire."""
        return _SHOWN.get(self.phase, "opening")  # type: ignore[return-value]

    @property
    def opening(self) -> bool:
        return self.phase in OPENING

    @property
    def listening(self) -> bool:
        """Clients are served, or kept waiting for the host."""
        return self.phase in LISTENING

    @property
    def over(self) -> bool:
        return self.phase in OVER

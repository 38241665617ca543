"""The table, walked by every history that hypothesis thinks of, against a model of what the commands do."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxd.core.lifecycle import LISTENING, OPENING, OVER, TABLE, Command, Event, Lifecycle, Phase

OPENED_V2 = [
    Event.OPEN_ASKED,
    Event.PORT_BOUND,
    Event.HOST_REACHED,
    Event.UPSTREAM_LOCATED,
    Event.UPSTREAM_PROVEN,
    Event.GRANT_JOURNALED,
    Event.GRANT_ANSWERED,
    Event.LOGIN_PROVEN,
]
OPENED_V1 = [*OPENED_V2[:5], Event.NO_GRANT_NEEDED]


@dataclass
class World:
    """What the shell would hold, had it performed every command."""

    life: Lifecycle = field(default_factory=Lifecycle)
    listener: bool = False
    relays: bool = False
    roles: int = 0
    asked_before_journaled: bool = False
    journaled: bool = False
    performed: list[Command] = field(default_factory=list)

    def feed(self, event: Event) -> None:
        if event in (Event.GRANT_JOURNALED, Event.GRANT_ANSWERED):
            self.roles += 1
        self.journaled |= event is Event.GRANT_JOURNALED
        self.life, commands = self.life.on(event)
        for command in commands:
            self.perform(command)

    def perform(self, command: Command) -> None:
        self.performed.append(command)
        match command:
            case Command.BIND_PORT:
                self.listener = True
            case Command.SERVE:
                self.relays = True
            case Command.ASK_GRANT:
                self.asked_before_journaled |= not self.journaled
            case Command.STOP_LISTENING:
                self.listener = False
            case Command.REVOKE_GRANTS:
                self.roles = 0
            case Command.CLOSE_RELAYS:
                self.relays = False


def histories(events=tuple(Event)):
    """Any of *events* in any order, often after a proper opening, so that the later phases are met too."""
    prefix = st.sampled_from([[], OPENED_V1, OPENED_V2, OPENED_V2[:6], [Event.LISTEN_ASKED, Event.PORT_BOUND]])
    return st.tuples(prefix, st.lists(st.sampled_from(events), max_size=25)).map(lambda pair: pair[0] + pair[1])


def lived(history) -> World:
    world = World()
    for event in history:
        world.feed(event)
    return world


@pytest.mark.parametrize("history", [OPENED_V1, OPENED_V2], ids=["v1", "v2"])
def test_opening_ends_up_listening(history):
    world = lived(history)
    assert world.life.phase is Phase.UP
    assert world.listener
    assert world.relays


def test_opening_asks_in_the_order_that_burns_no_role():
    assert lived(OPENED_V2).performed == [
        Command.BIND_PORT,
        Command.REACH_HOST,
        Command.LOCATE_UPSTREAM,
        Command.PROVE_UPSTREAM,
        Command.JOURNAL_GRANT,
        Command.ASK_GRANT,
        Command.PROVE_LOGIN,
        Command.SERVE,
    ]


@given(histories(tuple(event for event in Event if event is not Event.HANDED_OVER)))
@settings(max_examples=600)
def test_no_history_leaves_a_listener_open_after_its_lease(history):
    """Whatever happens, and in whatever order, an expired tunnel ends unlistened and revoked."""
    world = lived([Event.OPEN_ASKED, *history])
    world.feed(Event.LEASE_ENDED)
    world.feed(Event.GRACE_ELAPSED)
    assert world.life.over
    assert not world.listener
    assert not world.relays
    assert world.roles == 0


@given(histories())
@settings(max_examples=600)
def test_whatever_is_over_holds_nothing(history):
    world = lived(history)
    if world.life.phase in (Phase.CLOSING, *OVER):
        assert not world.listener
        assert world.roles == 0 or world.life.phase is Phase.LEFT
    if world.life.over:
        assert not world.relays


@given(histories())
@settings(max_examples=600)
def test_what_is_left_to_the_next_daemon_was_listening_and_keeps_its_roles(history):
    world = lived(history)
    before, roles = world.life, world.roles
    world.feed(Event.HANDED_OVER)
    assert (world.life.phase is Phase.LEFT) == (before.listening or before.phase is Phase.LEFT)
    assert world.roles == roles
    assert not (world.life.phase is Phase.LEFT and (world.listener or world.relays))


@given(histories(), st.sampled_from(list(Event)))
def test_what_is_over_stays_over(history, event):
    world = lived([*history, Event.CLOSE_ASKED, Event.GRACE_ELAPSED, Event.STEP_FAILED, Event.GRACE_ELAPSED])
    if world.life.over:
        phase = world.life.phase
        world.feed(event)
        assert world.life.phase is phase


@given(histories())
def test_no_role_is_asked_for_before_it_is_journaled(history):
    assert not lived(history).asked_before_journaled


@given(histories())
def test_an_ssh_loss_never_closes_the_listener(history):
    world = lived(history)
    before = world.listener
    world.feed(Event.HOST_LOST)
    assert world.listener == before


@given(histories())
def test_a_close_always_leads_out(history):
    world = lived([Event.OPEN_ASKED, *history, Event.CLOSE_ASKED, Event.GRACE_ELAPSED])
    assert world.life.over
    assert not world.listener


@pytest.mark.parametrize("phase", [*OPENING, Phase.STARTING])
def test_every_step_of_opening_can_fail_and_undoes_everything(phase):
    life, commands = Lifecycle(phase).on(Event.STEP_FAILED)
    assert life.phase is Phase.FAILED
    assert commands == (Command.STOP_LISTENING, Command.REVOKE_GRANTS, Command.CLOSE_RELAYS)


@pytest.mark.parametrize("phase", LISTENING)
@pytest.mark.parametrize("event", [Event.LEASE_ENDED, Event.CLOSE_ASKED, Event.UPSTREAM_DISPROVEN])
def test_the_end_stops_listening_first_and_closes_relays_last(phase, event):
    life, commands = Lifecycle(phase).on(event)
    assert commands == (Command.STOP_LISTENING, Command.REVOKE_GRANTS, Command.AWAIT_GRACE)
    assert life.on(Event.GRACE_ELAPSED) == (Lifecycle(Phase.CLOSED), (Command.CLOSE_RELAYS,))


def test_every_phase_is_reached_and_every_command_is_given():
    reached = {Phase.NEW} | {step.phase for step in TABLE.values()}
    given_ = {command for step in TABLE.values() for command in step.commands}
    assert reached == set(Phase)
    assert given_ == set(Command)


def test_every_event_has_a_row():
    assert {event for _, event in TABLE} == set(Event)


@pytest.mark.parametrize(
    ("phase", "shown"),
    [
        (Phase.NEW, "opening"),
        (Phase.PROVING, "opening"),
        (Phase.UP, "up"),
        (Phase.RECONNECTING, "reconnecting"),
        (Phase.CLOSING, "closing"),
        (Phase.CLOSED, "closed"),
        (Phase.FAILED, "failed"),
        (Phase.LEFT, "closed"),
    ],
)
def test_the_wire_has_six_words_for_it(phase, shown):
    assert Lifecycle(phase).shown == shown

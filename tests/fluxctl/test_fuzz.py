"""Whatever is typed, and whatever answers: a clear error or a result, never a traceback."""

import importlib
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxctl.__main__ import TREE
from fluxctl.options import Command
from tests.fluxctl import answers
from tests.furniture.replay import answer

SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# Words that would leave this test: a service, a prompt, another program.
LEFT_ALONE = {"service", "login", "completion"}


def paths() -> list[tuple[list[str], Command]]:
    found = []
    for word, node in TREE.items():
        entries = node.items() if isinstance(node, dict) else [(word, node)]
        for name, (module, _) in entries:
            command = importlib.import_module(f"fluxctl.commands.{module}").COMMANDS[name]
            found.append(([word, name] if isinstance(node, dict) else [word], command))
    return [(path, command) for path, command in found if path[0] not in LEFT_ALONE]


COMMANDS = paths()
FLAGS = sorted({flag for _, command in COMMANDS for option in command.options for flag in option.flags})
printable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
word = st.sampled_from(["acme", "abc1234", "0", "-1", "15432", "--", "", "x" * 300, "postgres.password"]) | printable
typed = st.lists(st.sampled_from(FLAGS) | word, max_size=6)


@SLOW
@given(st.sampled_from(range(len(COMMANDS))), typed)
def test_whatever_is_typed(replay, number, words):
    path, _ = COMMANDS[number]
    done = replay.flux(*path, *words, PATH="/nonexistent")
    if path != ["doctor"] or done.returncode != 1:  # a failed check is a result, with its own exit code
        check(done)
    assert "Traceback" not in done.stderr
    assert "did not expect" not in done.stderr


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | printable
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3), max_leaves=8
)


@st.composite
def mutated(draw, value):
    """*value* with one part of it, at any depth, replaced or left out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: one for name, one in value.items() if name != key}
        return rest if not draw(st.integers(0, 3)) else {**value, key: draw(mutated(value[key]))}
    return draw(json_values)


PLAN = answers.plan_answer(answers.PLAN_V2, answers.TUNNEL_V2)
OPENED = answers.opened(answers.PLAN_V2, answers.TUNNEL_V2, answers.CREDENTIAL)
CREDENTIALS = {
    "mode": "v1_dedicated",
    "slug": "acme",
    "hash": "abc1234",
    "postgresConnectionString": "postgres://postgres:p@h:5432/postgres",
}
ASKED = [
    ("GET /v1/plans/def5678", PLAN, ["db", "access-plan", "pooly", "--hash", "def5678"]),
    ("GET /v1/plans/def5678", PLAN, ["db", "gui-config", "pooly", "--hash", "def5678", "--json"]),
    ("POST /v1/tunnels", OPENED, ["tunnel", "open", "pooly", "--hash", "def5678"]),
    ("POST /v1/tunnels", OPENED, ["db", "tunnel", "pooly", "--hash", "def5678"]),
    ("GET /v1/tunnels", {"tunnels": [answers.TUNNEL_V1, answers.TUNNEL_V2]}, ["tunnel", "list"]),
    ("GET /v1/projects/abc1234/credentials", CREDENTIALS, ["db", "password", "acme", "--hash", "abc1234"]),
    ("GET /v1/projects/abc1234/credentials", CREDENTIALS, ["project", "credentials", "acme", "--hash", "abc1234"]),
]


@SLOW
@given(st.data(), st.sampled_from(range(len(ASKED))), st.sampled_from([200, 200, 200, 400, 500]))
def test_whatever_is_answered(replay, data, number, status):
    question, good, words = ASKED[number]
    replay.answers[question] = answer(data.draw(mutated(good)), status)
    done = replay.flux(*words)
    check(done)
    if status != 200:
        assert done.returncode != 0


def check(done) -> None:
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert any(line.startswith("Error: ") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_every_command_has_a_help_that_names_its_options(replay, number):
    path, command = COMMANDS[number]
    done = replay.flux(*path, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: flux {' '.join(path)}")
    for option in command.options:
        assert option.flags[-1] in done.stdout
        assert option.says
    assert "\nExamples:\n" in done.stdout
    assert replay.asked == []


def test_the_overview_names_every_command(replay):
    text = replay.flux("--help").stdout
    for path, _ in COMMANDS:
        assert f"  {' '.join(path)} " in text
    assert set(text) <= set(string.printable)

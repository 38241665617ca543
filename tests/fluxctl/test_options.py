import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxctl import options
from fluxctl.options import Command, Option
from fluxctl.problem import Problem

COMMAND = Command(
    lambda _arguments: 0,
    positionals=("[NAME]",),
    options=(
        Option("-p", "--project", takes="NAME"),
        Option("--local-port", takes="PORT", check=options.port),
        Option("--ttl", takes="SECONDS", check=options.ttl),
        Option("--json"),
    ),
)
REST = Command(lambda _arguments: 0, positionals=("NAME",), rest="CMD")


def values(*words):
    found = options.parse(COMMAND, words)
    return found.name, found.project, found.local_port, found.ttl, found.json


def test_options_stand_anywhere():
    expected = ("acme", "p", 5433, None, True)
    assert values("acme", "-p", "p", "--local-port", "5433", "--json") == expected
    assert values("--json", "--local-port=5433", "-pp", "acme") == expected


def test_the_last_of_a_repeated_option_wins():
    assert values("--local-port", "1", "--local-port", "2")[2] == 2


def test_after_two_dashes_everything_is_a_word():
    assert values("--", "--json") == ("--json", None, None, None, False)
    assert options.parse(REST, ["a", "--", "psql", "-c", "--json", "--"]).rest == ["psql", "-c", "--json", "--"]


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_wanted(word):
    with pytest.raises(options.HelpWanted):
        values("acme", word)


@pytest.mark.parametrize(
    "words",
    [
        ["--local-port", "abc"],
        ["--local-port", "80abc"],
        ["--local-port", "0"],
        ["--local-port", "65536"],
        ["--local-port", "-1"],
        ["--local-port", "1.5"],
        ["--local-port", "٣"],
        ["--local-port", " 1"],
        ["--local-port="],
        ["--local-port"],
        ["--ttl", "0"],
        ["--ttl", "28801"],
        ["--ttl", "abc"],
        ["--json=yes"],
        ["--jso"],
        ["-x"],
        ["a", "b"],
    ],
)
def test_what_is_wrong_is_a_usage_error(words):
    with pytest.raises(Problem) as caught:
        values(*words)
    assert (caught.value.code, caught.value.exit_code) == ("usage", 2)


def test_a_word_that_is_needed_is_missed():
    with pytest.raises(Problem, match="NAME is missing"):
        options.parse(REST, [])


@given(st.lists(st.text() | st.sampled_from(["--json", "-p", "--ttl", "--local-port=", "--", "-h", "5"])))
def test_whatever_is_typed_only_known_errors_come_out(words):
    with contextlib.suppress(Problem, options.HelpWanted):
        options.parse(COMMAND, words)

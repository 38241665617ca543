"""The examples of `--help`: every command has some, and each is a command line that the command takes."""

import re
import shlex

import pytest

from fluxctl import options
from fluxctl.__main__ import TREE
from fluxctl.examples import EXAMPLES, of
from fluxctl.problem import Problem

GROUPS = {word for word, node in TREE.items() if isinstance(node, dict)}
LEAVES = {
    f"{word} {name}".strip(): (module, name or word)
    for word, node in TREE.items()
    for name, (module, _) in (node if isinstance(node, dict) else {"": node}).items()
}


def test_every_command_and_every_group_has_some_and_nothing_else_does():
    assert set(EXAMPLES) == set(LEAVES) | GROUPS | {""}


@pytest.mark.parametrize("path", EXAMPLES)
def test_each_shows_its_own_command(path):
    for line, says in EXAMPLES[path]:
        assert any(" ".join(words[1:]).startswith(path) for words in invocations(line)), line
        assert says


@pytest.mark.parametrize("line", sorted({line for rows in EXAMPLES.values() for line, _ in rows}))
def test_each_is_taken_by_the_command_that_it_shows(line):
    for program, *words in invocations(line):
        assert program in {"flux", "fluxctl"}
        path = " ".join(words[:2]) if words[0] in GROUPS else words[0]
        module, name = LEAVES[path]
        command = __import__(f"fluxctl.commands.{module}", fromlist=["COMMANDS"]).COMMANDS[name]
        options.parse(command, words[len(path.split()) :])


def test_a_command_line_that_is_not_taken_would_be_noticed():
    with pytest.raises(Problem, match="unknown option"):
        test_each_is_taken_by_the_command_that_it_shows("flux db tunnel foundry --no-such-option")


@pytest.mark.parametrize("path", EXAMPLES)
def test_they_fit_a_terminal(path):
    assert all(len(line) <= 118 for line in of(path))


def invocations(line: str) -> list[list[str]]:
    """The words of each `flux …` in *line*, without what the shell makes of the rest."""
    inner = re.findall(r"\$\(((?:flux|fluxctl) [^)]*)\)", line)
    return [shlex.split(one) for one in inner or [re.split(" [<>] ", line)[0]]]

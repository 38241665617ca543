"""
What may come next on a command line: asked by the shell while somebody types (`flux __complete WORD… PARTIAL`).

Words and options come from the command tree itself. Project names, hashes, ids and ports are live, from a daemon that
runs and answers at once; none is started for this, nothing is said on stderr, and a mistake is no answer.
"""

from __future__ import annotations

from fluxctl import environment, options
from fluxctl.client import Client
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Tree = Mapping[str, tuple[str, str] | Mapping[str, tuple[str, str]]]
    Candidate = tuple[str, str]

# Somebody waits with a finger on the key.
ANSWER_WITHIN_S = 1.5
_SHELLS = (("bash", ""), ("zsh", ""), ("fish", ""))


def answer(words: Sequence[str], tree: Tree) -> list[str]:
    """`value TAB what it is`, one line for each word that could stand in the place of the last one."""
    partial = words[-1] if words else ""
    found = _candidates(list(words[:-1]), partial, tree)
    return [f"{value}\t{says}" if says else value for value, says in found if value.startswith(partial)]


def _candidates(before: list[str], partial: str, tree: Tree) -> Iterable[Candidate]:
    if not before:
        return [(word, node[1] if isinstance(node, tuple) else "") for word, node in tree.items()]
    node = tree.get(before[0])
    if node is None:
        return []
    if isinstance(node, tuple):
        return _of_command(before[0], node[0], before[1:], partial)
    if len(before) == 1:
        return [(word, says) for word, (_, says) in node.items()]
    if before[1] not in node:
        return []
    return _of_command(before[1], node[before[1]][0], before[2:], partial)


def _of_command(word: str, module: str, before: list[str], partial: str) -> Iterable[Candidate]:
    command: options.Command = __import__(f"fluxctl.commands.{module}", fromlist=["COMMANDS"]).COMMANDS[word]
    if "--" in before:
        return []
    by_flag = {flag: option for option in command.options for flag in option.flags}
    wanted = by_flag.get(before[-1]) if before else None
    if wanted is not None and wanted.takes is not None:
        return _values(wanted, before)
    if partial.startswith("-"):
        return [(option.flags[-1], option.says) for option in command.options if option.flags[-1] not in before]
    if word == "completion":
        return _SHELLS
    if not command.positionals:
        return []
    return _projects("slug") if "--hash" in by_flag else _tunnels(before)


def _values(option: options.Option, before: list[str]) -> Iterable[Candidate]:
    """What *option* takes, where that can be known; else nothing, and the shell offers files."""
    if option.takes == "HEX":
        return _projects("hash", before)
    if option.name == "project":
        return _projects("slug")
    if option.takes == "FIELD":
        fields = option.says.partition(":")[2].partition("(")[0]
        return [(field.strip(), "") for field in fields.split(",")]
    return []


def _projects(key: str, before: Sequence[str] = ()) -> list[Candidate]:
    """Slugs or hashes of the account's projects; hashes of those whose name stands on the line, if one does."""
    other = "hash" if key == "slug" else "slug"
    found = [(str(one[key]), f"{one[other]}, {one['status']}") for one in _ask("projects")]
    named = [one for one in found if one[1].partition(",")[0] in before]
    return named or found


def _tunnels(before: Sequence[str]) -> list[Candidate]:
    """Every name by which an open tunnel goes, but those that stand on the line."""
    found: list[Candidate] = []
    for one in _ask("tunnels"):
        about = f"{one['project']} {one['hash']}, {one['access']}, port {one['port']}"
        found += [(str(one[key]), about) for key in ("id", "project", "hash", "port")]
    return [candidate for candidate in dict(found).items() if candidate[0] not in before]


def _ask(what: str) -> list[Any]:
    try:
        client = Client(environment.of_shell(), starts=False, answer_within_s=ANSWER_WITHIN_S)
        found: list[Any] = getattr(client, what)()
    except Problem:
        return []
    return found

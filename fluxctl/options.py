"""
The command line: what each command takes, how it is read, and the help made from the same table.

Not argparse: importing it doubles the client's start, and two readers (a fast path ahead of it) would have to agree.
The rules are the ones people know: options anywhere, `--flag value` or `--flag=value`, `-p value` or `-pvalue`, the
last of a repeated option wins, `--` ends the options. There are no abbreviations. Numbers are checked here, before
anything is asked of anybody.
"""

from __future__ import annotations

from fluxctl.problem import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

LONGEST_TTL_S = 28800


def text(_flag: str, value: str) -> str:
    return value


def port(flag: str, value: str) -> int:
    return _whole(flag, value, 1, 65535, "a port from 1 to 65535")


def ttl(flag: str, value: str) -> int:
    return _whole(flag, value, 1, LONGEST_TTL_S, f"seconds from 1 to {LONGEST_TTL_S} (8 hours)")


def count(flag: str, value: str) -> int:
    return _whole(flag, value, 1, 1_000_000, "a whole number from 1")


class Option:
    """One option. `takes` names its value in the help; None makes it a switch."""

    def __init__(
        self, *flags: str, takes: str | None = None, check: Callable[[str, str], Any] = text, says: str = ""
    ) -> None:
        self.flags = flags
        self.takes = takes
        self.check = check
        self.says = says
        self.name = flags[-1].lstrip("-").replace("-", "_")

    def usage(self) -> str:
        return ", ".join(self.flags) + (f" {self.takes}" if self.takes else "")


class Command:
    """
    One command: what it takes and what runs it.

    `positionals` are named as in the help: `NAME` is needed, `[NAME]` is not, `NAME...` takes one or more. With `rest`
    everything after `--` is left alone, as `arguments.rest`.
    """

    def __init__(
        self,
        run: Callable[[Arguments], int],
        *,
        positionals: Sequence[str] = (),
        options: Sequence[Option] = (),
        rest: str | None = None,
        notes: str = "",
    ) -> None:
        self.run = run
        self.positionals = positionals
        self.options = options
        self.rest = rest
        self.notes = notes


class Arguments:
    """The values of a command line by option name (`--local-port` is `local_port`); switches are True or False."""

    def __init__(self, values: dict[str, Any], positionals: list[str], rest: list[str]) -> None:
        self.values = values
        self.positionals = positionals
        self.rest = rest

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def name(self) -> str | None:
        """The first positional, if any."""
        return self.positionals[0] if self.positionals else None


class HelpWanted(Exception):
    """`-h` or `--help` stood among the options."""


def parse(command: Command, words: Sequence[str]) -> Arguments:
    """
    What *words* say to *command*.

    Raises:
        HelpWanted: see there.
        Problem: usage.
    """
    by_flag = {flag: option for option in command.options for flag in option.flags}
    values: dict[str, Any] = {one.name: None if one.takes else False for one in command.options}
    positionals: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            break
        if word in {"-h", "--help"}:
            raise HelpWanted
        if not word.startswith("-") or word == "-":
            positionals.append(word)
        else:
            _take(word, left, by_flag, values)
    if not command.rest:
        positionals += left
        left = []
    _check_positionals(command, positionals)
    return Arguments(values, positionals, left)


def help_text(path: str, summary: str, command: Command) -> list[str]:
    """The help of one command, as lines."""
    words = [path, *command.positionals, "[options]" if command.options else ""]
    usage_line = " ".join(word for word in words if word) + (f" -- {command.rest}" if command.rest else "")
    lines = [f"Usage: {usage_line}", "", summary, ""]
    rows = [(option.usage(), option.says) for option in command.options] + [("-h, --help", "this text")]
    lines += ["Options:", *columns(rows)]
    if command.notes:
        lines += ["", *command.notes.strip().splitlines()]
    return lines


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, the first as wide as it needs to be."""
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]


def _take(word: str, left: list[str], by_flag: dict[str, Option], values: dict[str, Any]) -> None:
    """Take the option in *word*, and its value from there or from the next word."""
    flag, attached = _split(word)
    option = by_flag.get(flag)
    if option is None:
        raise usage(f"unknown option {flag}")
    if option.takes is None:
        if attached is not None:
            raise usage(f"{flag} takes no value")
        values[option.name] = True
        return
    if attached is None:
        if not left:
            raise usage(f"{flag} needs a value ({option.takes})")
        attached = left.pop(0)
    values[option.name] = option.check(flag, attached)


def _split(word: str) -> tuple[str, str | None]:
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return flag, value if equals else None
    return word[:2], word[2:] or None


def _check_positionals(command: Command, found: list[str]) -> None:
    needed = [one for one in command.positionals if not one.startswith("[")]
    endless = any(one.rstrip("]").endswith("...") for one in command.positionals)
    if len(found) < len(needed):
        raise usage(f"{needed[len(found)].removesuffix('...')} is missing")
    if len(found) > len(command.positionals) and not endless:
        raise usage(f"unexpected word {found[len(command.positionals)]!r}")


def _whole(flag: str, value: str, least: int, most: int, what: str) -> int:
    good = value.isascii() and value.isdigit() and len(value) <= 9
    if not good or not least <= int(value) <= most:
        raise usage(f"{flag} takes {what}, not {value!r}.")
    return int(value)

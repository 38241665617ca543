"""
`fluxctl audit`: what the control plane recorded about you and your projects.

An extension: a plane without it says so (`not_supported_by_plane`).
"""

from __future__ import annotations

import time

from fluxctl import environment, instant, opening, project, screen
from fluxctl.client import Client
from fluxctl.options import Command, Option
from fluxctl.problem import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fluxctl.options import Arguments

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ABOUT = (("actor", "by"), ("sourceAddress", "from"), ("username", "role"), ("access", "access"), ("reason", "reason"))


def audit(arguments: Arguments) -> int:
    found = Client(environment.of_shell(arguments.values)).audit(_project_hash(arguments), arguments.since)
    if arguments.json:
        screen.json({"events": found})
        return 0
    screen.section("Audit")
    if not found:
        screen.line("Nothing yet.")
    for event in found:
        screen.line(_title(event))
        screen.line(f"  {_about(event)}")
    return 0


def since(flag: str, value: str) -> str:
    """
    *value* as an instant of ISO 8601 in UTC: itself, or so long ago.

    Raises:
        Problem: usage.
    """
    number, unit = value[:-1], value[-1:]
    if unit in _UNITS_S and number.isascii() and number.isdigit() and len(number) <= 6:
        return instant.text(time.time() - int(number) * _UNITS_S[unit])
    moment = instant.parsed(value)
    if moment is None:
        raise usage(f"{flag} takes an instant like 2026-11-22T12:00Z, or 90m, 12h, 7d, not {value!r}.")
    return instant.text(moment.timestamp())


def _project_hash(arguments: Arguments) -> str | None:
    """The project named, None for all; a flux.json alone doesn't narrow it."""
    if not (arguments.name or arguments.project or arguments.hash):
        return None
    return project.choose(arguments.name, arguments.project, arguments.hash).hash


def _title(event: Mapping[str, Any]) -> str:
    project_text = f"  {event['hash']}" if event.get("hash") else ""
    return f"{_at(event)}  {event['event']}: {event['outcome']}{project_text}"


def _at(event: Mapping[str, Any]) -> str:
    moment = instant.parsed(event["at"])
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment else str(event["at"])


def _about(event: Mapping[str, Any]) -> str:
    said = [f"{title} {event[name]}" for name, title in _ABOUT if event.get(name)]
    return ", ".join(said) or "-"


COMMANDS = {
    "audit": Command(
        audit,
        positionals=("[NAME]",),
        options=(
            *opening.PROJECT_FLAGS,
            Option("--since", takes="WHEN", check=since, says="an instant (2026-11-22T12:00Z), or 90m, 12h, 7d ago"),
            opening.API_BASE_FLAG,
            opening.JSON_FLAG,
        ),
    ),
}

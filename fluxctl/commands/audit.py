"""
`fluxctl audit`: what the control plane recorded about you and your projects.

An extension: a plane without it says so (`not_supported_by_plane`).
"""

from __future__ import annotations

from fluxctl import environment, instant, opening, project, screen
from fluxctl.client import Client
from fluxctl.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fluxctl.options import Arguments

_ABOUT = (("actor", "by"), ("sourceAddress", "from"), ("username", "role"), ("access", "access"), ("reason", "reason"))


def audit(arguments: Arguments) -> int:
    found = Client(environment.of_shell(arguments.values)).audit(_project_hash(arguments))
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
        options=(*opening.PROJECT_FLAGS, opening.API_BASE_FLAG, opening.JSON_FLAG),
    ),
}

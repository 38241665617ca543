"""`flux project credentials|list|activity`, `flux list`, `flux activity`: what the control plane knows of a project."""

from __future__ import annotations

from fluxctl import environment, opening, screen, url
from fluxctl import project as projects
from fluxctl.client import Client
from fluxctl.commands.db import V1, pooled_refusal
from fluxctl.options import Command, Option, count
from fluxctl.problem import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fluxctl.options import Arguments

_FIELDS = tuple(f"postgres.{name}" for name in url.FIELDS)


def credentials(arguments: Arguments) -> int:
    field = _checked_field(arguments.field)
    chosen = opening.chosen_project(arguments)
    found = _client(arguments).credentials(chosen.hash)
    opening.warn_of_other_name(chosen, found["slug"])
    if field is not None:
        print(_field(found, field))
    elif arguments.json:
        screen.json(_as_json(found))
    elif found["mode"] == V1:
        _print_dedicated(found)
    else:
        _print_pooled(found)
    return 0


def _checked_field(field: str | None) -> str | None:
    """
    The `--field` asked for, without `postgres.`.

    Raises:
        Problem: usage, naming those that there are.
    """
    if field is None:
        return None
    if field.strip() not in _FIELDS:
        raise usage(f"--field takes one of {', '.join(_FIELDS)}.")
    return field.strip().removeprefix("postgres.")


def _field(found: Mapping[str, Any], field: str) -> str:
    if found["mode"] != V1:
        raise pooled_refusal(found["slug"], found["hash"])
    return url.parsed(found["postgresConnectionString"])[field]


def _as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    if found["mode"] != V1:
        return dict(found)
    return {**found, "postgres": url.parsed(found["postgresConnectionString"])}


def _print_dedicated(found: Mapping[str, Any]) -> None:
    parts = url.parsed(found["postgresConnectionString"])
    screen.section(f"Credentials of {found['slug']} ({found['hash']})")
    for title, field in (("User", "user"), ("Password", "password"), ("Database", "database")):
        screen.line(f"{title}: {parts[field]}")
    screen.line(f"Host: {parts['host']}")
    screen.line(f"Port: {parts['port']}")
    screen.line(f"URL: {parts['url']}")
    for title, key in (("Anon key", "anonKey"), ("Service role key", "serviceRoleKey")):
        if found.get(key):
            screen.line(f"{title}: {found[key]}")
    screen.line("Host and port are those inside the platform; `flux db tunnel` gives you local ones.")


def _print_pooled(found: Mapping[str, Any]) -> None:
    # At column 0, so that it can be appended to a .env as it stands.
    if found.get("projectJwtSecret"):
        print(f"FLUX_GATEWAY_JWT_SECRET={found['projectJwtSecret']}")
    if found.get("note"):
        screen.line(found["note"])
    screen.line(
        f"v2 pooled: `flux db tunnel {found['slug']} --hash {found['hash']}` creates a temporary Postgres role."
    )


def list_(arguments: Arguments) -> int:
    found = _client(arguments).projects()
    if arguments.json:
        screen.json(found)
    elif not found:
        screen.line("No projects.")
    else:
        head = ("SLUG", "HASH", "STATUS", "LIFECYCLE", "API")
        screen.table(
            head,
            [
                (one["slug"], one["hash"], one["status"], one.get("lifecycleState") or "-", one.get("apiUrl") or "-")
                for one in found
            ],
        )
    return 0


def activity(arguments: Arguments) -> int:
    from fluxctl import instant  # noqa: PLC0415 - the other commands print no instants

    chosen = projects.choose(arguments.name, arguments.project, arguments.hash)
    found = _client(arguments).activity(chosen.hash, min(arguments.limit or 50, 100))
    if arguments.json:
        screen.json(found)
        return 0
    screen.section(f"Activity of {found['projectSlug']} ({found['hash']})")
    if not found["events"]:
        screen.line("Nothing yet.")
    for event in found["events"]:
        screen.line(f"{instant.shown(event['createdAt'])}")
        screen.line(f"  {event['kind']}: {event['summary']}")
    return 0


def _client(arguments: Arguments) -> Client:
    return Client(environment.of_shell(arguments.values))


_ASK = (opening.API_BASE_FLAG, opening.JSON_FLAG)
_ACTIVITY = Command(
    activity,
    positionals=("[NAME]",),
    options=(
        *opening.PROJECT_FLAGS,
        Option("--limit", takes="N", check=count, says="how many, at most 100 (default 50)"),
        *_ASK,
    ),
)
COMMANDS = {
    "credentials": Command(
        credentials,
        positionals=("[NAME]",),
        options=(
            *opening.PROJECT_FLAGS,
            Option("--field", takes="FIELD", says=f"print one value: {', '.join(_FIELDS)} (v1)"),
            *_ASK,
        ),
    ),
    "list": Command(list_, options=_ASK),
    "activity": _ACTIVITY,
}

"""
`fluxctl doctor [PROJECT]`: each step of the way, from this shell to the database, and what to do about what fails.

The daemon examines itself, the control plane, the SSH host and (with a PROJECT) the way to its database; this side adds
what only the client's machine and shell can tell.
"""

from __future__ import annotations

from fluxctl import environment, opening, pgtools, project, screen, start
from fluxctl.client import Client
from fluxctl.options import Command
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fluxctl.options import Arguments
    from fluxd.shapes import Check

_SIGNS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL", "skip": "skip"}
FAILED = 1


def doctor(arguments: Arguments) -> int:
    env = environment.of_shell(arguments.values)
    checks = [_check_psql(), _check_service(), *_check_token(env), *_checks_of_daemon(env, arguments)]
    if arguments.json:
        screen.json({"checks": checks})
    else:
        _print(checks)
    return FAILED if any(check["verdict"] == "fail" for check in checks) else 0


def _checks_of_daemon(env: environment.Environment, arguments: Arguments) -> Sequence[Check]:
    project_hash = None
    if arguments.name or arguments.project or arguments.hash:
        project_hash = project.choose(arguments.name, arguments.project, arguments.hash).hash
    try:
        return Client(env).doctor(project_hash)["checks"]
    except Problem as problem:
        return [_check("fluxd", "fail", " ".join(filter(None, (problem.message, problem.detail))), problem.hint)]


def _check_psql() -> Check:
    try:
        return _check("psql", "ok", f"{pgtools.psql()} is used by `flux db shell`.")
    except Problem as problem:
        return _check("psql", "warn", problem.message, problem.hint)


def _check_service() -> Check:
    if start.service_question() is None:
        hint = "`fluxctl service install` starts fluxd at login; without it the first command does."
        return _check("service", "skip", "fluxd is not installed as a service.", hint)
    return _check("service", "ok", "fluxd is installed as a service.")


def _check_token(env: environment.Environment) -> list[Check]:
    """A token that is there and isn't sent is worth a word; everything else about tokens the daemon knows."""
    kept = env.withheld()
    return [_check("token in the shell", "warn", kept)] if kept else []


def _check(name: str, verdict: str, message: str, hint: str | None = None) -> Check:
    return {"name": name, "verdict": verdict, "message": message, "hint": hint}  # type: ignore[typeddict-item]


def _print(checks: Sequence[Check]) -> None:
    screen.section("Doctor")
    for check in checks:
        screen.line(f"{_SIGNS.get(check['verdict'], '?   ')}  {check['name']}: {check['message']}")
        if check["verdict"] in {"warn", "fail"} and check["hint"]:
            screen.line(f"      {check['hint']}")


COMMANDS = {
    "doctor": Command(
        doctor,
        positionals=("[NAME]",),
        options=(*opening.PROJECT_FLAGS, *opening.SSH_FLAGS, opening.API_BASE_FLAG, opening.JSON_FLAG),
    ),
}

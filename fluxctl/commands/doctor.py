"""
`fluxctl doctor [PROJECT]`: each step of the way, from this shell to the database, and what to do about what fails.

The daemon examines itself, the control plane, the SSH host and (with a PROJECT) the way to its database; this side adds
what only the client's machine and shell can tell: the service, versions, psql.
"""

from __future__ import annotations

import os
import sys

from fluxctl import environment, opening, pgtools, places, project, screen, service
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
    checks = [*_way(env, arguments), _check_service(), *_check_versions(env), _check_psql()]
    if arguments.json:
        screen.json({"checks": checks})
    else:
        _print(checks)
    return FAILED if any(check["verdict"] == "fail" for check in checks) else 0


def _way(env: environment.Environment, arguments: Arguments) -> Sequence[Check]:
    """The daemon's checks, in its order; among them, which token of this shell is not sent."""
    project_hash = None
    if arguments.name or arguments.project or arguments.hash:
        project_hash = project.choose(arguments.name, arguments.project, arguments.hash).hash
    try:
        checks = Client(env).doctor(project_hash)["checks"]
    except Problem as problem:
        said, log = _failed("daemon", problem), places.log_dir() / "fluxd.log"
        where = log if log.exists() else "`fluxctl service logs`"
        return [_check("daemon", "fail", f"{said['message']} Its log: {where}.", said["hint"])]
    kept = env.withheld()
    after = next((place for place, check in enumerate(checks) if check["name"] == "token"), len(checks)) + 1
    return [*checks[:after], *([_check("token in the shell", "warn", kept)] if kept else []), *checks[after:]]


def _check_service() -> Check:
    try:
        found = service.manager().status()
    except Problem as problem:
        return _check("service", "skip", problem.message, problem.hint)
    if not found["installed"]:
        hint = "`fluxctl service install` starts fluxd at login; without it the first command does."
        return _check("service", "skip", "fluxd is not installed as a service.", hint)
    if found["state"] == "failed":
        return _check("service", "warn", "The service has failed.", "`fluxctl service logs` tells why.")
    if not found["enabled"]:
        hint = "`fluxctl service install` enables it."
        return _check("service", "warn", "fluxd is installed as a service, but not started at login.", hint)
    return _check("service", "ok", f"fluxd is installed as a service ({found['manager']}).")


def _check_versions(env: environment.Environment) -> Sequence[Check]:
    ours = _installed()
    try:
        theirs = Client(env, starts=False).status()["version"]
    except Problem as problem:
        return [_failed("versions", problem)]
    if ours is None:
        return [_check("versions", "skip", f"fluxd is {theirs}; this fluxctl was not installed by pip.")]
    if ours == theirs:
        return [_check("versions", "ok", f"fluxctl and fluxd are both {ours}.")]
    said = f"fluxctl is {ours}, and the fluxd that runs is {theirs}."
    return [_check("versions", "warn", said, "`fluxctl service restart` starts the one that is installed.")]


def _installed() -> str | None:
    """The version of this client, from the name of what pip left beside it: importlib.metadata costs three starts."""
    for place in sys.path:
        try:
            found = [name for name in os.listdir(place) if name.startswith("flux_db_access-")]  # noqa: PTH208
        except OSError:
            continue
        for name in found:
            if name.endswith(".dist-info"):
                return name.removeprefix("flux_db_access-").removesuffix(".dist-info")
    return None


def _check_psql() -> Check:
    try:
        return _check("psql", "ok", f"{pgtools.psql()} is used by `flux db shell`.")
    except Problem as problem:
        return _check("psql", "warn", problem.message, problem.hint)


def _failed(name: str, problem: Problem) -> Check:
    return _check(name, "fail", " ".join(filter(None, (problem.message, problem.detail))), problem.hint)


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

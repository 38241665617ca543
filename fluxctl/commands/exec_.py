"""
`fluxctl exec PROJECT -- CMD`: run CMD with a database within reach, and nothing left afterwards.

CMD finds `DATABASE_URL` and `PG*` of a tunnel that is held for it, has the terminal and its own Ctrl+C, and its exit
code is ours. The role ends with it.
"""

from __future__ import annotations

import os

from fluxctl import child, environment, gui, hold, opening, pgtools, screen
from fluxctl.client import Client
from fluxctl.options import Command
from fluxctl.problem import Problem, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fluxctl.hold import Held
    from fluxctl.options import Arguments

# As a shell says it.
NOT_FOUND = 127
NOT_EXECUTABLE = 126


def exec_(arguments: Arguments) -> int:
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    argv = _checked(arguments.rest)
    client = Client(environment.of_shell(arguments.values))
    opening.refuse_early_for_dedicated(client, chosen, arguments, readonly_too=True)
    hold.stop_on_signals()
    with hold.Held(client, opening.open_body(arguments, chosen, hold=True, credential="new")) as held:
        opening.warn_of_other_name(chosen, held.tunnel["project"])
        opening.say_notices(held.opened, held.tunnel)
        if hidden := held.tunnel["rls_tables"]:
            screen.note(f"Row-level security: {gui.rls_text(hidden)}")
        variables = _variables(held)
        with hold.Narrator(held):
            return _run(argv, variables)


def _checked(rest: list[str]) -> list[str]:
    """
    The command, found before anything is opened for it.

    Raises:
        Problem: there is none, or it is not a program.
    """
    if not rest:
        raise usage("CMD is missing: fluxctl exec PROJECT -- CMD")
    found = rest[0] if "/" in rest[0] else pgtools.on_path(rest[0])
    if found is None or not os.path.exists(found):  # noqa: PTH110 - pathlib costs a start
        raise Problem("program_missing", f"{rest[0]}: not found.", hint="No role was made.", exit_code=NOT_FOUND)
    if not (os.path.isfile(found) and os.access(found, os.X_OK)):  # noqa: PTH113
        raise _not_executable(rest[0], "not a program")
    return [found, *rest[1:]]


def _variables(held: Held) -> dict[str, str]:
    user, password = held.login()
    return pgtools.exec_environment(
        os.environ,
        host=held.tunnel["host"],
        port=held.tunnel["port"],
        user=user,
        password=password,
        search_path=held.tunnel["search_path"],
    )


def _run(argv: list[str], variables: dict[str, str]) -> int:
    try:
        return child.run(argv, variables)
    except OSError as error:
        raise _not_executable(argv[0], str(error.strerror)) from error


def _not_executable(program: str, why: str) -> Problem:
    return Problem(
        "program_failed",
        f"{program}: {why}.",
        hint="It must be a program: `chmod +x`, a #! line, the right machine.",
        exit_code=NOT_EXECUTABLE,
    )


COMMANDS = {
    "exec": Command(
        exec_,
        positionals=("[PROJECT]",),
        options=(
            *opening.PROJECT_FLAGS,
            *opening.FORWARD_FLAGS,
            *opening.SSH_FLAGS,
            *opening.ACCESS_FLAGS,
            opening.API_BASE_FLAG,
        ),
        rest="CMD",
        notes="CMD finds DATABASE_URL, PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE in its environment.",
    ),
}

"""
`flux db shell`: psql through a held tunnel, as a v2 project's temporary role or a v1 project's superuser.

psql is found before anything is asked of anybody, so that a missing one costs no role. It has the terminal and its own
Ctrl+C; its exit code is ours.
"""

from __future__ import annotations

import os

from fluxctl import child, environment, hold, opening, pgtools, screen
from fluxctl.client import Client
from fluxctl.options import Command, Option
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fluxctl.hold import Held
    from fluxctl.options import Arguments

_LONGEST_ERROR = 2000
_READONLY_NOTE = (
    "This session starts read-only (default_transaction_read_only). "
    "It is the superuser postgres, who can lift that with one SET."
)


def shell(arguments: Arguments) -> int:
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    program = pgtools.psql()
    client = Client(environment.of_shell(arguments.values))
    opening.refuse_early_for_dedicated(client, chosen, arguments, readonly_too=False)
    hold.stop_on_signals()
    with hold.Held(client, opening.open_body(arguments, chosen, hold=True, credential="new")) as held:
        opening.warn_of_other_name(chosen, held.tunnel["project"])
        opening.say_notices(held.opened, held.tunnel)
        user, secret = held.login()
        argv = pgtools.psql_argv(
            program, host=held.tunnel["host"], port=held.tunnel["port"], user=user, sql=arguments.command
        )
        dedicated = held.tunnel["mode"] == "v1_dedicated"
        if dedicated and arguments.readonly:
            screen.note(_READONLY_NOTE)
        child_environment = pgtools.environment(
            os.environ,
            password=secret,
            search_path=held.tunnel["search_path"] if not dedicated else (),
            readonly=dedicated and arguments.readonly,
        )
        return _run(arguments, held, argv, child_environment)


def _run(arguments: Arguments, held: Held, argv: list[str], variables: dict[str, str]) -> int:
    with hold.Narrator(held):
        if arguments.json and arguments.command is not None:
            return _captured(arguments, held, argv, variables)
        return child.run(argv, variables)


def _captured(arguments: Arguments, held: Held, argv: list[str], variables: dict[str, str]) -> int:
    """The contract's `--json` of a `--command`."""
    import subprocess  # noqa: PLC0415 - costs a start, and a program that reads JSON has time

    done = subprocess.run(argv, env=variables, capture_output=True, check=False)
    if done.returncode:
        code = child.exit_code(done.returncode)
        said = done.stderr.decode("utf-8", "replace").strip()[:_LONGEST_ERROR]
        raise Problem("program_failed", said or f"psql exited with {code}.", exit_code=code)
    screen.json(
        {
            "ok": True,
            "command": arguments.command,
            "stdout": done.stdout.decode("utf-8", "replace").strip(),
            "username": held.username,
            "localPort": held.tunnel["port"],
        }
    )
    return 0


COMMANDS = {
    "shell": Command(
        shell,
        positionals=("[NAME]",),
        options=(Option("-c", "--command", takes="SQL", says="run this and exit"), *opening.DB_FLAGS),
    ),
}

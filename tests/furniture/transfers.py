"""
What tests of dumps and restores share: a v1 database with an awkward schema in it, a command caught in the middle of
its work, programs that kill whoever called them at a chosen point, and what must never be left.
"""

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.furniture import awkward
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import installation
from tests.furniture.processes import command, wait_until

FOUNDRY = ("foundry", "--hash", "5774112")
NEIGHBOUR = ("neighbour", "--hash", "0a1b2c3")
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")
OVERWRITE = "--yes-i-know-this-can-overwrite-data"


@pytest.fixture
def dedicated(lab: Lab) -> Iterator[psycopg.Connection]:
    with awkward_in(lab) as link:
        yield link


@contextlib.contextmanager
def awkward_in(lab: Lab) -> Iterator[psycopg.Connection]:
    """The v1 database with an awkward schema in it, as it was before afterwards."""
    with psycopg.connect(lab.dedicated_url, autocommit=True) as link:
        try:
            awkward.fill(link, "shop", policies="CREATE POLICY own ON private_rows USING (owner = 'o1');")
            link.execute("SELECT lo_from_bytea(4711, 'large')")
            yield link
        finally:
            link.execute("DROP SCHEMA IF EXISTS shop CASCADE")
            link.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
            for name in sorted(databases(link)):
                if "scratch" in name or "restoring" in name:
                    link.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


def listed(path: Path) -> str:
    """The archive's table of contents."""
    program = installation(18).program("pg_restore")
    return subprocess.run([program, "--list", path], capture_output=True, text=True, check=True).stdout


def partials(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in daemon.home.iterdir() if path.name.endswith(".partial"))


def databases(link: psycopg.Connection) -> set[str]:
    return {str(row[0]) for row in link.execute("SELECT datname FROM pg_database").fetchall()}


@contextlib.contextmanager
def begun(lab: Lab, daemon: Daemon, *words: str, **environment: str) -> Iterator[subprocess.Popen]:
    """`flux …`, just started; killed at the end if it still runs."""
    process = subprocess.Popen(
        [command("flux"), *words],
        env=daemon.environment | dict(lab.env) | environment,
        cwd=daemon.home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores SIGINT, and so would whatever it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@contextlib.contextmanager
def at_work(lab: Lab, daemon: Daemon, *words: str, program: str) -> Iterator[subprocess.Popen]:
    """A command whose *program* waits for a lock, in the middle of its work."""
    with psycopg.connect(lab.dedicated_url) as blocker:
        blocker.execute("LOCK TABLE shop.people")
        with begun(lab, daemon, *words) as process:
            wait_until(lambda: waits(lab.dedicated_url, program, "Lock"), f"{program} at work")
            yield process


def waits(url: str, program: str, event_type: str) -> bool:
    """Whether a session of *program* waits, for that."""
    ask = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = %s"
    with psycopg.connect(url) as link:
        return link.execute(ask, [program, event_type]).fetchone() is not None


def sessions(url: str) -> int:
    """Of pg_dump, pg_restore and psql."""
    ask = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('pg_dump', 'pg_restore', 'psql')"
    with psycopg.connect(url) as link:
        row = link.execute(ask).fetchone()
        assert row is not None
        return int(row[0])


def inhabitants(daemon: Daemon) -> list[str]:
    """The command lines of all processes that work in the daemon's home, except itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own = daemon.process is not None and path.name == str(daemon.process.pid)
            if not own and (path / "cwd").readlink() == daemon.home and (line := (path / "cmdline").read_bytes()):
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def killing(daemon: Daemon, program: str, words: str, when: str) -> dict[str, str]:
    """
    A PATH on which *program*, once *words* stand on its command line, kills (-9) whoever called it: *when* is
    "before" its work, which it then does all the same, or "after" it.
    """
    place = Path(tempfile.mkdtemp(prefix="killing-", dir=daemon.home))
    real = installation(18).program(program)
    steps = {"before": f'kill -9 $PPID; exec {real} "$@"', "after": f'{real} "$@"; kill -9 $PPID; exit'}
    script = f'#!/bin/sh\ncase "$*" in *"{words}"*) {steps[when]};; esac\nexec {real} "$@"\n'
    (place / program).write_text(script)
    (place / program).chmod(0o755)
    return {"PATH": f"{place}:{daemon.environment['PATH']}"}

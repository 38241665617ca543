"""`fluxctl exec PROJECT -- CMD`: a program with a database within reach; its exit code, its signals, nothing left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import command, wait_until
from tests.furniture.transfers import FOUNDRY, NEIGHBOUR, YEASTCOAST

pytestmark = pytest.mark.journey

# By DATABASE_URL alone, and by the PG* variables alone.
ASK = """
import json, os, psycopg
url = os.environ.pop("DATABASE_URL")
found = []
with psycopg.connect() as link:
    found.append(link.execute("SELECT current_user, current_setting('search_path')").fetchone())
for name in [name for name in os.environ if name.startswith("PG")]:
    del os.environ[name]
with psycopg.connect(url) as link:
    found.append(link.execute("SELECT current_user").fetchone())
print(json.dumps(found))
raise SystemExit(7)
"""


def run(daemon: Daemon, lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return daemon.flux("exec", *words, env=lab.env, program="fluxctl")


@pytest.mark.parametrize("project", [YEASTCOAST, NEIGHBOUR], ids=["v1", "v2"])
def test_a_program_reaches_the_database_and_its_exit_code_is_ours(lab: Lab, daemon: Daemon, project):
    before = temporary_roles(lab.pool_admin_url)
    done = run(daemon, lab, *project, "--", sys.executable, "-c", ASK)
    assert done.returncode == 7, done.stderr
    [[user, path], [again]] = json.loads(done.stdout)
    assert user == again
    if project is YEASTCOAST:
        assert user == "postgres"
    else:
        assert user.startswith("flux_temp_ro_0a1b2c3_")
        assert path.startswith("t_")
    wait_until(lambda: temporary_roles(lab.pool_admin_url) <= before, "the role's end")
    wait_until(lambda: not daemon.listening(), "the port is closed")


def test_tables_that_hide_rows_are_told_on_stderr_and_stdout_is_the_programs(lab: Lab, daemon: Daemon):
    done = run(daemon, lab, *FOUNDRY, "--", "echo", "mine")
    assert done.stdout == "mine\n"
    assert "invoices" in done.stderr


@contextlib.contextmanager
def trapping(lab: Lab, daemon: Daemon, name: str) -> Iterator[subprocess.Popen]:
    """A program that says which signal it gets and ends with 5; once it is ready for it."""
    script = f'trap "echo got {name}; exit 5" {name}; echo ready; while :; do sleep 0.1; done'
    process = subprocess.Popen(
        [command("fluxctl"), "exec", *NEIGHBOUR, "--", "sh", "-c", script],
        env=daemon.environment | dict(lab.env),
        cwd=daemon.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1"])
def test_what_is_sent_to_us_alone_goes_on_to_the_program(lab: Lab, daemon: Daemon, name):
    before = temporary_roles(lab.pool_admin_url)
    with trapping(lab, daemon, name) as process:
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.stdout.read() == f"got {name}\n"
        assert process.wait(20) == 5
    wait_until(lambda: temporary_roles(lab.pool_admin_url) <= before, "the role's end")


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_what_a_terminal_sends_to_all_is_the_programs_own_business(lab: Lab, daemon: Daemon, name):
    before = temporary_roles(lab.pool_admin_url)
    with trapping(lab, daemon, name) as process:
        os.killpg(process.pid, getattr(signal, f"SIG{name}"))
        assert process.stdout.read() == f"got {name}\n"
        assert process.wait(20) == 5
    wait_until(lambda: temporary_roles(lab.pool_admin_url) <= before, "the role's end")


def test_under_nohup_neither_we_nor_the_program_end_by_a_hangup(lab: Lab, daemon: Daemon):
    script = "kill -HUP $PPID; kill -HUP $$; kill -TERM $PPID; exec sleep 60"
    done = daemon.flux("exec", *NEIGHBOUR, "--", "sh", "-c", script, env=lab.env, under=["nohup"])
    assert done.returncode == 128 + signal.SIGTERM, done.stderr

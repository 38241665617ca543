"""The lab's Postgres servers: found, copied where they must be, started, stopped, started again."""

import os
import shutil
import socket
import stat
from pathlib import Path

import psycopg
import pytest

from fluxplane import binaries
from fluxplane.lab import postgres
from fluxplane.lab.errors import LabFailed
from fluxplane.wire import Secret
from tests.furniture.postgres import CARELESS, PASSWORD, enterable_directory, installation, running

EVERY_MAJOR = [18, 16, 15]


def ask(server: postgres.Server, question: str) -> str:
    with psycopg.connect(server.url().reveal()) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return str(row[0])


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


@pytest.mark.parametrize("major", EVERY_MAJOR)
def test_a_server_of_every_major_version_starts_and_answers(major):
    with running(installation(major)) as server:
        assert str(major) == ask(server, "SHOW server_version").split(".")[0]


def test_a_stopped_server_keeps_its_data_and_its_port_and_leaves_no_process():
    with running(installation(18)) as server:
        pid, port = server.process.pid, server.port
        with psycopg.connect(server.url().reveal()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'still here' AS word")
        server.stop()
        assert not is_running(pid)
        server.start()
        assert port == server.port
        assert ask(server, "SELECT word FROM kept") == "still here"


def test_sessions_do_not_delay_the_stop():
    with running(installation(18)) as server, psycopg.connect(server.url().reveal()) as connection:
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_server_whose_starter_was_killed_is_stopped_before_the_next_start():
    with running(installation(18)) as orphan:
        again = postgres.Server(orphan.home, orphan.installation, orphan.who, Secret(PASSWORD), CARELESS, orphan.port)
        with again:
            assert orphan.port == again.port
            assert orphan.process.wait(10) == 0


def test_a_pid_file_that_names_a_stranger_harms_nobody(tmp_path):
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n")
    postgres.stop_leftover(tmp_path)


def test_a_taken_port_is_left_to_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as holder, running(installation(18)) as server:
        server.stop()
        server.port = holder.getsockname()[1]
        server.start()
        assert holder.getsockname()[1] != server.port


def test_only_scram_logs_in_and_only_over_loopback_tcp():
    with running(installation(18)) as server:
        rules = "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules"
        assert ask(server, rules) == "scram-sha-256"
        assert ask(server, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server, "SHOW unix_socket_directories") == ""
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", password="another")


def test_the_password_is_in_no_file_and_the_home_is_private():
    with running(installation(18)) as server:
        assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
        assert server.who.uid == server.home.stat().st_uid
        with_password = [
            path for path in server.home.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()
        ]
        assert with_password == []
        assert {"data", "log"} == {path.name for path in server.home.iterdir()}


def test_a_server_that_cannot_start_says_why():
    with enterable_directory() as home:
        who = binaries.runner()
        server = postgres.Server(home / "c", installation(18), who, Secret("x"), {"no_such_setting": "1"})
        with pytest.raises(LabFailed, match="no_such_setting"):
            server.start()


def test_a_cluster_that_cannot_be_made_says_why_and_leaves_nothing():
    with enterable_directory() as home:
        server = postgres.Server(home / "c", installation(18), binaries.runner(), Secret(""), {})
        with pytest.raises(LabFailed, match="password"):
            server.start()
        assert list((home / "c").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must run Postgres as another user")
def test_binaries_below_a_private_home_are_copied_once_and_run():
    found = installation(18)
    package = found.bin.parent.parent
    with enterable_directory() as home, enterable_directory() as copies:
        private = home / "venv"
        private.mkdir(mode=0o700)
        shutil.copytree(found.bin.parent, private / package.name / "pginstall18", symlinks=True)
        shutil.copytree(package.with_name(package.name + ".libs"), private / (package.name + ".libs"))
        hidden = binaries.Installation(private / package.name / "pginstall18" / "bin", 18)
        who = binaries.runner()
        copied = binaries.reachable(hidden, who, copies)
        assert copied.bin.is_relative_to(copies)
        made = copied.bin.stat().st_ino
        assert made == binaries.reachable(hidden, who, copies).bin.stat().st_ino
        with postgres.Server(home / "cluster", copied, who, Secret(PASSWORD), CARELESS) as server:
            assert ask(server, "SELECT 1") == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must run Postgres as another user")
def test_a_place_that_nobody_may_enter_is_named(tmp_path):
    tmp_path.chmod(0o700)
    found = installation(18)
    package = found.bin.parent.parent
    shutil.copytree(found.bin.parent, tmp_path / package.name / "pginstall18", symlinks=True)
    hidden = binaries.Installation(tmp_path / package.name / "pginstall18" / "bin", 18)
    with pytest.raises(binaries.Unusable, match=str(tmp_path)):
        binaries.reachable(hidden, binaries.runner(), tmp_path / "copies")


def test_a_directory_without_postgres_is_named(tmp_path):
    with pytest.raises(binaries.Unusable, match=str(tmp_path)):
        binaries.at(tmp_path)


def test_the_newest_embedded_version_is_the_default():
    assert binaries.find().major == 18

"""`fluxctl service` where no service manager is: it says so, and does what can be done."""

import json
from pathlib import Path

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.provoked import provoked

pytestmark = pytest.mark.journey


def test_status_says_that_there_is_none_and_who_runs(daemon: Daemon) -> None:
    found = daemon.flux_json("service", "status")
    assert daemon.process is not None
    assert (found["manager"], found["installed"], found["state"]) == ("none", False, "running")
    assert found["pid"] == daemon.process.pid
    assert "this login has no service manager" in daemon.flux("service", "status").stdout


def test_install_says_that_nothing_is_needed(daemon: Daemon) -> None:
    provoked("service_manager_missing", daemon.flux("service", "install"))


def test_logs_that_are_not_there_yet_are_said_to_be(daemon: Daemon, tmp_path: Path) -> None:
    done = daemon.flux("service", "logs", env={"FLUXD_LOG_DIR": str(tmp_path)})
    assert str(tmp_path) in provoked("service_failed", done, says="no log yet")


def test_status_starts_no_daemon_and_tells_by_its_exit_code(daemon: Daemon) -> None:
    daemon.stop()
    done = daemon.flux("service", "status")
    assert (done.returncode, "State: not running" in done.stdout) == (5, True)
    assert not daemon.answers()


def test_restart_ends_one_daemon_and_starts_another(daemon: Daemon) -> None:
    assert daemon.process is not None
    first = daemon.process.pid
    said = daemon.flux("service", "restart")
    assert (said.returncode, said.stderr) == (0, "")
    second = json.loads(daemon.flux("status", "--json").stdout)["pid"]
    assert second != first
    assert "fluxd" in daemon.flux("service", "logs").stdout
    assert f"(pid {second})" in daemon.flux("service", "uninstall", "--purge").stdout
    assert not daemon.answers()
    assert not (daemon.home / "state").exists()

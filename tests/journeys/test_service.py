"""At login: `fluxctl service …` under a real `systemd --user`, as a user without any privilege."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.furniture.provoked import provoked
from tests.furniture.systemd import SCRIPTS, UserManager

pytestmark = pytest.mark.journey


def tree(place: Path) -> set[str]:
    """Every path below *place*, without what systemd and the bus themselves keep there."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def status(login: UserManager) -> dict[str, object]:
    found = json.loads(login.run("fluxctl", "service", "status", "--json", check=False).stdout)
    assert isinstance(found, dict)
    return found


def test_install_first_command_restart_and_uninstall_leaves_nothing(user_manager: UserManager) -> None:
    login = user_manager
    before = tree(login.home)
    said = login.run("fluxctl", "service", "install").stdout
    units = login.home / ".config/systemd/user"
    assert f"Wrote {units}/fluxd.service" in said
    assert f'ExecStart="{SCRIPTS}/fluxd"' in (units / "fluxd.service").read_text()
    enabled = login.run("systemctl", "--user", "is-enabled", "fluxd.service", "fluxd.socket").stdout
    assert enabled.split() == ["enabled", "enabled"]

    # Only the socket is there; the first command starts the daemon behind it.
    assert status(login)["state"] == "waiting"
    assert login.show("fluxd.service", "ActiveState") == "inactive"
    first = json.loads(login.run("fluxctl", "status", "--json").stdout)
    assert first["pid"] == int(login.show("fluxd.service", "MainPID"))
    assert (status(login)["state"], status(login)["pid"]) == ("running", first["pid"])
    assert login.run("stat", "--format=%a", f"{login.runtime}/fluxd/fluxd.sock").stdout.strip() == "600"

    login.run("fluxctl", "service", "restart")
    second = json.loads(login.run("fluxctl", "status", "--json").stdout)
    assert second["pid"] != first["pid"]
    assert "fluxd" in login.run("fluxctl", "service", "logs").stdout

    login.run("fluxctl", "service", "uninstall", "--purge")
    assert tree(login.home) - before == set()
    assert login.run("ls", str(login.runtime)).stdout.split().count("fluxd") == 0
    assert login.show("fluxd.service", "LoadState") == "not-found"


def test_doctor_knows_the_service(user_manager: UserManager) -> None:
    def found() -> tuple[str, str]:
        said = json.loads(user_manager.run("fluxctl", "doctor", "--json", check=False).stdout)
        [check] = [one for one in said["checks"] if one["name"] == "service"]
        return check["verdict"], check["hint"] or ""

    verdict, hint = found()
    assert (verdict, "fluxctl service install" in hint) == ("skip", True)
    user_manager.run("fluxctl", "service", "install")
    assert found() == ("ok", "")
    user_manager.run("systemctl", "--user", "disable", "fluxd.service")
    verdict, hint = found()
    assert (verdict, "fluxctl service install" in hint) == ("warn", True)
    user_manager.run("fluxctl", "service", "uninstall", "--purge")


def test_installing_twice_changes_nothing_and_says_so(user_manager: UserManager) -> None:
    user_manager.run("fluxctl", "service", "install")
    pid = json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"]
    again = user_manager.run("fluxctl", "service", "install").stdout
    assert "Wrote" not in again
    assert again.count("is as it should be") == 2
    assert json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"] == pid


def test_uninstalling_what_is_not_there_is_no_error(user_manager: UserManager) -> None:
    before = tree(user_manager.home)
    user_manager.run("fluxctl", "service", "uninstall")
    assert tree(user_manager.home) == before


def test_uninstall_without_purge_says_what_it_leaves(user_manager: UserManager) -> None:
    user_manager.run("fluxctl", "service", "install")
    user_manager.run("fluxctl", "status")
    said = user_manager.run("fluxctl", "service", "uninstall").stdout
    state = user_manager.home / ".local/state/fluxd"
    assert (f"Left in place: {state} (--purge removes it)" in said) == state.exists()
    assert not (user_manager.home / ".config").exists()


def test_a_daemon_that_a_command_had_started_makes_way_for_the_service(user_manager: UserManager) -> None:
    detached = json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"]
    assert status(user_manager)["unmanaged_pid"] == detached
    said = user_manager.run("fluxctl", "service", "install").stdout
    assert f"Stopped the fluxd that a command had started (pid {detached})." in said
    assert json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"] != detached
    assert status(user_manager)["unmanaged_pid"] is None


def test_a_hung_daemon_is_killed_and_started_again_by_the_watchdog(user_manager: UserManager) -> None:
    user_manager.run("fluxctl", "service", "install")
    dropin = user_manager.home / ".config/systemd/user/fluxd.service.d/watchdog.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Service]\nWatchdogSec=1\nRestartSec=0\n")
    user_manager.run("systemctl", "--user", "daemon-reload")
    pid = json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"]
    os.kill(user_manager.outside(pid), signal.SIGSTOP)
    user_manager.await_property("fluxd.service", "NRestarts", "1")
    user_manager.await_property("fluxd.service", "ActiveState", "active")
    assert json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"] != pid
    assert "Watchdog timeout" in user_manager.run("fluxctl", "service", "logs").stdout


def test_a_program_with_spaces_and_percents_in_its_path_is_started(user_manager: UserManager) -> None:
    tools = user_manager.home / "my tools 100%h $HOME"
    tools.mkdir()
    for name in ("fluxctl", "fluxd"):
        (tools / name).symlink_to(Path(SCRIPTS) / name)
    user_manager.run(str(tools / "fluxctl"), "service", "install")
    assert json.loads(user_manager.run("fluxctl", "status", "--json").stdout)["pid"]
    assert str(tools / "fluxd") in user_manager.show("fluxd.service", "ExecStart")


def test_a_path_that_systemd_cannot_start_is_refused_before_anything_is_written(user_manager: UserManager) -> None:
    tools = user_manager.home / 'my "tools"'
    tools.mkdir()
    for name in ("fluxctl", "fluxd"):
        (tools / name).symlink_to(Path(SCRIPTS) / name)
    done = user_manager.run(str(tools / "fluxctl"), "service", "install", check=False)
    provoked("service_failed", done, says="systemd cannot start a program with such a path", hint="Install")
    assert not (user_manager.home / ".config").exists()

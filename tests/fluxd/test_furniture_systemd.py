"""The furniture itself: is it a login?"""

import os

from tests.furniture.systemd import UID, UserManager


def test_a_service_runs_as_mary_with_her_journal_and_no_privilege(user_manager: UserManager) -> None:
    speak = "id -u; grep CapEff /proc/self/status; exec sleep 1000"
    user_manager.run(
        "systemd-run",
        "--user",
        "--unit=hello",
        "--property=SyslogIdentifier=hello",
        "--description=speaks",
        "sh",
        "-c",
        speak,
    )
    said = user_manager.await_journal("hello", "CapEff")
    assert str(UID) in said.splitlines()
    assert "CapEff:\t0000000000000000" in said.splitlines()


def test_the_programs_of_this_tree_run_there(user_manager: UserManager) -> None:
    said = user_manager.run("python", "-c", "import aiohttp, os; print(os.getuid(), os.environ['HOME'])").stdout
    assert said.split() == [str(UID), str(user_manager.home)]


def test_nothing_of_it_is_seen_outside(user_manager: UserManager) -> None:
    assert not user_manager.runtime.exists()
    assert user_manager.run("sh", "-c", "ls -d /run/user/*").stdout.split() == [str(user_manager.runtime)]
    assert os.getpid() != 1

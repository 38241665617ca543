"""
From the built wheel in a clean environment, as a new user: install, log in, open, query, restart, uninstall.

The README tells this journey; here a person without any privilege takes it, after a real login with a real keyring.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.furniture.lab import Lab
from tests.furniture.needs import needs_program
from tests.furniture.package import Package
from tests.furniture.systemd import UserManager, running_user_manager

pytestmark = pytest.mark.journey


@pytest.fixture
def mary(package: Package) -> Iterator[UserManager]:
    """She has the wheel's commands on her PATH, nothing of the source tree, and an unlocked keyring."""
    needs_program("gnome-keyring-daemon")
    with running_user_manager([package.scripts.parent, Path(sys.base_prefix)], scripts=package.scripts) as login:
        unlock = "printf hers | gnome-keyring-daemon --unlock --components=secrets --daemonize >/dev/null 2>&1"
        login.run("sh", "-c", unlock)
        yield login


def test_install_log_in_query_restart_uninstall(mary: UserManager, package: Package, lab: Lab) -> None:
    whole = mary.shell_of(lab.env)
    token = whole.pop("FLUX_API_TOKEN")
    assert mary.run("sh", "-c", "command -v fluxctl").stdout.strip() == str(package.scripts / "fluxctl")
    mary.run("fluxctl", "service", "install")
    said = mary.run("fluxctl", "login", "--token-stdin", env=whole, text_in=token).stdout
    assert "Logged in" in said
    assert "foundry" in mary.run("fluxctl", "project", "list", env=whole).stdout

    # No token in this shell any more: the daemon has it from the keyring, inside its unit's sandbox.
    one = mary.run("flux", "db", "shell", "foundry", "--hash", "5774112", "--command", "SELECT 40 + 2", env=whole)
    assert "42" in one.stdout
    mary.run("fluxctl", "service", "restart")
    open_foundry = ["fluxctl", "tunnel", "open", "foundry", "--hash", "5774112", "--json"]
    opened = json.loads(mary.run(*open_foundry, env=whole).stdout)
    tunnel, credential = opened["tunnel"], opened["credential"]
    psql = ["psql", "-h", "127.0.0.1", "-p", str(tunnel["port"]), "-U", credential["username"], "-d", "postgres"]
    asked = mary.run(*psql, "-Atc", "SELECT current_user", env={"PGPASSWORD": credential["password"]})
    assert asked.stdout.strip() == credential["username"]

    mary.run("fluxctl", "logout", env=whole)
    mary.run("fluxctl", "service", "uninstall", "--purge")
    assert left_of_ours(mary) == []
    assert not [path for path in mary.home.rglob("*") if "flux" in path.name]


def left_of_ours(login: UserManager) -> list[str]:
    processes = subprocess.run(
        login.command("ps", "-e", "-o", "args="), env=login.environment(), capture_output=True, text=True, check=True
    ).stdout
    return [line for line in processes.splitlines() if "fluxd" in line]

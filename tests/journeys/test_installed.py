"""
From the built wheel in a clean environment, as a new user: the README's whole journey, as it stands there.

A person without any privilege takes it, after a real login with a real keyring. Replaced are the two ports, since other
tests run on this machine too, and `pipx` by what installed the wheel here.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.furniture.lab import Lab
from tests.furniture.needs import needs_program
from tests.furniture.package import ROOT, Package
from tests.furniture.portranges import port_range
from tests.furniture.systemd import UID, UserManager, running_user_manager

pytestmark = pytest.mark.journey


@pytest.fixture
def mary(package: Package) -> Iterator[UserManager]:
    """She has the wheel's commands on her PATH, nothing of the source tree, and an unlocked keyring."""
    needs_program("gnome-keyring-daemon")
    with running_user_manager([package.scripts.parent, Path(sys.base_prefix)], scripts=package.scripts) as login:
        unlock = "printf hers | gnome-keyring-daemon --unlock --components=secrets --daemonize >/dev/null 2>&1"
        login.run("sh", "-c", unlock)
        yield login


class Journey:
    """The README's blocks, one after the other, in mary's shell."""

    def __init__(self, mary: UserManager, lab: Lab) -> None:
        text = (ROOT / "README.md").read_text()
        section = text[text.index("## The whole journey") : text.index("## First journeys")]
        self.ports = {"15440": str(port_range()), "15441": str(port_range())}
        self._blocks = iter(re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL))
        self._mary = mary
        self._env = {"FLUX_API_BASE": lab.facts["api_base"]}

    def next(self, text_in: str = "") -> str:
        """What the next block says; the first thing that fails ends it."""
        lines = [line for line in next(self._blocks).splitlines() if not line.startswith("pipx ")]
        block = re.sub("1544[01]", lambda port: self.ports[port[0]], "\n".join(lines))
        return self._mary.run("sh", "-euc", block, env=self._env, text_in=text_in).stdout

    def over(self) -> bool:
        return next(self._blocks, None) is None


def let_in(mary: UserManager, lab: Lab) -> None:
    """Her key and known_hosts where ssh has them, and her platform's address where a machine's owner puts it."""
    ssh = mary.home / ".ssh"
    ssh.mkdir(mode=0o700)
    for name, wanted in (("IDENTITY_FILE", "id_ed25519"), ("KNOWN_HOSTS", "known_hosts")):
        shutil.copyfile(lab.env[f"FLUX_DB_TUNNEL_{name}"], ssh / wanted)
        (ssh / wanted).chmod(0o600)
    for path in (ssh, *ssh.iterdir()):
        os.chown(path, UID, UID)
    mary.run("systemctl", "--user", "set-environment", f"FLUX_API_BASE={lab.facts['api_base']}")


def test_the_whole_journey_of_the_readme(mary: UserManager, package: Package, lab: Lab) -> None:
    let_in(mary, lab)
    journey = Journey(mary, lab)
    assert mary.run("sh", "-c", "command -v fluxctl").stdout.strip() == str(package.scripts / "fluxctl")
    said = journey.next(lab.facts["token"])
    assert "Logged in" in said
    assert "The token is in the system keyring." in said
    assert "nothing is wrong" in said
    assert str(package.scripts / "fluxd") in mary.show("fluxd.service", "ExecStart")

    said = journey.next()
    assert re.search(r"^ *\d+$", said, flags=re.MULTILINE), said
    assert f"Port: {journey.ports['15441']}" in said
    user, password = (re.search(rf"{name}: (\S+)", said)[1] for name in ("User", "Password"))  # type: ignore[index]
    psql = ["psql", "-h", "127.0.0.1", "-p", journey.ports["15441"], "-U", user, "-d", "postgres"]
    ask = ("sh", "-c", 'exec "$0" "$@"', *psql, "-Atc", "SELECT current_user")
    assert mary.run(*ask, env={"PGPASSWORD": password}).stdout.strip() == user

    package.upgrade()
    assert "ports, tunnels and temporary roles were kept" in journey.next()
    assert mary.run(*ask, env={"PGPASSWORD": password}).stdout.strip() == user

    journey.next()
    assert journey.over()
    assert left_of_ours(mary) == []
    assert not [path for path in mary.home.rglob("*") if "flux" in path.name]


def left_of_ours(login: UserManager) -> list[str]:
    processes = subprocess.run(
        login.command("ps", "-e", "-o", "args="), env=login.environment(), capture_output=True, text=True, check=True
    ).stdout
    return [line for line in processes.splitlines() if "fluxd" in line]

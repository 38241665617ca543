"""The unit's hardening, and what must work inside it all the same."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.furniture.lab import Lab
from tests.furniture.systemd import UID, UserManager

pytestmark = pytest.mark.journey

UNIT = Path(__file__).resolve().parents[2] / "systemd/fluxd.service"
HARDENING = (
    "LockPersonality",
    "NoNewPrivileges",
    "Restrict",
    "SystemCall",
    "LimitCORE",
    "UMask",
)
RELAY = """
import os, socket, sys, threading
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := there.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back).start()
while data := os.read(0, 65536):
    there.sendall(data)
there.shutdown(socket.SHUT_WR)
"""


def inside(login: UserManager, *argv: str, check: bool = True) -> str:
    """What *argv* prints in a unit with the service's own hardening."""
    lines = [line for line in UNIT.read_text().splitlines() if line.startswith(HARDENING)]
    assert len(lines) >= 8
    properties = [f"--property={line}" for line in lines]
    done = login.run("systemd-run", "--user", "--wait", "--pipe", "--quiet", *properties, *argv, check=check)
    return done.stdout + done.stderr


def test_a_netlink_socket_can_be_had_and_a_packet_socket_cannot(user_manager: UserManager) -> None:
    ask = "import socket; print(socket.socket({}, socket.{}, {}))"
    assert "family=16" in inside(user_manager, sys.executable, "-c", ask.format("socket.AF_NETLINK", "SOCK_DGRAM", 4))
    refused = inside(user_manager, sys.executable, "-c", ask.format("socket.AF_PACKET", "SOCK_RAW", 0), check=False)
    assert "Address family not supported" in refused


def test_ssh_reads_its_configuration_there(user_manager: UserManager) -> None:
    assert "hostname example.com" in inside(user_manager, "ssh", "-G", "example.com")


def test_nothing_that_is_run_there_gains_privileges_or_leaves_a_core(user_manager: UserManager) -> None:
    said = inside(user_manager, "sh", "-c", "grep NoNewPrivs /proc/self/status; ulimit -c; umask")
    assert said.split() == ["NoNewPrivs:", "1", "0", "0077"]


def test_a_tunnel_through_a_proxy_command_of_ssh_config(lab: Lab, user_manager: UserManager) -> None:
    """~/.ssh is read, the program that it names is run, and asyncssh talks through it."""
    login, env = user_manager, user_manager.shell_of(lab.env)
    relay = login.home / "relay.py"
    relay.write_text(RELAY)
    config = login.home / ".ssh/config"
    config.parent.mkdir(mode=0o700)
    config.write_text(f"Host 127.0.0.1\n  ProxyCommand {sys.executable} {relay} %h %p\n")
    for path in (relay, config.parent, config):
        os.chown(path, UID, UID)
    login.run("fluxctl", "service", "install")
    login.run("fluxctl", "tunnel", "open", "yeastcoast", "--hash", "ffca33f", env=env)
    [host] = json.loads(login.run("fluxctl", "status", "--json").stdout)["hosts"]
    assert host["state"] == "up"
    processes = login.run("ps", "-e", "-o", "args=").stdout
    assert f"{relay} 127.0.0.1 {env['FLUX_DB_TUNNEL_SSH_PORT']}" in processes
    login.run("fluxctl", "service", "uninstall")
    assert str(relay) not in login.run("ps", "-e", "-o", "args=").stdout

"""At login, with a database: what becomes of ports and clients when the service restarts."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.furniture.lab import Lab
from tests.furniture.portranges import port_range
from tests.furniture.processes import wait_until
from tests.furniture.systemd import UID, UserManager

pytestmark = pytest.mark.journey

YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")


def test_a_tunnels_listeners_are_kept_by_systemd_as_long_as_it_is_open(lab: Lab, user_manager: UserManager) -> None:
    user_manager.run("fluxctl", "service", "install")
    env = user_manager.shell_of(lab.env)
    opened = json.loads(user_manager.run("fluxctl", "tunnel", "open", *YEASTCOAST, "--json", env=env).stdout)
    # 127.0.0.1 and ::1
    user_manager.await_property("fluxd.service", "NFileDescriptorStore", "2")
    user_manager.run("fluxctl", "tunnel", "close", opened["tunnel"]["id"])
    user_manager.await_property("fluxd.service", "NFileDescriptorStore", "0")


PORT = port_range()


def declare_yeastcoast(login: UserManager, env: dict[str, str]) -> None:
    """A [[tunnel]] in her config.toml, and a token file: nothing of the shell's is needed any more."""
    config = login.home / ".config/fluxd"
    ssh = {
        "host": env["FLUX_DB_TUNNEL_SSH_HOST"],
        "user": env["FLUX_DB_TUNNEL_SSH_USER"],
        "port": int(env["FLUX_DB_TUNNEL_SSH_PORT"]),
        "identity_file": env["FLUX_DB_TUNNEL_IDENTITY_FILE"],
        "known_hosts": env["FLUX_DB_TUNNEL_KNOWN_HOSTS"],
    }
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in ssh.items())
    config.mkdir(parents=True)
    (config / "tokens").write_text(f"{env['FLUX_API_BASE']} {env['FLUX_API_TOKEN']}\n")
    (config / "tokens").chmod(0o600)
    (config / "config.toml").write_text(
        f"""token_file = "{config}/tokens"
[[tunnel]]
project = "yeastcoast"
hash = "ffca33f"
port = {PORT}
api_base = "{env["FLUX_API_BASE"]}"
ssh = {{ {inline} }}
"""
    )
    for path in (login.home / ".config", config, *config.iterdir()):
        os.chown(path, UID, UID)


def is_up(login: UserManager) -> bool:
    tunnels = json.loads(login.run("fluxctl", "tunnel", "list", "--json").stdout)["tunnels"]
    return [(one["port"], one["state"]) for one in tunnels] == [(PORT, "up")]


@contextlib.contextmanager
def intruding(port: int) -> Iterator[list[str]]:
    """Somebody who tries all the time to take the port, and to connect to it; tells what should not have worked."""
    found: list[str] = []
    tried, over = threading.Event(), threading.Event()

    def try_it() -> None:
        while not over.is_set():
            with socket.socket() as thief, contextlib.suppress(OSError):
                thief.bind(("127.0.0.1", port))
                found.append("the port was free")
            with socket.socket() as client:
                if error := client.connect_ex(("127.0.0.1", port)):
                    found.append(os.strerror(error))
            tried.set()
            over.wait(0.005)

    thread = threading.Thread(target=try_it)
    thread.start()
    try:
        tried.wait()
        yield found
    finally:
        over.set()
        thread.join()


def test_a_declared_tunnel_is_there_after_login_and_its_clients_wait_out_a_restart(
    lab: Lab, user_manager: UserManager
) -> None:
    login, env = user_manager, user_manager.shell_of(lab.env)
    declare_yeastcoast(login, env)
    login.run("fluxctl", "service", "install")
    # What happens at the next login.
    login.run("systemctl", "--user", "start", "default.target")
    login.run("systemctl", "--user", "start", "fluxd.service")
    wait_until(lambda: is_up(login), "the declared tunnel")

    password = login.run("flux", "db", "password", "yeastcoast", "--hash", "ffca33f", env=env).stdout.strip()
    psql = ["psql", "-h", "127.0.0.1", "-p", str(PORT), "-U", "postgres", "-Atc", "SELECT 40 + 2"]
    before = login.show("fluxd.service", "MainPID")
    with intruding(PORT) as intrusions:
        restart = threading.Thread(target=login.run, args=("fluxctl", "service", "restart"))
        restart.start()
        wait_until(lambda: login.show("fluxd.service", "MainPID") != before, "the old daemon's end")
        asked = login.run(*psql, env={"PGPASSWORD": password, "PGCONNECT_TIMEOUT": "60"})
        restart.join()
    assert asked.stdout.strip() == "42"
    assert intrusions == []
    assert is_up(login)
    login.run("fluxctl", "service", "uninstall")
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", PORT)) != 0


def test_an_upgrades_restart_keeps_the_password_that_a_gui_holds_and_a_stop_ends_it(
    lab: Lab, user_manager: UserManager
) -> None:
    login, env = user_manager, user_manager.shell_of(lab.env)
    login.run("fluxctl", "service", "install")
    asked = ("fluxctl", "tunnel", "open", "foundry", "--hash", "5774112", "--json")
    opened = json.loads(login.run(*asked, env=env).stdout)
    port, credential = opened["tunnel"]["port"], opened["credential"]
    psql = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", credential["username"], "-d", "postgres"]
    password = {"PGPASSWORD": credential["password"], "PGCONNECT_TIMEOUT": "60"}
    login.await_property("fluxd.service", "NFileDescriptorStore", "2")
    with intruding(port) as intrusions:
        said = login.run("fluxctl", "service", "restart").stdout
        # The token came with a request: this daemon has none.
        who = login.run(*psql, "-Atc", "SELECT current_user", env=password)
    assert "ports, tunnels and temporary roles were kept" in said
    assert who.stdout.strip() == credential["username"]
    assert intrusions == []
    login.run("systemctl", "--user", "restart", "fluxd.service")
    assert json.loads(login.run("fluxctl", "tunnel", "list", "--json").stdout)["tunnels"] == []
    again = json.loads(login.run(*asked, env=env).stdout)
    assert again["tunnel"]["port"] == port
    assert again["credential"]["username"] != credential["username"]
    refused = login.run(*psql, "-Atc", "SELECT 1", env=password, check=False)
    assert "password authentication failed" in refused.stderr
    login.run("fluxctl", "tunnel", "close", "foundry", env=env)


def test_after_a_crash_the_tunnel_is_back_and_the_password_that_a_gui_holds_still_works(
    lab: Lab, user_manager: UserManager
) -> None:
    login, env = user_manager, user_manager.shell_of(lab.env)
    login.run("fluxctl", "service", "install")
    opened = json.loads(
        login.run("fluxctl", "tunnel", "open", "foundry", "--hash", "5774112", "--json", env=env).stdout
    )
    port, credential = opened["tunnel"]["port"], opened["credential"]
    psql = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", credential["username"], "-d", "postgres"]
    login.await_property("fluxd.service", "NFileDescriptorStore", "2")
    with intruding(port) as intrusions:
        os.kill(login.outside(int(login.show("fluxd.service", "MainPID"))), signal.SIGKILL)
        login.await_property("fluxd.service", "NRestarts", "1")
        password = {"PGPASSWORD": credential["password"], "PGCONNECT_TIMEOUT": "60"}
        asked = login.run(*psql, "-Atc", "SELECT current_user", env=password)
    assert asked.stdout.strip() == credential["username"]
    assert intrusions == []
    login.run("fluxctl", "tunnel", "close", "foundry", env=env)
    login.await_property("fluxd.service", "NFileDescriptorStore", "0")

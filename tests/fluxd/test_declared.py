"""Tunnels that the configuration declares are there from the start on, and follow the file when it is read again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.furniture.daemon import Daemon, is_listening
from tests.furniture.lab import Lab
from tests.furniture.processes import wait_until


def table(lab: Lab, slug: str, port: int, *, hash_: str | None = None) -> str:
    project = next(one for one in lab.facts["projects"] if one["slug"] == slug)
    ssh = ", ".join(f"{name} = {json.dumps(value)}" for name, value in lab.facts["ssh"].items())
    return (
        f'[[tunnel]]\nproject = "{slug}"\nhash = "{hash_ or project["hash"]}"\nport = {port}\n'
        f'api_base = "{lab.facts["api_base"]}"\nssh = {{ {ssh} }}\n'
    )


class Home:
    """A daemon's home with a configuration, and a token file that already knows the lab."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.daemon = Daemon(path)
        self.lab = lab
        self._config = path / "config" / "config.toml"
        self._config.parent.mkdir()
        self._tokens = path / "tokens"

    def declare(self, *tables: str) -> None:
        self._config.write_text(f"token_file = {json.dumps(str(self._tokens))}\n" + "\n".join(tables))

    def start(self, **environment: str) -> None:
        """Started, and it has answered somebody."""
        self.daemon.start(**environment)
        assert self.daemon.flux("status").returncode == 0

    def log_in(self) -> None:
        self._tokens.write_text(f"{self.lab.facts['api_base']} {self.lab.facts['token']}\n")
        self._tokens.chmod(0o600)

    def reload(self) -> None:
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGHUP)

    def tunnels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.daemon.flux_json("tunnel", "list")["tunnels"]
        return found

    def port(self, offset: int = 0) -> int:
        return self.daemon.first_port + 50 + offset

    @property
    def env(self) -> dict[str, str]:
        """A shell's that knows the plane and nothing else."""
        return {"FLUX_API_BASE": self.lab.facts["api_base"]}

    def password(self, slug: str) -> str:
        project = next(one for one in self.lab.facts["projects"] if one["slug"] == slug)
        env = self.env | {"FLUX_API_TOKEN": self.lab.facts["token"]}
        return self.daemon.flux("db", "password", slug, "--hash", project["hash"], env=env).stdout.strip()

    @contextlib.contextmanager
    def connecting(self, port: int, user: str, password: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """A psql on its way to *port*; ended at the end if it waits even then."""
        psql = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", user, "-d", "postgres", "-Atc", "SELECT current_user"]
        asked = subprocess.Popen(
            psql,
            env=dict(os.environ) | {"PGPASSWORD": password} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield asked
        finally:
            asked.kill()
            asked.communicate()


@pytest.fixture
def home(lab: Lab, daemon_home: Path) -> Iterator[Home]:
    own = Home(lab, daemon_home)
    yield own
    if own.daemon.process is not None and own.daemon.process.poll() is None:
        own.daemon.stop()
    assert "Traceback" not in own.daemon.said()


def test_a_declared_tunnel_listens_as_soon_as_the_daemon_serves_and_dials_for_its_first_client(home: Home):
    home.log_in()
    home.declare(table(home.lab, "yeastcoast", home.port()))
    home.start()
    assert is_listening(home.port())
    wait_until(lambda: [one["state"] for one in home.tunnels()] == ["up"], "the declared tunnel, up")
    assert [host["state"] for host in home.daemon.flux_json("status")["hosts"]] == ["idle"]
    with home.connecting(home.port(), "postgres", home.password("yeastcoast")) as asked:
        assert asked.communicate(timeout=30) == ("postgres\n", "")
    assert [host["state"] for host in home.daemon.flux_json("status")["hosts"]] == ["up"]


def test_before_a_login_a_client_waits_at_the_port_and_is_served_as_soon_as_somebody_logs_in(home: Home):
    home.declare(table(home.lab, "yeastcoast", home.port()))
    home.start()
    assert is_listening(home.port())
    assert home.tunnels() == []
    with home.connecting(home.port(), "postgres", home.password("yeastcoast")) as asked:
        wait_until(lambda: notices(home), "a notice")
        assert asked.poll() is None
        said = home.daemon.flux("login", "--token-stdin", env=home.env, stdin=home.lab.facts["token"])
        assert said.returncode == 0, said.stderr
        assert asked.communicate(timeout=30) == ("postgres\n", "")
    assert notices(home) == []


def test_who_opens_it_with_a_token_of_their_own_gets_its_port_and_serves_those_who_wait(home: Home):
    home.declare(table(home.lab, "yeastcoast", home.port()))
    home.start()
    env = home.env | {"FLUX_API_TOKEN": token(home)}
    with home.connecting(home.port(), "postgres", home.password("yeastcoast")) as asked:
        wait_until(lambda: notices(home), "a notice")
        opened = home.daemon.flux_json("tunnel", "open", "yeastcoast", "--hash", "ffca33f", env=env)
        assert opened["tunnel"]["port"] == home.port()
        assert asked.communicate(timeout=30) == ("postgres\n", "")
    wait_until(lambda: notices(home) == [], "the notice's end")


def test_a_client_that_waited_in_vain_is_sent_away_and_the_events_say_why(home: Home):
    home.declare(table(home.lab, "yeastcoast", home.port()))
    home.start(FLUXD_CLIENT_WAITS_S="1")
    wait_until(lambda: notices(home), "what is missing")
    watched = ("tunnel", "watch", "--json")
    with (
        home.daemon.hold(*watched, ready="snapshot") as watching,
        home.connecting(home.port(), "postgres", "none") as asked,
    ):
        assert asked.wait(20) == 2
        watching.wait_for("client_refused")
        events = [json.loads(line) for line in watching.out.splitlines()]
    [refused] = [event for event in events if event["name"] == "client_refused"]
    assert refused["problem"]["code"] == "not_authenticated"
    about = f"The declared tunnel to yeastcoast (ffca33f) on port {home.port()} is not open yet."
    assert refused["message"] == about
    assert is_listening(home.port())


def test_a_declared_v2_tunnel_makes_no_role_until_one_is_asked_for(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.start()
    wait_until(lambda: [one["state"] for one in home.tunnels()] == ["up"], "the declared tunnel")
    [declared] = home.tunnels()
    assert (declared["grants"], declared["lease"], declared["username"]) == (0, None, None)
    opened = home.daemon.flux_json("tunnel", "open", "foundry", "--hash", "5774112", env=home.env)
    credential = opened["credential"]
    assert (opened["tunnel"]["id"], opened["tunnel"]["port"]) == (declared["id"], home.port())
    with home.connecting(home.port(), credential["username"], credential["password"]) as asked:
        assert asked.communicate(timeout=30) == (credential["username"] + "\n", "")
    # One who holds leaves; the port stays, as nobody's role.
    held = home.daemon.flux("db", "shell", "foundry", "--hash", "5774112", "-c", "SELECT 41 + 1", env=home.env)
    assert "42" in held.stdout
    assert [one["id"] for one in home.tunnels()] == [declared["id"]]


def test_a_declared_port_lets_in_who_has_a_role_from_elsewhere(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.start()
    made = ("db", "gui-config", "foundry", "--hash", "5774112", "--create-temp-credentials")
    fields = home.daemon.flux_json(*made, env=home.env)["credential"]
    with home.connecting(home.port(), fields["username"], fields["password"]) as asked:
        assert asked.communicate(timeout=30) == (fields["username"] + "\n", "")


def test_when_its_lease_is_over_a_declared_tunnel_is_listened_for_anew(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.start()
    opened = home.daemon.flux_json("tunnel", "open", "foundry", "--hash", "5774112", "--ttl", "2", env=home.env)
    first, credential = opened["tunnel"]["id"], opened["credential"]
    wait_until(lambda: [one["id"] for one in home.tunnels()] not in ([], [first]), "another tunnel in its place")
    assert is_listening(home.port())
    with home.connecting(home.port(), credential["username"], credential["password"]) as asked:
        assert "password authentication failed" in asked.communicate(timeout=30)[1]


def test_what_somebody_closes_stays_closed_until_a_reload_or_a_login(home: Home):
    home.log_in()
    home.declare(table(home.lab, "yeastcoast", home.port()))
    home.start()
    for again in (home.reload, lambda: home.daemon.flux("login", "--token-stdin", env=home.env, stdin=token(home))):
        wait_until(lambda: [one["state"] for one in home.tunnels()] == ["up"], "the tunnel")
        home.daemon.flux("tunnel", "close", "yeastcoast")
        assert not is_listening(home.port())
        again()
        wait_until(lambda: is_listening(home.port()), "it listens again")


def token(home: Home) -> str:
    found: str = home.lab.facts["token"]
    return found


def test_a_declared_port_that_another_program_holds_is_said_and_taken_when_it_is_free(home: Home):
    home.log_in()
    home.declare(table(home.lab, "yeastcoast", home.port()))
    with socket.create_server(("127.0.0.1", home.port())):
        home.start()
        assert f"Local port {home.port()} is in use." in notices(home)[0]
    wait_until(lambda: [one["port"] for one in home.tunnels()] == [home.port()], "the tunnel on its port")
    assert notices(home) == []


def test_what_cannot_be_reached_is_said_to_who_opens_it_and_goes_on_listening(home: Home):
    home.log_in()
    declared = table(home.lab, "yeastcoast", home.port())
    home.declare(re.sub(r"(ssh = .*\bport = )\d+", r"\g<1>1", declared))
    home.start()
    wait_until(lambda: [one["state"] for one in home.tunnels()] == ["up"], "the declared tunnel")
    done = home.daemon.flux("tunnel", "open", "yeastcoast", "--hash", "ffca33f", env=home.env)
    assert "refuses connections" in done.stderr
    assert is_listening(home.port())
    assert [one["state"] for one in home.tunnels()] == ["up"]


def test_a_reload_opens_what_is_new_and_closes_what_is_gone(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.start()
    assert is_listening(home.port())
    home.declare(table(home.lab, "yeastcoast", home.port(1)))
    home.reload()
    wait_until(lambda: is_listening(home.port(1)), "the new one")
    wait_until(lambda: not is_listening(home.port()), "the old one's end")


def test_a_mistake_at_a_reload_is_told_and_changes_nothing(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.start()
    wait_until(lambda: is_listening(home.port()), "the tunnel")
    home.declare("[[tunnel]]\nproject = 7\n")
    home.reload()
    wait_until(lambda: "the settings were not read again" in home.daemon.said(), "the complaint")
    assert "config.toml:3" in home.daemon.said()
    assert is_listening(home.port())


def notices(home: Home) -> list[str]:
    found: list[str] = home.daemon.flux_json("status")["notices"]
    return found


def test_a_mistake_in_the_file_stops_the_daemon_with_its_line(home: Home):
    home.declare("[[tunnel]]\nproject = 7\n")
    with pytest.raises(AssertionError, match=r"config\.toml:3"):
        home.daemon.start()
    assert home.daemon.process is not None
    assert home.daemon.process.wait(10) == 12

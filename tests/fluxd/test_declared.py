"""Tunnels that the configuration declares are there after login, and follow the file when it is read again."""

from __future__ import annotations

import json
import signal
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


@pytest.fixture
def home(lab: Lab, daemon_home: Path) -> Iterator[Home]:
    own = Home(lab, daemon_home)
    yield own
    if own.daemon.process is not None and own.daemon.process.poll() is None:
        own.daemon.stop()
    assert "Traceback" not in own.daemon.said()


def test_a_declared_tunnel_listens_on_its_port_from_the_start_on(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.daemon.start()
    wait_until(lambda: is_listening(home.port()), "the declared tunnel")
    wait_until(lambda: [one["state"] for one in home.tunnels()] == ["up"], "the declared tunnel, up")


def test_a_reload_opens_what_is_new_and_closes_what_is_gone(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.daemon.start()
    wait_until(lambda: is_listening(home.port()), "the first")
    home.declare(table(home.lab, "yeastcoast", home.port(1)))
    home.reload()
    wait_until(lambda: is_listening(home.port(1)), "the new one")
    wait_until(lambda: not is_listening(home.port()), "the old one's end")


def test_a_mistake_at_a_reload_is_told_and_changes_nothing(home: Home):
    home.log_in()
    home.declare(table(home.lab, "foundry", home.port()))
    home.daemon.start()
    wait_until(lambda: is_listening(home.port()), "the tunnel")
    home.declare("[[tunnel]]\nproject = 7\n")
    home.reload()
    wait_until(lambda: "the settings were not read again" in home.daemon.said(), "the complaint")
    assert "config.toml:3" in home.daemon.said()
    assert is_listening(home.port())


def test_what_cannot_be_opened_yet_is_said_and_opens_as_soon_as_somebody_logs_in(home: Home):
    home.declare(table(home.lab, "foundry", home.port()))
    home.daemon.start()
    wait_until(lambda: notices(home), "a notice")
    assert "foundry" in notices(home)[0]
    assert "Not authenticated" in notices(home)[0]
    env = {"FLUX_API_BASE": home.lab.facts["api_base"]}
    said = home.daemon.flux("login", "--token-stdin", env=env, program="fluxctl", stdin=home.lab.facts["token"])
    assert said.returncode == 0, said.stderr
    wait_until(lambda: is_listening(home.port()), "the declared tunnel")
    wait_until(lambda: notices(home) == [], "the notice's end")


def notices(home: Home) -> list[str]:
    found: list[str] = home.daemon.flux_json("status")["notices"]
    return found


def test_a_mistake_in_the_file_stops_the_daemon_with_its_line(home: Home):
    home.declare("[[tunnel]]\nproject = 7\n")
    with pytest.raises(AssertionError, match=r"config\.toml:3"):
        home.daemon.start()
    assert home.daemon.process is not None
    assert home.daemon.process.wait(10) == 12

"""`fluxctl config`: what is set, by whom, and whether the file is right."""

import json
import signal
from pathlib import Path

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.processes import wait_until

pytestmark = pytest.mark.journey


def test_every_setting_tells_where_it_comes_from(daemon: Daemon) -> None:
    found = {one["name"]: one for one in daemon.flux_json("config", "show")["settings"]}
    assert found["first_port"] == {"name": "first_port", "value": str(daemon.first_port), "source": "FLUXD_FIRST_PORT"}
    assert found["log_level"]["source"] == "default"
    shown = daemon.flux("config", "show")
    assert f"File: {daemon.home}/config/config.toml" in shown.stdout
    assert "FLUXD_FIRST_PORT" in shown.stdout


def test_the_example_is_right_and_a_mistake_is_told_with_its_line(daemon: Daemon) -> None:
    file = daemon.home / "config/config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(daemon.flux("config", "example").stdout)
    assert daemon.flux("config", "check").stdout.strip() == f"{file}: nothing is wrong"
    file.write_text('log_level = "loud"\n')
    wrong = daemon.flux("config", "check")
    assert wrong.returncode == 12
    assert f"{file}:1" in wrong.stderr
    file.unlink()
    assert "not there" in daemon.flux("config", "check").stdout


def test_the_command_line_of_the_daemon_wins_also_after_a_reload(lab: Lab, daemon_home: Path) -> None:
    daemon, file = Daemon(daemon_home), daemon_home / "tokens"
    (daemon_home / "config").mkdir()
    (daemon_home / "config/config.toml").write_text('log_level = "warning"\nlog_format = "json"\n')
    daemon.start("--log-level", "debug", "--token-file", str(file))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the settings were read again" in daemon.said(), "the reload")
    found = {one["name"]: (one["value"], one["source"]) for one in daemon.flux_json("config", "show")["settings"]}
    assert found["log_level"] == ("debug", "--log-level")
    assert found["token_file"] == (str(file), "--token-file")
    assert found["log_format"] == ("json", str(daemon_home / "config/config.toml"))
    assert {"debug", "info"} <= {json.loads(line)["level"] for line in daemon.log.read_text().splitlines()}

    said = daemon.flux("login", env={"FLUX_API_BASE": lab.facts["api_base"]}, stdin=lab.facts["token"])
    assert "The token is in the daemon's token file." in said.stdout
    assert (file.stat().st_mode & 0o777, lab.facts["token"] in file.read_text()) == (0o600, True)
    daemon.stop()

"""`fluxctl config`: what is set, by whom, and whether the file is right."""

import pytest

from tests.furniture.daemon import Daemon

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

"""systemd/: what systemd itself says of the units, and that they are what the docs promise."""

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.furniture.needs import needs_program

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = ROOT / "systemd"


def verdict(*units: Path, scope: str, home: Path) -> str:
    """Everything `systemd-analyze verify` has to say. Its exit code is 0 even where it found a mistake."""
    needs_program("systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "verify", scope, "--man=no", *units],
        env=os.environ | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_systemd_finds_nothing_to_say_about_the_users_units(tmp_path: Path) -> None:
    program(tmp_path / ".local/bin/fluxd")
    assert verdict(UNITS / "fluxd.socket", UNITS / "fluxd.service", scope="--user", home=tmp_path) == ""


def test_systemd_would_tell_a_mistake(tmp_path: Path) -> None:
    program(tmp_path / ".local/bin/fluxd")
    for unit in ("fluxd.socket", "fluxd.service"):
        shutil.copy(UNITS / unit, tmp_path)
    broken = tmp_path / "fluxd.service"
    broken.write_text(broken.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in verdict(tmp_path / "fluxd.socket", broken, scope="--user", home=tmp_path)


def test_systemd_finds_nothing_to_say_about_the_operators_unit(tmp_path: Path) -> None:
    fluxplane = program(tmp_path / "bin/fluxplane")
    unit = tmp_path / "fluxplane.service"
    shipped = (UNITS / "fluxplane.service").read_text()
    assert "ExecStart=/opt/fluxplane/bin/fluxplane " in shipped
    unit.write_text(shipped.replace("/opt/fluxplane/bin/fluxplane", str(fluxplane)))
    assert verdict(unit, scope="--system", home=tmp_path) == ""


def section(unit: str, name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / unit)
    return parser[name]


def test_the_socket_is_where_the_client_looks_for_it_and_private() -> None:
    socket = section("fluxd.socket", "Socket")
    assert socket["ListenStream"] == "%t/fluxd/fluxd.sock"
    assert (socket["SocketMode"], socket["DirectoryMode"]) == ("0600", "0700")


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"])
def test_the_hardening_leaves_every_kind_of_socket_that_fluxd_needs(family: str) -> None:
    assert family in section("fluxd.service", "Service")["RestrictAddressFamilies"].split()


def test_the_services_own_time_is_longer_than_what_it_waits_for() -> None:
    service = section("fluxd.service", "Service")
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 10
    assert int(service["FileDescriptorStoreMax"]) >= 2 * 100  # a hundred tunnels, on 127.0.0.1 and ::1

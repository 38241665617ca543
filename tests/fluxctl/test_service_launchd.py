"""
The launchd half of `fluxctl service`, with a `launchctl` that only writes down what it is asked.

What launchd itself makes of it was not seen: that needs a Mac.
"""

import os
import plistlib
import stat
import sys
from pathlib import Path

import pytest

from fluxctl.service.launchd import Launchd

LAUNCHCTL = r"""#!/bin/sh
echo "$@" >>"$LAUNCHCTL_DIR/asked"
case "$1" in
  print) [ -e "$LAUNCHCTL_DIR/loaded" ] || exit 113; printf '{\n\tstate = running\n\tpid = 4711\n\truns = 3\n}\n' ;;
  bootstrap) : >"$LAUNCHCTL_DIR/loaded" ;;
  bootout) rm "$LAUNCHCTL_DIR/loaded" ;;
esac
"""


@pytest.fixture
def mac(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home on something like a Mac; answers the directory of the stand-in for launchctl."""
    system = home / "system"
    system.mkdir()
    (system / "launchctl").write_text(LAUNCHCTL)
    (system / "launchctl").chmod(0o755)
    (system / "fluxd").symlink_to(Path(sys.executable).with_name("fluxd"))
    for name in ("FLUXD_SOCKET", "FLUXD_LOG_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home / "M & M"))
    monkeypatch.setenv("PATH", f"{system}:/usr/bin:/bin")
    monkeypatch.setenv("LAUNCHCTL_DIR", str(system))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("sys.argv", [str(system / "fluxctl")])
    (system / "fluxctl").symlink_to(Path(sys.executable).with_name("fluxctl"))
    return system


def asked(system: Path) -> list[str]:
    lines = (system / "asked").read_text().splitlines()
    (system / "asked").unlink()
    return [line for line in lines if not line.startswith("print")]


def test_install_fills_the_agent_and_loads_it(mac: Path) -> None:
    home, target = Path.home(), f"gui/{os.getuid()}"
    assert list(Launchd().install())[-1] == "fluxd runs, and starts at every login."
    agent = home / "Library/LaunchAgents/com.flux.fluxd.plist"
    with agent.open("rb") as file:
        filled = plistlib.load(file)
    assert filled["ProgramArguments"] == [str(mac / "fluxd")]
    assert filled["Sockets"]["api"]["SockPathName"] == str(home / "Library/Application Support/fluxd/fluxd.sock")
    assert filled["StandardErrorPath"] == str(home / "Library/Logs/fluxd/launchd.log")
    assert "@" not in str(filled)
    assert asked(mac) == [f"enable {target}/com.flux.fluxd", f"bootstrap {target} {agent}"]
    for private in ("Library/Application Support/fluxd", "Library/Logs/fluxd"):
        assert stat.S_IMODE((home / private).stat().st_mode) == 0o700


def test_installing_twice_loads_it_once(mac: Path) -> None:
    list(Launchd().install())
    asked(mac)
    assert "is as it should be" in next(iter(list(Launchd().install())))
    assert asked(mac) == []


def test_status_reads_what_launchctl_prints(mac: Path) -> None:
    assert (Launchd().status()["installed"], Launchd().status()["state"]) == (False, "stopped")
    list(Launchd().install())
    found = Launchd().status()
    assert (found["installed"], found["state"], found["pid"], found["restarts"]) == (True, "running", 4711, 2)


def test_uninstall_leaves_nothing(mac: Path) -> None:
    list(Launchd().install())
    asked(mac)
    list(Launchd().uninstall())
    assert asked(mac) == [f"bootout gui/{os.getuid()}/com.flux.fluxd"]
    assert [path for path in Path.home().rglob("*") if path.is_file()] == []

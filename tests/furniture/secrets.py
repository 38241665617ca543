"""
A real Secret Service: a session bus of the test's own with `gnome-keyring-daemon` on it, unlocked or locked.

Nothing of the machine's own session is touched: the bus is a socket in *home*, the keyring's files are below it.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.furniture.processes import end, wait_until

NEEDED = ("dbus-daemon", "gnome-keyring-daemon", "gdbus")
PASSWORD = b"of the login keyring"

missing = [program for program in NEEDED if shutil.which(program) is None]
needs_secret_service = pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


@contextlib.contextmanager
def session_bus(home: Path) -> Iterator[Mapping[str, str]]:
    """A session bus; what a process needs in its environment to be on it."""
    address = f"unix:path={home / 'bus'}"
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(home), "XDG_DATA_HOME": str(home)}
    bus = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={address}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((home / "bus").exists, "the session bus")
        yield environment | {"DBUS_SESSION_BUS_ADDRESS": address}
    finally:
        end(bus)


@contextlib.contextmanager
def keyring_daemon(environment: Mapping[str, str], *, unlocked: bool) -> Iterator[None]:
    """The keyring's daemon on that bus. *unlocked*: as after a login with the password; else as after one without."""
    call = ["gnome-keyring-daemon", "--foreground", "--components=secrets", *(["--unlock"] if unlocked else [])]
    with subprocess.Popen(
        call, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as daemon:
        try:
            assert daemon.stdin is not None
            if unlocked:
                daemon.stdin.write(PASSWORD)
            daemon.stdin.close()
            wait_until(lambda: _serves(environment), "the Secret Service on the bus")
            yield
        finally:
            end(daemon)


def _serves(environment: Mapping[str, str]) -> bool:
    asked = [
        *("gdbus", "call", "--session", "--dest", "org.freedesktop.DBus", "--object-path", "/org/freedesktop/DBus"),
        *("--method", "org.freedesktop.DBus.NameHasOwner", "org.freedesktop.secrets"),
    ]
    said = subprocess.run(asked, env=dict(environment), capture_output=True, text=True, timeout=10, check=False)
    return "true" in said.stdout

"""What systemd hears, on a real socket."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from fluxd import servicemanager


def test_without_a_service_manager_nothing_happens():
    assert servicemanager.notify("READY=1", {}) is False
    assert servicemanager.notify("READY=1", {"NOTIFY_SOCKET": "/nowhere/at/all"}) is False
    assert servicemanager.watchdog_s({}) is None


def test_it_hears_on_a_path_and_on_an_abstract_name():
    place = Path(tempfile.mkdtemp(prefix="fluxd-"))
    try:
        for address in (str(place / "n"), f"@fluxd-test-{os.getpid()}"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind("\0" + address[1:] if address[0] == "@" else address)
                assert servicemanager.notify("READY=1", {"NOTIFY_SOCKET": address})
                assert manager.recv(100) == b"READY=1"
    finally:
        shutil.rmtree(place)


def test_the_watchdog_is_fed_twice_as_often_as_asked_and_only_if_it_is_ours():
    assert servicemanager.watchdog_s({"WATCHDOG_USEC": "10000000"}) == 5.0
    assert servicemanager.watchdog_s({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}) is None
    assert servicemanager.watchdog_s({"WATCHDOG_USEC": "soon"}) is None

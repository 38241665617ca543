"""At login, with a database: what becomes of ports and clients when the service restarts."""

import json

import pytest

from tests.furniture.lab import Lab
from tests.furniture.systemd import UserManager

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

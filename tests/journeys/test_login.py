"""`fluxctl login` and `logout`: afterwards no variable is needed, and none is left; with a real Secret Service."""

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import wait_until
from tests.furniture.secrets import keyring_daemon, needs_secret_service, session_bus

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")


def without_token(lab: Lab) -> dict[str, str]:
    return {name: value for name, value in lab.env.items() if name != "FLUX_API_TOKEN"}


@needs_secret_service
def test_login_once_then_no_variable_is_needed(daemon_home, lab: Lab):
    shell, token = without_token(lab), lab.env["FLUX_API_TOKEN"]
    daemon = Daemon(daemon_home)
    with session_bus(daemon_home) as bus, keyring_daemon(bus, unlocked=True):
        daemon.start(DBUS_SESSION_BUS_ADDRESS=bus["DBUS_SESSION_BUS_ADDRESS"])
        assert daemon.flux("list", env=shell).returncode == 3
        done = daemon.flux("login", "--token-stdin", program="fluxctl", env=shell, stdin=f"{token}\n")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"  Logged in to {lab.env['FLUX_API_BASE']} as dev@lab.example")
        assert "system keyring" in done.stdout
        assert token not in done.stdout + done.stderr + daemon.said()
        assert "foundry" in daemon.flux("list", env=shell).stdout
        logs_out(daemon, lab, shell)
        daemon.stop()


def test_login_with_a_token_file(daemon_home, lab: Lab):
    shell = without_token(lab)
    daemon = Daemon(daemon_home)
    daemon.start(FLUXD_TOKEN_FILE=str(daemon_home / "tokens"))
    done = daemon.flux("login", env=shell, stdin=lab.env["FLUX_API_TOKEN"])
    assert "The token is in the daemon's token file." in done.stdout
    logs_out(daemon, lab, shell)
    daemon.stop()


def logs_out(daemon: Daemon, lab: Lab, shell: dict[str, str]) -> None:
    """Logging out ends what was opened with the login, first."""
    before = temporary_roles(lab.pool_admin_url)
    daemon.flux_json("tunnel", "open", *FOUNDRY, env=shell)
    done = daemon.flux("logout", env=shell)
    assert (done.returncode, done.stdout) == (0, f"  Logged out of {lab.env['FLUX_API_BASE']}.\n")
    assert daemon.flux_json("tunnel", "list")["tunnels"] == []
    wait_until(lambda: temporary_roles(lab.pool_admin_url) == before, "the role is ended")
    refused = daemon.flux("list", env=shell)
    assert refused.returncode == 3
    assert "HINT: Run `fluxctl login" in refused.stderr


@pytest.mark.parametrize(
    ("token", "code"), [("", 2), (" \n", 2), ("flx_live_0123456789abcdef0123456789abcdef_33b0", 3), ("two words", 3)]
)
def test_a_token_that_is_none_is_not_kept(daemon: Daemon, lab: Lab, token, code):
    done = daemon.flux("login", "--token-stdin", env=without_token(lab), stdin=token)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")


def test_an_api_base_is_named_by_flag(daemon: Daemon, lab: Lab):
    done = daemon.flux("login", "--api-base", "http://flux.example.com", "--token-stdin", stdin="x")
    assert done.returncode == 11
    assert "plain http" in done.stderr

"""What takes longer than a second is told to a person at a terminal, and to nobody else."""

import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.processes import command
from tests.furniture.terminal import at_a_terminal

pytestmark = pytest.mark.journey


@pytest.fixture
def silent_plane() -> Iterator[dict[str, str]]:
    """A shell's environment with a control plane that takes every request and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        yield {"FLUX_API_BASE": f"http://127.0.0.1:{port}", "FLUX_API_TOKEN": "flx_live_" + "0" * 32 + "_0000"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list",), "Waiting for the control plane"),
        (("db", "tunnel", "--hash", "5774112"), "Opening the tunnel"),
    ],
)
def test_a_person_is_told_what_is_waited_for_until_it_ends(
    daemon: Daemon, silent_plane: dict[str, str], words: tuple[str, ...], said: str
) -> None:
    env = daemon.environment | silent_plane
    with at_a_terminal([command("flux"), *words], env, daemon.home) as terminal:
        terminal.read_until(f"{said} … 1 s")
        terminal.read_until(f"{said} … 2 s")
        terminal.type("\x03")
        assert terminal.end() == 130
    _, _, after = terminal.shown.partition("^C")
    assert said not in after, after
    assert after.endswith("\r\x1b[K\r\nError: Interrupted.\r\nHINT: Nothing was left open.\r\n"), after


def test_a_script_is_told_nothing(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    going_on = threading.Timer(1.5, daemon.process.send_signal, [signal.SIGCONT])
    going_on.start()
    begun = time.monotonic()
    done = daemon.flux("tunnel", "list")
    assert time.monotonic() - begun > 1
    assert (done.stdout, done.stderr) == ("  No tunnels are open.\n", "")
    going_on.join()

"""What takes longer than a second is told to a person at a terminal, and to nobody else."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.processes import command, wait_until
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
    try:
        process = subprocess.Popen(
            [command("flux"), "tunnel", "list"],
            env=daemon.environment,
            cwd=daemon.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: unaccepted(daemon.socket), "the request")
        # Longer than a person is left without a word, from when it is known to wait.
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1.5)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60) == ("  No tunnels are open.\n", "")


def unaccepted(place: Path) -> bool:
    """Whether somebody has connected to the socket and is not served yet: it is listed without an inode then."""
    fields = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(one[-1] == str(place) and one[5:7] == ["02", "0"] for one in fields)

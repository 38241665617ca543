"""A daemon that isn't running is started: once, quietly, and without what belongs to one shell. With the real fluxd."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.furniture.portranges import port_range
from tests.furniture.processes import alive, clean_environment, command, wait_until
from tests.furniture.provoked import provoked


@pytest.fixture
def shell(home):
    """The environment of a shell with a private, not yet running daemon; whatever was started is ended."""
    directories = {f"FLUXD_{name}_DIR": str(home / name.lower()) for name in ("STATE", "CONFIG", "LOG")}
    env = clean_environment(home, FLUXD_SOCKET=str(home / "s"), FLUXD_FIRST_PORT=str(port_range()), **directories)
    yield env
    pids = daemons(home)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(pids), "the daemon ended")


def daemons(home) -> list[int]:
    """Processes of `fluxd` on this test's socket."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (path / "cmdline").read_bytes().split(b"\0")
            if b"fluxd" in argv and f"FLUXD_SOCKET={home}/s".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return alive(found)


def flux(env, *words, home):
    return subprocess.run(
        [command("flux"), *words], env=env, cwd=home, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_first_command_starts_it_and_says_so_on_stderr_only(shell, home):
    first = flux(shell, "tunnel", "list", "--json", home=home)
    assert (first.returncode, first.stdout) == (0, '{\n  "tunnels": []\n}\n')
    assert first.stderr == "fluxd is not running; starting it.\n"
    second = flux(shell, "tunnel", "list", home=home)
    assert (second.returncode, second.stderr) == (0, "")
    assert len(daemons(home)) == 1


def test_many_at_once_start_one(shell, home):
    running = [
        subprocess.Popen(
            [command("flux"), "tunnel", "list"],
            env=shell,
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    done = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert [(out, code) for out, _, code in done] == [("  No tunnels are open.\n", 0)] * 6, done
    wait_until(lambda: len(daemons(home)) == 1, "one is left")


def test_it_inherits_nothing_that_belongs_to_the_shell(shell, home):
    theirs = {
        "FLUX_API_TOKEN": "flx_live_secret",
        "FLUX_API_BASE": "http://127.0.0.1:1",
        "FLUX_DB_TUNNEL_SSH_HOST": "h",
        "PGPASSWORD": "pw",
        "DOCKER_HOST": "ssh://h",
        "SSH_AUTH_SOCK": "/nonexistent",
        "NOTIFY_SOCKET": "/nonexistent",
        "DATABASE_URL": "postgres://u:p@h/d",
    }
    assert flux(shell | theirs, "tunnel", "list", home=home).returncode == 0
    [pid] = daemons(home)
    inherited = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    names = {entry.partition("=")[0] for entry in inherited}
    assert names & set(theirs) == set()
    assert {"PATH", "HOME", "FLUXD_SOCKET", "FLUXD_STATE_DIR"} <= names
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert os.getsid(pid) == pid


def test_it_keeps_no_pipe_of_ours_open(shell, home):
    """`subprocess.run(capture_output=True)` above returned, so stdout and stderr are not held; nor is any other."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reader:
        subprocess.run(
            [command("flux"), "tunnel", "list"],
            env=shell,
            cwd=home,
            pass_fds=[theirs],
            capture_output=True,
            timeout=60,
            check=True,
        )
        os.close(theirs)
        assert reader.read() == b""


def test_one_that_cannot_start_says_why(shell, home):
    home.chmod(0o755)
    done = flux(shell, "tunnel", "list", home=home)
    home.chmod(0o700)
    assert "fluxd: The socket's directory is not private to you." in provoked("fluxd_not_running", done)
    assert daemons(home) == []


def test_a_killed_one_is_started_again(shell, home):
    flux(shell, "tunnel", "list", home=home)
    [pid] = daemons(home)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not daemons(home), "it is gone")
    again = flux(shell, "tunnel", "list", home=home)
    assert (again.returncode, again.stdout) == (0, "  No tunnels are open.\n")

"""One live socket, ours alone."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxd import safesocket
from fluxd.core.errors import FluxdAlreadyRunning, SocketUnsafe
from fluxd.safesocket import Claim, claim
from tests.furniture.processes import wait_until

NOBODY = 65534
# One that another user may run too: ours may stand in a home.
EVERYBODYS_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or sys.executable
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a socket of ours may be; its path is short enough to bind."""
    directory = Path(tempfile.mkdtemp(prefix="fluxd-"))
    yield directory / "run" / "fluxd.sock"
    shutil.rmtree(directory)


@pytest.fixture
def claimed(place: Path) -> Iterator[Claim]:
    held = claim(place)
    yield held
    held.release()


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def dead_socket(path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def test_it_is_private_and_it_listens(claimed: Claim):
    assert stat.S_IMODE(claimed.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(claimed.path.parent.stat().st_mode) == 0o700
    connect(claimed.path)


def test_the_umask_is_as_before(place: Path):
    before = os.umask(0o027)
    try:
        claim(place).release()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_second_one_is_refused(claimed: Claim):
    with pytest.raises(FluxdAlreadyRunning):
        claim(claimed.path)
    connect(claimed.path)


def test_released_it_leaves_only_the_lock(place: Path):
    claim(place).release()
    assert [one.name for one in place.parent.iterdir()] == ["fluxd.sock.lock"]
    claim(place).release()


def test_a_dead_socket_is_replaced(place: Path):
    dead_socket(place)
    held = claim(place)
    connect(place)
    held.release()


def test_a_live_socket_of_a_stranger_without_the_lock_is_left_alone(place: Path):
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(place))
        stranger.listen(1)
        with pytest.raises(FluxdAlreadyRunning):
            claim(place)
        connect(place)


def test_a_live_socket_with_a_full_backlog_is_left_alone(place: Path):
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stranger, socket.socket(socket.AF_UNIX) as waiting:
        stranger.bind(str(place))
        stranger.listen(0)
        waiting.connect(str(place))
        with pytest.raises(FluxdAlreadyRunning):
            claim(place)
    assert place.exists()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/dev/null")])
def test_what_is_not_a_socket_is_not_removed(place: Path, make):
    place.parent.mkdir(mode=0o700)
    make(place)
    with pytest.raises(SocketUnsafe):
        claim(place)
    assert place.is_symlink() or place.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_directory_open_to_others_is_refused(place: Path, mode: int):
    place.parent.mkdir()
    place.parent.chmod(mode)
    with pytest.raises(SocketUnsafe):
        claim(place)


def test_a_symlinked_directory_is_refused(place: Path):
    real = place.parent.with_name("real")
    real.mkdir(mode=0o700)
    place.parent.symlink_to(real)
    with pytest.raises(SocketUnsafe):
        claim(place)


def test_a_directory_below_one_that_everybody_writes_is_refused(place: Path):
    top = place.parent.parent
    top.chmod(0o777)
    with pytest.raises(SocketUnsafe):
        claim(place)


@only_root
def test_a_directory_of_another_user_is_refused(place: Path):
    place.parent.mkdir(mode=0o700)
    os.chown(place.parent, NOBODY, NOBODY)
    with pytest.raises(SocketUnsafe):
        claim(place)


def test_a_symlink_in_the_locks_place_is_not_followed(place: Path):
    place.parent.mkdir(mode=0o700)
    (place.parent / "fluxd.sock.lock").symlink_to(place.parent / "elsewhere")
    with pytest.raises(SocketUnsafe):
        claim(place)
    assert not (place.parent / "elsewhere").exists()


def test_a_path_too_long_to_bind_is_told(place: Path):
    with pytest.raises(SocketUnsafe, match="longer than"):
        claim(place.parent / ("x" * 120))


def test_a_successors_socket_is_not_removed(place: Path):
    held = claim(place)
    place.unlink()
    dead_socket(place)
    held.release()
    assert place.exists()


def test_a_refused_claim_lets_go_of_the_lock(place: Path):
    place.parent.mkdir(mode=0o700)
    place.touch()
    with pytest.raises(SocketUnsafe):
        claim(place)
    place.unlink()
    claim(place).release()


def test_a_killed_holder_holds_nothing(place: Path):
    program = (
        "from fluxd.safesocket import claim; from pathlib import Path; "
        f"claim(Path({str(place)!r})); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(FluxdAlreadyRunning):
            claim(place)
        holder.kill()
    assert place.exists()
    claim(place).release()


def test_the_kernel_says_who_calls(claimed: Claim):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(claimed.path))
        claimed.listener.setblocking(True)
        accepted, _ = claimed.listener.accept()
        with accepted:
            assert safesocket.peer_uid(accepted) == os.geteuid()


@only_root
def test_another_users_process_is_told_apart(place: Path):
    held = claim(place)
    for path in (place.parent.parent, place.parent):
        path.chmod(0o755)
    place.chmod(0o666)
    program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(place)!r}); input()"
    command = ["setpriv", "--reuid", str(NOBODY), "--clear-groups", EVERYBODYS_PYTHON, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as stranger:
        held.listener.setblocking(True)
        held.listener.settimeout(10)
        accepted, _ = held.listener.accept()
        with accepted:
            assert safesocket.peer_uid(accepted) == NOBODY
        stranger.communicate(b"\n")
    held.release()


# ------------------------------------------------------------ socket activation


def test_a_socket_from_the_service_manager_is_adopted_and_stays(place: Path):
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))
        place.chmod(0o600)
        made.listen(1)
        held = claim(place, made)
        assert held.adopted
        held.release()
    assert place.exists()


def test_one_that_is_open_to_others_is_closed_to_them(place: Path):
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))
        place.chmod(0o666)
        claim(place, made).release()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


@only_root
def test_one_of_another_user_is_refused(place: Path):
    place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))
        os.chown(place, NOBODY, NOBODY)
        with pytest.raises(SocketUnsafe):
            claim(place, made)


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd")
def test_systemd_hands_its_sockets_over_by_name(place: Path):
    """A real `systemd-socket-activate`: the program sees the listener, and its children do not."""
    place.parent.mkdir(mode=0o700)
    program = (
        "import os; from fluxd import safesocket; from fluxd.systemd import Manager; from pathlib import Path; "
        "[found] = Manager.of(os.environ).take('api'); "
        f"print(['api'], safesocket.serves(found, Path({str(place)!r})), "
        "found.get_inheritable(), 'LISTEN_FDS' in os.environ, flush=True); "
        "found.accept()[0].send(b'x')"
    )
    command = ["systemd-socket-activate", "-l", str(place), "--fdname=api", sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as activated:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                wait_until(lambda: client.connect_ex(str(place)) == 0, "systemd's socket")
                assert client.recv(1) == b"x"
            assert activated.stdout is not None
            assert activated.stdout.readline() == "['api'] True False False\n"
        finally:
            activated.kill()

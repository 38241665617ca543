"""
One live Unix socket, ours alone: adopt it, refuse a live one, replace a dead one, know who calls.

aiohttp's own UnixSite takes a live daemon's socket away and leaves the new one open to everybody; so we bind. A lock
file beside the socket makes "is another one running?" a question with one answer: the lock goes with the process,
however it ends. The lock file itself stays, since removing it would let two processes hold two locks of one name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Final

from fluxd.address import parent_problem
from fluxd.core.errors import FluxdAlreadyRunning, SocketUnsafe

# sockaddr_un.sun_path: 108 on Linux, 104 on macOS, one of them for the closing zero.
LONGEST_PATH: Final = 103 if sys.platform == "darwin" else 107


class Claim:
    """The socket, bound and listening, and the lock that makes it ours. `release` gives both back."""

    def __init__(self, path: Path, listener: socket.socket, lock: int, *, adopted: bool) -> None:
        self.path = path
        self.listener = listener
        # True: the service manager made the socket and goes on listening after us.
        self.adopted = adopted
        self._lock = lock
        found = path.lstat()
        self._identity = found.st_dev, found.st_ino

    def release(self) -> None:
        """Close the socket and, where we made it, remove its file; never a successor's."""
        self.listener.close()
        if not self.adopted and self._still_ours():
            self.path.unlink(missing_ok=True)
        os.close(self._lock)

    def _still_ours(self) -> bool:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity


def claim(path: Path, inherited: socket.socket | None = None) -> Claim:
    """
    Become the one daemon that serves *path*; with *inherited*, on the socket that the service manager bound there.

    Raises:
        FluxdAlreadyRunning: another process serves it.
        SocketUnsafe: its directory is not private to us, something else is in its place, or the path is too long.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise SocketUnsafe(
            f"The socket's path is longer than {LONGEST_PATH} bytes, more than this system can bind.",
            detail=str(path),
            hint="Set FLUXD_SOCKET to a shorter path, for the daemon and for fluxctl.",
        )
    _private_directory(path.parent)
    lock = _lock(path.with_name(f"{path.name}.lock"))
    try:
        return _claimed(path, lock, inherited)
    except BaseException:
        os.close(lock)
        raise


def _claimed(path: Path, lock: int, inherited: socket.socket | None) -> Claim:
    if inherited is not None:
        _close_to_others(path)
        return Claim(path, inherited, lock, adopted=True)
    _remove_dead(path)
    return Claim(path, _bound(path), lock, adopted=False)


def _private_directory(directory: Path) -> None:
    """Make it if it is missing (0700, and what is missing above it); refuse one that others may write or replace."""
    try:
        for missing in reversed([one for one in (directory, *directory.parents) if not one.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise SocketUnsafe(detail=f"{directory}: {error.strerror}") from error
    flaw = parent_problem(str(directory)) or _flaw(found)
    if flaw:
        raise SocketUnsafe(detail=f"{directory}: {flaw}")


def _flaw(found: os.stat_result) -> str | None:
    if not stat.S_ISDIR(found.st_mode):
        return "is not a real directory"
    if found.st_uid != os.geteuid():
        return f"belongs to uid {found.st_uid}"
    if found.st_mode & 0o077:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}, not 0700"
    return None


def _lock(path: Path) -> int:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SocketUnsafe(detail=f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise FluxdAlreadyRunning(detail=str(path.with_suffix(""))) from error
    return lock


def _remove_dead(path: Path) -> None:
    """Unlink a socket nobody answers on. The lock is ours, so what answers is not a fluxd that knows the rules."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketUnsafe("Something that is not a socket is in the socket's place.", detail=str(path))
    if _answers(path):
        raise FluxdAlreadyRunning(detail=str(path))
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        outcome = probe.connect_ex(str(path))
    # EAGAIN: its backlog is full, which takes somebody who listens.
    return outcome in {0, errno.EAGAIN, errno.EINPROGRESS}


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SocketUnsafe(f"The socket cannot be bound: {error.strerror}.", detail=str(path)) from error
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


# ------------------------------------------------------------ socket activation


def serves(candidate: socket.socket, path: Path) -> bool:
    """Whether *candidate* is a Unix stream socket bound at *path*."""
    return candidate.family == socket.AF_UNIX and candidate.getsockname() == str(path)


def _close_to_others(path: Path) -> None:
    """Make the service manager's socket private: its unit may have left the mode at systemd's default."""
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise SocketUnsafe("The socket that the service manager made is not ours.", detail=str(path))
    path.chmod(0o600)


# ------------------------------------------------------------------- the caller


def peer_uid(connection: socket.socket) -> int:
    """The uid of the process that connected, as the kernel knows it."""
    if sys.platform == "darwin":
        return _getpeereid(connection.fileno())
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


def _getpeereid(fd: int) -> int:
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if ctypes.CDLL(None, use_errno=True).getpeereid(fd, ctypes.byref(uid), ctypes.byref(gid)) != 0:
        raise OSError(ctypes.get_errno(), "getpeereid")
    return uid.value

"""
Where fluxd's socket is. Standard library only: the client asks too, and must start fast.

The same answer as ``platformdirs.user_runtime_path("fluxd")``, which a test holds: on Linux
``$XDG_RUNTIME_DIR/fluxd``, else ``/run/user/<uid>/fluxd`` where that is ours, else a directory under the temporary one;
on macOS the state directory, since paths over 104 bytes cannot be bound there. This module only answers; it makes no
directory and trusts none: whoever binds or connects checks again (``fluxd.safesocket``).
"""

from __future__ import annotations

import os
import stat
import sys

SOCKET_VARIABLE = "FLUXD_SOCKET"


def socket_path() -> str:
    """
    The absolute path of the daemon's Unix socket: ``$FLUXD_SOCKET``, else ``fluxd.sock`` in `runtime_dir`.

    Raises:
        PermissionError: the only directory left under the temporary one is somebody else's.
    """
    named = os.environ.get(SOCKET_VARIABLE)
    return os.path.abspath(named) if named else os.path.join(runtime_dir(), "fluxd.sock")  # noqa: PTH100, PTH118 - pathlib costs a start


def runtime_dir() -> str:
    """
    The directory that the socket belongs in, whether it exists or not.

    Raises:
        PermissionError: as `socket_path`.
    """
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/fluxd")  # noqa: PTH111 - pathlib costs a start
    return _runtime_base() + "/fluxd"


def _runtime_base() -> str:
    named = _plain(os.environ.get("XDG_RUNTIME_DIR", ""))
    if named and not _problem(named, missing_ok=True) and not parent_problem(named):
        return named
    login = f"/run/user/{os.geteuid()}"
    return _temporary_base() if _problem(login, missing_ok=False) else login


def _plain(path: str) -> str:
    """An absolute *path* without doubled, trailing and dotted slashes (lstat would follow those); "" if relative."""
    steps = [step for step in path.split("/") if step not in {"", "."}]
    return "/" + "/".join(steps) if path.startswith("/") else ""


def _temporary_base() -> str:
    path = f"{_temporary_dir().rstrip('/')}/runtime-{os.geteuid()}"
    # The name is predictable: another user may have made it before us.
    if problem := _problem(path, missing_ok=True, check_mode=False):
        raise PermissionError(f"runtime directory {problem}; set XDG_RUNTIME_DIR instead")
    return path


def _problem(path: str, *, missing_ok: bool, check_mode: bool = True) -> str | None:
    """Why *path* is not a private directory of our own, None if it is one."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None if missing_ok else f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be checked: {error.strerror}"
    return _flaw(path, found, check_mode=check_mode)


def parent_problem(path: str) -> str | None:
    """Why another user could replace *path* by way of a directory above it, None if nobody can."""
    shared = False
    for parent in _parents(path):
        try:
            if shared and os.lstat(parent).st_uid not in {0, os.geteuid()}:
                return f"{path} is below {parent}, which another user owns"
            mode = os.stat(parent).st_mode  # noqa: PTH116 - pathlib costs a start
        except OSError:
            return None  # nothing is there yet
        shared = bool(mode & stat.S_IWOTH)
        if shared and not mode & stat.S_ISVTX:
            return f"{path} is below {parent}, writable by every user"
    return None


def _parents(path: str) -> list[str]:
    """Of "/a/b/c": "/", "/a", "/a/b"."""
    steps = path.strip("/").split("/")[:-1]
    return ["/", *("/" + "/".join(steps[: n + 1]) for n in range(len(steps)))]


def _flaw(path: str, found: os.stat_result, *, check_mode: bool) -> str | None:
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is not a directory"
    if found.st_uid != os.geteuid():
        return f"{path} is owned by uid {found.st_uid}, not {os.geteuid()}"
    if check_mode and stat.S_IMODE(found.st_mode) & 0o777 != 0o700:
        return f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, not 0700"
    return None


def _temporary_dir() -> str:
    """What ``tempfile.gettempdir()`` says, without importing it (it brings random, shutil and 10 ms along)."""
    named = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    places = [*(os.path.abspath(place) for place in named if place), "/tmp", "/var/tmp", "/usr/tmp"]  # noqa: PTH100, S108
    return next((place for place in places if os.access(place, os.W_OK | os.X_OK)), os.getcwd())  # noqa: PTH109

"""
A file (or directory) that gets its name only when it is whole.

It is written beside its place under a temporary name, private to the user, and locked while somebody writes it. A guard
removes it after a `kill -9`; what even that leaves (a power cut) is removed by the next one for the same output, never
another's that is still at work.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from pathlib import Path

from fluxctl.guard import Guard
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

_CHUNK = 1024 * 1024


class Output:
    """
    What becomes *path*, or the file that a link of that name leads to. `temporary` is where to write until `keep`;
    leaving the block without `keep` removes it.

    With *resume*, a word that names one content, an unfinished file of that word is taken up again and stays. Without,
    `guard` watches over it. *instead*: what else the command can do where *path* is a device or a pipe.
    """

    def __init__(self, path: str, *, directory: bool = False, resume: str | None = None, instead: str = "") -> None:
        """
        Raises:
            Problem: output_unusable.
        """
        _refuse_what_is_there(Path(path), directory=directory, instead=instead)
        self.path = Path(os.path.realpath(path))
        self._resume = resume
        self._directory = directory
        self._descriptor: int | None = None
        self.temporary = self.path.with_name(f".{self.path.name}.{resume or secrets.token_hex(4)}.partial")
        self.guard: Guard | None = None
        try:
            self._sweep()
            # First: there is never a file that nobody watches over.
            self.guard = None if resume else Guard(remove=self.temporary)
            self._descriptor = self._make()
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise Problem("output_unusable", f"Another flux is writing {self.path} now.") from error
        except OSError as error:
            self._close()
            raise unusable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._resume is None:
            _remove(self.temporary)
        self._close()

    def keep(self) -> None:
        """On disk, then under its name."""
        try:
            for one in _files(self.temporary):
                _sync(one)
            self.temporary.replace(self.path)
            _sync(self.path.parent)
        except OSError as error:
            raise unusable(self.path, error) from error

    def discard(self) -> None:
        _remove(self.temporary)

    def size(self) -> int:
        """Bytes so far."""
        return sum(_size(one) for one in _files(self.temporary))

    def _make(self) -> int:
        if self._directory:
            self.temporary.mkdir(mode=0o700)
            return os.open(self.temporary, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if self._resume else os.O_EXCL)
        return os.open(self.temporary, flags, 0o600)

    def _sweep(self) -> None:
        """What somebody left who was killed: unlocked."""
        prefix = f".{self.path.name}."
        for found in self.path.parent.iterdir():
            middle = found.name.removeprefix(prefix).removesuffix(".partial")
            if found.name == f"{prefix}{middle}.partial" and "." not in middle and found != self.temporary:
                _remove_if_unlocked(found)

    def _close(self) -> None:
        if self.guard is not None:
            with self.guard:
                self.guard.dismiss()
            self.guard = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _refuse_what_is_there(path: Path, *, directory: bool, instead: str) -> None:
    """Only an ordinary file may be replaced: a device or a pipe of that name would be gone."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(path, error) from error
    if directory:
        raise Problem("output_unusable", f"{path.absolute()} exists already; a directory is not overwritten.")
    if stat.S_ISDIR(mode):
        raise Problem("output_unusable", f"{path.absolute()} is a directory.")
    if not stat.S_ISREG(mode):
        raise Problem(
            "output_unusable",
            f"{path.absolute()} is a device, a pipe or a socket, and an output replaces what has its name.",
            hint=f"Give --output the name of a file{instead}.",
        )


def unusable(path: Path, error: OSError) -> Problem:
    return Problem("output_unusable", f"{path} cannot be written: {error.strerror or error}.")


def sha256(path: Path, look: Callable[[int], object] = lambda _done: None) -> str:
    """Of a file's bytes; of a directory that of what `sha256sum *` prints in it. *look* hears how much was read."""
    import hashlib  # noqa: PLC0415 - loads OpenSSL

    done = 0

    def of_file(one: Path) -> str:
        nonlocal done
        seen = hashlib.sha256()
        with one.open("rb") as file:
            while chunk := file.read(_CHUNK):
                seen.update(chunk)
                look(done := done + len(chunk))
        return seen.hexdigest()

    if not path.is_dir():
        return of_file(path)
    lines = "".join(f"{of_file(one)}  {one.name}\n" for one in sorted(path.iterdir()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _remove_if_unlocked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> Iterator[Path]:
    yield from path.iterdir() if path.is_dir() else ()
    yield path


def _size(path: Path) -> int:
    try:
        return 0 if path.is_dir() else path.stat().st_size
    except OSError:
        return 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""
The second place: a copy of each backup's file in another directory, which the operator puts on another disk or host.

A copy counts only after it was read back with the right size and checksum. It comes back, checked again, when the first
place has lost or changed the file. Object stores are no business of ours: mount one, or copy the directory there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from fluxplane.backups.dump import CHUNK
from fluxplane.backups.files import Files
from fluxplane.backups.programs import BackupFailed, Unable
from fluxplane.backups.store import Backup

THREADS: Final = 4
ASKED_WITHIN_S: Final = 10.0
CLOSED_WITHIN_S: Final = 1.0

_Found = TypeVar("_Found")


class Offsite:
    """
    Where *files* are copied to: below *root*, under the same relative path.

    Whatever touches it may hang, as a network's disk does. It is done in threads of its own, so that nothing else waits
    for one, and nobody waits longer than he said: a copy at most *within_s*.
    """

    def __init__(self, files: Files, root: Path, within_s: float) -> None:
        self.files = files
        self.root = root
        self._within_s = within_s
        self._threads = ThreadPoolExecutor(THREADS, "offsite")

    def close(self) -> None:
        """What hangs is waited for no longer than a moment."""
        closing = threading.Thread(target=self._threads.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSED_WITHIN_S)

    def path(self, backup: Backup) -> Path:
        return self.root / backup.relative_path

    async def holds(self, backup: Backup) -> bool | None:
        """Whether a file of its size is there, if anybody answers; what is in it is looked at when it is needed."""
        try:
            return (await self._done(self.path(backup).stat, ASKED_WITHIN_S)).st_size == backup.size_bytes
        except TimeoutError:
            return None
        except OSError:
            return False

    async def keep(self, backup: Backup, *, size: int, sha256: str) -> None:
        """
        Copy the file there, over whatever is there.

        Raises:
            BackupFailed: it cannot be, or not in time, or did not arrive as it was.
        """
        try:
            await self._copied(self.files.path(backup), self.path(backup), (size, sha256))
        except OSError as failure:
            why = failure.strerror or f"it was not done within {self._within_s:.0f} s"
            raise BackupFailed(f"The offsite copy in {self.root} cannot be written: {why}.") from failure

    async def bring_back(self, backup: Backup) -> bool:
        """
        Whether the first place has the file again, as it was written.

        Raises:
            Unable: nobody knows yet: somebody is copying it already, or the second place does not answer.
        """
        self.files.room(backup.project_id)
        try:
            await self._copied(self.path(backup), self.files.path(backup), (backup.size_bytes, backup.checksum_sha256))
        except Unable:
            raise
        except TimeoutError as failure:
            raise Unable(f"The offsite copy did not come back within {self._within_s:.0f} s.") from failure
        except (OSError, BackupFailed):
            return False
        return True

    def remove(self, backup: Backup) -> None:
        """As soon as its directory answers; nobody waits for that."""
        self._threads.submit(_removed, self.path(backup))

    async def _copied(self, source: Path, target: Path, expected: tuple[int | None, str | None]) -> None:
        left = threading.Event()
        try:
            await self._done(lambda: copy(source, target, expected, left), self._within_s)
        finally:
            left.set()

    async def _done(self, work: Callable[[], _Found], within_s: float) -> _Found:
        async with asyncio.timeout(within_s):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def copy(source: Path, target: Path, expected: tuple[int | None, str | None], left: threading.Event) -> None:
    """
    *target* is whole and on disk afterwards, or as it was before. It ends soon after it was *left*.

    Raises:
        Unable: somebody else is copying it.
        BackupFailed: it is not what was *expected*: its size and SHA-256.
    """
    # Nothing above it is made: an unmounted disk must not become a directory on the first one.
    target.parent.mkdir(mode=0o700, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with _written(partial) as file:
        with source.open("rb") as whole:
            for chunk in _chunks(whole, left):
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        if _digest(file, left) != expected:
            raise BackupFailed("The offsite copy differs from what was written.")
        partial.replace(target)
        _sync(target.parent)


def _chunks(file: BinaryIO, left: threading.Event) -> Iterator[bytes]:
    while not left.is_set() and (chunk := file.read(CHUNK)):
        yield chunk


def _digest(file: BinaryIO, left: threading.Event) -> tuple[int, str]:
    file.seek(0)
    seen = hashlib.sha256()
    for chunk in _chunks(file, left):
        seen.update(chunk)
    return file.tell(), seen.hexdigest()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written(partial: Path) -> Iterator[BinaryIO]:
    """A private file that one process writes at a time; what a crash left of it is begun anew. Gone, if not renamed."""
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unable("The file is being copied already.") from None
        if not _is_at(file, partial):
            # Somebody who was done meanwhile has renamed it: what we opened is the finished file.
            raise Unable("The file is being copied already.")
        try:
            file.truncate(0)
            yield file
        finally:
            if _is_at(file, partial):
                partial.unlink()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> None:
    # In this order: a copy that ends just now either has its file under its name already, or cannot give it one.
    for one in (path.with_name(path.name + ".partial"), path):
        with contextlib.suppress(OSError):
            one.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()

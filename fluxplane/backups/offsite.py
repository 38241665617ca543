"""
The second place: a copy of each backup's file in another directory, which the operator puts on another disk or host.

A copy counts only after it was read back with the right size and checksum. It comes back, checked again, when the first
place has lost or changed the file. Object stores are no business of ours: mount one, or copy the directory there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fluxplane.backups.dump import CHUNK, digest
from fluxplane.backups.files import Files
from fluxplane.backups.programs import BackupFailed
from fluxplane.backups.store import Backup


@dataclass(frozen=True)
class Offsite:
    """Where *files* are copied to: below *root*, under the same relative path."""

    files: Files
    root: Path

    def path(self, backup: Backup) -> Path:
        return self.root / backup.relative_path

    def holds(self, backup: Backup) -> bool:
        """Whether a file of its size is there; what is in it is looked at when it is needed."""
        with contextlib.suppress(OSError):
            return self.path(backup).stat().st_size == backup.size_bytes
        return False

    async def keep(self, backup: Backup, *, size: int, sha256: str) -> None:
        """
        Copy the file there, unless it is there already.

        Raises:
            BackupFailed: it cannot be, or did not arrive as it was.
        """
        try:
            # Not made by us: an unmounted disk must not become a directory on the first one.
            await asyncio.to_thread((self.root / str(backup.project_id)).mkdir, mode=0o700, exist_ok=True)
            await _copied(self.files.path(backup), self.path(backup), (size, sha256))
        except OSError as failure:
            raise BackupFailed(f"The offsite copy in {self.root} cannot be written: {failure.strerror}.") from failure

    async def bring_back(self, backup: Backup) -> bool:
        """Whether the first place has the file again, as it was written."""
        try:
            self.files.room(backup.project_id)
            await _copied(self.path(backup), self.files.path(backup), (backup.size_bytes, backup.checksum_sha256))
        except (OSError, BackupFailed):
            return False
        return True

    def remove(self, backup: Backup) -> None:
        path = self.path(backup)
        for one in (path, _partial(path)):
            with contextlib.suppress(OSError):
                one.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


async def _copied(source: Path, target: Path, expected: tuple[int | None, str | None]) -> None:
    """*target* is whole and on disk afterwards, or as it was before."""
    async with _written(_partial(target)) as descriptor:
        with source.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                await asyncio.to_thread(_write, descriptor, chunk)
        await asyncio.to_thread(os.fsync, descriptor)
        if await digest(_partial(target)) != expected:
            raise BackupFailed("The offsite copy differs from what was written.")
        _partial(target).replace(target)
        await asyncio.to_thread(_sync, target.parent)


def _write(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _written(partial: Path) -> AsyncIterator[int]:
    """A private file that one process writes at a time; what a crash left of it is begun anew. Gone, if not renamed."""
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupFailed("The file is being copied already.") from None
        try:
            os.ftruncate(descriptor, 0)
            yield descriptor
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)  # noqa: PTH108 - an unlink is no waiting
    finally:
        os.close(descriptor)

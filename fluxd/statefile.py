"""
One small JSON file that is always whole: old or new, never half, whatever crashes.

A write goes to a file beside it, is fsynced, takes the name by rename, and the directory is fsynced: when `commit`
returns, the state as it was when it was called survives a power cut. Commits that come while one is being written share
the next. A file that is damaged or from a newer fluxd is set aside under another name, never overwritten.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from fluxd.core.errors import StateUnreadable, StateUnwritable

T = TypeVar("T", bound=msgspec.Struct)


class _Versioned(msgspec.Struct):
    version: int


class StateFile(Generic[T]):
    """
    The file at *path*, holding a struct of *kind*, whose first field is `version`.

    `problem` says that there was a file which could not be read, and where it is now.
    """

    def __init__(self, path: Path, kind: type[T], *, version: int) -> None:
        self.path = path
        self.problem: StateUnreadable | None = None
        self._kind = kind
        self._version = version
        self._asked = 0
        self._durable = 0
        self._writing: asyncio.Task[None] | None = None

    def load(self) -> T | None:
        """What the file holds; None when there is none, or none that can be read."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problem = StateUnreadable(detail=f"{self.path}: {error.strerror}")
            return None
        try:
            if msgspec.json.decode(data, type=_Versioned).version != self._version:
                raise msgspec.ValidationError("it is of another version")
            return msgspec.json.decode(data, type=self._kind)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._set_aside(error)
            return None

    async def commit(self, state: Callable[[], T]) -> None:
        """
        Return when what *state* answers now, or something later, is on the disk.

        Raises:
            StateUnwritable: it is not.
        """
        self._asked += 1
        mine = self._asked
        while self._durable < mine:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write(state))
            await asyncio.shield(self._writing)

    async def aclose(self) -> None:
        """Let a write that is under way end."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write(self, state: Callable[[], T]) -> None:
        upto, data = self._asked, msgspec.json.format(msgspec.json.encode(state()), indent=1)
        try:
            await asyncio.to_thread(self.replace, data + b"\n")
        except OSError as error:
            raise StateUnwritable(detail=f"{self.path}: {error.strerror}") from error
        finally:
            self._writing = None
        self._durable = upto

    def replace(self, data: bytes) -> None:
        """Put *data* in the file's place, durably."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.new")
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _set_aside(self, error: Exception) -> None:
        aside = next(
            name for n in range(1000) if not (name := self.path.with_name(f"{self.path.name}.unreadable-{n}")).exists()
        )
        self.path.replace(aside)
        self.problem = StateUnreadable(detail=f"It is now {aside}: {error}.")

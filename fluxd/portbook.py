"""
Which local port belongs to which project: `core.ports` decides, this remembers, `ports.json` outlives us.

A port is kept until it is forgotten by name and is never given to another project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from fluxd.core.errors import StateUnreadable
from fluxd.journal import Key
from fluxd.statefile import StateFile
from fluxd.wire import Access

VERSION: Final = 1


class _Entry(msgspec.Struct):
    key: Key
    port: int
    # The project's name when it was last open: what `tunnel forget` may be given.
    project: str
    # A v1 project has one tunnel, whatever access is asked for.
    dedicated: bool = False


class _Book(msgspec.Struct):
    version: int = VERSION
    ports: list[_Entry] = []


class PortBook:
    """The file `ports.json` in *state_dir*. `owned` is the mapping that `core.ports` wants."""

    def __init__(self, state_dir: Path) -> None:
        self._file = StateFile(state_dir / "ports.json", _Book, version=VERSION)
        self._entries = {entry.key: entry for entry in (self._file.load() or _Book()).ports}

    @property
    def problem(self) -> StateUnreadable | None:
        return self._file.problem

    @property
    def owned(self) -> dict[Key, int]:
        return {key: entry.port for key, entry in self._entries.items()}

    def named(self, name: str) -> list[Key]:
        """The keys that *name* (a project, a hash or a port) may mean."""
        return [key for key, entry in self._entries.items() if name in (entry.project, key.hash, str(entry.port))]

    def usual(self, api_base: str, project_hash: str, access: Access) -> int | None:
        """The port of that project, whoever's it is; None without one, or where several accounts have one."""
        found = {
            entry.port
            for key, entry in self._entries.items()
            if (key.api_base, key.hash) == (api_base, project_hash) and (entry.dedicated or key.access == access)
        }
        return found.pop() if len(found) == 1 else None

    async def keep(self, key: Key, port: int, project: str, *, dedicated: bool) -> None:
        """
        From now on *port* is *key*'s.

        Raises:
            StateUnwritable: that cannot be written down.
        """
        entry = _Entry(key, port, project, dedicated)
        if self._entries.get(key) != entry:
            self._entries[key] = entry
            await self._commit()

    async def forget(self, key: Key) -> None:
        """*key*'s port may be given to anybody."""
        if self._entries.pop(key, None) is not None:
            await self._commit()

    async def aclose(self) -> None:
        await self._file.aclose()

    async def _commit(self) -> None:
        await self._file.commit(lambda: _Book(ports=list(self._entries.values())))

"""
What must not be forgotten by a crash: grants from before they are asked for until their end is confirmed, open tunnels.

A grant is written down with an id of ours *before* the control plane hears of it, so that whatever happens afterwards a
later fluxd can end it: by the id alone, which is 128 random bits and good for nothing else. No password is ever here.
`holds` and `grants` are plain dictionaries: change them, then `commit`.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from fluxd.core.errors import StateUnreadable
from fluxd.core.lease import Lease
from fluxd.core.resolver import Upstream
from fluxd.statefile import StateFile
from fluxd.wire import Access

VERSION: Final = 1


class Key(NamedTuple):
    """Whose database it is: a hash is unique per account only."""

    api_base: str
    account: str
    hash: str
    access: Access


class GrantRecord(msgspec.Struct, kw_only=True):
    """
    One grant. `asked`: the plane may or may not know it; `live`: it answered; `ending`: it shall end, until confirmed.

    The `…_at` of `lease`, and `asked_at`, are of the clock that counts sleep, in the boot `boot_id`.
    """

    grant_id: str
    key: Key
    project: str
    state: Literal["asked", "live", "ending"]
    asked_at: float
    asked_wall: datetime
    boot_id: str
    # Whether the plane can be asked to end it. If not, its expiry must do.
    revocable: bool
    # The tunnel it belongs to; None for a bare grant.
    tunnel: str | None = None
    hold: str | None = None
    username: str | None = None
    lease: Lease | None = None
    tenant_schema: str | None = None
    search_path: list[str] = []
    rls_tables: list[str] = []


class SSHRecord(msgspec.Struct, kw_only=True):
    """How a tunnel's SSH host was named. Paths only, never a key."""

    host: str
    user: str
    port: int
    identity_file: str | None
    known_hosts: str | None
    agent: str | None


class TunnelRecord(msgspec.Struct, kw_only=True):
    """One open tunnel, as it can be listened for again after a crash without asking anybody."""

    id: str
    key: Key
    plan: dict[str, Any]
    ssh: SSHRecord
    local_host: str
    port: int
    kept: bool
    holds: list[str]
    renew: bool
    ttl_s: int | None
    prefer_network: str | None
    opened_at: datetime
    upstream: Upstream | None
    # The SSH host's key behind which `upstream` was proven to be this project's.
    proven_behind: str | None


class _State(msgspec.Struct, kw_only=True):
    version: int = VERSION
    grants: list[GrantRecord] = []
    tunnels: list[TunnelRecord] = []


class Journal:
    """The file `journal.json` in *state_dir*."""

    def __init__(self, state_dir: Path) -> None:
        self._file = StateFile(state_dir / "journal.json", _State, version=VERSION)
        state = self._file.load() or _State()
        self.grants = {record.grant_id: record for record in state.grants}
        self.tunnels = {record.id: record for record in state.tunnels}

    @property
    def problem(self) -> StateUnreadable | None:
        return self._file.problem

    async def commit(self) -> None:
        """
        Return when everything above is on the disk.

        Raises:
            StateUnwritable: it is not.
        """
        await self._file.commit(lambda: _State(grants=list(self.grants.values()), tunnels=list(self.tunnels.values())))

    async def aclose(self) -> None:
        await self._file.aclose()

"""
The control plane's routes about backups (contract §2.6, §2.7) and restores (our extension), as it answers them.

A plane without `?wait=0` answers a create or verification when it is done: such a request may take `DONE_WITHIN_S`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import aiohttp

from fluxd.core import errors
from fluxd.plane.answers import Refusal
from fluxd.plane.base import Caller
from fluxd.plane.control import ControlPlane
from fluxplane import wire

# The existing platform's route ends after 300 s.
DONE_WITHIN_S: Final = 330.0


class BackupRoutes:
    """Every method raises problems of `core.errors`."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def list(self, caller: Caller, project_hash: str) -> wire.BackupList:
        _, found = await self._control.ask("GET", caller, _path(project_hash), wire.BackupList)
        return found

    async def create(self, caller: Caller, project_hash: str, *, wait: bool) -> tuple[int, wire.BackupMade]:
        return await self._control.ask(
            "POST",
            caller,
            _path(project_hash),
            wire.BackupMade,
            query=_wait(wait),
            judge=_judge,
            within_s=DONE_WITHIN_S,
        )

    async def verify(
        self, caller: Caller, project_hash: str, backup_id: str, *, wait: bool
    ) -> tuple[int, wire.BackupVerified]:
        return await self._control.ask(
            "POST",
            caller,
            f"{_path(project_hash)}/{backup_id}/verify",
            wire.BackupVerified,
            query=_wait(wait),
            judge=_judge,
            within_s=DONE_WITHIN_S,
        )

    def progress(
        self, caller: Caller, project_hash: str, backup_id: str
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._control.stream(caller, f"{_path(project_hash)}/{backup_id}/progress", judge=_judge)

    def download(
        self, caller: Caller, project_hash: str, backup_id: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        path = f"{_path(project_hash)}/{backup_id}/download"
        return self._control.stream(caller, path, headers=headers, judge=_judge)

    def plain_dump(
        self, caller: Caller, project_hash: str, query: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._control.stream(caller, f"/projects/{project_hash}/dump", query=query, judge=_judge_dump)

    async def ask_restore(self, caller: Caller, project_hash: str, asked: wire.RestoreAsked) -> wire.RestoreAllowed:
        path = f"/projects/{project_hash}/restores"
        _, allowed = await self._control.ask(
            "POST", caller, path, wire.RestoreAllowed, body=asked, judge=_judge_restore
        )
        return allowed

    async def end_restore(self, caller: Caller, project_hash: str, restore_id: str, ended: wire.RestoreEnded) -> None:
        path = f"/projects/{project_hash}/restores/{restore_id}"
        await self._control.ask("POST", caller, path, dict[str, Any], body=ended, judge=_judge_restore)


def _path(project_hash: str) -> str:
    return f"/projects/{project_hash}/backups"


def _wait(wait: bool) -> dict[str, str]:
    return {} if wait else {"wait": "0"}


def _judge(said: Refusal) -> type[errors.FluxError] | None:
    match said.status:
        case 404 if said.text is not None and "project" not in said.text.lower():
            return errors.BackupNotFound
        case 409:
            return errors.BackupRunning
        case 500:
            return errors.BackupFailed
    return None


def _judge_dump(said: Refusal) -> type[errors.FluxError] | None:
    return {400: errors.WrongMode, 500: errors.DumpFailed}.get(said.status)


def _judge_restore(said: Refusal) -> type[errors.FluxError] | None:
    if said.status == 412:
        return {"pooled": errors.RestorePooled, "not_acknowledged": errors.RestoreNotAcknowledged}.get(
            said.code or "", errors.RestoreBlocked
        )
    # A plane without the route: the gate is the client's alone.
    return errors.NotSupportedByPlane if said.status == 404 and said.text in {None, "Not Found"} else None

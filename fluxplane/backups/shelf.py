"""
The backups there are: rows held against the disk, judged, aged, and cleared away.

A row says what was written, the disk what is left of it; whoever asks gets rows that were compared first. What a crash
left is marked and removed here, and what retention lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from typing import Any, Final

import msgspec

from fluxplane import registry, wire
from fluxplane.backups import freshness, gate, store, throwaway
from fluxplane.backups.dump import digest
from fluxplane.backups.files import Files
from fluxplane.backups.freshness import Policy
from fluxplane.backups.store import Backup
from fluxplane.catalogue import Catalogue
from fluxplane.policy import Refusal
from fluxplane.registry import Project
from fluxplane.settings import BackupSettings
from fluxplane.wire import V1

# As many of a project's newest ones are held against the disk at each list (contract §7).
RECONCILED: Final = 20


class Shelf:
    """All backups of one catalogue, and their files."""

    def __init__(self, catalogue: Catalogue, settings: BackupSettings) -> None:
        self._store = catalogue
        self._settings = settings
        self.files = Files(settings.directory)

    @property
    def policy(self) -> Policy:
        bounds = self._settings
        return Policy(bounds.interval_days, bounds.retention_count, bounds.retention_days)

    async def of(self, project: Project) -> list[Backup]:
        """Newest first, held against the disk and against who still lives."""
        await self.bury()
        for backup in [one for one in await self._rows(project) if one.status == "complete"][:RECONCILED]:
            await self.reconcile(backup)
        return await self._rows(project)

    async def get(self, project: Project, text: str) -> Backup:
        """
        Raises:
            Refusal: 404.
        """
        with contextlib.suppress(ValueError):
            if found := await store.get(self._store, project.id, uuid.UUID(text)):
                return found
        raise Refusal(404, "Backup not found")

    def shown(self, backup: Backup) -> wire.Backup:
        present = self.files.stamp(backup) is not None
        return backup.on_the_wire(str(self.files.root), present=present)

    async def now(self) -> dt.datetime:
        return await store.now(self._store)

    async def freshness(self, backups: list[Backup]) -> dict[str, Any]:
        return freshness.freshness([one.kept() for one in backups], self.policy, await self.now())

    async def judge(self, project: Project, *, acknowledged: bool, skip_backup_check: bool) -> gate.Verdict:
        """May this project's database be overwritten now?"""
        return gate.judge(
            pooled=project.mode != V1,
            backups=_as_json([self.shown(one) for one in await self.of(project)]),
            now=await self.now(),
            max_age_s=self._settings.restore_max_age_s,
            acknowledged=acknowledged,
            skip_backup_check=skip_backup_check,
        )

    async def classify(self, project: Project) -> gate.Classification:
        return gate.classify(_as_json([self.shown(one) for one in await self.of(project)]))

    async def present(self, backup: Backup) -> bool:
        return backup.status == "complete" and self.files.stamp(backup) is not None

    async def busy(self, backup: Backup) -> bool:
        """Whether somebody dumps or verifies it now."""
        if backup.status in {"queued", "running"}:
            return await store.held(self._store, store.creating(backup.project_id))
        return await store.held(self._store, store.verifying(backup.id))

    async def _rows(self, project: Project) -> list[Backup]:
        return await store.of_project(self._store, project.id)

    # ------------------------------------------------------------ housekeeping

    async def reconcile(self, backup: Backup) -> None:
        """A file that is gone or changed is no backup. It is read again only when its stamp is another."""
        stamp = self.files.stamp(backup)
        if stamp is None:
            if backup.artifact != "artifact_invalid":
                await store.invalid(self._store, backup.id, "The file is gone.")
        elif stamp != backup.stamp and backup.artifact != "artifact_invalid":
            await self.whole(backup)

    async def whole(self, backup: Backup) -> bool:
        """Whether the file has its size and checksum; the row is told."""
        stamp = self.files.stamp(backup)
        if stamp is None:
            await store.invalid(self._store, backup.id, "The file is gone.")
            return False
        found = await digest(self.files.path(backup))
        if found != (backup.size_bytes, backup.checksum_sha256):
            await store.invalid(self._store, backup.id, "The file's size or checksum differs from what was written.")
            return False
        await store.valid(self._store, backup.id, stamp)
        return True

    async def bury(self) -> None:
        """What a crash left: rows marked failed, their files removed."""
        for dead in await store.fail_abandoned(self._store):
            self.files.remove(dead)

    async def sweep(self) -> None:
        """Crashes and retention, in all projects."""
        await self.bury()
        await asyncio.to_thread(throwaway.sweep, self.files.work)
        now = await self.now()
        for project in await registry.projects(self._store):
            rows = await self._rows(project)
            going = set(freshness.superfluous([one.kept() for one in rows], self.policy, now))
            for backup in (one for one in rows if str(one.id) in going):
                await store.forget(self._store, backup.id)
                self.files.remove(backup)

    async def due(self) -> list[Project]:
        """Active projects without a fresh verified backup, the longest without first."""
        due: list[tuple[dt.datetime, Project]] = []
        never = dt.datetime.min.replace(tzinfo=dt.UTC)
        for project in await registry.projects(self._store):
            kept = [one.kept() for one in await self._rows(project)]
            said = freshness.freshness(kept, self.policy, await self.now())["freshness"]
            if not said["platformBackupCompliant"] and project.lifecycle == "active":
                due.append((max((one.verified_at for one in kept if one.verified_at), default=never), project))
        return [project for _, project in sorted(due, key=lambda one: one[0])]


def _as_json(backups: list[wire.Backup]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(one) for one in backups]

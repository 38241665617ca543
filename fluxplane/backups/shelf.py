"""
The backups there are: rows held against the disk, judged, aged, and cleared away.

A row says what was written, the disk what is left of it; whoever asks gets rows that were compared first. What a crash
left is marked and removed here, and what retention lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import uuid
import weakref
from typing import Any, Final

import msgspec

from fluxplane import registry, wire
from fluxplane.backups import freshness, gate, store, throwaway
from fluxplane.backups.dump import digest
from fluxplane.backups.files import Files
from fluxplane.backups.freshness import Policy
from fluxplane.backups.offsite import Offsite
from fluxplane.backups.programs import BackupFailed, Unable
from fluxplane.backups.store import Backup
from fluxplane.catalogue import Catalogue, DatabaseFailure, describe
from fluxplane.policy import Refusal
from fluxplane.registry import Project
from fluxplane.settings import BackupSettings
from fluxplane.wire import V1

log = logging.getLogger(__name__)

# As many of a project's newest ones are held against the disk at each list (contract §7).
RECONCILED: Final = 20
# A large file takes minutes to read or to bring back; a client waits for a list half a minute at most.
LOOKED_WITHIN_S: Final = 5.0


class Shelf:
    """All backups of one catalogue, and their files."""

    def __init__(self, catalogue: Catalogue, settings: BackupSettings, jobs: asyncio.TaskGroup) -> None:
        self._store = catalogue
        self._settings = settings
        self._jobs = jobs
        self._looks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._looked_at: weakref.WeakValueDictionary[uuid.UUID, asyncio.Lock] = weakref.WeakValueDictionary()
        self.files = Files(settings.directory)
        self.offsite = (
            None if settings.offsite is None else Offsite(self.files, settings.offsite, settings.offsite_within_s)
        )

    def stop(self) -> None:
        for look in self._looks.values():
            look.cancel()

    def close(self) -> None:
        if self.offsite is not None:
            self.offsite.close()

    @property
    def policy(self) -> Policy:
        bounds = self._settings
        return Policy(bounds.interval_days, bounds.retention_count, bounds.retention_days)

    async def of(self, project: Project) -> list[Backup]:
        """
        Newest first, held against the disk and against who still lives.

        A look that takes longer than `LOOKED_WITHIN_S` goes on, for the next one who asks; `shown` claims nothing of
        what it has not come to.
        """
        await self.bury()
        await asyncio.wait([self._looking(project)], timeout=LOOKED_WITHIN_S)
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
        """As the wire has it; what was seen of another file than is there now proves nothing, until somebody looks."""
        stamp = self.files.stamp(backup)
        if backup.artifact == "artifact_valid" and stamp != backup.stamp:
            restore = "pending" if backup.restore == "restore_verified" else backup.restore
            backup = dataclasses.replace(backup, artifact="pending", restore=restore)
        return backup.on_the_wire(str(self.files.root), present=stamp is not None)

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
        return backup.status == "complete" and (
            self.files.stamp(backup) is not None or await self.whole(backup) is None
        )

    async def busy(self, backup: Backup) -> bool:
        """Whether somebody dumps or verifies it now."""
        if backup.status in {"queued", "running"}:
            return await store.held(self._store, store.creating(backup.project_id))
        return await store.held(self._store, store.verifying(backup.id))

    async def _rows(self, project: Project) -> list[Backup]:
        return await store.of_project(self._store, project.id)

    # ------------------------------------------------------------ housekeeping

    def _looking(self, project: Project) -> asyncio.Task[None]:
        """One look at a project's files at a time; it outlives who asked."""
        if (look := self._looks.get(project.id)) is None:
            look = self._looks[project.id] = self._jobs.create_task(self._look(project), name=f"look {project.hash}")
            look.add_done_callback(lambda _: self._looks.pop(project.id))
        return look

    async def _look(self, project: Project) -> None:
        try:
            for backup in [one for one in await self._rows(project) if one.status == "complete"][:RECONCILED]:
                await self.reconcile(backup)
        except DatabaseFailure as failure:
            log.warning("the look at the backups of %s: %s", project.hash, describe(failure))
        except Exception:
            log.exception("the look at the backups of %s", project.hash)

    async def reconcile(self, backup: Backup) -> None:
        """A file that is gone or changed is no backup. It is read again only when its stamp is another."""
        if self.files.stamp(backup) != backup.stamp and backup.artifact != "artifact_invalid":
            await self.whole(backup)
        if self.offsite is not None and backup.offsite == "complete" and await self.offsite.holds(backup) is False:
            await store.copied(self._store, backup.id, "The offsite copy is gone or was changed.")

    async def whole(self, backup: Backup) -> str | None:
        """Why the file has not its size and checksum, nor has them again from its offsite copy; the row is told."""
        # One at a time: a second one would find the first one's half of a file.
        async with self._looked_at.setdefault(backup.id, asyncio.Lock()):
            wrong = await self._wrong(backup)
            try:
                if wrong is not None and self.offsite is not None and await self.offsite.bring_back(backup):
                    log.warning("backup %s of %s came back from its offsite copy: %s", backup.id, backup.hash, wrong)
                    wrong = await self._wrong(backup)
            except Unable as unknown:
                # Another plane may be at it: what the row says is decided when somebody knows.
                return f"{wrong} {unknown}"
            if wrong is not None:
                await store.invalid(self._store, backup.id, wrong)
            return wrong

    async def _wrong(self, backup: Backup) -> str | None:
        stamp = self.files.stamp(backup)
        if stamp is None:
            return "The file is gone."
        if await digest(self.files.path(backup)) != (backup.size_bytes, backup.checksum_sha256):
            return "The file's size or checksum differs from what was written."
        await store.valid(self._store, backup.id, stamp)
        return None

    async def copy_offsite(self, backup: Backup, *, size: int, sha256: str) -> str | None:
        """Where a second place is wanted: why there is no copy there, or None."""
        if self.offsite is None:
            return None
        await store.copying(self._store, backup.id)
        try:
            await self.offsite.keep(backup, size=size, sha256=sha256)
            failed = None
        except BackupFailed as failure:
            failed = str(failure)
        await store.copied(self._store, backup.id, failed)
        return failed

    def remove(self, backup: Backup) -> None:
        """Its file, in both places."""
        self.files.remove(backup)
        if self.offsite is not None:
            self.offsite.remove(backup)

    async def bury(self) -> None:
        """What a crash left: rows marked failed, their files removed."""
        for dead in await store.fail_abandoned(self._store):
            self.remove(dead)

    async def sweep(self) -> None:
        """Crashes, retention, and offsite copies that are still missing, in all projects."""
        await self.bury()
        await asyncio.to_thread(throwaway.sweep, self.files.work)
        now = await self.now()
        for project in await registry.projects(self._store):
            rows = await self._rows(project)
            going = set(freshness.superfluous([one.kept() for one in rows], self.policy, now))
            for backup in (one for one in rows if str(one.id) in going):
                await store.forget(self._store, backup.id)
                self.remove(backup)
            for backup in (one for one in rows if str(one.id) not in going and one.status == "complete"):
                await self._copy_again(backup)

    async def _copy_again(self, backup: Backup) -> None:
        """What the second place lacks, from the first; and the other way round."""
        if self.offsite is None:
            return
        there = await self.offsite.holds(backup) if backup.offsite == "complete" else False
        if there is None or there == (backup.artifact != "artifact_invalid"):
            return
        if await self.whole(backup) is None and not there:
            await self.copy_offsite(backup, size=backup.size_bytes or 0, sha256=backup.checksum_sha256 or "")

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

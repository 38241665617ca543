"""
Backups as jobs: begun by a request or by the hour, done whether or not anybody waits, recorded however they end.

One create per project and one verification per backup at a time, on however many replicas: locks are rows (`store`).
A job's failure is an answer (`Refusal` 500), never a crash of the plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Final, Literal

from fluxplane import audit, registry
from fluxplane.audit import Actor
from fluxplane.backups import programs, store
from fluxplane.backups.dump import Source, dump
from fluxplane.backups.programs import BackupFailed, Unable
from fluxplane.backups.shelf import Shelf
from fluxplane.backups.sources import source_of
from fluxplane.backups.store import Backup
from fluxplane.backups.verify import Archive, verify
from fluxplane.catalogue import Catalogue, DatabaseFailure, describe
from fluxplane.policy import Refusal
from fluxplane.registry import Project
from fluxplane.settings import OperatorError, Settings
from fluxplane.wire import V1

log = logging.getLogger(__name__)

PROGRESS_EVERY_S: Final = 1.0
HOUR_S: Final = 3600.0
FIRST_TICK_RUNS: Final = 10
STOPPED: Final = "The control plane was stopped meanwhile."
TAKEN_FOR_DEAD: Final = "Another control plane took this run for dead."
_ACTIVITY: Final = {
    "backup_created": ("backup.created", "Backup created"),
    "backup_verified": ("backup.verified", "Backup verified by a restore"),
}


@dataclasses.dataclass(slots=True)
class Run:
    """One job at work. `phase` and `written` are how far it is: told to the catalogue every second."""

    event: Literal["backup_created", "backup_verified"]
    backup: Backup
    project: Project
    actor: Actor
    key: str
    owner: uuid.UUID
    phase: str = "starting"
    written: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """`done` ends with the job; it answers why it failed, or None."""

    backup: Backup
    done: asyncio.Task[str | None]


class Backups:
    """Makes and proves the backups of one catalogue; `shelf` is those there are. Make it with `running`."""

    def __init__(self, catalogue: Catalogue, settings: Settings, jobs: asyncio.TaskGroup) -> None:
        self._store = catalogue
        self._settings = settings
        self._jobs = jobs
        self._unfinished: set[asyncio.Task[str | None]] = set()
        self.shelf = Shelf(catalogue, settings.backups, jobs)

    # --------------------------------------------------------------- beginning

    async def create(self, project: Project, actor: Actor) -> Job:
        """
        Raises:
            Refusal: 409, one is running.
        """
        owner, key = uuid.uuid4(), store.creating(project.id)
        if not await store.acquire(self._store, key, owner):
            raise Refusal(409, "A backup is already running for this project.", code="backup_running")
        for dead in await store.fail_all(self._store, project.id):
            self.shelf.remove(dead)
        await audit.record(self._store, "backup_created", "intent", actor, project)
        backup = await store.get(self._store, project.id, await store.begin(self._store, project))
        assert backup is not None
        return self._begin(Run("backup_created", backup, project, actor, key, owner))

    async def verify(self, project: Project, actor: Actor, backup: Backup) -> Job:
        """
        Raises:
            Refusal: 409, it is not complete, or is being verified; 404, its file is gone.
        """
        if backup.status != "complete":
            raise Refusal(409, f"The backup is {backup.status}, not complete.", code="backup_not_complete")
        if not await self.shelf.present(backup):
            raise Refusal(404, "The backup's file is gone.", code="backup_file_missing")
        owner, key = uuid.uuid4(), store.verifying(backup.id)
        if not await store.acquire(self._store, key, owner):
            raise Refusal(409, "A verification of this backup is already running.", code="verify_running")
        await store.verifying_ended(self._store, backup.id, None)  # the last one's words
        await audit.record(self._store, "backup_verified", "intent", actor, project)
        return self._begin(Run("backup_verified", backup, project, actor, key, owner))

    async def source(self, project: Project) -> Source:
        """See `source_of`."""
        return await source_of(self._store, self._settings, project)

    def _begin(self, run: Run) -> Job:
        task = self._jobs.create_task(self._run(run), name=f"{run.event} {run.backup.id}")
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return Job(run.backup, task)

    def stop(self) -> None:
        self.shelf.stop()
        for task in self._unfinished:
            task.cancel()

    # ----------------------------------------------------------------- working

    async def _run(self, run: Run) -> str | None:
        """Do it under its lock and record how it ended: here ends every failure of a job."""
        failed: str | None = STOPPED
        try:
            async with programs.beside(self._beat(run)):
                await (self._create(run) if run.event == "backup_created" else self._verify(run))
            failed = None
        except (BackupFailed, Refusal, OperatorError) as failure:
            failed = str(failure)
        except DatabaseFailure as failure:
            failed = f"The catalogue: {describe(failure)}"
        except Exception:
            log.exception("%s %s", run.event, run.backup.id)
            failed = "Internal error"
        finally:
            await asyncio.shield(self._ended(run, failed))
        return failed

    async def _beat(self, run: Run) -> None:
        """The lock's heartbeat, and in between how far it is."""
        beats = round(store.BEAT_S / PROGRESS_EVERY_S)
        for number in itertools.count(1):
            await store.progress(self._store, run.backup.id, run.phase, run.written)
            await asyncio.sleep(PROGRESS_EVERY_S)
            if number % beats == 0 and not await store.beat(self._store, run.key, run.owner):
                raise BackupFailed(TAKEN_FOR_DEAD)

    async def _ended(self, run: Run, failed: str | None) -> None:
        if failed is not None:
            log.warning("%s %s of %s: %s", run.event, run.backup.id, run.project.hash, failed)
        with contextlib.suppress(*DatabaseFailure):
            if run.event == "backup_created" and failed is not None:
                await store.fail(self._store, run.backup.id, failed)
            elif run.event == "backup_verified":
                await store.verifying_ended(self._store, run.backup.id, failed)
            await store.release(self._store, run.key, run.owner)
            await audit.record(self._store, run.event, "failed" if failed else "ok", run.actor, run.project)
            if failed is None:
                await self._note(run)

    async def _note(self, run: Run) -> None:
        kind, summary = _ACTIVITY[run.event]
        about = {"backupId": str(run.backup.id), "kind": run.backup.kind}
        await registry.note(self._store, run.project, run.actor.user_id, kind, summary, about)

    async def _create(self, run: Run) -> None:
        source = await self.source(run.project)
        self.shelf.files.room(run.project.id)
        run.phase = "dumping"

        def written(size: int) -> None:
            run.written = size

        target, bound = self.shelf.files.path(run.backup), self._settings.backups.dump_within_s
        made = await dump(source, target, progress=written, within_s=bound)
        stamp = self.shelf.files.stamp(run.backup) or ""
        run.phase = "copying"
        uncopied = await self.shelf.copy_offsite(run.backup, size=made.size, sha256=made.sha256)
        if uncopied and self._settings.backups.offsite_strict:
            self.shelf.remove(run.backup)
            raise BackupFailed(uncopied)
        if not await store.complete(
            self._store, run.backup.id, made.manifest, size=made.size, sha256=made.sha256, stamp=stamp
        ):
            self.shelf.remove(run.backup)
            raise BackupFailed(TAKEN_FOR_DEAD)

    async def _verify(self, run: Run) -> None:
        run.phase, run.written = "reading", run.backup.size_bytes or 0
        if (wrong := await self.shelf.whole(run.backup)) is not None:
            raise BackupFailed(wrong)
        held = run.backup.held()
        assert held is not None, "a complete backup has a manifest"
        self.shelf.files.room(run.project.id)
        schema = None if run.project.mode == V1 else run.project.api_schema

        def phase(word: str) -> None:
            run.phase = word

        try:
            archive, bound = (
                Archive(self.shelf.files.path(run.backup), held, schema),
                self._settings.backups.verify_within_s,
            )
            await verify(archive, self.shelf.files.work, within_s=bound, phase=phase)
        except Unable:
            raise
        except BackupFailed as failure:
            await store.restored(self._store, run.backup.id, str(failure))
            raise
        await store.restored(self._store, run.backup.id, None)

    # ------------------------------------------------------------- by the hour

    async def hourly(self) -> None:
        """Sweep, and (where the settings say so) back up and verify what is due: one per tick, ten on the first."""
        runs = FIRST_TICK_RUNS
        while True:
            try:
                await self.shelf.sweep()
                for project in (await self.shelf.due())[:runs] if self._settings.backups.scheduled else []:
                    await self.keep_fresh(project)
            except DatabaseFailure as failure:
                log.warning("the hourly backups: %s", describe(failure))
            except Exception:
                log.exception("the hourly backups")
            runs = 1
            await asyncio.sleep(HOUR_S)

    async def keep_fresh(self, project: Project) -> None:
        """Create and verify one backup of *project*; what fails is recorded with it."""
        with contextlib.suppress(Refusal):
            made = await self.create(project, audit.plane())
            if await made.done is None:
                backup = await self.shelf.get(project, str(made.backup.id))
                await (await self.verify(project, audit.plane(), backup)).done


@contextlib.asynccontextmanager
async def running(catalogue: Catalogue, settings: Settings, *, hourly: bool = True) -> AsyncIterator[Backups]:
    """The backups of a plane; a serving one looks after them *hourly*. Leaving the block ends what runs, as failed."""
    failed: BaseException | None = None
    with contextlib.ExitStack() as afterwards:
        async with asyncio.TaskGroup() as jobs:
            backups = Backups(catalogue, settings, jobs)
            afterwards.callback(backups.shelf.close)
            housekeeping = jobs.create_task(backups.hourly(), name="backups hourly") if hourly else None
            try:
                yield backups
            except BaseException as failure:  # noqa: BLE001 - raised below as it came: the group would wrap it
                failed = failure
            finally:
                if housekeeping is not None:
                    housekeeping.cancel()
                backups.stop()
    if failed is not None:
        raise failed

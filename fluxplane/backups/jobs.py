"""
Backups as jobs: begun by a request or by the hour, done whether or not anybody waits, recorded however they end.

One create per project and one verification per backup at a time, on however many replicas: locks are rows (`store`).
A job's failure is an answer (`Refusal` 500), never a crash of the plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

import msgspec

from fluxplane import audit, containers, registry, wire
from fluxplane.audit import Actor
from fluxplane.backups import freshness, gate, programs, store, throwaway
from fluxplane.backups.dump import Source, digest, dump
from fluxplane.backups.files import Files
from fluxplane.backups.freshness import Policy
from fluxplane.backups.programs import BackupFailed, Login, Unable
from fluxplane.backups.store import Backup
from fluxplane.backups.verify import Archive, verify
from fluxplane.catalogue import Catalogue, DatabaseFailure, describe
from fluxplane.policy import Refusal
from fluxplane.registry import Project
from fluxplane.settings import OperatorError, Settings, database_of, password_of, split_url, user_of
from fluxplane.wire import V1

log = logging.getLogger(__name__)

RECONCILED: Final = 20
HOUR_S: Final = 3600.0
FIRST_TICK_RUNS: Final = 10
STOPPED: Final = "The control plane was stopped meanwhile."
TAKEN_FOR_DEAD: Final = "Another control plane took this run for dead."
_ACTIVITY: Final = {
    "backup_created": ("backup.created", "Backup created"),
    "backup_verified": ("backup.verified", "Backup verified by a restore"),
}
_BACKUP_URL: Final = "FLUXPLANE_POOL_BACKUP_URL"


@dataclasses.dataclass(slots=True)
class Run:
    """One job at work. `phase` and `written` are how far it is: told to the catalogue with every beat of its lock."""

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
    """All backups of one catalogue. Make it with `running`."""

    def __init__(self, catalogue: Catalogue, settings: Settings, jobs: asyncio.TaskGroup) -> None:
        self._store = catalogue
        self._settings = settings
        self._jobs = jobs
        self._unfinished: set[asyncio.Task[str | None]] = set()
        self.files = Files(settings.backups.directory)

    # ------------------------------------------------------------------ asking

    @property
    def policy(self) -> Policy:
        bounds = self._settings.backups
        return Policy(bounds.interval_days, bounds.retention_count, bounds.retention_days)

    async def of(self, project: Project) -> list[Backup]:
        """Newest first, held against the disk and against who still lives."""
        await self._bury()
        for backup in [one for one in await self._rows(project) if one.status == "complete"][:RECONCILED]:
            await self._reconcile(backup)
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
            max_age_s=self._settings.backups.restore_max_age_s,
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
            self.files.remove(dead)
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
        if self.files.stamp(backup) is None:
            await store.invalid(self._store, backup.id, "The file is gone.")
            raise Refusal(404, "The backup's file is gone.", code="backup_file_missing")
        owner, key = uuid.uuid4(), store.verifying(backup.id)
        if not await store.acquire(self._store, key, owner):
            raise Refusal(409, "A verification of this backup is already running.", code="verify_running")
        await audit.record(self._store, "backup_verified", "intent", actor, project)
        return self._begin(Run("backup_verified", backup, project, actor, key, owner))

    def _begin(self, run: Run) -> Job:
        task = self._jobs.create_task(self._run(run), name=f"{run.event} {run.backup.id}")
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return Job(run.backup, task)

    def stop(self) -> None:
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
        while True:
            await asyncio.sleep(store.BEAT_S)
            if not await store.beat(self._store, run.key, run.owner):
                raise BackupFailed(TAKEN_FOR_DEAD)
            await store.progress(self._store, run.backup.id, run.phase, run.written)

    async def _ended(self, run: Run, failed: str | None) -> None:
        if failed is not None:
            log.warning("%s %s of %s: %s", run.event, run.backup.id, run.project.hash, failed)
        with contextlib.suppress(*DatabaseFailure):
            if run.event == "backup_created" and failed is not None:
                await store.fail(self._store, run.backup.id, failed)
            elif run.event == "backup_verified":
                await store.progress(self._store, run.backup.id, None, run.written)
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
        self.files.room(run.project.id)
        run.phase = "dumping"

        def written(size: int) -> None:
            run.written = size

        target, bound = self.files.path(run.backup), self._settings.backups.dump_within_s
        made = await dump(source, target, progress=written, within_s=bound)
        stamp = self.files.stamp(run.backup) or ""
        if not await store.complete(
            self._store, run.backup.id, made.manifest, size=made.size, sha256=made.sha256, stamp=stamp
        ):
            self.files.remove(run.backup)
            raise BackupFailed(TAKEN_FOR_DEAD)

    async def _verify(self, run: Run) -> None:
        run.phase, run.written = "reading", run.backup.size_bytes or 0
        if not await self._whole(run.backup):
            raise BackupFailed("The backup's file is not what was written: its size or checksum differs.")
        held = run.backup.held()
        assert held is not None, "a complete backup has a manifest"
        self.files.room(run.project.id)
        schema = None if run.project.mode == V1 else run.project.api_schema

        def phase(word: str) -> None:
            run.phase = word

        try:
            archive, bound = Archive(self.files.path(run.backup), held, schema), self._settings.backups.verify_within_s
            await verify(archive, self.files.work, within_s=bound, phase=phase)
        except Unable:
            raise
        except BackupFailed as failure:
            await store.restored(self._store, run.backup.id, str(failure))
            raise
        await store.restored(self._store, run.backup.id, None)

    async def source(self, project: Project) -> Source:
        """
        How the plane itself reads this project's database.

        Raises:
            OperatorError: the plane was not told how to read this project's database.
            Unable: a container's password cannot be had.
        """
        if project.mode != V1:
            url = self._settings.pool_backup_url
            if url is None:
                raise OperatorError(f"{_BACKUP_URL} is not set: it names the pool's login for backups.")
            parts = split_url(url, _BACKUP_URL)
            login = Login(
                parts.hostname or "",
                parts.port or 5432,
                user_of(url, _BACKUP_URL),
                password_of(url, _BACKUP_URL),
                database_of(url, _BACKUP_URL),
            )
            return Source(login, project.api_schema)
        password = await registry.stored_password(self._store, project)
        host, port = project.reached_host, project.reached_port
        if password is None:
            password = await _containers_password(project)
            host, port = project.internal_host or project.container_name, project.internal_port
        return Source(Login(host or "", port or 5432, "postgres", password))

    # ------------------------------------------------------------ housekeeping

    async def _reconcile(self, backup: Backup) -> None:
        """A file that is gone or changed is no backup. It is read again only when its stamp is another."""
        stamp = self.files.stamp(backup)
        if stamp is None:
            if backup.artifact != "artifact_invalid":
                await store.invalid(self._store, backup.id, "The file is gone.")
        elif stamp != backup.stamp and backup.artifact != "artifact_invalid":
            await self._whole(backup)

    async def _whole(self, backup: Backup) -> bool:
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

    async def _bury(self) -> None:
        """What a crash left: rows marked failed, their files removed."""
        for dead in await store.fail_abandoned(self._store):
            self.files.remove(dead)

    async def sweep(self) -> None:
        """Crashes and retention, in all projects."""
        await self._bury()
        await asyncio.to_thread(throwaway.sweep, self.files.work)
        now = await self.now()
        for project in await registry.projects(self._store):
            rows = await self._rows(project)
            going = set(freshness.superfluous([one.kept() for one in rows], self.policy, now))
            for backup in (one for one in rows if str(one.id) in going):
                await store.forget(self._store, backup.id)
                self.files.remove(backup)

    async def hourly(self) -> None:
        """Sweep, and (where the settings say so) back up and verify what is due: one per tick, ten on the first."""
        runs = FIRST_TICK_RUNS
        while True:
            try:
                await self.sweep()
                for project in (await self._due())[:runs] if self._settings.backups.scheduled else []:
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
                backup = await self.get(project, str(made.backup.id))
                await (await self.verify(project, audit.plane(), backup)).done

    async def _due(self) -> list[Project]:
        due: list[tuple[dt.datetime, Project]] = []
        never = dt.datetime.min.replace(tzinfo=dt.UTC)
        for project in await registry.projects(self._store):
            kept = [one.kept() for one in await self._rows(project)]
            said = freshness.freshness(kept, self.policy, await self.now())["freshness"]
            if not said["platformBackupCompliant"] and project.lifecycle == "active":
                due.append((max((one.verified_at for one in kept if one.verified_at), default=never), project))
        return [project for _, project in sorted(due, key=lambda one: one[0])]


async def _containers_password(project: Project) -> wire.Secret:
    try:
        found = await containers.postgres_password(project.container_name)
    except containers.DockerUnreachable as failure:
        raise Unable(f"Docker cannot be reached: {failure}.") from failure
    if found is None:
        raise Unable(f"The container {project.container_name} is missing, stopped or has no password.")
    return found


def _as_json(backups: list[wire.Backup]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(one) for one in backups]


@contextlib.asynccontextmanager
async def running(catalogue: Catalogue, settings: Settings, *, hourly: bool = True) -> AsyncIterator[Backups]:
    """The backups of a plane; a serving one looks after them *hourly*. Leaving the block ends what runs, as failed."""
    failed: BaseException | None = None
    async with asyncio.TaskGroup() as jobs:
        backups = Backups(catalogue, settings, jobs)
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

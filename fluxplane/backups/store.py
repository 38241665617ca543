"""
The catalogue's rows about backups, and the locks of those who work on them.

A lock is a row whose holder says every `BEAT_S` that it lives; after `DEAD_AFTER_S` of silence anybody may take it,
and what its holder left running is marked failed. All clocks are the catalogue's.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from typing import Any, Final

from fluxplane import wire
from fluxplane.backups import manifest
from fluxplane.backups.freshness import Kept, instant
from fluxplane.backups.manifest import Manifest
from fluxplane.catalogue import Catalogue
from fluxplane.registry import Project
from fluxplane.wire import V1

BEAT_S: Final = 5.0
DEAD_AFTER_S: Final = 30.0
ABANDONED: Final = "The run ended before it was done: the control plane was stopped meanwhile."

_COLUMNS: Final = (
    "id, project_id, hash, kind, status, created_at, completed_at, error, size_bytes, checksum_sha256, manifest,"
    " artifact, artifact_at, artifact_error, restore, restore_at, restore_error, stamp, phase, progress_bytes,"
    " offsite, offsite_at, offsite_error, run_error"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Backup:
    """A row."""

    id: uuid.UUID
    project_id: uuid.UUID
    hash: str
    kind: str
    status: str
    created_at: dt.datetime
    completed_at: dt.datetime | None
    error: str | None
    size_bytes: int | None
    checksum_sha256: str | None
    manifest: str | None
    artifact: str
    artifact_at: dt.datetime | None
    artifact_error: str | None
    restore: str
    restore_at: dt.datetime | None
    restore_error: str | None
    stamp: str | None
    phase: str | None
    progress_bytes: int
    offsite: str | None
    offsite_at: dt.datetime | None
    offsite_error: str | None
    run_error: str | None

    @property
    def relative_path(self) -> str:
        return f"{self.project_id}/{self.id}.dump"

    def held(self) -> Manifest | None:
        return None if self.manifest is None else manifest.decode(self.manifest)

    def kept(self) -> Kept:
        return Kept(str(self.id), self.created_at, self.restore_at if self.restore == "restore_verified" else None)

    def on_the_wire(self, root: str, *, present: bool) -> wire.Backup:
        return wire.Backup(
            id=str(self.id),
            format="pg_custom",
            status=self.status,  # type: ignore[arg-type]  # held by the column's CHECK, as the next ones
            kind=self.kind,  # type: ignore[arg-type]
            primary_artifact_relative_path=self.relative_path,
            primary_artifact_absolute_path=f"{root}/{self.relative_path}",
            size_bytes=self.size_bytes,
            checksum_sha256=self.checksum_sha256,
            created_at=instant(self.created_at),
            completed_at=_iso(self.completed_at),
            local_artifact_status="present" if present else "missing",
            artifact_validation_status=self.artifact,  # type: ignore[arg-type]
            artifact_validation_at=_iso(self.artifact_at),
            artifact_validation_error=self.artifact_error,
            restore_verification_status=self.restore,  # type: ignore[arg-type]
            restore_verification_at=_iso(self.restore_at),
            restore_verification_error=self.restore_error,
            error=self.error,
            **(self._offsite() if self.offsite else {}),
        )

    def _offsite(self) -> dict[str, Any]:
        done = self.offsite == "complete"
        return {
            "offsite_status": self.offsite,
            "offsite_provider": "directory",
            "offsite_key": self.relative_path,
            "offsite_completed_at": _iso(self.offsite_at),
            "offsite_size_bytes": self.size_bytes if done else None,
            "offsite_content_sha256": self.checksum_sha256 if done else None,
            "offsite_error": self.offsite_error,
        }


def _iso(moment: dt.datetime | None) -> str | None:
    return None if moment is None else instant(moment)


async def now(store: Catalogue) -> dt.datetime:
    moment = await store.db.fetchval("SELECT clock_timestamp()")
    assert isinstance(moment, dt.datetime)
    return moment


async def of_project(store: Catalogue, project_id: uuid.UUID) -> list[Backup]:
    """Newest first."""
    rows = await store.db.fetch(
        f"SELECT {_COLUMNS} FROM backups WHERE project_id = $1 ORDER BY created_at DESC, id", project_id
    )
    return [Backup(**dict(row.items())) for row in rows]


async def get(store: Catalogue, project_id: uuid.UUID, backup_id: uuid.UUID) -> Backup | None:
    row = await store.db.fetchrow(
        f"SELECT {_COLUMNS} FROM backups WHERE project_id = $1 AND id = $2", project_id, backup_id
    )
    return None if row is None else Backup(**dict(row.items()))


async def without_fresh(store: Catalogue, days: int) -> list[str]:
    """Slug and hash of each active project without a verified backup of the last *days*."""
    rows = await store.db.fetch(
        "SELECT p.slug || ' ' || p.hash AS name FROM projects p WHERE p.lifecycle = 'active' AND NOT EXISTS ("
        " SELECT FROM backups b WHERE b.project_id = p.id AND b.restore = 'restore_verified'"
        " AND b.restore_at > clock_timestamp() - make_interval(days => $1)) ORDER BY 1",
        days,
    )
    return [str(row["name"]) for row in rows]


async def begin(store: Catalogue, project: Project) -> uuid.UUID:
    kind = "project_db" if project.mode == V1 else "tenant_export"
    made = await store.db.fetchval(
        "INSERT INTO backups (project_id, hash, kind, status, phase) VALUES ($1, $2, $3, 'running', 'starting')"
        " RETURNING id",
        project.id,
        project.hash,
        kind,
    )
    return uuid.UUID(str(made))


async def complete(
    store: Catalogue, backup_id: uuid.UUID, held: Manifest, *, size: int, sha256: str, stamp: str
) -> bool:
    """False: somebody took us for dead, and the row is failed."""
    return await _set(
        store,
        backup_id,
        "status = 'complete', completed_at = clock_timestamp(), phase = NULL, manifest = $2, size_bytes = $3,"
        " progress_bytes = $3, checksum_sha256 = $4, stamp = $5,"
        " artifact = 'artifact_valid', artifact_at = clock_timestamp()",
        manifest.encode(held),
        size,
        sha256,
        stamp,
        only="AND status = 'running'",
    )


async def fail(store: Catalogue, backup_id: uuid.UUID, reason: str) -> None:
    await _set(
        store,
        backup_id,
        "status = 'failed', completed_at = clock_timestamp(), phase = NULL, error = $2",
        reason,
    )


async def valid(store: Catalogue, backup_id: uuid.UUID, stamp: str) -> None:
    """The file has its checksum."""
    await _set(
        store,
        backup_id,
        "artifact = 'artifact_valid', artifact_at = clock_timestamp(), artifact_error = NULL, stamp = $2",
        stamp,
    )


async def invalid(store: Catalogue, backup_id: uuid.UUID, reason: str) -> None:
    """The file is gone or not what was written: then no restore of it was proven either."""
    await _set(
        store,
        backup_id,
        "artifact = 'artifact_invalid', artifact_at = clock_timestamp(), artifact_error = $2, stamp = NULL,"
        " restore = 'skipped', restore_at = clock_timestamp(), restore_error = $2",
        reason,
    )


async def restored(store: Catalogue, backup_id: uuid.UUID, error: str | None) -> None:
    """How the verification ended: well, unless there is an *error*."""
    await _set(
        store,
        backup_id,
        "restore = CASE WHEN $2::text IS NULL THEN 'restore_verified' ELSE 'restore_failed' END,"
        " restore_at = clock_timestamp(), restore_error = $2",
        error,
    )


async def copying(store: Catalogue, backup_id: uuid.UUID) -> None:
    """Into the second place, from now on."""
    await _set(store, backup_id, "offsite = 'running', offsite_at = NULL, offsite_error = NULL")


async def copied(store: Catalogue, backup_id: uuid.UUID, error: str | None) -> None:
    """How that ended: well, unless there is an *error*."""
    await _set(
        store,
        backup_id,
        "offsite = CASE WHEN $2::text IS NULL THEN 'complete' ELSE 'failed' END,"
        " offsite_at = CASE WHEN $2::text IS NULL THEN clock_timestamp() END, offsite_error = $2",
        error,
    )


async def progress(store: Catalogue, backup_id: uuid.UUID, phase: str | None, written: int) -> None:
    await _set(store, backup_id, "phase = $2, progress_bytes = $3", phase, written)


async def verifying_ended(store: Catalogue, backup_id: uuid.UUID, error: str | None) -> None:
    await _set(store, backup_id, "phase = NULL, run_error = $2", error)


async def _set(store: Catalogue, backup_id: uuid.UUID, what: str, *values: Any, only: str = "") -> bool:
    return (
        str(await store.db.execute(f"UPDATE backups SET {what} WHERE id = $1 {only}", backup_id, *values)) != "UPDATE 0"
    )


async def forget(store: Catalogue, backup_id: uuid.UUID) -> None:
    await store.db.execute("DELETE FROM backups WHERE id = $1", backup_id)


# -------------------------------------------------------------------------- locks


def creating(project_id: uuid.UUID) -> str:
    return f"backup:create:{project_id}"


def verifying(backup_id: uuid.UUID) -> str:
    return f"backup:verify:{backup_id}"


async def acquire(store: Catalogue, key: str, owner: uuid.UUID) -> bool:
    """Whether *owner* has the lock now: it was free, or its holder is dead."""
    taken = await store.db.fetchval(
        "INSERT INTO backup_locks (key, owner) VALUES ($1, $2)"
        " ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, heartbeat_at = clock_timestamp()"
        f" WHERE backup_locks.heartbeat_at < clock_timestamp() - interval '{DEAD_AFTER_S} s' RETURNING 1",
        key,
        owner,
    )
    return taken is not None


async def beat(store: Catalogue, key: str, owner: uuid.UUID) -> bool:
    """False: somebody else took us for dead."""
    done = await store.db.execute(
        "UPDATE backup_locks SET heartbeat_at = clock_timestamp() WHERE key = $1 AND owner = $2", key, owner
    )
    return str(done) == "UPDATE 1"


async def release(store: Catalogue, key: str, owner: uuid.UUID) -> None:
    await store.db.execute("DELETE FROM backup_locks WHERE key = $1 AND owner = $2", key, owner)


async def held(store: Catalogue, key: str) -> bool:
    found = await store.db.fetchval(
        "SELECT 1 FROM backup_locks WHERE key = $1"
        f" AND heartbeat_at >= clock_timestamp() - interval '{DEAD_AFTER_S} s'",
        key,
    )
    return found is not None


_ABANDON: Final = (
    "UPDATE backups b SET status = 'failed', completed_at = clock_timestamp(), phase = NULL, error = $1"
    " WHERE b.status IN ('queued', 'running') AND"
)


async def fail_all(store: Catalogue, project_id: uuid.UUID) -> list[Backup]:
    """For whoever has just got the project's lock: what runs now, by the rows, runs no more."""
    rows = await store.db.fetch(f"{_ABANDON} b.project_id = $2 RETURNING {_COLUMNS}", ABANDONED, project_id)
    return [Backup(**dict(row.items())) for row in rows]


async def fail_abandoned(store: Catalogue) -> list[Backup]:
    """Mark failed, in all projects, what nobody works on any more; answers those rows. Forgets long dead locks."""
    rows = await store.db.fetch(
        f"{_ABANDON} NOT EXISTS (SELECT FROM backup_locks l WHERE l.key = 'backup:create:' || b.project_id"
        f" AND l.heartbeat_at >= clock_timestamp() - interval '{DEAD_AFTER_S} s') RETURNING {_COLUMNS}",
        ABANDONED,
    )
    await store.db.execute(
        f"DELETE FROM backup_locks WHERE heartbeat_at < clock_timestamp() - interval '{10 * DEAD_AFTER_S} s'"
    )
    return [Backup(**dict(row.items())) for row in rows]

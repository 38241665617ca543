"""
Makes one backup file: pg_dump's custom format, whole or not there at all.

pg_dump writes under a temporary name; only after it ended with 0, its table of contents could be read and the bytes
are on disk does the file get its name. What it must hold is counted meanwhile, in the same snapshot. A v1 backup keeps
its privileges (GRANT), which the existing platform drops: restoring without them locks the project's API out; a reader
who doesn't want them says `pg_restore --no-acl`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from fluxplane import binaries
from fluxplane.backups import manifest, programs
from fluxplane.backups.manifest import Manifest
from fluxplane.backups.programs import BackupFailed, Login

LIST_WITHIN_S: Final = 300
LOCK_WAIT_MS: Final = 30_000
CHUNK: Final = 8 * 1024 * 1024

# Called with the bytes written so far; what it raises ends the dump.
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Source:
    """What to dump: a whole database, or one tenant's *schema* of it."""

    login: Login
    schema: str | None = None


@dataclass(frozen=True)
class Dumped:
    manifest: Manifest
    size: int
    sha256: str


async def dump(source: Source, target: Path, *, progress: Progress, within_s: float) -> Dumped:
    """
    Write *source* to *target*, whose directory exists. *target* is there afterwards, whole, or it is not.

    Raises:
        BackupFailed: a reason in one line; nothing is left.
    """
    partial = target.with_name(target.name + ".partial")
    with _no_leftover(partial):
        async with manifest.connected(source.login) as connection, manifest.snapshot(connection) as snapshot:
            major = connection.get_server_version().major
            tools = programs.fitting(major, await programs.installations())
            counted = await _both(
                manifest.take(connection, source.schema),
                _pg_dump(tools, source, snapshot, partial, progress, within_s),
            )
        await contents(tools, partial)
        size, sha256 = await digest(partial)
        await asyncio.to_thread(_keep, partial, target)
    return Dumped(counted, size, sha256)


async def _both(counting: Coroutine[Any, Any, Manifest], dumping: Coroutine[Any, Any, None]) -> Manifest:
    """At the same time, on the same snapshot; the first failure ends the other."""
    try:
        async with asyncio.TaskGroup() as group:
            counted = group.create_task(counting)
            group.create_task(dumping)
        return counted.result()
    except* (BackupFailed, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failures:
        raise _first(failures) from None


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """pg_dump's own words before the connection's."""
    return programs.first(failures.subgroup(BackupFailed) or failures)


async def _pg_dump(
    tools: binaries.Installation, source: Source, snapshot: str, partial: Path, progress: Progress, within_s: float
) -> None:
    # Made by us, so that it is private from its first byte.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    options = ["--format=custom", "--no-owner", f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_WAIT_MS}"]
    options += ["--no-acl", f"--schema={manifest.quoted(source.schema)}"] if source.schema else []
    async with programs.passfile(source.login) as passfile:
        done = await programs.run(
            [tools.program("pg_dump"), *source.login.arguments(), "--no-password", *options, f"--file={partial}"],
            env=programs.environment(passfile),
            within_s=within_s,
            tick=lambda: progress(partial.stat().st_size),
        )
    if done.status != 0:
        raise BackupFailed(f"pg_dump failed: {_reason(done)}")


def _reason(done: programs.Finished) -> str:
    words = done.words()
    if "canceling statement due to statement timeout" in words:  # how --lock-wait-timeout ends
        return f"another session kept a table locked for {LOCK_WAIT_MS / 1000:.0f} s ({words})"
    return words


async def contents(tools: binaries.Installation, archive: Path) -> list[str]:
    """
    The lines of the archive's table of contents.

    Raises:
        BackupFailed: the file is no archive, or not whole.
    """
    lines: list[str] = []
    done = await programs.run(
        [tools.program("pg_restore"), "--list", archive],
        env=programs.environment(),
        within_s=LIST_WITHIN_S,
        line=lines.append,
    )
    if done.status != 0:
        raise BackupFailed(f"The file is not a readable archive: {done.words()}")
    return [line for line in lines if not line.startswith(";")]


async def digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256, chunk by chunk in threads, so that it can be cancelled."""
    seen = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            await asyncio.to_thread(seen.update, chunk)
            size += len(chunk)
    return size, seen.hexdigest()


def _keep(partial: Path, target: Path) -> None:
    """On disk first, then under its name, then the name on disk."""
    for path, flags in ((partial, os.O_RDONLY), (target.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path == partial:
            partial.replace(target)


@contextlib.contextmanager
def _no_leftover(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        raise BackupFailed(f"The backup's file cannot be written: {failure.strerror}") from failure
    finally:
        partial.unlink(missing_ok=True)

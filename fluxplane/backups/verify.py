"""
Proves that a backup restores: into a throwaway Postgres, compared with what was counted when it was dumped.

pg_restore must end with 0, the restored database's table of contents must be the archive's, and every table must have
the rows that the dump's own snapshot had. An empty tenant is as provable as a full one.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from fluxplane import binaries
from fluxplane.backups import manifest, programs
from fluxplane.backups.dump import contents
from fluxplane.backups.manifest import Connection, Manifest
from fluxplane.backups.programs import BackupFailed, Login, Unable
from fluxplane.backups.throwaway import DATABASE, Limits, Throwaway, throwaway

LIST_WITHIN_S: Final = 600
RESTORER: Final = "flux_verify"
# Those the platform's projects know (contract §7); `--no-owner --no-acl` leaves only policies to name them.
PLATFORM_ROLES: Final = ("anon", "authenticated", "service_role", "authenticator")
_HEADING: Final = "-- Name: "
# pg_restore --schema-only announces it, pg_dump --schema-only does not.
_DATA: Final = "; Type: MATERIALIZED VIEW DATA; "

Phase = Callable[[str], object]


@dataclass(frozen=True)
class Archive:
    """A backup's file, and what its dump said it holds."""

    path: Path
    manifest: Manifest
    schema: str | None


async def verify(
    archive: Archive, work: Path, *, within_s: float, limits: Limits | None = None, phase: Phase = lambda _: None
) -> Manifest:
    """
    What the restored database holds, which is what was dumped. *phase* hears what is being done.

    Raises:
        BackupFailed: it does not restore, or not to the same.
        Unable: a verification cannot be run here; nothing is known about the backup.
    """
    bounds = limits or Limits()
    tools = programs.fitting(archive.manifest.major, await programs.installations())
    try:
        async with asyncio.timeout(within_s):
            phase("reading")
            await contents(tools, archive.path)  # no server is made for what is no archive
            phase("starting")
            async with throwaway(tools, work, bounds) as server:
                restorer = await _prepare(server, archive)
                phase("restoring")
                await _restore(tools, server.login(restorer), archive, bounds, within_s)
                phase("comparing")
                return await _compare(tools, server, archive)
    except TimeoutError:
        raise Unable(f"The verification was not done within {within_s:.0f} s.") from None


async def _prepare(server: Throwaway, archive: Archive) -> str:
    """An empty database with the roles and surroundings that the archive takes for granted; who is to restore."""
    # A tenant is no superuser in the pool either; only a project with a server of its own may need one.
    restorer = "postgres" if server.superuser and archive.schema is None else RESTORER
    async with manifest.connected(server.login(database="postgres")) as link:
        await _make_restorer(link, server)
        for role in {*PLATFORM_ROLES, *archive.manifest.roles} - {"postgres", RESTORER}:
            await link.execute(f"CREATE ROLE {manifest.quoted(role)} NOLOGIN")
        await link.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0 OWNER {restorer}")
    if archive.schema is not None:
        async with manifest.connected(server.login()) as link:
            await _surround(link, archive.manifest)
    return restorer


async def _make_restorer(link: Connection, server: Throwaway) -> None:
    """BYPASSRLS: refreshing a materialised view reads as its owner. The password is of our own alphabet."""
    password = server.password.reveal()
    await link.execute(f"CREATE ROLE {RESTORER} LOGIN BYPASSRLS PASSWORD '{password}'")


async def _surround(link: Connection, held: Manifest) -> None:
    """What lies outside a tenant's schema. What cannot be made is missed by the restore, if by anything."""
    statements = ["CREATE SCHEMA IF NOT EXISTS auth", "GRANT USAGE ON SCHEMA auth TO PUBLIC"]
    for name, schema in held.extensions.items():
        statements.append(f"CREATE SCHEMA IF NOT EXISTS {manifest.quoted(schema)}")
        statements.append(f"CREATE EXTENSION {manifest.quoted(name)} SCHEMA {manifest.quoted(schema)}")
    await link.execute("SET check_function_bodies = off")
    for statement in (*statements, *held.functions):
        with contextlib.suppress(asyncpg.PostgresError):
            await link.execute(statement)


async def _restore(
    tools: binaries.Installation, login: Login, archive: Archive, limits: Limits, within_s: float
) -> None:
    def room() -> None:
        if shutil.disk_usage(login.host).free < limits.reserve_bytes:
            raise Unable("The verification was ended: the disk of the backups' work directory is nearly full.")

    async with programs.passfile(login) as passfile:
        done = await programs.run(
            [
                tools.program("pg_restore"),
                *login.arguments(),
                *("--no-password", "--exit-on-error", "--no-owner", "--no-acl"),
                archive.path,
            ],
            env=programs.environment(passfile),
            within_s=within_s,
            tick=room,
        )
    if done.status != 0:
        raise BackupFailed(f"pg_restore failed: {done.words()}")


async def _compare(tools: binaries.Installation, server: Throwaway, archive: Archive) -> Manifest:
    login = server.login()
    async with manifest.connected(login) as link, manifest.snapshot(link):
        restored = await manifest.take(link, archive.schema)
    if found := manifest.differences(archive.manifest, restored):
        raise BackupFailed(f"The restore is not what was dumped: {manifest.told(found)}")
    plain = ("--schema-only", "--no-owner", "--no-acl")
    only = () if archive.schema is None else (f"--schema={manifest.quoted(archive.schema)}",)
    dumped = await _headings([tools.program("pg_restore"), *plain, "--file=-", archive.path])
    async with programs.passfile(login) as passfile:
        command = [tools.program("pg_dump"), *login.arguments(), "--no-password", *plain, *only]
        redumped = await _headings(command, passfile)
    if dumped != redumped:
        raise BackupFailed(f"The restored contents are not the archive's: {_told(dumped, redumped)}")
    return restored


async def _headings(command: Sequence[str | Path], passfile: Path | None = None) -> collections.Counter[str]:
    """The comment that pg_dump and pg_restore write above each object: its name, type and schema."""
    seen: collections.Counter[str] = collections.Counter()

    def line(text: str) -> None:
        if text.startswith(_HEADING) and _DATA not in text:
            seen[text.removeprefix(_HEADING)] += 1

    done = await programs.run(command, env=programs.environment(passfile), within_s=LIST_WITHIN_S, line=line)
    if done.status != 0:
        raise BackupFailed(f"The contents cannot be listed: {done.words()}")
    return seen


def _told(dumped: collections.Counter[str], restored: collections.Counter[str]) -> str:
    lost = [f"missing: {name}" for name in dumped - restored]
    return manifest.told(lost + [f"too much: {name}" for name in restored - dumped])

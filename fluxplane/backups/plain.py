"""
A v1 database as plain SQL, while it is being dumped: `flux dump` (contract §2.7).

The reader must not take a torn stream for a whole one, so whoever relays it is told how pg_dump ended before the
stream's end is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from fluxplane.backups import manifest, programs
from fluxplane.backups.dump import LOCK_WAIT_MS, Source
from fluxplane.backups.programs import BackupFailed

CHUNK: Final = 256 * 1024
CHUNK_WITHIN_S: Final = 600


async def plain_sql(source: Source, *options: str) -> AsyncGenerator[bytes, None]:
    """
    pg_dump's SQL, chunk by chunk. Closing the iterator ends pg_dump.

    Raises:
        BackupFailed: at once, or after chunks that are then worth nothing.
    """
    async with manifest.connected(source.login) as connection:
        tools = programs.fitting(connection.get_server_version().major, await programs.installations())
    command = [
        tools.program("pg_dump"),
        *source.login.arguments(),
        *("--no-password", f"--lock-wait-timeout={LOCK_WAIT_MS}", *options),
    ]
    async with (
        programs.passfile(source.login) as passfile,
        programs.started(command, env=programs.environment(passfile), stdout=asyncio.subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        said = asyncio.ensure_future(programs.tail(process.stderr))
        try:
            while chunk := await asyncio.wait_for(process.stdout.read(CHUNK), CHUNK_WITHIN_S):
                yield chunk
            finished = programs.Finished(await process.wait(), await said)
        finally:
            said.cancel()
    if finished.status != 0:
        raise BackupFailed(f"pg_dump failed: {finished.words()}")

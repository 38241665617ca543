"""
The socket's routes about backups and restores: the control plane's answers passed on, its streams as they come.

A stream that breaks off on the way is torn on the socket too: nobody takes a half for the whole.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AbstractAsyncContextManager
from typing import Final

import aiohttp
from aiohttp import web

from fluxd import wire
from fluxd.api import callers
from fluxd.api.problems import answer
from fluxd.core import errors
from fluxd.plane import BackupRoutes, Caller, Tokens
from fluxplane.wire import RestoreAsked, RestoreEnded

log = logging.getLogger(__name__)

CHUNK: Final = 256 * 1024
CHUNK_WITHIN_S: Final = 120.0
_PASSED: Final = ("Content-Type", "Content-Length", "Content-Range", "Content-Disposition", "Accept-Ranges", "ETag")
_DUMP_OPTIONS: Final = ("schemaOnly", "dataOnly", "clean", "publicOnly")


class BackupsApi:
    """The part of `handlers.Api` that speaks of backups; each method is the operation of that name."""

    _backups: BackupRoutes
    _tokens: Tokens

    async def backups(self, request: web.Request) -> web.Response:
        caller, project_hash = await self._asked(request)
        return answer(await self._backups.list(caller, project_hash))

    async def create_backup(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        caller = await self._tokens.resolve((await callers.body(request, wire.AskPlane)).plane)
        status, made = await self._backups.create(caller, project_hash, wait=_waits(request))
        return answer(made, status=status)

    async def verify_backup(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        caller = await self._tokens.resolve((await callers.body(request, wire.AskPlane)).plane)
        status, verified = await self._backups.verify(caller, project_hash, _id(request), wait=_waits(request))
        return answer(verified, status=status)

    async def backup_progress(self, request: web.Request) -> web.StreamResponse:
        caller, project_hash = await self._asked(request)
        return await _passed_on(request, self._backups.progress(caller, project_hash, _id(request)))

    async def download_backup(self, request: web.Request) -> web.StreamResponse:
        caller, project_hash = await self._asked(request)
        headers = {"Range": found} if (found := _range(request)) else {}
        return await _passed_on(request, self._backups.download(caller, project_hash, _id(request), headers))

    async def plain_dump(self, request: web.Request) -> web.StreamResponse:
        caller, project_hash = await self._asked(request)
        query = {name: "1" for name in _DUMP_OPTIONS if request.query.get(name) == "1"}
        return await _passed_on(request, self._backups.plain_dump(caller, project_hash, query))

    async def ask_restore(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        asked = await callers.body(request, wire.AskRestore)
        sent = RestoreAsked(
            acknowledged=asked.acknowledged, skip_backup_check=asked.skip_backup_check, reason=asked.reason
        )
        caller = await self._tokens.resolve(asked.plane)
        return answer(await self._backups.ask_restore(caller, project_hash, sent))

    async def end_restore(self, request: web.Request) -> web.Response:
        project_hash = callers.project_hash(request.match_info["hash"])
        told = await callers.body(request, wire.EndRestore)
        caller = await self._tokens.resolve(told.plane)
        await self._backups.end_restore(caller, project_hash, _id(request), RestoreEnded(outcome=told.outcome))
        return web.Response(status=204)

    async def _asked(self, request: web.Request) -> tuple[Caller, str]:
        project_hash = callers.project_hash(request.match_info["hash"])
        return await self._tokens.resolve(callers.plane(request)), project_hash


def _id(request: web.Request) -> str:
    """Held to a pattern: it becomes a part of the plane's path."""
    text = request.match_info["id"]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise errors.BackupNotFound
    return text


def _waits(request: web.Request) -> bool:
    return request.query.get("wait", "1") != "0"


def _range(request: web.Request) -> str | None:
    text = request.headers.get("Range")
    if text is not None and not re.fullmatch(r"bytes=[0-9]{1,18}-", text):
        raise errors.BadRequest("Only a range to the end is answered: `bytes=N-`.")
    return text


async def _passed_on(
    request: web.Request, opening: AbstractAsyncContextManager[aiohttp.ClientResponse]
) -> web.StreamResponse:
    """What the plane answers, chunk by chunk. Before the first byte a failure is a problem, after it a torn stream."""
    response: web.StreamResponse | None = None
    try:
        async with opening as source:
            headers = {name: source.headers[name] for name in _PASSED if name in source.headers}
            response = web.StreamResponse(status=source.status, headers=headers | {"Cache-Control": "no-store"})
            await response.prepare(request)
            await _pour(source, response)
    except errors.FluxError as failure:
        if response is None:
            raise
        log.info("a stream of the control plane broke off: %s", failure.detail or failure.message)
        if request.transport is not None:
            request.transport.abort()
    assert response is not None
    return response


async def _pour(source: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    while True:
        async with asyncio.timeout(CHUNK_WITHIN_S):
            chunk = await source.content.readany()
        if not chunk:
            break
        async with asyncio.timeout(CHUNK_WITHIN_S):
            await response.write(chunk)
    await response.write_eof()

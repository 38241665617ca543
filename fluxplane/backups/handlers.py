"""
The HTTP of backups: contract §2.6, §2.7 and our extensions (`?wait=0`, progress, restores).

`api` owns tokens, rates and error shapes; it hands over each authenticated `Call`. What is answered and when it is
refused is decided here, what happens in `jobs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec
from aiohttp import web

from fluxplane import audit, wire
from fluxplane.audit import Actor, Details
from fluxplane.backups import gate, plain
from fluxplane.backups.freshness import instant
from fluxplane.backups.jobs import Backups, Job
from fluxplane.backups.programs import BackupFailed
from fluxplane.backups.shelf import Shelf
from fluxplane.catalogue import Catalogue
from fluxplane.policy import REASON_MAX, Refusal
from fluxplane.registry import Project
from fluxplane.settings import is_true
from fluxplane.wire import V1

PROJECT: Final = "/api/cli/v1/projects/{hash}"
BACKUPS: Final = PROJECT + "/backups"
PROGRESS_EVERY_S: Final = 0.5
HEADERS: Final = {"Cache-Control": "private, no-store, max-age=0, must-revalidate"}


class Call(Protocol):
    """One authenticated request, as `api` makes it."""

    @property
    def request(self) -> web.Request: ...
    @property
    def actor(self) -> Actor: ...
    @property
    def store(self) -> Catalogue: ...
    @property
    def backups(self) -> Backups: ...
    @property
    def contract_only(self) -> bool: ...
    async def project(self) -> Project: ...


Handler = Callable[[Call], Awaitable[web.StreamResponse]]
Tier = Literal["read", "write", "sensitive"]
Route = tuple[str, str, Handler, Tier]


def routes(*, contract_only: bool) -> Sequence[Route]:
    """Method, path, handler and rate of each."""
    contract: list[Route] = [
        ("GET", BACKUPS, _list, "read"),
        ("POST", BACKUPS, _create, "write"),
        ("POST", BACKUPS + "/{id}/verify", _verify, "sensitive"),
        ("GET", BACKUPS + "/{id}/download", _download, "read"),
        ("GET", PROJECT + "/dump", _dump, "read"),
    ]
    ours: list[Route] = [
        ("GET", BACKUPS + "/{id}/progress", _progress, "read"),
        ("POST", PROJECT + "/restores", _ask_restore, "write"),
        ("POST", PROJECT + "/restores/{id}", _end_restore, "write"),
    ]
    return contract if contract_only else contract + ours


def answer(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=wire.encode(body), status=status, content_type="application/json", headers=HEADERS)


# ------------------------------------------------------------------------ backups


async def _list(call: Call) -> web.StreamResponse:
    project = await call.project()
    found = await call.backups.shelf.of(project)
    return answer(
        wire.BackupList(
            backups=[call.backups.shelf.shown(one) for one in found],
            backup_volume_absolute_root=str(call.backups.shelf.files.root),
            reconciled_at=instant(await call.backups.shelf.now()),
            platform_minimum_backup_freshness=await call.backups.shelf.freshness(found),
        )
    )


async def _create(call: Call) -> web.StreamResponse:
    project = await call.project()
    job = await call.backups.create(project, call.actor)
    if not _waits(call):
        return answer(wire.BackupMade(backup=call.backups.shelf.shown(job.backup)), status=202)
    await _done(job)
    shelf = call.backups.shelf
    found = await shelf.of(project)
    made = next(one for one in found if one.id == job.backup.id)
    return answer(
        wire.BackupMade(
            backup=call.backups.shelf.shown(made),
            platform_minimum_backup_freshness=await call.backups.shelf.freshness(found),
        )
    )


async def _verify(call: Call) -> web.StreamResponse:
    project = await call.project()
    backup = await call.backups.shelf.get(project, call.request.match_info["id"])
    job = await call.backups.verify(project, call.actor, backup)
    if not _waits(call):
        return answer(_verified(backup.id, "pending"), status=202)
    await _done(job)
    return answer(_verified(backup.id, "restore_verified"))


def _verified(backup_id: uuid.UUID, status: str) -> wire.BackupVerified:
    return wire.BackupVerified(ok=True, backup_id=str(backup_id), restore_verification_status=status)


def _waits(call: Call) -> bool:
    """`?wait=0` (extension): answer at once, the job goes on."""
    return call.contract_only or call.request.query.get("wait", "1") != "0"


async def _done(job: Job) -> None:
    """
    Wait for the job, which outlives us if the client leaves.

    Raises:
        Refusal: 500 with the reason; 503 the plane is being stopped.
    """
    await asyncio.wait([job.done])
    if job.done.cancelled():
        raise Refusal(503, "The control plane is being stopped; the run was ended.")
    if (failed := job.done.result()) is not None:
        raise Refusal(500, failed, code="backup_failed")


async def _download(call: Call) -> web.StreamResponse:
    project = await call.project()
    backup = await call.backups.shelf.get(project, call.request.match_info["id"])
    if not await call.backups.shelf.present(backup):
        raise Refusal(404, "The backup has no file.", code="backup_file_missing")
    await audit.record(call.store, "backup_downloaded", "ok", call.actor, project)
    headers = HEADERS | {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'attachment; filename="{project.hash}-{backup.id}.dump"',
    }
    return web.FileResponse(call.backups.shelf.files.path(backup), headers=headers)


async def _progress(call: Call) -> web.StreamResponse:
    project = await call.project()
    backup = await call.backups.shelf.get(project, call.request.match_info["id"])
    response = web.StreamResponse(headers=HEADERS | {"Content-Type": "application/x-ndjson"})
    await response.prepare(call.request)
    async for line in _lines(call.backups.shelf, project, str(backup.id)):
        await response.write(wire.encode(line) + b"\n")
    await response.write_eof()
    return response


async def _lines(shelf: Shelf, project: Project, backup_id: str) -> AsyncIterator[wire.BackupProgress]:
    """One each time something changed; the last one when nobody works on the backup any more."""
    last: wire.BackupProgress | None = None
    while True:
        backup = await shelf.get(project, backup_id)
        done = not await shelf.busy(backup)
        line = wire.BackupProgress(
            backup_id=backup_id,
            phase=backup.phase,
            bytes=backup.progress_bytes,
            done=done,
            backup=shelf.shown(backup) if done else None,
            error=backup.run_error if done else None,
        )
        if line != last:
            yield line
        if done:
            return
        last = line
        await asyncio.sleep(PROGRESS_EVERY_S)


# --------------------------------------------------------------------- plain dump

_OPTIONS: Final = {
    "schemaOnly": "--schema-only",
    "dataOnly": "--data-only",
    "clean": "--clean",
    "publicOnly": "--schema=public",
}


async def _dump(call: Call) -> web.StreamResponse:
    project = await call.project()
    asked = {name for name in _OPTIONS if is_true(call.request.query.get(name))}
    if {"schemaOnly", "dataOnly"} <= asked:
        raise Refusal(400, "schemaOnly and dataOnly exclude each other.")
    if project.mode != V1:
        raise Refusal(400, "The project has no database container of its own; use `flux backup create`.")
    options = [_OPTIONS[name] for name in sorted(asked)]
    if "--clean" in options:
        options.append("--if-exists")
    await audit.record(call.store, "database_dumped", "intent", call.actor, project)
    try:
        chunks = plain.plain_sql(await call.backups.source(project), *options)
        async with contextlib.aclosing(chunks):
            response = await _stream(call, project, chunks)
    except BackupFailed as failure:
        await audit.record(call.store, "database_dumped", "failed", call.actor, project)
        raise Refusal(500, str(failure), code="dump_failed") from failure
    return response


async def _stream(call: Call, project: Project, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    """The first chunk decides between an error and a stream; a failure after it tears the connection."""
    moment = (await call.backups.shelf.now()).strftime("%Y%m%dT%H%M%SZ")
    headers = HEADERS | {
        "Content-Type": "application/sql",
        "Content-Disposition": f'attachment; filename="{project.slug}-{moment}.sql"',
    }
    begun = await anext(chunks, b"")
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(call.request)
    try:
        await response.write(begun)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
        await audit.record(call.store, "database_dumped", "ok", call.actor, project)
    except BackupFailed:
        await audit.record(call.store, "database_dumped", "failed", call.actor, project)
        if call.request.transport is not None:
            call.request.transport.abort()
    return response


# ----------------------------------------------------------------------- restores


async def _ask_restore(call: Call) -> web.StreamResponse:
    project = await call.project()
    asked = await _body(call, wire.RestoreAsked)
    reason = asked.reason
    if reason is not None and (len(reason) > REASON_MAX or not reason.isprintable()):
        raise Refusal(400, f"reason must be one line of at most {REASON_MAX} characters.")
    verdict = await call.backups.shelf.judge(
        project, acknowledged=asked.acknowledged, skip_backup_check=asked.skip_backup_check
    )
    details = Details(reason=reason)
    if not verdict.allowed:
        await audit.record(call.store, "database_restored", "refused", call.actor, project, details)
        raise _blocked(verdict)
    event = "restore_check_skipped" if verdict.ground == "skipped" else "restore_check_passed"
    await audit.record(call.store, event, "ok", call.actor, project, details)
    await audit.record(call.store, "database_restored", "intent", call.actor, project, details)
    return answer(
        wire.RestoreAllowed(
            restore_id=str(call.actor.request_id), ground=verdict.ground, classification=verdict.classification
        )
    )


def _blocked(verdict: gate.Verdict) -> Refusal:
    if verdict.ground == "pooled":
        return Refusal(
            412,
            "Restore into a pooled project is not supported: it would overwrite a production schema. "
            "Restore into a scratch database or a dedicated project instead.",
            code="pooled",
        )
    if verdict.ground == "not_acknowledged":
        return Refusal(
            412,
            "A restore can overwrite data: acknowledge it (--yes-i-know-this-can-overwrite-data).",
            code="not_acknowledged",
        )
    found = verdict.classification or "no_backups"
    return Refusal(
        412,
        f"{gate.SAYS[found]} Run `flux backup create && flux backup verify --latest`, or pass --skip-backup-check.",
        code=found,
    )


async def _end_restore(call: Call) -> web.StreamResponse:
    """How an allowed restore went. Its id is that of the request that allowed it."""
    project = await call.project()
    told = await _body(call, wire.RestoreEnded)
    text = call.request.match_info["id"]
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        raise Refusal(404, "Restore not found")
    about = audit.continued(call.actor, uuid.UUID(text))
    if not await audit.is_open(call.store, "database_restored", about, project):
        raise Refusal(404, "Restore not found")
    await audit.record(call.store, "database_restored", told.outcome, about, project)
    return answer({"ok": True})


async def _body(call: Call, kind: type[Any]) -> Any:
    try:
        return wire.decode(await call.request.read() or b"{}", kind)
    except (msgspec.DecodeError, RecursionError) as failure:
        raise Refusal(400, f"The body is not understood: {failure}") from failure

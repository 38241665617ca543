"""
A control plane written from the contract, not from our code: bodies as recorded from its sheet, and hostile ones.

`say` sets what a route answers, `asked` keeps what was asked. It runs on a real loopback port in the test's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.furniture import recorded

TOKEN = "flx_live_0123456789abcdef0123456789abcdef_33b0"

V1_PLAN: dict[str, Any] = recorded.body("plan v1")
GRANT: dict[str, Any] = recorded.body("grant")
V1_CREDENTIALS: dict[str, Any] = recorded.body("credentials v1")
VERIFIED: dict[str, Any] = recorded.body("verify")

Answerer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class ContractPlane:
    """`base` is what FLUX_API_BASE would hold."""

    base: str = ""
    asked: list[Asked] = field(default_factory=list)
    answers: dict[str, Answerer] = field(default_factory=dict)

    def say(self, route: str, body: Any = None, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer `METHOD /path` (below /api/cli/v1) with *body*: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", "Cache-Control": "private, no-store"} | (headers or {})

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=data, headers=given)

        self.answers[route] = answer

    def do(self, route: str, answer: Answerer) -> None:
        self.answers[route] = answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        path = request.path.removeprefix("/api/cli/v1")
        body = json.loads(data) if data else None
        self.asked.append(Asked(request.method, path, dict(request.query), dict(request.headers), body))
        answer = self.answers.get(f"{request.method} {path}")
        if answer is None:
            return web.json_response({"error": "Not found"}, status=404)
        return await answer(request)


@contextlib.asynccontextmanager
async def contract_plane() -> AsyncIterator[ContractPlane]:
    plane = ContractPlane()
    runner = web.ServerRunner(web.Server(_as_handler(plane), handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    plane.base = f"http://127.0.0.1:{runner.addresses[0][1]}/api"
    try:
        yield plane
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)


def _as_handler(plane: ContractPlane) -> Any:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await plane.handle(request)  # type: ignore[arg-type]

    return handle

"""
Run by a test: a Unix socket made reachable by TCP, and beside it a control plane of the contract that knows a project.

Prints `{"url", "plane"}` when both serve; ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from tests.fluxd.contract_plane import V1_CREDENTIALS, V1_PLAN, VERIFIED, contract_plane


async def serve(path: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, away = await asyncio.open_unix_connection(path)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(_copy(reader, away), _copy(there, writer))

    async with contract_plane() as plane, await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        plane.say("GET /auth/verify", VERIFIED)
        plane.say("GET /list", [{"slug": "acme", "hash": "abc1234", "status": "running"}])
        plane.say("GET /audit", {"events": []})
        plane.say("GET /projects/abc1234/db-access", V1_PLAN)
        plane.say("GET /projects/abc1234/credentials", V1_CREDENTIALS)
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"url": f"http://127.0.0.1:{port}", "plane": plane.base}), flush=True)  # noqa: T201
        await stop.wait()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))

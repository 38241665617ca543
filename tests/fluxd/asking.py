"""A client of the socket's contract for tests: asks a running fluxd, says what came back."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Said:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        return str(self.body["code"])


class Asker:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Said:
        """*body*: bytes as they are, anything else as JSON. Header names come with `_` for `-`."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, f"http://localhost{path}", data=data, headers=named) as response:
            text = await response.read()
            return Said(response.status, dict(response.headers), json.loads(text) if text else None)

    async def get(self, path: str, **headers: str) -> Said:
        return await self.ask("GET", path, **headers)


@contextlib.asynccontextmanager
async def asker(path: Path) -> AsyncIterator[Asker]:
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.UnixConnector(path=str(path), limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Asker(session)


def raw(path: Path, request: bytes, *, within_s: float = 30) -> bytes:
    """What is answered to *request*, byte for byte, until the other side closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(within_s)
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            client.sendall(request)
        return _to_the_end(client)


def _to_the_end(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
    return received

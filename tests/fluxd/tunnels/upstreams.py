"""Upstreams that are no Postgres: what a relay does with bytes is nobody's protocol."""

import asyncio
import contextlib
import hashlib
import socket
import struct

RST_ON_CLOSE = struct.pack("ii", 1, 0)


class Upstream:
    """
    A TCP server of one of three manners: `echo` gives back what comes; `digest` answers, after the client's end of
    stream, the SHA-256 of all it sent; `pour` sends `poured` bytes to whoever connects and ends.
    """

    def __init__(self, manner: str = "echo", poured: int = 0) -> None:
        self.manner = getattr(self, f"_{manner}")
        self.poured = poured
        self.open = 0
        self.total = 0
        self.port = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self.open += 1
        self.total += 1
        try:
            await self.manner(reader, writer)
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _echo(self, reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def _digest(self, reader, writer):
        seen = hashlib.sha256()
        while data := await reader.read(65536):
            seen.update(data)
        writer.write(seen.digest())
        await writer.drain()

    async def _pour(self, reader, writer):
        for start in range(0, self.poured, len(PATTERN)):
            writer.write(PATTERN[: min(len(PATTERN), self.poured - start)])
            await writer.drain()


PATTERN = bytes(range(251)) * 1041  # 261 291 bytes, a length that no buffer has


def poured_digest(count: int) -> bytes:
    seen = hashlib.sha256()
    for start in range(0, count, len(PATTERN)):
        seen.update(PATTERN[: min(len(PATTERN), count - start)])
    return seen.digest()


def slam(writer: asyncio.StreamWriter) -> None:
    """Leave as a crashed program does: RST, not FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
    writer.transport.abort()

"""
Two conversations with Postgres through a channel: does it answer, and is it the one that holds our password's verifier?

What is said and how the answers are read is `core.login`; here is the socket's half, and the bounds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from fluxd.core import login, pgwire
from fluxd.core.errors import UpstreamUnreachable
from fluxplane.wire import Secret

ANSWER_S: Final = 15.0
PIECE: Final = 16 * 1024

OpenStream = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def prove_postgres(open_stream: OpenStream) -> str | None:
    """
    That PostgreSQL answers there and takes connections; and what it asks for, if that could never prove it (md5, …).

    Raises:
        FluxError: it does not; or there is no channel.
    """
    async with _conversation(open_stream) as (reader, writer):
        writer.write(login.PROBE)
        heard = b""
        while True:
            piece = await reader.read(PIECE)
            heard += piece
            if login.read_probe_answer(bytearray(heard), ended=not piece):
                return login.proves_nothing(heard)


async def prove_login(open_stream: OpenStream, user: str, password: Secret, *, database: str = "postgres") -> None:
    """
    That *user* can log in there, and that what answers holds the verifier of *password*.

    Raises:
        Unproven: it asks for md5, a clear password or nothing: no secret was sent.
        UpstreamWrongServer: it cannot prove it.
        FluxError: it refuses, breaks the protocol or does not answer; or there is no channel.
    """
    async with _conversation(open_stream) as (reader, writer):
        attempt = login.Login(user, password, secrets.token_urlsafe(24), database=database)
        writer.write(attempt.first)
        while not attempt.ready:
            piece = await reader.read(PIECE)
            if not piece:
                raise UpstreamUnreachable("The database closed the connection during the login.")
            # Thousands of hashes, in as many as a hostile server asks for: not in the loop that relays.
            writer.write(await asyncio.to_thread(attempt.feed, piece))
        writer.write(pgwire.TERMINATE)


@asynccontextmanager
async def _conversation(open_stream: OpenStream) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await open_stream()
    try:
        async with asyncio.timeout(ANSWER_S):
            yield reader, writer
    except TimeoutError as error:
        raise UpstreamUnreachable(f"The database did not answer within {ANSWER_S:.0f} s.") from error
    except OSError as error:
        raise UpstreamUnreachable("The connection to the database broke off.", detail=str(error)) from error
    finally:
        writer.close()
        with suppress(OSError):
            await asyncio.wait_for(writer.wait_closed(), 1.0)

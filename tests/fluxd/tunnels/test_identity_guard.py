"""
Whose Postgres is that? Hostile ones, and a stranger's at an address that docker gave away: none gets a client's byte,
or our password in any form but SCRAM's.
"""

import asyncio
import base64
import contextlib
import struct

import psycopg
import pytest

from fluxd import wire
from fluxd.core import errors
from fluxd.core.pgwire import SSL_REQUEST
from tests.fluxd.tunnels.rig import V1_HASH, until
from tests.fluxd.tunnels.upstreams import Upstream
from tests.furniture.postgres import asking_md5

CONTAINER = "flux-5774112-foundry-db"
MARK = b"a client's own words"


class Ear(Upstream):
    """An upstream that keeps all it hears, each connection by itself; *answer* does the talking."""

    def __init__(self, answer) -> None:
        super().__init__("answering")
        self.answer = answer
        self.heard: list[bytearray] = []

    async def _answering(self, reader, writer):
        self.heard.append(heard := bytearray())

        async def hear() -> bytes:
            piece = await reader.read(65536)
            heard.extend(piece)
            return piece

        await self.answer(hear, writer)
        while await hear():
            pass


def relaying_to(port: int):
    """As the Postgres at *port*, overheard."""

    async def answer(hear, writer):
        there, to_there = await asyncio.open_connection("127.0.0.1", port)

        async def back():
            while piece := await there.read(65536):
                writer.write(piece)
            writer.close()

        backwards = asyncio.create_task(back())
        while piece := await hear():
            to_there.write(piece)
        to_there.close()
        await backwards

    return answer


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def authentication(code: int, body: bytes = b"") -> bytes:
    return message(b"R", struct.pack(">I", code) + body)


LET_IN = authentication(0) + message(b"Z", b"I")


def asking_for(code: int, body: bytes = b""):
    """A server that wants the password in that way, and lets everybody in who says anything."""

    async def answer(hear, writer):
        await hear()
        writer.write(authentication(code, body))
        if await hear():
            writer.write(LET_IN)

    return answer


def scram_without_a_proof(final: bytes):
    """A server that has learnt SCRAM's words, but not our verifier: *final* is what it ends with."""

    async def answer(hear, writer):
        await hear()
        writer.write(authentication(10, b"SCRAM-SHA-256\0\0"))
        said = await hear()
        if not said:
            return
        nonce = said.partition(b"r=")[2]
        salt = base64.b64encode(b"salt of somebody").decode().encode()
        writer.write(authentication(11, b"r=" + nonce + b"more,s=" + salt + b",i=4096"))
        await hear()
        writer.write(final)

    return answer


async def test_a_reused_address_gets_no_client_byte(small_rig, pg18, monkeypatch):
    """The container's address is another tenant's Postgres now: the tunnel closes loudly before a byte goes there."""
    monkeypatch.setattr("fluxd.tunnels.whereabouts.ADDRESS_FRESH_S", 0.0)
    opened = await small_rig.open()
    assert await small_rig.ask(opened) == opened.credential.username
    async with Ear(relaying_to(pg18.port)) as stranger, asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(events_until_closed(small_rig))
        small_rig.host.know_container(CONTAINER, small_rig.postgres.port, {"net": "127.0.0.3"})
        small_rig.host.server.targets["127.0.0.3", small_rig.postgres.port] = ("127.0.0.1", stranger.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.tunnel.port)
        writer.write(SSL_REQUEST + MARK)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: small_rig.up.list() == [], "the tunnel to close")
    [_probe, heard] = stranger.heard
    assert opened.credential.username.encode() in heard, "it was asked to prove itself"
    assert MARK not in heard
    assert SSL_REQUEST not in heard
    assert [event.problem.code for event in telling.result() if event.name == "closing"] == ["upstream_wrong_server"]
    with pytest.raises(psycopg.OperationalError):
        await small_rig.connect(opened)
    await until(lambda: small_rig.roles() == set(), "the role to end")


async def events_until_closed(rig) -> list[wire.Event]:
    told = []
    async with asyncio.timeout(20), rig.up.events(tunnel=None, hold=None) as events:
        async for event in events:
            told.append(event)
            if event.name == "closed":
                return told
    raise AssertionError("the events ended")


@pytest.mark.parametrize(
    "final",
    [
        authentication(12, b"v=" + base64.b64encode(b"not the signature that it is....")) + LET_IN,
        LET_IN,
        authentication(12, b"e=other-error"),
    ],
    ids=["a wrong signature", "none at all", "an error"],
)
async def test_a_server_that_cannot_prove_itself_is_refused(small_rig, final):
    async with Ear(scram_without_a_proof(final)) as hostile:
        small_rig.add("yeastcoast", V1_HASH, "v1_dedicated", port=hostile.port)
        with pytest.raises(errors.UpstreamWrongServer):
            await small_rig.open(V1_HASH)
    assert small_rig.up.list() == []
    assert small_rig.postgres.password.reveal().encode() not in b"".join(hostile.heard)


@pytest.mark.parametrize(
    ("code", "body", "method"),
    [
        (3, b"", "a clear password"),
        (5, b"salt", "md5"),
        (0, b"", "nothing (trust)"),
        (7, b"", "authentication method 7"),
    ],
)
async def test_a_server_that_asks_for_a_weaker_login_gets_none_and_is_named(small_rig, code, body, method):
    """Whatever it asks: nothing is sent, its clients are let through, and that is said where people look."""
    async with Ear(asking_for(code, body)) as hostile:
        small_rig.add("yeastcoast", V1_HASH, "v1_dedicated", port=hostile.port)
        opened = await small_rig.open(V1_HASH)
        for heard in hostile.heard:
            assert len(heard) == struct.unpack(">I", heard[:4])[0], "more than a StartupMessage"
        _, writer = await asyncio.open_connection("127.0.0.1", opened.tunnel.port)
        writer.write(MARK)
        await until(lambda: MARK in hostile.heard[-1], "a client to be let through")
        writer.close()
    [notice] = [one for one in opened.notices if "proven" in one]
    assert method in notice
    assert small_rig.up.notices() == [f"yeastcoast: {notice}"]


async def test_a_cluster_that_only_knows_md5_works_and_is_named_once(small_rig, pg15):
    """A real one: the project's own password, stored as md5."""
    with asking_md5(pg15), psycopg.connect(pg15.url().reveal(), autocommit=True) as admin:
        set_password(admin, small_rig.postgres.password.reveal())
        try:
            small_rig.add("yeastcoast", V1_HASH, "v1_dedicated", port=pg15.port)
            opened = await small_rig.open(V1_HASH)
            for _ in range(2):
                assert await small_rig.ask(opened, "SHOW password_encryption") == "md5"
        finally:
            admin.execute("SET password_encryption = 'scram-sha-256'")
            set_password(admin, pg15.password.reveal())
    assert [one for one in small_rig.up.notices() if "md5" in one] == [f"yeastcoast: {opened.notices[-1]}"]


def set_password(admin: psycopg.Connection, password: str) -> None:
    statement = psycopg.sql.SQL("ALTER ROLE postgres PASSWORD {}").format(psycopg.sql.Literal(password))
    admin.execute(statement)

"""The probe and the SCRAM login, against real PostgreSQL 15, 16 and 18 over real sockets."""

import asyncio
import contextlib
import secrets
import signal

import psycopg
import pytest
from psycopg import sql

from fluxd.core import errors, pgwire
from fluxd.core.login import PROBE, Login, Unproven, read_probe_answer
from fluxd.core.pgreply import BackendKeyData, DataRow, ErrorResponse, take_message
from fluxplane.lab.postgres import Server
from fluxplane.wire import Secret
from tests.furniture.postgres import asking_md5, installation, running
from tests.furniture.provoked import provoked


@contextlib.asynccontextmanager
async def connected(server: Server):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def probe(server: Server) -> bool:
    buffer = bytearray()
    async with connected(server) as (reader, writer), asyncio.timeout(10):
        writer.write(PROBE)
        while True:
            data = await reader.read(4096)
            buffer += data
            if read_probe_answer(buffer, ended=not data):
                return True


async def log_in(reader, writer, login: Login) -> None:
    async with asyncio.timeout(10):
        writer.write(login.first)
        while not login.ready:
            data = await reader.read(4096)
            assert data, "the server hung up in the middle of a login"
            writer.write(login.feed(data))


def new_login(user: str, password: str) -> Login:
    return Login(user, Secret(password), secrets.token_urlsafe(18))


@contextlib.contextmanager
def role(server: Server, password: str, *, encryption: str = "scram-sha-256", options: str = "LOGIN"):
    name = f"login_test_{secrets.token_hex(4)}"
    with psycopg.connect(server.url().reveal(), autocommit=True) as admin:
        admin.execute(sql.SQL("SET password_encryption = {}").format(sql.Literal(encryption)))
        create = sql.SQL("CREATE ROLE {} {} PASSWORD {}")
        admin.execute(create.format(sql.Identifier(name), sql.SQL(options), sql.Literal(password)))
        # The server may have been prepared as a pool meanwhile: then CONNECT is nobody's unless it is granted.
        admin.execute(sql.SQL("GRANT CONNECT ON DATABASE postgres TO {}").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


async def test_postgres_answers_the_probe(each_postgres):
    assert await probe(each_postgres) is True


async def test_a_login_is_proven_and_then_answers_queries(each_postgres):
    with role(each_postgres, "pencil") as name:
        login, rows = new_login(name, "pencil"), []
        async with connected(each_postgres) as (reader, writer):
            await log_in(reader, writer, login)
            writer.write(pgwire.query("SELECT current_user, NULL"))
            buffer = bytearray()
            async with asyncio.timeout(10):
                while not rows:
                    buffer += await reader.read(4096)
                    while (message := take_message(buffer)) is not None:
                        rows += [message] if isinstance(message, DataRow) else []
            writer.write(pgwire.TERMINATE)
        assert rows == [DataRow((name.encode(), None))]
        assert login.proven
        assert isinstance(login.cancel_key, BackendKeyData)
        assert login.parameters["server_encoding"] == "UTF8"


@pytest.mark.parametrize("password", ["a b\u00a0c", "pässwörd", "\uff46ull", "x" * 900, "a,b=c"])
async def test_passwords_are_normalised_as_the_server_does(pg18, password):
    with role(pg18, password) as name:
        login = new_login(name, password)
        async with connected(pg18) as (reader, writer):
            await log_in(reader, writer, login)
        assert login.proven


async def test_a_wrong_password_is_a_failed_login_that_proves_nothing(each_postgres):
    with role(each_postgres, "pencil") as name:
        login = new_login(name, "pen")
        async with connected(each_postgres) as (reader, writer):
            with pytest.raises(errors.UpstreamLoginFailed) as caught:
                await log_in(reader, writer, login)
        assert caught.value.detail.startswith("28P01: ")
        assert not login.proven


async def test_a_role_with_an_md5_password_cannot_be_proven_and_gets_nothing(pg15):
    with asking_md5(pg15), role(pg15, "pencil", encryption="md5") as name:
        login = new_login(name, "pencil")
        async with connected(pg15) as (reader, writer):
            with pytest.raises(Unproven, match="md5"):
                await log_in(reader, writer, login)


async def test_a_full_server_is_full(pg15):
    with role(pg15, "pencil", options="LOGIN CONNECTION LIMIT 0") as name:
        login = new_login(name, "pencil")
        async with connected(pg15) as (reader, writer):
            with pytest.raises(errors.UpstreamFull) as caught:
                await log_in(reader, writer, login)
        provoked("upstream_full", caught.value)


async def test_a_server_that_is_shutting_down_says_so():
    """It waits for whoever is connected, and lets nobody else in."""
    with running(installation(15)) as server, psycopg.connect(server.url().reveal()):
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(errors.UpstreamStarting) as caught:
            await until_told(server)
    provoked("upstream_starting", caught.value)


async def until_told(server: Server) -> None:
    """Probe until the server says that it takes nobody."""
    async with asyncio.timeout(10):
        while await probe(server):
            await asyncio.sleep(0.01)


async def test_a_cancel_request_ends_a_query(each_postgres):
    with role(each_postgres, "pencil") as name:
        login, buffer = new_login(name, "pencil"), bytearray()
        async with connected(each_postgres) as (reader, writer):
            await log_in(reader, writer, login)
            writer.write(pgwire.query("SELECT pg_sleep(30)"))
            assert await is_active(each_postgres, login.cancel_key.pid)
            async with connected(each_postgres) as (_, canceller):
                canceller.write(pgwire.cancel_request(login.cancel_key.pid, login.cancel_key.key))
                await canceller.drain()
            async with asyncio.timeout(10):
                while not isinstance(message := take_message(buffer), ErrorResponse):
                    if message is None:
                        buffer += await reader.read(4096)
        assert message.sqlstate == "57014"


async def is_active(server: Server, pid: int) -> bool:
    """Whether the backend is soon at work."""
    async with asyncio.timeout(10):
        async with await psycopg.AsyncConnection.connect(server.url().reveal(), autocommit=True) as admin:
            while True:
                found = await admin.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,))
                if await found.fetchone() == ("active",):
                    return True
                await asyncio.sleep(0.01)


async def test_other_servers_are_not_postgres(openssh):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", openssh.port)
        writer.write(PROBE)
        data = await reader.read(4096)
    with pytest.raises(errors.UpstreamNotPostgres):
        read_probe_answer(bytearray(data))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()

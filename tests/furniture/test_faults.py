"""The fault proxy does the faults it says, so that a test may trust them."""

import asyncio
import contextlib

import pytest

from tests.furniture.faults import fault_proxy


@contextlib.asynccontextmanager
async def joined(proxy):
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.fixture
async def echo():
    """A proxy before an echo server."""
    served = set()

    async def answer(reader, writer):
        served.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with fault_proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*served)


async def test_bytes_pass_in_order_and_the_end_after_them(echo):
    sent = bytes(range(256)) * 4000
    async with joined(echo) as (reader, writer), asyncio.timeout(10):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
    assert echo.accepted == 1


async def test_a_cut_is_a_reset(echo):
    async with joined(echo) as (reader, _):
        echo.cut()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                await reader.read(1)


async def test_a_hang_up_is_an_end(echo):
    async with joined(echo) as (reader, _), asyncio.timeout(5):
        echo.hang_up()
        assert await reader.read(1) == b""


async def test_a_stall_lets_nothing_pass_until_it_flows_again(echo):
    async with joined(echo) as (reader, writer):
        echo.stall()
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        echo.flow()
        async with asyncio.timeout(5):
            assert await reader.read(1) == b"x"


@pytest.mark.parametrize(("direction", "arrived"), [("up", b""), ("down", b"x")])
async def test_a_link_may_be_half_open_either_way(direction, arrived):
    seen = bytearray()

    async def answer(reader, writer):
        while data := await reader.read(100):
            seen.extend(data)
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with fault_proxy(server.sockets[0].getsockname()[1]) as proxy, joined(proxy) as (reader, writer):
        seen.clear()
        proxy.stall(direction)
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        assert bytes(seen) == arrived
        proxy.flow()
        async with asyncio.timeout(5):
            assert await reader.read(1) == b"x"
    server.close()
    await server.wait_closed()


async def test_a_stall_hides_that_the_other_side_is_gone(echo):
    async with joined(echo) as (reader, writer):
        echo.stall()
        writer.write_eof()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)


async def test_a_stalled_connection_can_be_cut(echo):
    async with joined(echo) as (reader, _):
        echo.stall()
        echo.cut()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                await reader.read(1)


async def test_a_stranded_connection_is_dead_and_a_new_one_is_not(echo):
    async with joined(echo) as (reader, writer):
        echo.strand()
        writer.write(b"x")
        async with joined(echo):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await reader.read(1)


async def test_refused_is_refused_and_accepted_again_on_the_same_port(echo):
    port = echo.port
    async with joined(echo) as (reader, writer):
        await echo.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"still here")
        async with asyncio.timeout(5):
            assert await reader.readexactly(10) == b"still here"
        await echo.accept()
        async with joined(echo):
            assert echo.port == port


async def test_latency_is_added_each_way(echo):
    loop = asyncio.get_running_loop()
    async with joined(echo) as (reader, writer), asyncio.timeout(5):
        echo.latency_s = 0.1
        begun = loop.time()
        writer.write(b"x")
        await reader.read(1)
        assert 0.2 <= loop.time() - begun < 2

"""The events stream: resumed where it broke off, bounded for readers that do not read, alive when nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fluxd import settings, wire
from fluxd.api import VERSION, Api, Organs, handlers
from fluxd.clock import Clock
from fluxd.declared import Declared
from fluxd.doctor import Doctor
from fluxd.keychain import TokenFile
from fluxd.metrics import Metrics
from fluxd.plane import ControlPlane, Tokens
from fluxd.safesocket import claim
from fluxd.settings import TunnelSettings
from fluxd.tunnels.events import BACKLOG, RETURN_WITHIN_S, Events
from fluxd.tunnels.passphrases import Passphrases
from fluxd.tunnels.supervisor import Supervisor
from tests.fluxd.asking import Asker, asker


class Hands(Clock):
    """A clock whose hands the test moves."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


@dataclass
class Running:
    ask: Asker
    api: Api
    path: Path
    happen: Any

    @contextlib.asynccontextmanager
    async def stream(self, query: str = "") -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        async with self.ask.session.get(f"http://localhost/v1/events{query}") as response:
            assert response.status == 200

            async def lines() -> AsyncIterator[dict[str, Any]]:
                async for line in response.content:
                    yield json.loads(line)

            yield lines()


@pytest.fixture
async def running(daemon_home: Path) -> AsyncIterator[Running]:
    """The API over a real supervisor, in this very loop."""
    clock, logins = Clock(), TokenFile(daemon_home / "tokens")
    async with ControlPlane() as control:
        tokens = Tokens(control=control, keychain=logins, state_dir=daemon_home, environ={"HOME": str(daemon_home)})
        supervisor = Supervisor(
            control=control, tokens=tokens, state_dir=daemon_home, settings=TunnelSettings(), clock=clock
        )
        held = claim(daemon_home / "s")
        doctor = Doctor(
            socket=held.path,
            state_dir=daemon_home,
            control=control,
            tokens=tokens,
            keyring=logins,
            clock=clock,
            ssh_connect_s=5.0,
            passphrases=Passphrases(),
            port_of=supervisor.port_of,
        )
        api = Api(
            Organs(
                tunnels=supervisor,
                control=control,
                tokens=tokens,
                logins=logins,
                doctor=doctor,
                metrics=Metrics(version=VERSION),
                clock=clock,
                socket=held.path,
                settings=settings.load({"FLUXD_CONFIG_DIR": str(daemon_home)}),
                declared=Declared(supervisor, tokens, clock),
            )
        )
        runner = web.AppRunner(api.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, held.listener).start()
        async with asker(held.path) as ask:
            yield Running(ask, api, held.path, supervisor._events.emit)
        await supervisor.aclose()
        await runner.cleanup()
        held.release()


async def test_the_first_line_is_a_snapshot_and_what_happens_follows(running: Running):
    async with running.stream() as events:
        assert (await anext(events))["name"] == "snapshot"
        running.happen("host_up")
        assert (await anext(events))["name"] == "host_up"


async def test_a_stream_that_broke_off_goes_on_where_it_was(running: Running):
    async with running.stream() as events:
        await anext(events)
        running.happen("one")
        seen = (await anext(events))["seq"]
    running.happen("two")
    running.happen("three")
    async with running.stream(f"?since={seen}") as events:
        assert [(await anext(events))["name"] for _ in range(2)] == ["two", "three"]
        running.happen("four")
        assert (await anext(events))["name"] == "four"


@pytest.mark.parametrize("since", [0, 1, 2**53])
async def test_from_a_place_nobody_remembers_it_begins_with_a_snapshot(running: Running, since: int):
    running.happen("before")
    async with running.stream(f"?since={since}") as events:
        assert (await anext(events))["name"] == "snapshot"


@pytest.mark.parametrize("since", ["-1", "x", "1.5", "9" * 30, ""])
async def test_a_number_that_is_none_is_refused(running: Running, since: str):
    assert (await running.ask.get(f"/v1/events?since={since}")).code == "bad_request"


async def test_when_nothing_happens_it_still_says_that_it_lives(running: Running, monkeypatch):
    monkeypatch.setattr(handlers, "PING_EVERY_S", 0.05)
    async with running.stream() as events:
        snapshot = await anext(events)
        pings = [await anext(events) for _ in range(3)]
    assert [ping["name"] for ping in pings] == ["ping"] * 3
    assert {ping["seq"] for ping in pings} == {snapshot["seq"]}


async def test_a_reader_that_never_reads_is_let_go(running: Running, monkeypatch):
    monkeypatch.setattr(handlers, "READ_WITHIN_S", 0.2)
    with socket.socket(socket.AF_UNIX) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(str(running.path))
        client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: readers(running) == 1)
        async with asyncio.timeout(20):
            while readers(running):
                running.happen("news", message="x" * 1000)
                await asyncio.sleep(0)


async def test_stopping_ends_every_stream(running: Running):
    async with running.stream() as events:
        await anext(events)
        running.api.stopping.set()
        assert [one async for one in events] == []
    assert (await running.ask.get("/v1/status")).code == "shutting_down"


def readers(running: Running) -> int:
    return len(running.happen.__self__._readers)


async def until(true) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------ without a socket


async def taken(reader: AsyncIterator[wire.Event], count: int) -> list[str]:
    return [(await anext(reader)).name for _ in range(count)]


async def test_a_slow_reader_costs_no_more_than_its_backlog_and_is_told_how_things_stand():
    events = Events(Clock())
    with events.reader(list) as reader:
        assert await taken(reader, 1) == ["snapshot"]
        for n in range(BACKLOG * 3):
            events.emit(f"e{n}")
        (held,) = events._readers
        assert len(held._waiting) <= BACKLOG
        assert await taken(reader, 1) == ["snapshot"]


async def test_what_happened_while_nobody_could_return_is_not_kept():
    clock = Hands()
    events = Events(clock)
    with events.reader(list) as reader:
        seen = (await anext(reader)).seq
    clock.ahead_s = RETURN_WITHIN_S + 1
    events.emit("unseen")
    with events.reader(list, since=seen) as reader:
        assert await taken(reader, 1) == ["snapshot"]


async def test_more_than_the_backlog_is_not_resumed():
    events = Events(Clock())
    with events.reader(list) as reader:
        seen = (await anext(reader)).seq
        for n in range(BACKLOG + 1):
            events.emit(f"e{n}")
    with events.reader(list, since=seen) as reader:
        assert await taken(reader, 1) == ["snapshot"]
    with events.reader(list, since=seen + 1) as reader:
        assert await taken(reader, 2) == ["e1", "e2"]


async def test_a_restart_gives_no_number_out_again():
    first = Events(Clock())
    first.emit("x")
    await asyncio.sleep(0.01)
    assert Events(Clock())._seq > first._seq

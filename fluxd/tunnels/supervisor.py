"""The table of tunnels: open, close, list, watch. No tunnel can be opened yet; the daemon around it can be tried."""

# ruff: noqa: ARG002 - nothing uses them yet

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import ShuttingDown, TunnelNotFound
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxd.settings import TunnelSettings


class Supervisor:
    def __init__(
        self, *, control: ControlPlane, tokens: Tokens, state_dir: Path, settings: TunnelSettings, clock: Clock
    ) -> None:
        self._clock = clock

    async def open(self, request: wire.OpenTunnel, caller: Caller) -> tuple[bool, wire.TunnelOpened]:
        raise ShuttingDown

    def list(self) -> list[wire.Tunnel]:
        return []

    def show(self, name: str) -> NoReturn:
        raise TunnelNotFound

    async def close(self, name: str) -> NoReturn:
        raise TunnelNotFound

    async def renew(self, name: str, request: wire.RenewTunnel, caller: Caller) -> NoReturn:
        raise TunnelNotFound

    async def mint(self, project_hash: str, request: wire.MintGrant, caller: Caller) -> NoReturn:
        raise ShuttingDown

    @asynccontextmanager
    async def events(self, *, tunnel: str | None, hold: str | None) -> AsyncIterator[AsyncIterator[wire.Event]]:
        async def snapshot() -> AsyncIterator[wire.Event]:
            yield wire.Event(seq=0, at=self._clock.wall(), name="snapshot", tunnels=[])

        yield snapshot()

    def hosts(self) -> list[wire.HostStatus]:  # type: ignore[valid-type]
        return []

    def pending_revocations(self) -> int:
        return 0

    async def forget(self, name: str) -> None:
        raise TunnelNotFound

    async def aclose(self) -> None:
        return

"""
The tunnels that the configuration declares: opened when the daemon starts, and again when it is told to reload.

One task for each tries until it is open: at login the network, the keyring or the control plane may not be there yet.
Once open a tunnel is the supervisor's like any other: it survives the loss of its SSH host, and when its lease is over
or somebody closes it, it stays closed until it is asked for again or the daemon reloads.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from typing import Final, Protocol

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.backoff import Backoff
from fluxd.core.errors import FluxError, TunnelNotFound
from fluxd.plane import Caller, Tokens
from fluxd.settings import DeclaredTunnel

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


class Opens(Protocol):
    """What this needs of the supervisor."""

    async def open(self, request: wire.OpenTunnel, caller: Caller) -> tuple[bool, wire.TunnelOpened]: ...
    async def close(self, name: str) -> wire.TunnelClosed: ...


class Declared:
    """Keeps trying to open what is declared. `apply` it again after a reload; `aclose` ends the tries."""

    def __init__(self, tunnels: Opens, tokens: Tokens, clock: Clock) -> None:
        self._tunnels = tunnels
        self._tokens = tokens
        self._clock = clock
        self._tasks: dict[DeclaredTunnel, asyncio.Task[None]] = {}
        self._opened: dict[DeclaredTunnel, str] = {}
        self._problems: dict[DeclaredTunnel, FluxError] = {}
        self._hurry = asyncio.Event()

    def notices(self) -> list[str]:
        """What `status` says of those that could not be opened yet."""
        return [
            f"The declared tunnel to {one.project} ({one.hash}) is not open yet: {problem.message}"
            for one, problem in self._problems.items()
        ]

    async def apply(self, declared: Iterable[DeclaredTunnel]) -> None:
        """Open what is newly declared, close what no longer is; what is declared as before is left as it is."""
        wanted = {one for one in declared if one.autostart}
        for gone in set(self._tasks) - wanted:
            await self._undo(gone)
        for one in wanted:
            if one not in self._tasks or self._tasks[one].done():
                self._tasks[one] = asyncio.create_task(self._keep_trying(one))

    def hurry(self) -> None:
        """Something has changed (a login): try at once."""
        self._hurry.set()

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _undo(self, gone: DeclaredTunnel) -> None:
        task = self._tasks.pop(gone)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._problems.pop(gone, None)
        if name := self._opened.pop(gone, None):
            try:
                await self._tunnels.close(name)
            except TunnelNotFound:
                return

    async def _keep_trying(self, one: DeclaredTunnel) -> None:
        backoff = Backoff(first_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)
        while not await self._try(one):
            backoff = backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter
            self._hurry.clear()
            try:
                async with asyncio.timeout(backoff.wait_s(self._clock.now())):
                    await self._hurry.wait()
            except TimeoutError:
                continue

    async def _try(self, one: DeclaredTunnel) -> bool:
        try:
            caller = await self._tokens.resolve(wire.Plane(api_base=one.api_base))
            _new, opened = await self._tunnels.open(_request(one), caller)
        except FluxError as error:
            if self._problems.get(one) is None or self._problems[one].code != error.code:
                log.warning("the declared tunnel to %s cannot be opened yet: %s", one.project, error.message)
            self._problems[one] = error
            return False
        except Exception:
            log.exception("the declared tunnel to %s cannot be opened", one.project)
            self._problems[one] = FluxError()
            return False
        self._problems.pop(one, None)
        self._opened[one] = opened.tunnel.id
        return True


def _request(one: DeclaredTunnel) -> wire.OpenTunnel:
    return wire.OpenTunnel(
        hash=one.hash,
        project=one.project,
        access=one.access,
        credential="keep",
        local_port=one.port,
        strict_port=one.port is not None,
        renew=True,
        ssh=one.ssh,
    )

"""
The tunnels that the configuration declares: listened for from the daemon's start on, and again when it reloads.

Their ports listen at once (`fluxd.tunnels.doors`). One task for each tries until there is a tunnel behind: at login the
network, the keyring or the control plane may not be there yet. Then it is the supervisor's like any other: dialled for
its first client, and kept through the loss of its SSH host. When its lease is over it is listened for anew; when
somebody closes it, it stays closed until it is asked for, a login, or a reload.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.backoff import Backoff
from fluxd.core.errors import FluxError, TunnelNotFound
from fluxd.plane import Caller, Tokens
from fluxd.settings import DeclaredTunnel
from fluxd.tunnels.doors import Door
from fluxd.tunnels.tunnel import Tunnel

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
LEAST_PAUSE_S: Final = 0.5


class Opens(Protocol):
    """What this needs of the supervisor."""

    async def listen_for(
        self, request: wire.OpenTunnel, api_base: str, knocked: Callable[[], None]
    ) -> Tunnel | Door | None: ...
    async def declare(self, request: wire.OpenTunnel, caller: Caller) -> Tunnel: ...
    async def undeclare(self, door: Door) -> None: ...
    async def close(self, name: str) -> wire.TunnelClosed: ...


class Declared:
    """Keeps listening for what is declared. `apply` it again after a reload; `aclose` ends the tries."""

    def __init__(self, tunnels: Opens, tokens: Tokens, clock: Clock) -> None:
        self._tunnels = tunnels
        self._tokens = tokens
        self._clock = clock
        self._tasks: dict[DeclaredTunnel, asyncio.Task[None]] = {}
        self._doors: dict[DeclaredTunnel, Door] = {}
        self._opened: dict[DeclaredTunnel, str] = {}
        self._problems: dict[DeclaredTunnel, FluxError] = {}
        self._hurries: dict[DeclaredTunnel, asyncio.Event] = {}

    def notices(self) -> list[str]:
        """What `status` says of those that could not be opened yet."""
        return [
            f"The declared tunnel to {one.project} ({one.hash}) is not open yet: {problem.message}"
            for one, problem in self._problems.items()
        ]

    async def apply(self, declared: Iterable[DeclaredTunnel]) -> None:
        """
        Listen for what is newly declared, close what no longer is; what is declared as before is left as it is.

        When it returns every port that is known listens, or `notices` says why not.
        """
        wanted = {one for one in declared if one.autostart}
        for gone in set(self._tasks) - wanted:
            await self._undo(gone)
        for one in wanted:
            await self._begin(one)

    async def hurry(self) -> None:
        """There is a login: try at once, also what was closed meanwhile."""
        for one in list(self._tasks):
            self._hurry(one).set()
            await self._begin(one)

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _begin(self, one: DeclaredTunnel) -> None:
        if one not in self._tasks or self._tasks[one].done():
            await self._noting(one, self._listen(one))
            self._tasks[one] = asyncio.create_task(self._keep(one))

    async def _undo(self, gone: DeclaredTunnel) -> None:
        task = self._tasks.pop(gone)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._problems.pop(gone, None)
        if door := self._doors.pop(gone, None):
            await self._tunnels.undeclare(door)
        if name := self._opened.pop(gone, None):
            with suppress(TunnelNotFound):
                await self._tunnels.close(name)

    async def _keep(self, one: DeclaredTunnel) -> None:
        """Have it there until somebody closes it."""
        backoff = first = Backoff(first_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)
        while True:
            self._hurry(one).clear()
            tunnel = await self._noting(one, self._declare(one))
            if tunnel is not None:
                self._opened[one], backoff = tunnel.facts.id, first
                if await tunnel.closed_by_somebody():
                    return
            backoff = backoff.failed(self._clock.now(), random.random())  # noqa: S311 - jitter
            if tunnel is None:
                await self._pause(one, backoff)

    async def _pause(self, one: DeclaredTunnel, backoff: Backoff) -> None:
        """Until the next try is due, or somebody cannot wait; never quite at once, for somebody may be many."""
        await asyncio.sleep(min(LEAST_PAUSE_S, backoff.wait_s(self._clock.now())))
        with suppress(TimeoutError):
            async with asyncio.timeout(backoff.wait_s(self._clock.now())):
                await self._hurry(one).wait()

    async def _declare(self, one: DeclaredTunnel) -> Tunnel:
        found = await self._listen(one)
        if isinstance(found, Tunnel):
            return found
        caller = await self._tokens.resolve(wire.Plane(api_base=one.api_base))
        return await self._tunnels.declare(_request(one), caller)

    async def _listen(self, one: DeclaredTunnel) -> Tunnel | Door | None:
        found = await self._tunnels.listen_for(_request(one), self._base(one), self._hurry(one).set)
        if isinstance(found, Door):
            self._doors[one] = found
        return found

    def _hurry(self, one: DeclaredTunnel) -> asyncio.Event:
        """Set when somebody waits for it."""
        return self._hurries.setdefault(one, asyncio.Event())

    def _base(self, one: DeclaredTunnel) -> str:
        return self._tokens.base(wire.Plane(api_base=one.api_base))

    async def _noting(self, one: DeclaredTunnel, trying: Awaitable[T]) -> T | None:
        """What *trying* answers; None where it failed, which `notices` and whoever waits at the door are told."""
        try:
            done = await trying
        except FluxError as error:
            if self._problems.get(one) is None or self._problems[one].code != error.code:
                log.warning("the declared tunnel to %s cannot be opened yet: %s", one.project, error.message)
            problem = error
        except Exception:
            log.exception("the declared tunnel to %s cannot be opened", one.project)
            problem = FluxError()
        else:
            self._problems.pop(one, None)
            return done
        self._problems[one] = problem
        if door := self._doors.get(one):
            door.problem = problem
        return None


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

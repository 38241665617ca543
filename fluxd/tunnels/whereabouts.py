"""
Where a project's Postgres is as the SSH host sees it, and whether what answers there is the project's own.

A name is resolved by sshd at every connect; a container's address is believed for ten seconds. Neither says whose
Postgres it is: docker gives a freed address to another tenant, which would be sent the password. So before any client's
bytes go there, a SCRAM login of our own has to show that it holds this project's verifier: for an address at each new
one, for a name once per SSH connection. Where nothing is at hand to log in with (a restarted daemon without a token),
what was proven behind the same host key stands; anything else waits for a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

from fluxd.clock import Clock
from fluxd.core.errors import FluxError, UpstreamLoginFailed, UpstreamWrongServer
from fluxd.core.login import Unproven
from fluxd.core.resolver import Upstream, locate
from fluxplane.wire import AccessPlan, DedicatedDatabase, Secret

from .probe import prove_login, prove_postgres
from .ssh import Host

# A container's address is another tenant's as soon as docker gives it away.
ADDRESS_FRESH_S: Final = 10.0

# A user and its password to prove upstream with, for as long as the context. A FluxError: there is none to be had now.
Proof = Callable[[], AbstractAsyncContextManager[tuple[str, Secret]]]


class Whereabouts:
    """
    One tunnel's upstream: `found` last, and `stood`, which was proven last, behind the host key `proven_behind`.

    *say* is told when it cannot be proven; *moved* is told that one of them has changed.
    """

    def __init__(
        self,
        plan: AccessPlan,
        host: Host,
        clock: Clock,
        *,
        proof: Proof,
        say: Callable[[Unproven], None],
        moved: Callable[[], None],
        prefer_network: str | None = None,
    ) -> None:
        self.found: Upstream | None = None
        self.proven_behind: str | None = None
        self._plan = plan
        self._host = host
        self._clock = clock
        self._proof = proof
        self._say = say
        self._moved = moved
        self._prefer_network = prefer_network
        self._asking = asyncio.Lock()
        self._found_at = float("-inf")
        self._found_over = 0
        # Which one was proven, over which connection of the host.
        self._proven: tuple[Upstream, int] | None = None
        # Which one was proven last, by this daemon or an earlier one, behind `proven_behind`.
        self.stood: Upstream | None = None

    def recall(self, found: Upstream | None, proven_behind: str | None) -> None:
        """What an earlier daemon knew. It is asked for again before it is used."""
        self.found = self.stood = found
        self.proven_behind = proven_behind

    async def locate(self) -> Upstream:
        """
        Ask the SSH host where it is now.

        Raises:
            FluxError: it does not know, or cannot be asked.
        """
        over, database = self._host.generation, self._plan.database
        network = database.docker_network_name if isinstance(database, DedicatedDatabase) else None
        questions = locate(
            database.internal_host,
            database.internal_port,
            container=database.container_name,
            prefer_network=self._prefer_network or network,
        )
        question = next(questions)
        while True:
            answer = await self._host.ask(question)
            try:
                question = questions.send(answer)
            except StopIteration as end:
                return self._note(end.value, over)

    async def proven(self) -> Upstream:
        """
        Where clients may be sent now.

        Raises:
            UpstreamWrongServer: what answers there is not this project's.
            NotAuthenticated: it cannot be proven without a token, and stands somewhere else than it last did.
            FluxError: it cannot be found, or does not answer.
        """
        async with self._asking:
            upstream = await self._fresh()
            if not self._is_proven(upstream):
                await self._prove(upstream)
            return upstream

    @property
    def met(self) -> bool:
        """Whether this daemon has proven it, wherever it was then."""
        return self._proven is not None

    def doubt(self) -> bool:
        """It did not answer where it was: ask again, if asking can tell another place. A name cannot."""
        self._found_at = float("-inf")
        return self._is_address()

    async def open_stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A conversation of our own with whatever answers there: for proving it."""
        async with self._asking:
            upstream = await self._fresh()
        return await self._host.open_stream(upstream.connect_to, upstream.port)

    async def log_in(self, user: str, password: Secret) -> None:
        """
        Log in with a role of its own, and by that prove the place where that was.

        Raises:
            FluxError: it cannot be found, does not answer, refuses, or is another's.
        """
        async with self._asking:
            upstream = await self._fresh()
        await self._logged_in(upstream, user, password)

    async def _logged_in(self, upstream: Upstream, user: str, password: Secret) -> None:
        over = self._host.generation
        try:
            await prove_login(lambda: self._host.open_stream(upstream.connect_to, upstream.port), user, password)
        except Unproven as unproven:
            self._say(unproven)
        self._note_proven(upstream, over)

    # --------------------------------------------------------------------- asking

    def _note(self, upstream: Upstream, over: int) -> Upstream:
        changed = self.found != upstream
        self.found, self._found_at, self._found_over = upstream, self._clock.now(), over
        if changed:
            self._moved()
        return upstream

    async def _fresh(self) -> Upstream:
        old = self._is_address() and self._clock.now() - self._found_at > ADDRESS_FRESH_S
        if self.found is None or old or self._found_over != self._host.generation:
            return await self.locate()
        return self.found

    def _is_address(self) -> bool:
        return self.found is not None and self.found.method == "docker_inspect"

    # -------------------------------------------------------------------- proving

    def _is_proven(self, upstream: Upstream) -> bool:
        if self._proven is None:
            return False
        proven, over = self._proven
        return proven == upstream and (upstream.method == "docker_inspect" or over == self._host.generation)

    async def _prove(self, upstream: Upstream) -> None:
        # First whether anybody is there: for a login a role may have to be made.
        await prove_postgres(lambda: self._host.open_stream(upstream.connect_to, upstream.port))
        async with AsyncExitStack() as stack:
            try:
                user, password = await stack.enter_async_context(self._proof())
            except FluxError as problem:
                self._let_stand(upstream, problem)
                return
            try:
                await self._logged_in(upstream, user, password)
            except UpstreamLoginFailed as refused:
                raise UpstreamWrongServer(detail=refused.detail) from refused

    def _let_stand(self, upstream: Upstream, problem: FluxError) -> None:
        """Nothing to prove it with: what was proven before, behind this very host key, is still it."""
        if self.stood != upstream or self.proven_behind is None or self.proven_behind != self._host.key_fingerprint:
            raise problem
        self._proven = (upstream, self._host.generation)

    def _note_proven(self, upstream: Upstream, over: int) -> None:
        self._proven, self.stood = (upstream, over), upstream
        if self.proven_behind != self._host.key_fingerprint:
            self.proven_behind = self._host.key_fingerprint
            self._moved()

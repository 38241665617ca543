"""
A login to prove upstream with: this project's own user and password, whoever has them.

v1: the project's password, from the control plane. v2: a role of this tunnel whose password is still in memory; where
there is none (after a restart, or before anybody asked for one), one is minted for a minute and ended at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

from fluxd import wire
from fluxd.core.errors import NotAuthenticated, NotSupportedByPlane, PlaneAnswerInvalid
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxplane.wire import DedicatedCredentials, Secret

from .facts import Facts
from .grants import Grants, Terms

PROOF_TTL_S: Final = 60


class Identity:
    """Finds such a login for any tunnel."""

    def __init__(self, *, control: ControlPlane, tokens: Tokens, grants: Grants) -> None:
        self._control = control
        self._tokens = tokens
        self._grants = grants

    @asynccontextmanager
    async def login(self, facts: Facts, caller: Callable[[], Caller | None]) -> AsyncIterator[tuple[str, Secret]]:
        """
        A user and its password, good for as long as the context.

        Raises:
            NotAuthenticated: no token is at hand for the project's account.
            NotSupportedByPlane: it would take a role that could not be ended again.
            FluxError: the control plane refused or failed.
        """
        if facts.pooled is None:
            yield await self._dedicated(facts, await self._caller(facts, caller()))
            return
        for record in reversed(self._grants.live(facts.id)):
            password = self._grants.password(record)
            if password is not None and record.username is not None:
                yield record.username, password
                return
        async with self._minted(facts, await self._caller(facts, caller())) as login:
            yield login

    async def _caller(self, facts: Facts, known: Caller | None) -> Caller:
        found = known or await self._tokens.resolve(wire.Plane(api_base=facts.key.api_base))
        if found.account != facts.key.account:
            raise NotAuthenticated(f"The token at hand is another account's than {facts.key.account}'s.")
        return found

    async def _dedicated(self, facts: Facts, caller: Caller) -> tuple[str, Secret]:
        found = await self._control.credentials(caller, facts.key.hash)
        if not isinstance(found, DedicatedCredentials):
            raise PlaneAnswerInvalid("The control plane gave another mode's credentials.")
        parts = urlsplit(found.postgres_connection_string.reveal())
        if parts.username is None or parts.password is None:
            raise PlaneAnswerInvalid("The project's connection string has no user or password.")
        return unquote(parts.username), Secret(unquote(parts.password))

    @asynccontextmanager
    async def _minted(self, facts: Facts, caller: Caller) -> AsyncIterator[tuple[str, Secret]]:
        if not {"grant_id", "revoke"} <= set(facts.plan.extensions):
            raise NotSupportedByPlane
        terms = Terms(
            caller=caller,
            key=facts.key,
            project=facts.project,
            extensions=facts.plan.extensions,
            ttl_s=PROOF_TTL_S,
            reason="fluxd asks: is this the project's own database?",
        )
        record = await self._grants.write_down(terms)
        try:
            minted = await self._grants.ask(record, terms)
            if record.username is None:
                raise PlaneAnswerInvalid("The control plane's grant names no role.")
            yield record.username, minted.password
        finally:
            self._grants.end(record.grant_id)

"""
The lab's embedded SSH host: answers the resolver's two questions, forwards to the databases, refuses everything else.

It stands for a bastion with docker: container names have addresses that mean something only here, and channels to a
name or an address go to the database's real port on loopback. No shell, no terminal, no agent, no other forwarding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import asyncssh

from fluxplane.lab import resolver

LOGIN_WITHIN_S: Final = 20
CLOSE_WITHIN_S: Final = 5

Place = tuple[str, int]


@dataclass
class EmbeddedHost:
    """
    An asyncssh server on loopback for `user` with one of `client_keys`.

    `table` and `targets` ((host, port) as a channel names it → where it really is) may change while it runs.
    """

    host_key: asyncssh.SSHKey
    client_keys: list[asyncssh.SSHKey]
    user: str = "flux"
    table: resolver.Table = field(default_factory=resolver.Table)
    targets: Mapping[Place, Place] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0
    _acceptor: asyncssh.SSHAcceptor | None = None
    connections: set[asyncssh.SSHServerConnection] = field(default_factory=set)

    async def start(self) -> None:
        """
        Listen on `port`, or on a free one if that is 0 (`port` then says which).

        Raises:
            OSError: the port is taken.
        """
        self._acceptor = await asyncssh.listen(
            self.host,
            self.port,
            server_factory=lambda: _Account(self),
            server_host_keys=[self.host_key],
            process_factory=self._answer,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_scp=False,
            login_timeout=LOGIN_WITHIN_S,
            reuse_address=True,
        )
        self.port = self._acceptor.get_port()

    async def stop(self) -> None:
        """Stop listening and hang up on everybody."""
        if self._acceptor is None:
            return
        acceptor, self._acceptor = self._acceptor, None
        acceptor.close()
        await self.hang_up()
        async with asyncio.timeout(CLOSE_WITHIN_S):
            await acceptor.wait_closed()

    async def hang_up(self) -> None:
        """End every connection; who dials again is let in."""
        ending = list(self.connections)
        for connection in ending:
            connection.abort()
        async with asyncio.timeout(CLOSE_WITHIN_S):
            await asyncio.gather(*(connection.wait_closed() for connection in ending))

    def _answer(self, process: asyncssh.SSHServerProcess[str]) -> None:
        answer = resolver.answer(process.command or "", self.table)
        process.stdout.write(answer.out)
        process.stderr.write(answer.err)
        process.exit(answer.exit_code)


class _Account(asyncssh.SSHServer):
    """One connection: who may log in, and where its channels may go."""

    def __init__(self, host: EmbeddedHost) -> None:
        self._host = host
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._host.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._connection is not None:
            self._host.connections.discard(self._connection)

    async def begin_auth(self, username: str) -> bool:
        """An account that does not exist takes no key, as with OpenSSH: it is not told apart from a wrong key."""
        keys = self._host.client_keys if username == self._host.user else []
        if self._connection is not None:
            self._connection.set_authorized_keys(authorized(keys))
        return True

    def connection_requested(
        self,
        dest_host: str,
        dest_port: int,
        orig_host: str,  # noqa: ARG002
        orig_port: int,  # noqa: ARG002
    ) -> Any:
        target = self._host.targets.get((dest_host, dest_port))
        if target is None or self._connection is None:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "only the lab's two databases are forwarded to"
            )
        return self._connection.forward_connection(*target)


def authorized(keys: list[asyncssh.SSHKey]) -> asyncssh.SSHAuthorizedKeys:
    return asyncssh.import_authorized_keys("".join(key.export_public_key().decode() for key in keys))

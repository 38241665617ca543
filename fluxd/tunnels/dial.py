"""
One SSH handshake, from a destination to an authenticated connection or a problem with a name.

asyncssh keeps the protocol, keys, the agent and the user's ``~/.ssh/config``. Here is what we want of it: ciphers in
our order, strict host keys (`hostkeys`), encrypted keys (`passphrases`), a bound on everything, and a name for each way
it fails (`failures`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncssh

from fluxd.core.errors import (
    FluxError,
    ShownKey,
    SSHAuthFailed,
    SSHConfigInvalid,
    SSHHandshakeFailed,
    SSHHostKeyUnknown,
    SSHKeyEncrypted,
)
from fluxd.core.target import Target, check_host, check_port, check_user, clean, split_port

from .failures import FAILURES, problem_of
from .hostkeys import GLOBAL_FILES, USER_FILES, HostKeys
from .passphrases import KeyRing, Passphrases, public_halves

# Hardware does AES; 1.6 to 1.8 times as fast here as OpenSSH's default. The rest of asyncssh's list follows.
CIPHERS: Final = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
# After those that known_hosts has: a host with a new type of key shall show it, so that we can say what changed.
HOST_KEY_TYPES: Final = "+ssh-ed25519,ecdsa-sha2-nistp*,rsa-sha2-512,rsa-sha2-256"
# Where ssh_config names no IdentityFile.
USUAL_KEYS: Final = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed448", "id_ed25519", "id_ecdsa", "id_rsa")
# What IdentityAgent says for it, and without a word.
THE_SHELLS: Final = "SSH_AUTH_SOCK"
# A jump host's own ProxyJump counts too; so deep and no deeper, for it may lead in a circle.
DEEPEST_JUMP: Final = 8


@dataclass(frozen=True, slots=True)
class Destination:
    """Which SSH host, as whom and trusting what: the key under which connections are shared."""

    target: Target
    identity_file: str | None = None
    known_hosts: str | None = None

    def __str__(self) -> str:
        return str(self.target)


@dataclass(frozen=True, slots=True)
class Dialling:
    """How to dial: bounds and keepalive, in seconds, where the user's own ssh configuration is, what opens keys."""

    connect_s: float = 15.0
    # A dead link is noticed after (count + 1) intervals.
    keepalive_interval_s: float = 4.0
    keepalive_count: int = 2
    config: str = "~/.ssh/config"
    # A connection without a channel or a question for so long is closed; it comes back when it is needed.
    idle_s: float = 600.0
    passphrases: Passphrases = field(default_factory=Passphrases, compare=False)


async def dial(
    destination: Destination,
    how: Dialling,
    *,
    agent: str | None,
    pinned: Sequence[str],
    client: Callable[[], asyncssh.SSHClient] = asyncssh.SSHClient,
) -> asyncssh.SSHClientConnection:
    """
    An authenticated connection to *destination*. Safe to cancel.

    *agent* is the socket of an ssh-agent; None leaves it to the configuration and our own environment. *pinned* are the
    plan's public keys. Jump hosts of the user's ssh_config are dialled as strictly, with the same agent, and are left
    when the connection ends.

    Raises:
        FluxError: why there is none.
    """
    return await _dial(destination, how, _Offer(agent, pinned, client), None, DEEPEST_JUMP)


async def stranger_before(destination: Destination, how: Dialling, *, agent: str | None) -> ShownKey | None:
    """
    The first host on the way to *destination* that known_hosts does not know; None if it knows them all.

    A plan's pinned keys do not count, and whether *destination* lets anybody in is not asked.

    Raises:
        FluxError: nothing can be said: a host does not answer, has another key than it had, …
    """
    visitor = _Visitor()
    try:
        await _left(await _dial(destination, how, _Offer(agent, client=lambda: visitor), None, DEEPEST_JUMP))
    except SSHHostKeyUnknown as problem:
        if problem.shown is None:
            raise
        return problem.shown
    except FluxError:
        if not visitor.knows_the_host:
            raise
    return None


class _Visitor(asyncssh.SSHClient):
    """Remembers whether the host's key was accepted, whatever came after."""

    _connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    @property
    def knows_the_host(self) -> bool:
        return self._connection is not None and self._connection.get_server_host_key() is not None


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a dial brings along; a jump host gets the agent alone."""

    agent: str | None
    pinned: Sequence[str] = ()
    client: Callable[[], asyncssh.SSHClient] = asyncssh.SSHClient


async def _dial(
    destination: Destination, how: Dialling, offer: _Offer, through: asyncssh.SSHClientConnection | None, depth: int
) -> asyncssh.SSHClientConnection:
    """*through*: the jump host that leads there; None where the configuration is to say."""
    host, port = destination.target.host, destination.target.port
    ready: _Ready | None = None
    try:
        async with asyncio.timeout(how.connect_s):
            try:
                ready = await asyncio.to_thread(_prepare, destination, how, offer)
                through = through or await _jumped(ready.options, destination, how, offer, depth)
                return await asyncssh.connect(
                    host,
                    port,
                    options=ready.options,
                    config=_config_files(how),
                    tunnel=_Way(through) if through else None,
                    connect_timeout=None,
                )
            except BaseException:
                await _left(through)
                raise
    except FAILURES as error:
        raise await _problem(error, destination, ready) from error


async def _problem(error: Exception, destination: Destination, ready: _Ready | None) -> FluxError:
    if ready is not None:
        if isinstance(error, asyncssh.HostKeyNotVerifiable) and _is_our_verdict(error):
            return _host_key_problem(ready.known, destination, error)
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return _no_agreement(ready.known, destination.target.host, error)
    problem = problem_of(error, str(destination))
    if ready is not None and isinstance(problem, SSHAuthFailed):
        lacking = await asyncio.to_thread(ready.ring.lacking)
        if lacking is not None:
            return SSHKeyEncrypted(detail=lacking)
    return problem


def _is_our_verdict(error: asyncssh.HostKeyNotVerifiable) -> bool:
    """Not a host that disconnects with that code: ours was made from another error."""
    return error.__context__ is not None


class _Way:
    """A jump host as asyncssh wants it, which ends with the connection that was made through it."""

    def __init__(self, through: asyncssh.SSHClientConnection) -> None:
        self._through = through

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHTCPSession[bytes]], host: str, port: int
    ) -> tuple[object, asyncssh.SSHTCPSession[bytes]]:
        channel, session = await self._through.create_connection(factory, host, port)
        session.set_tunnel(self._through)  # type: ignore[attr-defined]  # the session is the new connection
        return channel, session


async def _left(through: asyncssh.SSHClientConnection | None) -> None:
    if through is not None:
        through.abort()
        await through.wait_closed()


async def _jumped(
    options: asyncssh.SSHClientConnectionOptions, destination: Destination, how: Dialling, offer: _Offer, depth: int
) -> asyncssh.SSHClientConnection | None:
    """
    The last of the hosts that ProxyJump names, reached through those before it; None without any.

    Not asyncssh's own way, which would take our environment's agent and not the caller's.
    """
    through: asyncssh.SSHClientConnection | None = None
    for hop in await asyncio.to_thread(_hops, options, destination, how):
        if not depth:
            raise SSHConfigInvalid("ProxyJump leads from one jump host to the next without an end.")
        try:
            through = await _dial(hop, how, _Offer(offer.agent), through, depth - 1)
        except SSHHostKeyUnknown as problem:
            if problem.shown:
                problem.hint = _way_to_trust(destination)
            raise
    return through


def _hops(options: asyncssh.SSHClientConnectionOptions, destination: Destination, how: Dialling) -> list[Destination]:
    named = options.tunnel if isinstance(options.tunnel, str) else ""
    if named.lower() == "none":
        return []
    hops = (_hop(words.strip(), how) for words in named.split(",") if words.strip())
    # `Host *` with ProxyJump means the jump host too, which is not to be reached through itself.
    return [hop for hop in hops if hop.target.host != destination.target.host]


def _hop(words: str, how: Dialling) -> Destination:
    """One jump host, ``[user@]host[:port]``: what it does not say the configuration does, as for any host."""
    user, _, where = words.removeprefix("ssh://").rpartition("@")
    host, port = split_port(where)
    own = _unkeyed(how, host=check_host(host))
    return Destination(Target(check_host(host), check_user(user or own.username), check_port(port or own.port)))


def _alias(config: Any) -> str | None:
    found: str | None = config.get("HostKeyAlias")
    return found


@dataclass(frozen=True, slots=True)
class _Ready:
    """All that was read from disk for one dial."""

    known: HostKeys
    ring: KeyRing
    options: asyncssh.SSHClientConnectionOptions


def _prepare(destination: Destination, how: Dialling, offer: _Offer) -> _Ready:
    """Read what must be read from disk (keys, known_hosts, ssh_config): for a thread."""
    target, config = destination.target, _config(destination, how)
    keys = HostKeys(_known_hosts_files(destination, config), offer.pinned, _alias(config))
    ring, offered = _keys(destination, config, how.passphrases)
    offered["agent_path"] = _agent(config, offer.agent)
    options = asyncssh.SSHClientConnectionOptions(
        host=target.host,
        port=target.port,
        username=target.user,
        config=_config_files(how),
        client_factory=lambda: _watched(offer.client(), keys),
        known_hosts=keys.match,
        keepalive_interval=how.keepalive_interval_s,
        keepalive_count_max=how.keepalive_count,
        encryption_algs=() if config.get("Ciphers") else CIPHERS,
        server_host_key_algs=() if config.get("HostKeyAlgorithms") else HOST_KEY_TYPES,
        **offered,
    )
    return _Ready(keys, ring, options)


def _config(destination: Destination, how: Dialling) -> Any:
    """What the user's ssh_config says for the destination, as asyncssh read it."""
    target = destination.target
    return _unkeyed(how, host=target.host, port=target.port, username=target.user).config


def _unkeyed(how: Dialling, **asked: Any) -> asyncssh.SSHClientConnectionOptions:
    """Options for what ssh_config says; no key is read."""
    return asyncssh.SSHClientConnectionOptions(client_keys=None, agent_path=None, config=_config_files(how), **asked)


def overruled(target: Target, how: Dialling) -> list[tuple[str, object, object]]:
    """
    `User` and `Port` of the user's ssh_config where they are not *target*'s: keyword, theirs, ours. For a thread.

    A broken ssh_config says nothing here; dialling tells.
    """
    try:
        config: Any = _unkeyed(how, host=target.host).config
    except FAILURES:
        return []
    said = (("User", config.get("User"), target.user), ("Port", config.get("Port"), target.port))
    return [(keyword, theirs, ours) for keyword, theirs, ours in said if theirs not in (None, ours)]


def _config_files(how: Dialling) -> list[str]:
    path = Path(how.config).expanduser()
    return [str(path)] if path.is_file() else []


def _keys(destination: Destination, config: Any, passphrases: Passphrases) -> tuple[KeyRing, dict[str, Any]]:
    """The keys to offer, and how asyncssh is told: the file that is named, else `_files`."""
    named = destination.identity_file
    paths = [named] if named is not None else _files(config)
    ring = KeyRing(passphrases, paths, named=named is not None)
    asked: dict[str, Any] = {"client_keys": _Keys(ring.pairs)}
    if named is not None or config.get("IdentitiesOnly"):
        # Only these, so that a full agent doesn't use up the server's patience before them. An empty list would be all.
        halves = [
            *(pair.public_data for pair in ring.pairs),
            *(half for path in paths for half in public_halves(path)),
        ]
        if halves or named is None:
            asked["agent_identities"] = halves or [b"none"]
    return ring, asked


class _Keys(list[asyncssh.SSHKeyPair]):
    """Exactly these. For a list that is false asyncssh would read the usual files itself."""

    def __bool__(self) -> bool:
        return True


def _files(config: Any) -> list[str]:
    """ssh_config's identity files, which may be `none`; where it names none, those that ssh tries."""
    named = config.get("IdentityFile")
    if named is not None:
        return [str(Path(path).expanduser()) for path in named]
    return [str(path) for name in USUAL_KEYS if (path := Path("~/.ssh", name).expanduser()).is_file()]


def _agent(config: Any, asked: str | None) -> str:
    """The agent's socket, empty without any: ssh_config's IdentityAgent before the shell's, as in ssh."""
    named = config.get("IdentityAgent", THE_SHELLS)
    if named == THE_SHELLS:
        return os.environ.get("SSH_AUTH_SOCK", "") if asked is None else asked
    return named or ""


def _known_hosts_files(destination: Destination, config: Any) -> list[str]:
    """Never none: `UserKnownHostsFile none` would make asyncssh trust everybody."""
    if destination.known_hosts is not None:
        user: Sequence[str] = [destination.known_hosts]
    else:
        user = config.get("UserKnownHostsFile") or USER_FILES
    return [*user, *(config.get("GlobalKnownHostsFile") or GLOBAL_FILES)]


def _watched(client: asyncssh.SSHClient, keys: HostKeys) -> asyncssh.SSHClient:
    """*client*, made to remember which key it was shown."""

    def meet(_host: str, _addr: str, _port: int, key: asyncssh.SSHKey) -> bool:
        return keys.meet(key)

    client.validate_host_public_key = meet  # type: ignore[method-assign,assignment]
    return client


def _host_key_problem(keys: HostKeys, destination: Destination, error: asyncssh.HostKeyNotVerifiable) -> FluxError:
    problem = keys.verdict(destination.target.host, error.reason)
    if isinstance(problem, SSHHostKeyUnknown) and problem.shown:
        problem.hint = _way_to_trust(destination)
    return problem


def _way_to_trust(destination: Destination) -> str:
    return (
        "Compare the fingerprint with your operator's. If it is the same, add the key to known_hosts: "
        f"`fluxctl host trust {destination}`."
    )


def _no_agreement(keys: HostKeys, host: str, error: asyncssh.KeyExchangeFailed) -> FluxError:
    changed = keys.no_common_key(host, error.reason) if "host key" in error.reason else None
    return changed or SSHHandshakeFailed(
        f"{host} and we agree on no cipher or key exchange.",
        detail=clean(error.reason),
        hint="Its operator may need to update OpenSSH, or your ssh_config's Ciphers and KexAlgorithms are too narrow.",
    )


async def asks_for_passphrase(destination: Destination, how: Dialling) -> bool:
    """Whether dialling *destination*, or a jump host before it, may end in a `SSHKeyEncrypted`. False if unsure."""
    try:
        return await asyncio.to_thread(_is_locked, destination, how)
    except (OSError, ValueError, FluxError):
        return False


def _is_locked(destination: Destination, how: Dialling) -> bool:
    ready = _prepare(destination, how, _Offer(None))
    rings = [ready.ring, *(_prepare(hop, how, _Offer(None)).ring for hop in _hops(ready.options, destination, how))]
    return any(ring.locked() for ring in rings)

"""
One SSH handshake, from a destination to an authenticated connection or a problem with a name.

asyncssh keeps the protocol, keys, the agent and the user's ``~/.ssh/config``. Here is what we want of it: ciphers in
our order, strict host keys (`hostkeys`), a bound on everything, and one class of `core.errors` for each way it fails.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncssh
from asyncssh.config import ConfigParseError

from fluxd.core.errors import (
    FluxError,
    ShownKey,
    SSHAuthFailed,
    SSHBusy,
    SSHConfigInvalid,
    SSHHandshakeFailed,
    SSHHostKeyUnknown,
    SSHHostUnresolved,
    SSHKeyEncrypted,
    SSHKeyUnusable,
    SSHRefused,
    SSHUnreachable,
    TooManyOpenFiles,
)
from fluxd.core.target import Target, check_host, check_port, check_user, split_port

from .hostkeys import GLOBAL_FILES, USER_FILES, HostKeys
from .passphrases import Passphrases

# Hardware does AES; 1.6 to 1.8 times as fast here as OpenSSH's default. The rest of asyncssh's list follows.
CIPHERS: Final = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
# After those that known_hosts has: a host with a new type of key shall show it, so that we can say what changed.
HOST_KEY_TYPES: Final = "+ssh-ed25519,ecdsa-sha2-nistp*,rsa-sha2-512,rsa-sha2-256"
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
    keys: HostKeys | None = None
    try:
        async with asyncio.timeout(how.connect_s):
            try:
                keys, options = await asyncio.to_thread(_prepare, destination, how, offer)
                through = through or await _jumped(options, destination, how, offer, depth)
                return await asyncssh.connect(
                    host,
                    port,
                    options=options,
                    config=_config_files(how),
                    tunnel=_Way(through) if through else None,
                    connect_timeout=None,
                )
            except BaseException:
                await _left(through)
                raise
    except asyncssh.HostKeyNotVerifiable as error:
        raise _host_key_problem(keys, destination, error) from error
    except asyncssh.KeyExchangeFailed as error:
        raise _no_agreement(keys, host, error) from error
    except asyncssh.PermissionDenied as error:
        raise await asyncio.to_thread(_locked_key, destination, how) or problem_of(error, destination) from error
    except (OSError, asyncssh.Error, ValueError) as error:
        raise problem_of(error, destination) from error


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
    asked: dict[str, Any] = {"client_keys": None, "agent_path": None, "config": _config_files(how)}
    own = asyncssh.SSHClientConnectionOptions(host=check_host(host), **asked)
    return Destination(Target(check_host(host), check_user(user or own.username), check_port(port or own.port)))


def _alias(config: Any) -> str | None:
    found: str | None = config.get("HostKeyAlias")
    return found


def _prepare(
    destination: Destination, how: Dialling, offer: _Offer
) -> tuple[HostKeys, asyncssh.SSHClientConnectionOptions]:
    """Read what must be read from disk (keys, known_hosts, ssh_config): for a thread."""
    target = destination.target
    asked: dict[str, Any] = {"username": target.user, "config": _config_files(how)}
    if offer.agent is not None:
        asked["agent_path"] = offer.agent
    if destination.identity_file is not None:
        asked |= _identity(destination.identity_file, how.passphrases)
    plain = functools.partial(asyncssh.SSHClientConnectionOptions, host=target.host, port=target.port, **asked)
    config = plain().config
    keys = HostKeys(_known_hosts_files(destination, config), offer.pinned, _alias(config))
    options = plain(
        client_factory=lambda: _watched(offer.client(), keys),
        known_hosts=keys.match,
        keepalive_interval=how.keepalive_interval_s,
        keepalive_count_max=how.keepalive_count,
        encryption_algs=() if config.get("Ciphers") else CIPHERS,
        server_host_key_algs=() if config.get("HostKeyAlgorithms") else HOST_KEY_TYPES,
    )
    return keys, options


def _config_files(how: Dialling) -> list[str]:
    path = Path(how.config).expanduser()
    return [str(path)] if path.is_file() else []


def _identity(path: str, passphrases: Passphrases) -> dict[str, Any]:
    # Only this key, so that a full agent doesn't use up the server's patience before it; an encrypted one may be in
    # the agent, which is then asked for it alone.
    named: dict[str, Any] = {"client_keys": [path], "ignore_encrypted": True, "passphrase": passphrases.of(path)}
    if Path(f"{path}.pub").is_file():
        named["agent_identities"] = [f"{path}.pub"]
    return named


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


def _host_key_problem(
    keys: HostKeys | None, destination: Destination, error: asyncssh.HostKeyNotVerifiable
) -> FluxError:
    host = destination.target.host
    problem = keys.verdict(host, error.reason) if keys else SSHHandshakeFailed(detail=error.reason)
    if isinstance(problem, SSHHostKeyUnknown) and problem.shown:
        problem.hint = _way_to_trust(destination)
    return problem


def _way_to_trust(destination: Destination) -> str:
    return (
        "Compare the fingerprint with your operator's. If it is the same, add the key to known_hosts: "
        f"`fluxctl host trust {destination}`."
    )


def _no_agreement(keys: HostKeys | None, host: str, error: asyncssh.KeyExchangeFailed) -> FluxError:
    changed = keys.no_common_key(host, error.reason) if keys is not None and "host key" in error.reason else None
    return changed or SSHHandshakeFailed(
        f"{host} and we agree on no cipher or key exchange.",
        detail=error.reason,
        hint="Its operator may need to update OpenSSH, or your ssh_config's Ciphers and KexAlgorithms are too narrow.",
    )


def _locked_key(destination: Destination, how: Dialling) -> FluxError | None:
    """The problem that an encrypted identity file is, if that is what the destination names."""
    path = destination.identity_file
    return SSHKeyEncrypted(detail=path) if path is not None and how.passphrases.lacks(path) else None


# ------------------------------------------------------------- errors by name


def problem_of(error: Exception, destination: Destination) -> FluxError:
    """The one class of ours for a failure of asyncssh or of the socket below it."""
    shown = str(destination)
    for kinds, make in _PROBLEMS:
        if isinstance(error, kinds):
            return make(error, shown)
    return SSHHandshakeFailed(f"The handshake with {shown} failed.", detail=_words(error))


def _words(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error) or type(error).__name__


def _auth_failed(error: Exception, shown: str) -> FluxError:
    return SSHAuthFailed(f"{shown} refused every key that was offered.", detail=_words(error))


def _unusable_key(error: Exception, _shown: str) -> FluxError:
    return SSHKeyUnusable(detail=_words(error))


def _bad_config(error: Exception, _shown: str) -> FluxError:
    return SSHConfigInvalid(detail=_words(error))


def _unresolved(error: Exception, shown: str) -> FluxError:
    return SSHHostUnresolved(f"The name in {shown} has no address.", detail=_words(error))


def _hung_up(error: Exception, shown: str) -> FluxError:
    return SSHHandshakeFailed(f"{shown} hung up during the handshake.", detail=_words(error))


def _timed_out(_error: Exception, shown: str) -> FluxError:
    return SSHUnreachable(f"{shown} did not answer in time.")


def _disconnected(error: Exception, shown: str) -> FluxError:
    words = _words(error)
    if "authentication" in words.lower():
        return SSHAuthFailed(
            f"{shown} ended the attempt.",
            detail=words,
            hint="Your agent may hold too many keys: name one (FLUX_DB_TUNNEL_IDENTITY_FILE), or set IdentitiesOnly.",
        )
    if getattr(error, "code", None) == asyncssh.DISC_TOO_MANY_CONNECTIONS:
        return SSHBusy(detail=words)
    return _hung_up(error, shown)


def _socket_failed(error: Exception, shown: str) -> FluxError:
    # asyncio joins the errors of several addresses into one without an errno.
    number = getattr(error, "errno", None)
    text = str(error)
    if number == errno.ECONNREFUSED or (number is None and f"Errno {errno.ECONNREFUSED}" in text):
        return SSHRefused(f"{shown} refuses connections on that port.")
    if number in (errno.EMFILE, errno.ENFILE) or (number is None and f"Errno {errno.EMFILE}" in text):
        return TooManyOpenFiles()
    return SSHUnreachable(f"{shown} cannot be reached.", detail=text)


_Kinds = type[Exception] | tuple[type[Exception], ...]

# In this order; the first that matches decides.
_PROBLEMS: Final[tuple[tuple[_Kinds, Callable[[Exception, str], FluxError]], ...]] = (
    (asyncssh.PermissionDenied, _auth_failed),
    ((asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError), _hung_up),
    (asyncssh.DisconnectError, _disconnected),
    ((asyncssh.KeyImportError, asyncssh.KeyEncryptionError, FileNotFoundError, PermissionError), _unusable_key),
    (ConfigParseError, _bad_config),
    (socket.gaierror, _unresolved),
    (TimeoutError, _timed_out),
    (OSError, _socket_failed),
    (ValueError, _bad_config),
)

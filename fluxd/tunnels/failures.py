"""
Every way that SSH fails, by name: asyncssh's and the socket's exceptions, each as one class of `core.errors`.

The tables below are the whole of it. What asyncssh raises itself and what the host says of itself (a disconnect with a
code, RFC 4253 §11.1; a channel's refusal, RFC 4254 §5.1) arrive as the same classes. A test walks every exception of
the installed asyncssh and every code, so that a new one has to be given its place here.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import asyncssh
from asyncssh.asn1 import ASN1Error
from asyncssh.config import ConfigParseError
from asyncssh.packet import PacketDecodeError
from asyncssh.saslprep import SASLPrepError

from fluxd.core.errors import (
    FluxError,
    SSHAuthFailed,
    SSHBusy,
    SSHConfigInvalid,
    SSHForwardingRefused,
    SSHHandshakeFailed,
    SSHHostUnresolved,
    SSHKeyUnusable,
    SSHLost,
    SSHRefused,
    SSHTargetInvalid,
    SSHUnreachable,
    TooManyOpenFiles,
    UpstreamRefused,
    UpstreamUnreachable,
)
from fluxd.core.target import clean

MANY_KEYS: Final = "Your agent may hold too many keys: name one (FLUX_DB_TUNNEL_IDENTITY_FILE), or set IdentitiesOnly."
FEW_ADDRESSES: Final = "Its operator may admit only some addresses (a VPN's?), or has banned yours after many attempts."
# What dialling may end with. asyncssh's other exceptions tell a session's process what its terminal did.
FAILURES: Final = (asyncssh.Error, asyncssh.PasswordChangeRequired, OSError, ValueError)
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


def problem_of(error: Exception, shown: str) -> FluxError:
    """What it means that dialling *shown* failed with *error*."""
    for kinds, make in _PROBLEMS:
        if isinstance(error, kinds):
            return make(error, shown)
    return _failed(error, shown)


def channel_problem(error: asyncssh.ChannelOpenError, where: str, *, lost: bool) -> FluxError:
    """What it means that a channel to *where* was refused; *lost*: the connection has ended."""
    reason = clean(error.reason)
    if lost:
        return SSHLost(detail=reason)
    if error.code in (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE):
        return SSHForwardingRefused(f"The SSH host does not allow forwarding to {where}.", detail=reason)
    if error.code == asyncssh.OPEN_RESOURCE_SHORTAGE:
        return SSHBusy(detail=reason)
    if _says_refused(reason):
        return UpstreamRefused(f"Nothing listens on {where}, says the SSH host.", detail=reason)
    return UpstreamUnreachable(f"The SSH host cannot reach {where}.", detail=reason)


def _says_refused(reason: str) -> bool:
    return "refused" in reason.lower() or f"Errno {errno.ECONNREFUSED}" in reason


def _words(error: Exception) -> str:
    """The error's own, which may be another machine's."""
    return clean(getattr(error, "reason", None) or str(error) or type(error).__name__)


def _failed(error: Exception, shown: str) -> FluxError:
    return SSHHandshakeFailed(f"The handshake with {shown} failed.", detail=_words(error))


def _hung_up(error: Exception, shown: str) -> FluxError:
    return SSHHandshakeFailed(f"{shown} hung up during the handshake.", detail=_words(error))


def _auth_failed(error: Exception, shown: str) -> FluxError:
    return SSHAuthFailed(f"{shown} refused every key that was offered.", detail=_words(error))


def _too_many_keys(error: Exception, shown: str) -> FluxError:
    return SSHAuthFailed(f"{shown} ended the attempt.", detail=_words(error), hint=MANY_KEYS)


def _no_such_user(error: Exception, shown: str) -> FluxError:
    hint = "Check FLUX_DB_TUNNEL_SSH_USER, and the user that the plan names."
    return SSHAuthFailed(f"{shown} does not take that user name.", detail=_words(error), hint=hint)


def _not_from_here(error: Exception, shown: str) -> FluxError:
    return SSHRefused(f"{shown} does not let this machine in.", detail=_words(error), hint=FEW_ADDRESSES)


def _busy(error: Exception, _shown: str) -> FluxError:
    return SSHBusy(detail=_words(error))


def _unusable_key(error: Exception, _shown: str) -> FluxError:
    return SSHKeyUnusable(detail=_words(error))


def _bad_config(error: Exception, _shown: str) -> FluxError:
    return SSHConfigInvalid(detail=_words(error))


def _bad_target(error: Exception, _shown: str) -> FluxError:
    return SSHTargetInvalid(detail=_words(error))


def _unresolved(error: Exception, shown: str) -> FluxError:
    return SSHHostUnresolved(f"The name in {shown} has no address.", detail=_words(error))


def _timed_out(_error: Exception, shown: str) -> FluxError:
    return SSHUnreachable(f"{shown} did not answer in time.")


_Make = Callable[[Exception, str], FluxError]

# By the code of a disconnect message, whether the host sent it or asyncssh made it; any other code: it hung up.
DISCONNECTED: Final[Mapping[int, _Make]] = MappingProxyType(
    {
        asyncssh.DISC_HOST_NOT_ALLOWED_TO_CONNECT: _not_from_here,
        asyncssh.DISC_PROTOCOL_ERROR: _failed,
        asyncssh.DISC_KEY_EXCHANGE_FAILED: _failed,
        asyncssh.DISC_RESERVED: _failed,
        asyncssh.DISC_MAC_ERROR: _failed,
        asyncssh.DISC_COMPRESSION_ERROR: _failed,
        asyncssh.DISC_SERVICE_NOT_AVAILABLE: _failed,
        asyncssh.DISC_PROTOCOL_VERSION_NOT_SUPPORTED: _failed,
        # The host's word; a key that we do not trust has been told by `hostkeys` before.
        asyncssh.DISC_HOST_KEY_NOT_VERIFIABLE: _failed,
        asyncssh.DISC_CONNECTION_LOST: _hung_up,
        asyncssh.DISC_BY_APPLICATION: _hung_up,
        asyncssh.DISC_TOO_MANY_CONNECTIONS: _busy,
        asyncssh.DISC_AUTH_CANCELLED_BY_USER: _auth_failed,
        asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE: _auth_failed,
        asyncssh.DISC_ILLEGAL_USER_NAME: _no_such_user,
    }
)


def _disconnected(error: Exception, shown: str) -> FluxError:
    code = getattr(error, "code", asyncssh.DISC_CONNECTION_LOST)
    # OpenSSH says "Too many authentication failures" as a protocol error.
    if code == asyncssh.DISC_PROTOCOL_ERROR and "authentication failures" in _words(error):
        return _too_many_keys(error, shown)
    return DISCONNECTED.get(code, _hung_up)(error, shown)


def _jump_refused(error: Exception, shown: str) -> FluxError:
    """Only a jump host opens a channel while we dial."""
    reason, code = _words(error), getattr(error, "code", None)
    if code in (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE):
        return SSHForwardingRefused(f"The jump host does not allow forwarding to {shown}.", detail=reason)
    if code == asyncssh.OPEN_RESOURCE_SHORTAGE:
        return SSHBusy(detail=reason)
    if _says_refused(reason):
        return SSHRefused(f"{shown} refuses connections on that port, says the jump host.", detail=reason)
    return SSHUnreachable(f"The jump host cannot reach {shown}.", detail=reason)


def _socket_failed(error: Exception, shown: str) -> FluxError:
    # asyncio joins the errors of several addresses into one without an errno.
    number, text = getattr(error, "errno", None), str(error)
    if number == errno.ECONNREFUSED or (number is None and f"Errno {errno.ECONNREFUSED}" in text):
        return SSHRefused(f"{shown} refuses connections on that port.")
    if number in _OUT_OF_DESCRIPTORS or (number is None and f"Errno {errno.EMFILE}" in text):
        return TooManyOpenFiles()
    return SSHUnreachable(f"{shown} cannot be reached.", detail=text)


_Kinds = type[Exception] | tuple[type[Exception], ...]

# In this order; the first that matches decides.
_PROBLEMS: Final[tuple[tuple[_Kinds, _Make], ...]] = (
    (asyncssh.DisconnectError, _disconnected),
    (asyncssh.ChannelOpenError, _jump_refused),
    (asyncssh.PasswordChangeRequired, _auth_failed),
    ((ConnectionResetError, BrokenPipeError), _hung_up),
    ((asyncssh.KeyImportError, asyncssh.KeyEncryptionError, FileNotFoundError, PermissionError), _unusable_key),
    ((asyncssh.KeyExportError, asyncssh.KeyGenerationError), _unusable_key),
    (ConfigParseError, _bad_config),
    ((ASN1Error, PacketDecodeError), _failed),
    (SASLPrepError, _bad_target),
    # A name that no DNS query can hold is a UnicodeError.
    ((socket.gaierror, UnicodeError), _unresolved),
    (TimeoutError, _timed_out),
    (OSError, _socket_failed),
    (ValueError, _bad_config),
)

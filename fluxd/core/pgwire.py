"""
PostgreSQL's protocol, version 3: what a tunnel says, and how it reads a client's first packet.

What a *server* says is read by `pgreply`. Packets come in whatever pieces a socket cuts them; a length is believed only
after it was checked, and nothing is kept beyond it. What breaks the protocol raises `ProtocolError`, and nothing else.

Truth: https://www.postgresql.org/docs/current/protocol-message-formats.html, and the server's
``ProcessStartupPacket`` for the bounds of a first packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct, pack
from typing import Final

PROTOCOL_3: Final = 3 << 16
_CANCEL: Final = 80877102
_SSL: Final = 80877103
_GSSENC: Final = 80877104

# The server's own bounds for a first packet, without its length word.
SMALLEST_FIRST: Final = 4
LARGEST_FIRST: Final = 10000

_INT32 = Struct("!i")
_LENGTH = Struct("!I")
_HEADER = Struct("!cI")


class ProtocolError(Exception):
    """The other side does not speak PostgreSQL, or breaks its rules. The text holds none of its bytes."""


# ---------------------------------------------------------------- what we say

SSL_REQUEST: Final = pack("!Ii", 8, _SSL)
GSSENC_REQUEST: Final = pack("!Ii", 8, _GSSENC)
TERMINATE: Final = b"X\x00\x00\x00\x04"


def startup(parameters: Mapping[str, str], version: int = PROTOCOL_3) -> bytes:
    """
    A StartupMessage.

    Raises:
        ValueError: a name is empty, a NUL stands in a text, or the packet would be longer than a server takes.
    """
    if "" in parameters:
        raise ValueError("a startup parameter has no name")
    body = b"".join(_text(part) for pair in parameters.items() for part in pair)
    if len(body) + 5 > LARGEST_FIRST:
        raise ValueError("a startup message of more than 10000 bytes")
    return pack("!Ii", len(body) + 9, version) + body + b"\x00"


def cancel_request(pid: int, key: bytes) -> bytes:
    """A CancelRequest for the backend that announced *pid* and *key* (4 bytes; up to 256 since protocol 3.2)."""
    return pack("!Iii", 12 + len(key), _CANCEL, pid) + key


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    return _message(b"p", _text(mechanism) + _INT32.pack(len(data)) + data)


def sasl_response(data: bytes) -> bytes:
    return _message(b"p", data)


def query(sql: str) -> bytes:
    return _message(b"Q", _text(sql))


def error_response(
    sqlstate: str, message: str, *, detail: str | None = None, hint: str | None = None, severity: str = "FATAL"
) -> bytes:
    """An ErrorResponse as a server would say it. NULs in the texts are dropped."""
    return _report(b"E", severity, sqlstate, message, detail, hint)


def notice_response(
    sqlstate: str, message: str, *, detail: str | None = None, hint: str | None = None, severity: str = "WARNING"
) -> bytes:
    """A NoticeResponse. NULs in the texts are dropped."""
    return _report(b"N", severity, sqlstate, message, detail, hint)


def _report(kind: bytes, severity: str, sqlstate: str, message: str, detail: str | None, hint: str | None) -> bytes:
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": message, "D": detail, "H": hint}
    said = (code.encode() + _text(text.replace("\0", "")) for code, text in fields.items() if text is not None)
    return _message(kind, b"".join(said) + b"\x00")


def _message(kind: bytes, payload: bytes) -> bytes:
    return _HEADER.pack(kind, len(payload) + 4) + payload


def _text(text: str) -> bytes:
    """Encoded as `decoded` decodes, so that bytes which are no UTF-8 pass unchanged."""
    if "\0" in text:
        raise ValueError("a NUL in a text of the protocol")
    return text.encode("utf-8", "surrogateescape") + b"\x00"


# --------------------------------------------------- a client's first packet


@dataclass(frozen=True, slots=True)
class Startup:
    """`version` is major << 16 | minor; of a parameter said twice the last stands, as in the server."""

    version: int
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """May we speak TLS? One byte answers: ``S`` or ``N``; then the client starts again."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """May we speak GSSAPI encryption? Answered ``G`` or ``N``; then the client starts again."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    pid: int
    key: bytes


FirstPacket = Startup | SSLRequest | GSSENCRequest | CancelRequest


def take_first_packet(buffer: bytearray) -> FirstPacket | None:
    """
    The first packet from the start of *buffer*, which loses it; None while it is not whole.

    None is answered only to less than 10 004 bytes, so who feeds small pieces holds little. After an SSLRequest or
    GSSENCRequest nothing may be behind: the client waits for its one byte.

    Raises:
        ProtocolError: this is none; as soon as its length word shows that.
    """
    if len(buffer) < 4:
        return None
    (length,) = _LENGTH.unpack_from(buffer)
    if not SMALLEST_FIRST <= length - 4 <= LARGEST_FIRST:
        raise ProtocolError("not a PostgreSQL client: its first packet has an impossible length")
    if len(buffer) < length:
        return None
    packet = bytes(buffer[4:length])
    del buffer[:length]
    return _first_packet(packet)


def _first_packet(packet: bytes) -> FirstPacket:
    (code,) = _INT32.unpack_from(packet)
    if code == _CANCEL:
        return _cancel(packet)
    if code in {_SSL, _GSSENC}:
        if len(packet) != 4:
            raise ProtocolError("an encryption request with a tail")
        return SSLRequest() if code == _SSL else GSSENCRequest()
    if code >> 16 != 3:
        raise ProtocolError(f"protocol version {code >> 16}.{code & 0xFFFF} is not supported")
    return Startup(code, _parameters(packet))


def _cancel(packet: bytes) -> CancelRequest:
    if not 9 <= len(packet) <= 8 + 256:
        raise ProtocolError("a cancel request of an impossible length")
    return CancelRequest(_INT32.unpack_from(packet, 4)[0], packet[8:])


def _parameters(packet: bytes) -> dict[str, str]:
    """Pairs of texts and one NUL that ends them, which must be the packet's last byte."""
    texts = packet[4:].split(b"\0")
    ended = len(texts) >= 2 and not texts[-1] and not texts[-2] and len(texts) % 2 == 0
    if not ended or b"" in texts[:-2:2]:
        raise ProtocolError("the parameters of a startup message do not end where it ends")
    names, values = texts[:-2:2], texts[1:-2:2]
    return {decoded(name): decoded(value) for name, value in zip(names, values, strict=True)}


def decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")

"""
What a PostgreSQL server says: its messages, read from whatever pieces a socket cuts them into.

The other half of `pgwire`. Bounded and suspicious like it: an unknown kind, an impossible length or a content that does
not fit its length raises `ProtocolError`, as early as it shows, and nothing else is raised.

Truth: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from .pgwire import ProtocolError, decoded

# A message during login is small; those that answer questions of our own are too.
LARGEST_MESSAGE: Final = 1 << 16

_INT16 = Struct("!H")
_INT32 = Struct("!i")
_HEADER = Struct("!cI")

# AuthenticationRequest's codes.
AUTH_OK: Final = 0
AUTH_CLEARTEXT: Final = 3
AUTH_MD5: Final = 5
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

_BACKEND_KINDS: Final = frozenset(b"123ACDEGHIKNRSTVWZcdnstv")


@dataclass(frozen=True, slots=True)
class Authentication:
    code: int
    data: bytes

    @property
    def mechanisms(self) -> list[str]:
        """What AuthenticationSASL offers."""
        return [decoded(name) for name in self.data.split(b"\0") if name]


@dataclass(frozen=True, slots=True)
class Report:
    """What ErrorResponse and NoticeResponse hold, by field code; texts that are no UTF-8 are mended for showing."""

    fields: dict[str, str]

    @property
    def severity(self) -> str:
        """Untranslated where the server says so (9.6 and later)."""
        return self.fields.get("V", self.fields.get("S", ""))

    @property
    def sqlstate(self) -> str:
        return self.fields.get("C", "")

    @property
    def message(self) -> str:
        return self.fields.get("M", "")

    @property
    def detail(self) -> str | None:
        return self.fields.get("D")

    @property
    def hint(self) -> str | None:
        return self.fields.get("H")


@dataclass(frozen=True, slots=True)
class ErrorResponse(Report):
    pass


@dataclass(frozen=True, slots=True)
class NoticeResponse(Report):
    pass


@dataclass(frozen=True, slots=True)
class ParameterStatus:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class BackendKeyData:
    pid: int
    key: bytes


@dataclass(frozen=True, slots=True)
class ReadyForQuery:
    """`status`: ``I`` idle, ``T`` in a transaction, ``E`` in a failed one."""

    status: str


@dataclass(frozen=True, slots=True)
class DataRow:
    values: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class CommandComplete:
    tag: str


@dataclass(frozen=True, slots=True)
class Other:
    """A message whose content is nobody's business here."""

    kind: str
    payload: bytes


Message = (
    Authentication
    | ErrorResponse
    | NoticeResponse
    | ParameterStatus
    | BackendKeyData
    | ReadyForQuery
    | DataRow
    | CommandComplete
    | Other
)


def take_message(buffer: bytearray, largest: int = LARGEST_MESSAGE) -> Message | None:
    """
    The next backend message from the start of *buffer*, which loses it; None while it is not whole.

    None is answered only to less than *largest* + 5 bytes.

    Raises:
        ProtocolError: no such message; as soon as its kind or length shows that.
    """
    if buffer and buffer[0] not in _BACKEND_KINDS:
        raise ProtocolError("not a PostgreSQL server: it sent a message of no known kind")
    if len(buffer) < 5:
        return None
    kind, length = _HEADER.unpack_from(buffer)
    if not 4 <= length <= largest:
        raise ProtocolError("not a PostgreSQL server: it sent a message of an impossible length")
    if len(buffer) < length + 1:
        return None
    payload = bytes(buffer[5 : length + 1])
    del buffer[: length + 1]
    return _backend_message(kind.decode("ascii"), payload)


def _backend_message(kind: str, payload: bytes) -> Message:
    read = _READERS.get(kind)
    if read is None:
        return Other(kind, payload)
    try:
        return read(payload)
    except (ValueError, struct.error) as broken:
        raise ProtocolError(f"a message {kind!r} whose content does not fit its length") from broken


def _authentication(payload: bytes) -> Authentication:
    return Authentication(_INT32.unpack_from(payload)[0], payload[4:])


def _fields(payload: bytes) -> dict[str, str]:
    """Each field is a code byte and a text; a NUL where a code would stand ends them, and the message."""
    *fields, last, behind = payload.split(b"\0")
    if last or behind or b"" in fields:
        raise ValueError("the fields do not end where the message ends")
    return {chr(field[0]): field[1:].decode("utf-8", "replace") for field in fields}


def _parameter_status(payload: bytes) -> ParameterStatus:
    name, value, behind = payload.split(b"\0")
    if behind:
        raise ValueError("not two texts")
    return ParameterStatus(decoded(name), decoded(value))


def _key_data(payload: bytes) -> BackendKeyData:
    if not 5 <= len(payload) <= 4 + 256:
        raise ValueError("a key of an impossible length")
    return BackendKeyData(_INT32.unpack_from(payload)[0], payload[4:])


def _ready(payload: bytes) -> ReadyForQuery:
    if payload not in {b"I", b"T", b"E"}:
        raise ValueError("no such transaction status")
    return ReadyForQuery(payload.decode("ascii"))


def _command_complete(payload: bytes) -> CommandComplete:
    tag, behind = payload.split(b"\0")
    if behind:
        raise ValueError("not one text")
    return CommandComplete(decoded(tag))


def _data_row(payload: bytes) -> DataRow:
    (count,) = _INT16.unpack_from(payload)
    values: list[bytes | None] = []
    at = 2
    for _ in range(count):
        (length,) = _INT32.unpack_from(payload, at)
        at += 4
        if length < -1 or at + max(0, length) > len(payload):
            raise ValueError("a value beyond its row")
        values.append(None if length == -1 else payload[at : at + length])
        at += max(0, length)
    if at != len(payload):
        raise ValueError("a row longer than its values")
    return DataRow(tuple(values))


_READERS: Final[dict[str, Callable[[bytes], Message]]] = {
    "R": _authentication,
    "E": lambda payload: ErrorResponse(_fields(payload)),
    "N": lambda payload: NoticeResponse(_fields(payload)),
    "S": _parameter_status,
    "K": _key_data,
    "Z": _ready,
    "D": _data_row,
    "C": _command_complete,
}

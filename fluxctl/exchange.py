"""
One HTTP/1.1 exchange over fluxd's Unix socket: the few parts of it that this needs, and a bound on each.

Not a general client: one request per connection, no redirects, no compression. An answer ends by `Content-Length`, by
its last chunk (RFC 9112 §7.1) or with the connection. It uses `_socket`, the C half of `socket`, whose other half
imports `enum` and `selectors` and would cost a third of the client's start.
"""

from __future__ import annotations

from fluxctl import quickjson
from fluxctl.problem import Problem, from_answer

try:
    import _socket as sockets
except ImportError:  # not CPython
    import socket as sockets  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Self

# Of the socket's contract; the daemon refuses another one than its own.
API_VERSION = "1"
CONNECT_WITHIN_S = 5.0
NO_CONTENT = 204
LARGEST_HEAD = 64 * 1024
LARGEST_BODY = 32 * 1024 * 1024
LARGEST_LINE = 8 * 1024 * 1024
_READ_AT_ONCE = 64 * 1024
# After so long a person at a terminal is told what takes so long.
SILENT_S = 1.0


class NobodyThere(Exception):
    """The socket is missing, or nobody listens on it: fluxd is not running."""


class Garbled(Exception):
    """What answers is not HTTP, breaks a bound, or hangs up in the middle."""


class Connection:
    """A connected socket and what was read from it too early. Use as a context manager; bounded in time throughout."""

    def __init__(self, path: str, *, answer_within_s: float) -> None:
        """
        Raises:
            NobodyThere: see there.
            Problem: the socket is there, but not for us.
        """
        self._socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self._early = b""
        self._answer_within_s = answer_within_s
        try:
            self._socket.settimeout(CONNECT_WITHIN_S)
            self._socket.connect(path)
            self._socket.settimeout(answer_within_s)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            self._socket.close()
            raise NobodyThere(path) from error
        except OSError as error:
            self._socket.close()
            raise Problem("fluxd_not_running", detail=f"{path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def hang_up(self) -> None:
        """End a read that another thread is in; `close` alone would leave it waiting."""
        try:
            self._socket.shutdown(sockets.SHUT_RDWR)
        except OSError:
            return

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # It may have answered already (a refusal); the answer tells more than this.
            return
        except OSError as error:
            raise Garbled(f"fluxd takes no request: {error}") from error

    def await_answer(self, method: str, target: str) -> None:
        """
        Return when something can be read, or the other side is gone. Says on a terminal what it waits for, if long.

        Raises:
            Garbled: nothing came in time.
        """
        self._socket.settimeout(min(SILENT_S, self._answer_within_s))
        try:
            self._early = self._read()
        except TimeoutError:
            from fluxctl import waiting  # noqa: PLC0415 - only when it takes long

            self._early = self._in_time(
                lambda: waiting.until_read(self._read, method, target, self._answer_within_s - SILENT_S)
            )
        except OSError:
            return  # reading on will tell
        self._socket.settimeout(self._answer_within_s)

    def read_some(self) -> bytes:
        """The next bytes, b"" at the end."""
        if self._early:
            data, self._early = self._early, b""
            return data
        return self._in_time(self._read)

    def _read(self) -> bytes:
        return self._socket.recv(_READ_AT_ONCE)

    def _in_time(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except TimeoutError as error:
            raise Garbled("fluxd did not answer in time") from error
        except ConnectionResetError:
            return b""
        except OSError as error:
            raise Garbled(f"the connection to fluxd broke: {error}") from error

    def read_until(self, mark: bytes, at_most: int) -> bytes:
        """Everything before *mark*, which is read too."""
        data = b""
        while mark not in data:
            more = self.read_some()
            if not more:
                raise Garbled("fluxd hung up in the middle of its answer")
            data += more
            if len(data) > at_most and mark not in data:
                raise Garbled("fluxd's answer breaks a bound")
        found, _, rest = data.partition(mark)
        self._early = rest + self._early
        return found

    def read_exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.read_some()
            if not data:
                raise Garbled("fluxd hung up in the middle of its answer")
            self._early = data[size:] + self._early
            data = data[:size]
            size -= len(data)
            yield data

    def read_rest(self) -> Iterator[bytes]:
        while data := self.read_some():
            yield data


class Answer:
    """The head of an answer; its body comes by `pieces`, once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status, self._headers = _head(connection)

    def pieces(self) -> Iterator[bytes]:
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            return _chunks(self._connection)
        length = self._headers.get("content-length")
        if length is None:
            return self._connection.read_rest()
        return self._connection.read_exactly(_number(length, 10))

    def lines(self) -> Iterator[bytes]:
        """The body as lines (NDJSON), as they come; what stands after the last line break is dropped."""
        pending = b""
        for piece in self.pieces():
            *whole, pending = (pending + piece).split(b"\n")
            yield from whole
            if len(pending) > LARGEST_LINE:
                raise Garbled("a line of fluxd's answer breaks a bound")

    def json(self) -> Any:
        """
        The body.

        Raises:
            Garbled: it is not JSON.
            Problem: the answer says one.
        """
        if self.status == NO_CONTENT:
            return None
        try:
            body = quickjson.loads(self._whole())
        except ValueError as error:
            raise Garbled(f"fluxd's answer is not JSON: {error}") from error
        if not 200 <= self.status < 300:
            raise from_answer(self.status, body)
        return body

    def _whole(self) -> bytes:
        pieces, size = [], 0
        for piece in self.pieces():
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST_BODY:
                raise Garbled("fluxd's answer breaks a bound")
        return b"".join(pieces)


def request(method: str, target: str, headers: Mapping[str, str], body: Any | None) -> bytes:
    """
    The bytes of a request.

    Raises:
        Problem: a header would break out of its line.
    """
    payload = b"" if body is None else quickjson.dumps(body).encode("utf-8", "replace")
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Accept: application/json", "Connection: close"]
    lines.append(f"Flux-Api-Version: {API_VERSION}")
    lines += [f"{name}: {_header_value(name, value)}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + payload


def quoted(text: str) -> str:
    """*text* for one step of a path or one value of a query (RFC 3986 §2.1)."""
    plain = "-._~"
    return "".join(
        chr(byte) if byte < 128 and (chr(byte).isalnum() or chr(byte) in plain) else f"%{byte:02X}"
        for byte in text.encode("utf-8", "replace")
    )


def _header_value(name: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise Problem("usage", f"What would be sent as {name} holds characters that cannot stand there.")
    return value


def _head(connection: Connection) -> tuple[int, dict[str, str]]:
    while True:
        first, *lines = connection.read_until(b"\r\n\r\n", LARGEST_HEAD).decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise Garbled("what answers on the socket does not speak HTTP")
        status = _number(rest[:3], 10)
        if status >= 200:
            return status, {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def _chunks(connection: Connection) -> Iterator[bytes]:
    while size := _number(connection.read_until(b"\r\n", 1024).split(b";")[0].strip().decode("latin-1"), 16):
        yield from connection.read_exactly(size)
        if connection.read_until(b"\r\n", 1024):
            raise Garbled("a chunk of fluxd's answer is longer than it says")
    while connection.read_until(b"\r\n", LARGEST_HEAD):
        pass  # trailers


def _number(text: str, base: int) -> int:
    digits = "0123456789abcdef"[:base]
    if not 0 < len(text) <= 15 or any(char not in digits for char in text.lower()):
        raise Garbled("fluxd's answer is not HTTP")
    return int(text, base)

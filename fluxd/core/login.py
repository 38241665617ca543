"""
Is the server that answers PostgreSQL, and is it *this project's*?

Two conversations without a socket. The *probe* is a StartupMessage of a user that need not exist: whatever asks it for
a password is PostgreSQL and takes connections (an SSLRequest would prove nothing; a full server answers it). The
*login* is SCRAM-SHA-256, whose last message shows that the server holds the verifier of our password: a server without
it learns nothing from us, and md5 or clear passwords are never sent, whatever the server asks for.

Truth: RFC 5802, RFC 7677, https://www.postgresql.org/docs/current/sasl-authentication.html; the arithmetic is scramp's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from scramp import ScramClient, ScramException

from fluxplane.wire import Secret

from . import pgreply, pgwire
from .errors import (
    FluxError,
    UpstreamFull,
    UpstreamLoginFailed,
    UpstreamNotPostgres,
    UpstreamStarting,
    UpstreamUnreachable,
    UpstreamWrongServer,
)
from .pgreply import (
    Authentication,
    BackendKeyData,
    ErrorResponse,
    Message,
    NoticeResponse,
    Other,
    ParameterStatus,
    ReadyForQuery,
    take_message,
)
from .pgwire import ProtocolError
from .target import clean

PROBE_USER: Final = "flux_probe"
PROBE: Final = pgwire.startup({"user": PROBE_USER, "database": "postgres", "application_name": "fluxd probe"})

MECHANISM: Final = "SCRAM-SHA-256"
# PostgreSQL's default is 4096; this many take about a second. More is a server that wants us busy.
MOST_ITERATIONS: Final = 1_000_000
# Of one login: notices, parameters, keys. More is a server that never means to finish.
MOST_MESSAGES: Final = 500

_STARTING: Final = frozenset({"57P01", "57P02", "57P03"})
_FULL: Final = frozenset({"53300"})


class Unproven(Exception):
    """
    The server asks for something that proves nothing of it (`method`: md5, a clear password, nothing at all).

    Nothing secret was sent. Whether its clients are let through all the same is the caller's to decide and to say.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        super().__init__(f"the server asks for {method}, which proves nothing of it")


def refusal(error: ErrorResponse) -> FluxError | None:
    """The problem that an ErrorResponse is to anybody who connects; None when it concerns this user only."""
    detail = f"{error.sqlstate}: {clean(error.message)}"
    if error.sqlstate in _STARTING:
        return UpstreamStarting(detail=detail)
    if error.sqlstate in _FULL:
        return UpstreamFull(detail=detail)
    return None


def read_probe_answer(buffer: bytearray, *, ended: bool = False) -> bool:
    """
    What the start of the answer to `PROBE` says: True, it is PostgreSQL and takes connections; False, read on.

    *ended*: nothing more will come. An ErrorResponse that only refuses the probe's user (pg_hba.conf, no such database)
    is PostgreSQL's answer too.

    Raises:
        UpstreamStarting, UpstreamFull: it says that it cannot take connections now.
        UpstreamNotPostgres: it says something else.
        UpstreamUnreachable: it ended without a word.
    """
    silent = not buffer
    message = _taken(buffer)
    while isinstance(message, NoticeResponse):
        message = _taken(buffer)
    if isinstance(message, ErrorResponse):
        problem = refusal(message)
        if problem is not None:
            raise problem
        return True
    if message is not None and not isinstance(message, Authentication):
        raise UpstreamNotPostgres(detail="It began with a message that no PostgreSQL begins with.")
    if message is None and ended:
        raise _ended(silent=silent)
    return message is not None


def proves_nothing(answer: bytes) -> str | None:
    """
    What the answer to `PROBE` asks for, if it could prove nothing of the server; None for SCRAM, or for no question.

    The probe's user exists nowhere: PostgreSQL asks it for what it would ask of a role with a new password.
    """
    match _taken(bytearray(answer)):
        case Authentication(code=code) if code != pgreply.AUTH_SASL:
            return _METHODS.get(code, f"authentication method {code}")
    return None


def _ended(*, silent: bool) -> FluxError:
    if silent:
        return UpstreamUnreachable("The database's address accepted the connection and closed it without a word.")
    return UpstreamNotPostgres(detail="It closed the connection in the middle of its first message.")


@dataclass(slots=True)
class Login:
    """
    One SCRAM login: send `first`, then for all that comes `feed` it and send what that answers, until `ready`.

    *nonce* is fresh randomness of the caller's, printable ASCII without a comma, 18 bytes of entropy or more. When
    `ready`, `proven` is True and the session is idle: use it, or send `pgwire.TERMINATE`.
    """

    user: str
    password: Secret
    nonce: str
    database: str = "postgres"
    options: dict[str, str] = field(default_factory=dict)
    # The server has shown that it holds the verifier of our password.
    proven: bool = field(default=False, init=False)
    ready: bool = field(default=False, init=False)
    parameters: dict[str, str] = field(default_factory=dict, init=False)
    cancel_key: BackendKeyData | None = field(default=None, init=False)
    _buffer: bytearray = field(default_factory=bytearray, init=False, repr=False)
    _scram: ScramClient | None = field(default=None, init=False, repr=False)
    _messages: int = field(default=0, init=False, repr=False)

    @property
    def first(self) -> bytes:
        """The StartupMessage."""
        return pgwire.startup({"user": self.user, "database": self.database, **self.options})

    def feed(self, data: bytes) -> bytes:
        """
        What to send back, often nothing.

        Raises:
            Unproven: it asks for what proves nothing.
            UpstreamWrongServer: it cannot prove that it holds our verifier.
            UpstreamLoginFailed: it refuses us; its words are the detail.
            UpstreamStarting, UpstreamFull: it takes nobody now.
            UpstreamNotPostgres: it breaks the protocol.
        """
        self._buffer += data
        said = b""
        while not self.ready and (message := _taken(self._buffer)) is not None:
            self._messages += 1
            if self._messages > MOST_MESSAGES:
                raise UpstreamNotPostgres(detail="It talks on and on without finishing the login.")
            said += self._answer(message)
        return said

    def _answer(self, message: Message) -> bytes:
        match message:
            case Authentication():
                return self._authenticate(message)
            case ErrorResponse():
                raise refusal(message) or UpstreamLoginFailed(detail=f"{message.sqlstate}: {clean(message.message)}")
            case NoticeResponse() | Other(kind="v"):
                return b""
            case ParameterStatus(name, value) if self.proven:
                self.parameters[name] = value
            case BackendKeyData() if self.proven:
                self.cancel_key = message
            case ReadyForQuery() if self.proven:
                self.ready = True
            case _:
                raise UpstreamNotPostgres(detail="It sent a message that has no place in a login.")
        return b""

    def _authenticate(self, request: Authentication) -> bytes:
        match request.code, self._scram:
            case pgreply.AUTH_SASL, None:
                return self._begin(request.mechanisms)
            case pgreply.AUTH_SASL_CONTINUE, ScramClient() as scram:
                return self._continue(scram, _ascii(request.data))
            case pgreply.AUTH_SASL_FINAL, ScramClient() as scram:
                return self._finish(scram, _ascii(request.data))
            case pgreply.AUTH_OK, _ if self.proven:
                return b""
            case pgreply.AUTH_OK, ScramClient():
                raise UpstreamWrongServer(detail="It let us in without proving that it holds the password's verifier.")
            case code, None:
                raise Unproven(_METHODS.get(code, f"authentication method {code}"))
        raise UpstreamNotPostgres(detail="Its authentication messages came out of order.")

    def _begin(self, mechanisms: list[str]) -> bytes:
        if MECHANISM not in mechanisms:
            raise Unproven("SASL without SCRAM-SHA-256")
        try:
            self._scram = ScramClient([MECHANISM], self.user, self.password.reveal(), c_nonce=self.nonce)
        except ScramException:
            # PostgreSQL then hashes the raw bytes (RFC 4013 forbids them); scramp does not.
            raise Unproven("a password that cannot be normalised for SCRAM") from None
        return pgwire.sasl_initial_response(MECHANISM, self._scram.get_client_first().encode())

    def _continue(self, scram: ScramClient, server_first: str) -> bytes:
        iterations = next((part[2:] for part in server_first.split(",") if part.startswith("i=")), "")
        if not (iterations.isdecimal() and len(iterations) < 9 and int(iterations) <= MOST_ITERATIONS):
            raise UpstreamNotPostgres(detail="Its SCRAM challenge asks for an impossible amount of work.")
        try:
            scram.set_server_first(server_first)
            return pgwire.sasl_response(scram.get_client_final().encode())
        except ScramException as broken:
            raise UpstreamNotPostgres(detail="Its SCRAM challenge is not well formed.") from broken

    def _finish(self, scram: ScramClient, server_final: str) -> bytes:
        try:
            scram.set_server_final(server_final)
        except ScramException as wrong:
            raise UpstreamWrongServer from wrong
        self.proven = True
        return b""


_METHODS: Final = {
    pgreply.AUTH_OK: "nothing (trust)",
    pgreply.AUTH_CLEARTEXT: "a clear password",
    pgreply.AUTH_MD5: "md5",
}


def _taken(buffer: bytearray) -> Message | None:
    try:
        return take_message(buffer)
    except ProtocolError as broken:
        raise UpstreamNotPostgres(detail=str(broken)) from broken


def _ascii(data: bytes) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as broken:
        raise UpstreamNotPostgres(detail="Its SCRAM message is not text.") from broken

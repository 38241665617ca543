"""Every way that SSH can fail has one name: all that the installed asyncssh knows, and provoked where it can be."""

import asyncio
import contextlib
import errno
import importlib
import inspect
import pkgutil
import socket
import struct

import asyncssh
import pytest

from fluxd.core import errors
from fluxd.tunnels.dial import Dialling, dial
from fluxd.tunnels.failures import FAILURES, problem_of
from fluxplane.lab import keys
from tests.fluxd.tunnels.test_openssh_ways import block, by_config, jump, known_as  # noqa: F401 - a fixture among them
from tests.fluxd.tunnels.test_ssh import HOW, destination, host_of, listening, problem_of_dialling
from tests.fluxd.tunnels.upstreams import slam
from tests.furniture.sshd import OpenSSH, serving

# Every exception that asyncssh defines. What dialling may end with, by its problem:
EXPECTED = {
    "ASN1DecodeError": "ssh_handshake_failed",
    "ASN1EncodeError": "ssh_handshake_failed",
    "ASN1Error": "ssh_handshake_failed",
    "ChannelOpenError": "ssh_unreachable",
    "CompressionError": "ssh_handshake_failed",
    "ConfigParseError": "ssh_config_invalid",
    "ConnectionLost": "ssh_handshake_failed",
    "DisconnectError": "ssh_handshake_failed",
    "Error": "ssh_handshake_failed",
    "HostKeyNotVerifiable": "ssh_handshake_failed",
    "IllegalUserName": "ssh_auth_failed",
    "KeyEncryptionError": "ssh_key_unusable",
    "KeyExchangeFailed": "ssh_handshake_failed",
    "KeyExportError": "ssh_key_unusable",
    "KeyGenerationError": "ssh_key_unusable",
    "KeyImportError": "ssh_key_unusable",
    "MACError": "ssh_handshake_failed",
    "PacketDecodeError": "ssh_handshake_failed",
    "PasswordChangeRequired": "ssh_auth_failed",
    "PermissionDenied": "ssh_auth_failed",
    "ProcessError": "ssh_handshake_failed",
    "ProtocolError": "ssh_handshake_failed",
    "ProtocolNotSupported": "ssh_handshake_failed",
    "SASLPrepError": "ssh_target_invalid",
    "ServiceNotAvailable": "ssh_handshake_failed",
    "TimeoutError": "ssh_unreachable",
}
# What a session's process is told, a listener on the far side, or Windows: nothing of ours meets it.
NOT_OF_DIALLING = {
    "BreakReceived",
    "ChannelListenError",
    "GSSError",
    "SignalReceived",
    "SoftEOFReceived",
    "TerminalSizeChanged",
}

DISCONNECTS = {
    "HOST_NOT_ALLOWED_TO_CONNECT": "ssh_refused",
    "PROTOCOL_ERROR": "ssh_handshake_failed",
    "KEY_EXCHANGE_FAILED": "ssh_handshake_failed",
    "RESERVED": "ssh_handshake_failed",
    "MAC_ERROR": "ssh_handshake_failed",
    "COMPRESSION_ERROR": "ssh_handshake_failed",
    "SERVICE_NOT_AVAILABLE": "ssh_handshake_failed",
    "PROTOCOL_VERSION_NOT_SUPPORTED": "ssh_handshake_failed",
    "HOST_KEY_NOT_VERIFIABLE": "ssh_handshake_failed",
    "HOST_KEY_NOT_VERIFYABLE": "ssh_handshake_failed",
    "CONNECTION_LOST": "ssh_handshake_failed",
    "BY_APPLICATION": "ssh_handshake_failed",
    "TOO_MANY_CONNECTIONS": "ssh_busy",
    "AUTH_CANCELLED_BY_USER": "ssh_auth_failed",
    "NO_MORE_AUTH_METHODS_AVAILABLE": "ssh_auth_failed",
    "ILLEGAL_USER_NAME": "ssh_auth_failed",
}

REFUSALS = {
    "ADMINISTRATIVELY_PROHIBITED": "ssh_forwarding_refused",
    "CONNECT_FAILED": "upstream_unreachable",
    "UNKNOWN_CHANNEL_TYPE": "ssh_forwarding_refused",
    "RESOURCE_SHORTAGE": "ssh_busy",
}
# asyncssh's own codes for what a session's channel asks for.
NOT_OF_CHANNELS = {"REQUEST_X11_FORWARDING_FAILED", "REQUEST_PTY_FAILED", "REQUEST_SESSION_FAILED"}

CODES_OF_CLASSES = {kind: kind("").code for kind in asyncssh.DisconnectError.__subclasses__()}


def of_asyncssh() -> dict[str, type[Exception]]:
    """Every exception class that any module of the installed asyncssh defines."""
    kinds: set[type] = set()
    for module in pkgutil.walk_packages(asyncssh.__path__, "asyncssh."):
        with contextlib.suppress(ImportError):  # one for Windows, or for a package that we don't have
            kinds |= {kind for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass)}
    return {k.__name__: k for k in kinds if issubclass(k, Exception) and k.__module__.startswith("asyncssh.")}


def codes(prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): getattr(asyncssh, name) for name in dir(asyncssh) if name.startswith(f"{prefix}")
    }


def made(kind: type[Exception]) -> Exception:
    """One of it, with what every failure has, whatever else its constructor wants."""
    one = kind.__new__(kind)
    Exception.__init__(one, "the words")
    one.reason, one.code = "the words", CODES_OF_CLASSES.get(kind, 0)
    return one


def test_every_exception_of_asyncssh_has_its_place():
    found = {name for name, kind in of_asyncssh().items() if not issubclass(kind, asyncssh.SFTPError)}
    assert found == EXPECTED.keys() | NOT_OF_DIALLING


@pytest.mark.parametrize("name", EXPECTED)
def test_what_dialling_may_end_with_has_one_problem(name):
    kind = of_asyncssh()[name]
    assert issubclass(kind, FAILURES), "it would be a bug of ours to the one who dials"
    problem = problem_of(made(kind), "ada@bastion:22")
    assert problem.code == EXPECTED[name]
    assert problem.hint


@pytest.mark.parametrize("number", errno.errorcode)
def test_every_error_of_a_socket_has_one_problem(number):
    expected = {
        errno.ECONNREFUSED: "ssh_refused",
        errno.ECONNRESET: "ssh_handshake_failed",
        errno.EPIPE: "ssh_handshake_failed",
        errno.ESHUTDOWN: "ssh_handshake_failed",
        errno.EMFILE: "too_many_open_files",
        errno.ENFILE: "too_many_open_files",
        errno.ENOENT: "ssh_key_unusable",
        errno.EACCES: "ssh_key_unusable",
        errno.EPERM: "ssh_key_unusable",
    }.get(number, "ssh_unreachable")
    assert problem_of(OSError(number, "words"), "ada@bastion:22").code == expected


def test_several_addresses_that_all_fail_are_told_as_one():
    both = "Multiple exceptions: [Errno {0}] Connect call failed ('::1', 22, 0, 0), [Errno {0}] Connect call failed"
    assert problem_of(OSError(both.format(errno.ECONNREFUSED)), "x").code == "ssh_refused"
    assert problem_of(OSError(both.format(errno.EMFILE)), "x").code == "too_many_open_files"
    assert problem_of(OSError(both.format(errno.EHOSTUNREACH)), "x").code == "ssh_unreachable"


# ------------------------------------------------------- what a host says of itself


def disconnect(code: int, reason: str) -> bytes:
    """A greeting and an unencrypted SSH_MSG_DISCONNECT (RFC 4253 §6, §11.1)."""
    words = reason.encode()
    payload = b"\1" + struct.pack(">II", code, len(words)) + words + struct.pack(">I", 0)
    padding = 8 - (len(payload) + 5) % 8 + 8
    return b"SSH-2.0-rude\r\n" + struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


async def problem_of_a_host_that_says(ssh, said: bytes) -> errors.FluxError:
    async def rude(reader, writer):
        writer.write(said)
        await reader.read()
        writer.close()

    async with listening(rude) as port:
        return await problem_of_dialling(destination(ssh, port=port))


def test_every_code_of_a_disconnect_has_its_place():
    assert codes("DISC_").keys() == DISCONNECTS.keys()


@pytest.mark.parametrize("name", DISCONNECTS)
async def test_a_host_that_disconnects_with_a_code(embedded, name):
    said = disconnect(codes("DISC_")[name], "red \x1b[31malert")
    problem = await problem_of_a_host_that_says(embedded, said)
    assert problem.code == DISCONNECTS[name]
    assert problem.hint
    assert "red [31malert" in problem.detail, "its words, without what would repaint a terminal"


async def test_a_host_that_disconnects_with_a_code_of_its_own(embedded):
    assert (await problem_of_a_host_that_says(embedded, disconnect(77, ""))).code == "ssh_handshake_failed"


async def test_a_host_with_little_patience_for_keys(embedded):
    said = disconnect(asyncssh.DISC_PROTOCOL_ERROR, "Too many authentication failures")
    problem = await problem_of_a_host_that_says(embedded, said)
    assert problem.code == "ssh_auth_failed"
    assert "FLUX_DB_TUNNEL_IDENTITY_FILE" in problem.hint


async def test_a_host_that_calls_our_key_unknown_is_not_unknown_itself(embedded):
    """It may use asyncssh's very words: what known_hosts says is asked of known_hosts alone."""
    said = disconnect(asyncssh.DISC_HOST_KEY_NOT_VERIFIABLE, "Host key is not trusted for host 127.0.0.1")
    assert (await problem_of_a_host_that_says(embedded, said)).code == "ssh_handshake_failed"


@pytest.mark.parametrize(
    "packet", [b"\xff" * 64, b"\0\0\0\x0c\x0a\x14" + bytes(64), struct.pack(">IB", 12, 10) + b"\x14" + bytes(10)]
)
async def test_a_host_that_breaks_the_protocol(embedded, packet):
    said = b"SSH-2.0-rude\r\n" + packet
    assert (await problem_of_a_host_that_says(embedded, said)).code == "ssh_handshake_failed"


async def test_a_host_with_other_ciphers_than_ours(embedded, tmp_path):
    """It says so too; OpenSSH's only hangs up, if it is the first to notice."""
    server = await asyncssh.listen("127.0.0.1", 0, server_host_keys=[embedded.host_key], encryption_algs=["aes256-ctr"])
    async with server:
        how = by_config(tmp_path / "config", "Ciphers chacha20-poly1305@openssh.com\n")
        problem = await problem_of_dialling(destination(embedded, port=server.get_port()), how)
    assert problem.code == "ssh_handshake_failed"
    assert "no cipher" in problem.message


async def test_a_name_that_no_question_can_hold(embedded):
    assert (await problem_of_dialling(destination(embedded, host="a" * 64 + ".test"))).code == "ssh_host_unresolved"


# --------------------------------------------------------------- what it refuses


def test_every_code_of_a_refused_channel_has_its_place():
    assert codes("OPEN_").keys() == REFUSALS.keys() | NOT_OF_CHANNELS


class Refusing(asyncssh.SSHServer):
    code = 0

    def connection_requested(self, dest_host, dest_port, orig_host, orig_port):
        raise asyncssh.ChannelOpenError(self.code, "so \x1b[31mthere")


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_channel_that_is_refused_with_a_code(embedded, name, monkeypatch):
    monkeypatch.setattr(Refusing, "code", codes("OPEN_")[name])
    known = asyncssh.import_authorized_keys(embedded.client_key.export_public_key().decode())
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Refusing, server_host_keys=[embedded.host_key], authorized_client_keys=known
    )
    async with server:
        embedded.known_hosts.write_text(keys.known_hosts_line("127.0.0.1", server.get_port(), embedded.host_key))
        async with host_of(embedded, port=server.get_port()) as host:
            await host.reach()
            with pytest.raises(errors.FluxError) as caught:
                await host.open_channel(asyncio.Protocol, "127.0.0.1", 5432)
            assert host.state == "up", "one channel's refusal is nobody else's matter"
    assert caught.value.code == REFUSALS[name]
    assert caught.value.detail == "so [31mthere"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("lines", "code"), [((), "ssh_refused"), (("AllowTcpForwarding no",), "ssh_forwarding_refused")]
)
async def test_a_jump_host_that_does_not_lead_on(openssh, ssh_home, tmp_path, lines, code):
    (ssh_home / "jump").mkdir()
    async with serving(OpenSSH(ssh_home / "jump", forced=False, lines=lines)) as way:
        way.known_hosts.write_text(known_as(way, "jump", tmp_path).read_text())
        how = by_config(tmp_path / "config", block(way, "jump") + "Host 127.0.0.1\n  ProxyJump jump\n")
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            problem = await problem_of_dialling(destination(openssh, port=nobody.getsockname()[1]), how)
    assert problem.code == code
    assert "jump host" in problem.message


# ------------------------------------------------------------- what does not answer


@pytest.fixture
def full():
    """A port whose accept queue is full: the kernel drops who comes then, without a word."""
    waiting = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with contextlib.suppress(TimeoutError):
            while True:
                waiting.append(socket.socket())
                waiting[-1].settimeout(0.2)
                waiting[-1].connect(listener.getsockname())
        yield listener.getsockname()[1]
    for one in waiting:
        one.close()


async def test_a_host_whose_accept_queue_is_full(embedded, full):
    how = Dialling(config="/nonexistent", connect_s=0.5)
    problem = await problem_of_dialling(destination(embedded, port=full), how)
    assert problem.code == "ssh_unreachable"
    assert "did not answer in time" in problem.message
    assert "overloaded" in problem.hint


async def test_a_database_whose_accept_queue_is_full(openssh, full, monkeypatch):
    monkeypatch.setattr("fluxd.tunnels.ssh.CHANNEL_S", 0.5)
    async with host_of(openssh) as host:
        await host.reach()
        with pytest.raises(errors.UpstreamUnreachable, match="did not answer within") as caught:
            await host.open_channel(asyncio.Protocol, "127.0.0.1", full)
        assert host.state == "up"
        assert "fluxctl doctor" in caught.value.hint


async def one_that_is_greeted(host) -> asyncio.StreamWriter:
    """A connection that sshd waits for; others may have to leave before there is room for it."""
    async with asyncio.timeout(10):
        while True:
            reader, writer = await asyncio.open_connection(host.host, host.port)
            if (await reader.readline()).startswith(b"SSH-"):
                return writer
            writer.close()


async def test_a_host_with_too_many_who_are_not_yet_in(ssh_home):
    """sshd's MaxStartups."""
    async with serving(OpenSSH(ssh_home, lines=("MaxStartups 1",))) as host:
        first = await one_that_is_greeted(host)
        problem = await problem_of_dialling(destination(host))
        first.close()
    assert problem.code == "ssh_handshake_failed"
    assert "MaxStartups" in problem.hint


@pytest.mark.parametrize("after", [1, 30, 500, 1200, 1500])
async def test_a_host_that_dies_in_the_middle_of_the_handshake(openssh, after):
    """A real sshd, cut off by a reset after so many of its bytes: in its greeting, its offer, its key, its consent."""

    async def cut_off(reader, writer):
        there, to_there = await asyncio.open_connection(openssh.host, openssh.port)

        async def forth():
            while piece := await reader.read(65536):
                to_there.write(piece)

        forwards = asyncio.create_task(forth())
        left = after
        while left and (piece := await there.read(left)):
            left -= len(piece)
            writer.write(piece)
            await writer.drain()
        slam(writer)
        forwards.cancel()
        await asyncio.wait([forwards])
        to_there.close()
        await to_there.wait_closed()

    async with listening(cut_off) as port:
        openssh.known_hosts.write_text(keys.known_hosts_line("127.0.0.1", port, openssh.host_key))
        problem = await problem_of_dialling(destination(openssh, port=port))
    assert problem.code == "ssh_handshake_failed"
    assert problem.hint


async def test_a_host_on_ipv6_alone(ssh_home):
    host = OpenSSH(ssh_home)
    host.host = host.server.host = "::1"
    async with serving(host):
        connection = await dial(destination(host), HOW, agent="", pinned=())
        assert connection.get_extra_info("peername")[0] == "::1"
        connection.abort()
        await connection.wait_closed()

"""The HTTP reader against well-formed, cut and hostile answers, over real sockets."""

import contextlib
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxctl.exchange import Answer, Connection, Garbled, NobodyThere, quoted, request
from fluxctl.problem import Problem


def read(data: bytes, home, *, pieces: int = 1):
    """What the client makes of *data*, sent in so many pieces by a peer that then hangs up."""
    path = str(home / "x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=_send, args=(listener, data, pieces))
        thread.start()
        try:
            with Connection(path, answer_within_s=10) as connection:
                answer = Answer(connection)
                return answer.status, answer.json()
        finally:
            thread.join()
            (home / "x").unlink()


def _send(listener, data, pieces):
    connection, _ = listener.accept()
    with connection:
        size = max(1, -(-len(data) // pieces))
        try:
            for start in range(0, len(data), size):
                connection.sendall(data[start : start + size])
        except OSError:
            return


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize(
    "data",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}and more',
        b'HTTP/1.1 200 OK\r\n\r\n{"a":1}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4;x=y\r\n":1}\r\n0\r\nT: v\r\n\r\n',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nCONTENT-LENGTH:7\r\n\r\n{"a":1}',
    ],
)
def test_an_answer_ends_by_length_by_chunk_or_with_the_connection(home, data, pieces):
    assert read(data, home, pieces=pieces) == (200, {"a": 1})


def test_an_answer_without_content_is_none(home):
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n", home) == (204, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}12\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe",
    ],
)
def test_what_is_not_an_answer_is_garbled(home, data):
    with pytest.raises(Garbled):
        read(data, home)


def test_a_problem_is_raised_as_it_is_said(home):
    data = b'{"status":409,"code":"port_taken","message":"Port 1 is in use.","hint":"h","detail":"d","exit_code":9}'
    with pytest.raises(Problem) as caught:
        read(b"HTTP/1.1 409 x\r\n\r\n" + data, home)
    assert caught.value.lines() == ["Error: Port 1 is in use.", "DETAIL: d", "HINT: h"]
    assert caught.value.exit_code == 9


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"code":5}', b'"no"', b"null"])
def test_a_refusal_that_says_nothing_is_still_a_problem(home, body):
    with pytest.raises(Problem) as caught:
        read(b"HTTP/1.1 500 x\r\n\r\n" + body, home)
    assert caught.value.code == "internal_error"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 x\r\n\r\n{"]))
def test_whatever_answers_only_known_errors_come_out(tmp_path_factory, tail, head):
    home = tmp_path_factory.getbasetemp()
    with contextlib.suppress(Garbled, Problem):
        read(head + tail, home)


def test_nobody_there(home):
    with pytest.raises(NobodyThere):
        Connection(str(home / "nothing"), answer_within_s=1)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "dead"))
    with pytest.raises(NobodyThere):
        Connection(str(home / "dead"), answer_within_s=1)


def test_a_header_cannot_break_out_of_its_line():
    with pytest.raises(Problem) as caught:
        request("GET", "/", {"Flux-Api-Base": "http://h\r\nAuthorization: x"}, None)
    assert caught.value.exit_code == 2


def test_a_name_cannot_break_out_of_its_path():
    assert quoted("a/../b?c=d&e f\r\nü") == "a%2F..%2Fb%3Fc%3Dd%26e%20f%0D%0A%C3%BC"

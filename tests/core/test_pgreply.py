"""Reading a server: every message in any pieces, and nothing but a ProtocolError for what is none."""

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import pgwire
from fluxd.core.pgreply import (
    LARGEST_MESSAGE,
    Authentication,
    BackendKeyData,
    CommandComplete,
    DataRow,
    ErrorResponse,
    NoticeResponse,
    Other,
    ParameterStatus,
    ReadyForQuery,
    take_message,
)
from fluxd.core.pgwire import ProtocolError

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
int32 = st.integers(-(2**31), 2**31 - 1)


def message(kind, payload):
    return kind + pack("!I", len(payload) + 4) + payload


def row(values):
    cells = (pack("!i", -1) if value is None else pack("!i", len(value)) + value for value in values)
    return message(b"D", pack("!H", len(values)) + b"".join(cells))


messages = st.one_of(
    st.tuples(int32, st.binary(max_size=40)).map(
        lambda m: (message(b"R", pack("!i", m[0]) + m[1]), Authentication(*m))
    ),
    st.tuples(texts, texts).map(lambda m: (message(b"S", f"{m[0]}\0{m[1]}\0".encode()), ParameterStatus(*m))),
    st.tuples(int32, st.binary(min_size=1, max_size=256)).map(
        lambda m: (message(b"K", pack("!i", m[0]) + m[1]), BackendKeyData(*m))
    ),
    st.sampled_from("ITE").map(lambda status: (message(b"Z", status.encode()), ReadyForQuery(status))),
    texts.map(lambda tag: (message(b"C", tag.encode() + b"\0"), CommandComplete(tag))),
    st.lists(st.none() | st.binary(max_size=9), max_size=5).map(lambda cells: (row(cells), DataRow(tuple(cells)))),
    st.tuples(st.sampled_from("123AGHIVTWcdnstv"), st.binary(max_size=40)).map(
        lambda m: (message(m[0].encode(), m[1]), Other(*m))
    ),
)
well_framed = st.tuples(st.sampled_from("RENSKZDC"), st.binary(max_size=30)).map(lambda m: message(m[0].encode(), m[1]))


def read_all(pieces):
    buffer, found = bytearray(), []
    for piece in pieces:
        buffer += piece
        while (one := take_message(buffer)) is not None:
            found.append(one)
    return found, bytes(buffer)


@given(st.lists(messages, max_size=8), st.lists(st.integers(0, 10**6), max_size=10))
def test_messages_read_back_however_they_are_cut(said, places):
    raw = b"".join(piece for piece, _ in said)
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    found, left = read_all(raw[start:end] for start, end in pairwise(edges))
    assert found == [expected for _, expected in said]
    assert left == b""


@given(messages)
def test_nothing_is_answered_before_the_last_byte(said):
    raw, _ = said
    buffer = bytearray(raw[:-1])
    assert take_message(buffer) is None
    assert bytes(buffer) == raw[:-1]


@given(st.binary(max_size=100) | well_framed)
def test_random_bytes_are_messages_or_a_protocol_error(data):
    try:
        read_all([data])
    except ProtocolError:
        return


@given(st.binary(max_size=60), st.integers(1, 59))
def test_pieces_change_nothing_of_what_random_bytes_mean(data, size):
    def outcome(pieces):
        try:
            return read_all(pieces)
        except ProtocolError as wrong:
            return str(wrong)

    assert outcome([data]) == outcome([data[at : at + size] for at in range(0, len(data), size)])


@given(texts, texts, st.none() | texts, st.none() | texts)
def test_an_error_response_reads_back(sqlstate, text, detail, hint):
    raw = pgwire.error_response(sqlstate, text, detail=detail, hint=hint)
    found = take_message(bytearray(raw))
    assert isinstance(found, ErrorResponse)
    assert (found.severity, found.sqlstate, found.message) == ("FATAL", sqlstate, text)
    assert (found.detail, found.hint) == (detail, hint)


def test_a_notice_is_a_warning_and_no_error():
    found = take_message(bytearray(pgwire.notice_response("01000", "mind\0the gap")))
    assert isinstance(found, NoticeResponse)
    assert (found.severity, found.message) == ("WARNING", "mindthe gap")


def test_an_old_server_s_severity_is_read_too():
    assert take_message(bytearray(message(b"E", b"SFATAL\0\0"))).severity == "FATAL"


def test_a_report_that_is_no_utf_8_is_mended():
    assert take_message(bytearray(message(b"E", b"M\xff\0\0"))).message == "�"


@pytest.mark.parametrize("payload", [b"", b"SFATAL", b"SFATAL\0", b"SFATAL\0\0x", b"\0SFATAL\0", b"\0\0", b"S\0\0\0"])
def test_fields_that_do_not_end_properly_are_refused(payload):
    with pytest.raises(ProtocolError):
        take_message(bytearray(message(b"E", payload)))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (b"R", b"\0\0\0"),
        (b"K", b"\0\0\0\1"),
        (b"K", b"\0\0\0\1" + b"k" * 257),
        (b"Z", b""),
        (b"Z", b"X"),
        (b"Z", b"II"),
        (b"S", b"a\0b"),
        (b"S", b"a\0b\0c"),
        (b"C", b"SELECT"),
        (b"C", b"SELECT\0 1"),
        (b"D", b"\0"),
        (b"D", b"\0\1"),
        (b"D", b"\0\1\0\0\0\5abc"),
        (b"D", b"\0\1\xff\xff\xff\xfe"),
        (b"D", b"\0\0x"),
    ],
)
def test_content_that_does_not_fit_is_refused(kind, payload):
    with pytest.raises(ProtocolError):
        take_message(bytearray(message(kind, payload)))


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request", b"SSH-2.0-OpenSSH_9.2", b"\x15\x03\x01\0\2", b"-ERR", b"\0"]
)
def test_other_servers_are_recognised_early(data):
    with pytest.raises(ProtocolError, match="not a PostgreSQL server"):
        take_message(bytearray(data))


@pytest.mark.parametrize("length", [0, 3, LARGEST_MESSAGE + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_before_anything_is_kept(length):
    with pytest.raises(ProtocolError, match="length"):
        take_message(bytearray(b"R" + pack("!I", length)))


def test_the_bound_is_the_caller_s():
    raw = message(b"C", b"x" * 100 + b"\0")
    assert take_message(bytearray(raw), largest=105) == CommandComplete("x" * 100)
    with pytest.raises(ProtocolError):
        take_message(bytearray(raw), largest=104)


def test_a_cancel_key_may_have_256_bytes():
    assert take_message(bytearray(message(b"K", bytes(4 + 256)))) == BackendKeyData(0, bytes(256))


def test_the_offered_mechanisms_are_read():
    offered = pack("!i", 10) + b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
    assert take_message(bytearray(message(b"R", offered))).mechanisms == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]

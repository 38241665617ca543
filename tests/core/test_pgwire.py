"""What a tunnel says in PostgreSQL's protocol, and how it reads a client's first packet: whole, in pieces, hostile."""

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import pgwire
from fluxd.core.pgwire import CancelRequest, GSSENCRequest, ProtocolError, SSLRequest, Startup, take_first_packet

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
parameters = st.dictionaries(texts.filter(bool), texts, max_size=8)
keys = st.binary(min_size=1, max_size=256)
pids = st.integers(-(2**31), 2**31 - 1)
first_packets = st.one_of(
    st.builds(lambda said: (pgwire.startup(said), Startup(pgwire.PROTOCOL_3, said)), parameters),
    st.builds(lambda pid, key: (pgwire.cancel_request(pid, key), CancelRequest(pid, key)), pids, keys),
    st.sampled_from([(pgwire.SSL_REQUEST, SSLRequest()), (pgwire.GSSENC_REQUEST, GSSENCRequest())]),
)


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(first_packets, st.lists(st.integers(0, 10**6), max_size=6), st.binary(max_size=50))
def test_a_first_packet_reads_back_however_it_is_cut(packet, places, behind):
    raw, expected = packet
    buffer, found = bytearray(), None
    for piece in cut(raw, places):
        assert found is None or not piece
        buffer += piece
        found = found or take_first_packet(buffer)
    assert found == expected
    assert not buffer
    buffer += raw + behind
    assert take_first_packet(buffer) == expected
    assert bytes(buffer) == behind


@given(first_packets)
def test_nothing_is_answered_before_the_last_byte(packet):
    raw, _ = packet
    assert take_first_packet(bytearray(raw[:-1])) is None


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: pack("!Ii", len(tail) + 8, 3 << 16) + tail))
def test_random_bytes_are_a_packet_or_a_protocol_error(data):
    buffer = bytearray(data)
    try:
        packet = take_first_packet(buffer)
    except ProtocolError:
        return
    if packet is None:
        assert bytes(buffer) == data


@given(st.integers(0, 2**32 - 1), st.binary(max_size=10))
def test_a_length_out_of_bounds_is_refused_from_its_first_four_bytes(length, behind):
    buffer = bytearray(pack("!I", length) + behind)
    if 8 <= length <= 10004:
        if len(buffer) < length:
            assert take_first_packet(buffer) is None
    else:
        with pytest.raises(ProtocolError, match="length"):
            take_first_packet(buffer)


def test_a_tls_hello_and_a_web_browser_are_no_clients():
    for data in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n"):
        with pytest.raises(ProtocolError):
            take_first_packet(bytearray(data))


@pytest.mark.parametrize(
    "body", [b"", b"user", b"user\0", b"user\0a", b"user\0a\0", b"\0\0", b"a\0b\0\0x", b"a\0b\0\0\0"]
)
def test_parameters_that_do_not_end_properly_are_refused(body):
    with pytest.raises(ProtocolError, match="parameters"):
        take_first_packet(bytearray(pack("!Ii", len(body) + 8, 3 << 16) + body))


def test_a_startup_without_parameters_is_one():
    assert take_first_packet(bytearray(b"\0\0\0\x09\0\x03\0\0\0")) == Startup(3 << 16, {})


def test_a_parameter_may_be_empty():
    raw = bytearray(pgwire.startup({"user": "a", "database": ""}))
    assert take_first_packet(raw).parameters == {"user": "a", "database": ""}


def test_of_a_parameter_said_twice_the_last_stands():
    body = b"user\0a\0user\0b\0\0"
    assert take_first_packet(bytearray(pack("!Ii", len(body) + 8, 3 << 16) + body)).parameters == {"user": "b"}


@pytest.mark.parametrize("version", [2 << 16, 4 << 16, 0, -1])
def test_another_major_version_is_refused(version):
    with pytest.raises(ProtocolError, match="version"):
        take_first_packet(bytearray(pack("!Ii", 9, version) + b"\0"))


def test_a_newer_minor_version_is_read():
    assert take_first_packet(bytearray(pgwire.startup({"user": "a"}, (3 << 16) | 9999))).version == (3 << 16) | 9999


def test_an_encryption_request_with_a_tail_is_refused():
    with pytest.raises(ProtocolError, match="tail"):
        take_first_packet(bytearray(pack("!Iii", 12, 80877103, 0)))


@pytest.mark.parametrize("key", [b"", b"x" * 257])
def test_a_cancel_key_of_an_impossible_length_is_refused(key):
    with pytest.raises(ProtocolError, match="cancel"):
        take_first_packet(bytearray(pgwire.cancel_request(1, key)))


def test_bytes_that_are_no_utf_8_pass_unchanged():
    body = b"user\0\xff\xfe\0\0"
    raw = pack("!Ii", len(body) + 8, 3 << 16) + body
    assert pgwire.startup(take_first_packet(bytearray(raw)).parameters) == raw


@pytest.mark.parametrize("wrong", [{"": "x"}, {"user": "a\0b"}, {"user": "x" * 10001}])
def test_what_no_server_would_take_is_not_said(wrong):
    with pytest.raises(ValueError, match=r"startup|NUL"):
        pgwire.startup(wrong)


def test_the_longest_startup_is_said_and_read():
    longest = {"user": "x" * (10000 - 4 - 1 - 5 - 1)}
    raw = pgwire.startup(longest)
    assert len(raw) == 10004
    assert take_first_packet(bytearray(raw)).parameters == longest
    with pytest.raises(ValueError, match="10000"):
        pgwire.startup({"user": longest["user"] + "x"})


def test_a_cancel_key_may_have_256_bytes():
    key = bytes(256)
    assert take_first_packet(bytearray(pgwire.cancel_request(7, key))) == CancelRequest(7, key)


def test_known_bytes():
    assert pgwire.SSL_REQUEST.hex() == "0000000804d2162f"
    assert pgwire.GSSENC_REQUEST.hex() == "0000000804d21630"
    assert pgwire.startup({"user": "a"}).hex() == "0000001000030000" + b"user\0a\0\0".hex()
    assert pgwire.query("x") == b"Q\0\0\0\x06x\0"
    assert pgwire.sasl_response(b"x") == b"p\0\0\0\x05x"
    assert pgwire.sasl_initial_response("M", b"xy") == b"p\0\0\0\x0cM\0\0\0\0\x02xy"
    assert pgwire.TERMINATE == b"X\0\0\0\x04"
    assert pgwire.cancel_request(1, b"key!").hex() == "0000001004d2162e00000001" + b"key!".hex()

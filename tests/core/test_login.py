"""Is it PostgreSQL, and is it this project's? Played against scramp's own server and against liars."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramMechanism

from fluxd.core import errors, login
from fluxd.core.login import PROBE, Login, Unproven, read_probe_answer
from fluxd.core.pgreply import BackendKeyData
from fluxd.core.pgwire import Startup, error_response, notice_response, take_first_packet
from fluxplane.wire import Secret

NONCE = "rOprNGfwEbeRWgbNEkqO"
AUTH_OK = b"R\0\0\0\x08\0\0\0\0"
SASL = b"SCRAM-SHA-256\0\0"
AFTER = b"S\0\0\0\x15server_version\x00" + b"9\0" + b"K\0\0\0\x0c\0\0\0\x07key!" + b"Z\0\0\0\x05I"


def auth(code, data=b""):
    return b"R" + pack("!Ii", len(data) + 8, code) + data


class Server:
    """A PostgreSQL that knows one password, as far as a login goes."""

    def __init__(self, password="pencil", iterations=4096):
        mechanism = ScramMechanism("SCRAM-SHA-256")
        known = mechanism.make_auth_info(password, iteration_count=iterations)
        self.scram = mechanism.make_server(lambda _user: known)

    def challenge(self, initial):
        assert initial[:1] == b"p"
        name, _, tail = initial[5:].partition(b"\0")
        assert name == b"SCRAM-SHA-256"
        self.scram.set_client_first(tail[4:].decode())
        return auth(11, self.scram.get_server_first().encode())

    def verdict(self, response):
        self.scram.set_client_final(response[5:].decode())
        return auth(12, self.scram.get_server_final().encode())


def new_login(password="pencil", user="flux_temp_ro_5774112_deadbeef"):
    return Login(user, Secret(password), NONCE)


def challenged(server, client):
    return server.challenge(client.feed(auth(10, SASL)))


def test_a_login_proves_the_server_and_is_ready():
    server, client = Server(), new_login()
    final = server.verdict(client.feed(challenged(server, client)))
    assert not client.proven
    assert client.feed(final + AUTH_OK + AFTER) == b""
    assert client.proven
    assert client.ready
    assert client.parameters == {"server_version": "9"}
    assert client.cancel_key == BackendKeyData(7, b"key!")


def test_it_begins_with_user_and_database():
    first = take_first_packet(bytearray(new_login().first))
    assert first == Startup(3 << 16, {"user": "flux_temp_ro_5774112_deadbeef", "database": "postgres"})


def test_byte_by_byte_is_the_same():
    server, client, said = Server(), new_login(), b""

    def drip(data):
        return b"".join(client.feed(data[at : at + 1]) for at in range(len(data)))

    said = drip(server.challenge(drip(auth(10, SASL))))
    drip(server.verdict(said) + AUTH_OK + AFTER)
    assert client.ready


def test_a_server_with_another_verifier_cannot_prove_itself():
    """It knows the salt and lets everybody in, but has no ServerKey of this password."""
    server, client = Server(), new_login()
    client.feed(challenged(server, client))
    with pytest.raises(errors.UpstreamWrongServer):
        client.feed(auth(12, b"v=" + b"A" * 43 + b"="))
    assert not client.proven


@pytest.mark.parametrize("final", [b"", b"e=other-error", b"v=", b"v=!!", b"v=cmY=", b"x=1", b"v"])
def test_a_final_message_that_is_no_signature_proves_nothing(final):
    server, client = Server(), new_login()
    client.feed(challenged(server, client))
    with pytest.raises(errors.UpstreamWrongServer):
        client.feed(auth(12, final))
    assert not client.proven


def test_being_let_in_without_a_proof_is_a_wrong_server():
    server, client = Server(), new_login()
    client.feed(challenged(server, client))
    with pytest.raises(errors.UpstreamWrongServer):
        client.feed(AUTH_OK + AFTER)
    assert not client.ready


@pytest.mark.parametrize(
    ("request_", "method"),
    [
        (auth(3), "clear password"),
        (auth(5, b"salt"), "md5"),
        (AUTH_OK, "trust"),
        (auth(7), "method 7"),
        (auth(10, b"OTHER\0\0"), "SASL"),
    ],
)
def test_what_proves_nothing_gets_no_secret(request_, method):
    client = new_login()
    with pytest.raises(Unproven, match=method):
        client.feed(request_)
    assert not client.proven


def test_a_password_that_scram_cannot_normalise_is_said_to_be_unprovable():
    with pytest.raises(Unproven, match="normalised"):
        new_login(password="a\u0007b").feed(auth(10, SASL))


def test_the_server_may_not_change_the_nonce():
    client = new_login()
    client.feed(auth(10, SASL))
    with pytest.raises(errors.UpstreamNotPostgres):
        client.feed(auth(11, b"r=stolen,s=c2FsdHNhbHRzYWx0,i=4096"))


@pytest.mark.parametrize("iterations", [b"100000000", b"1000001", b"", b"-1", b"x", "٤٠٩٦".encode()])
def test_a_server_that_wants_us_busy_is_refused(iterations):
    client = new_login()
    client.feed(auth(10, SASL))
    with pytest.raises(errors.UpstreamNotPostgres):
        client.feed(auth(11, f"r={NONCE}x,s=c2FsdHNhbHRzYWx0,i=".encode() + iterations))


@pytest.mark.parametrize(
    "early", [auth(11, b"r=x"), auth(12, b"v=x"), AFTER, b"Z\0\0\0\x05I", b"D\0\0\0\x06\0\0", b"HTTP/1.1 400"]
)
def test_messages_out_of_order_are_refused(early):
    with pytest.raises((errors.UpstreamNotPostgres, Unproven)):
        new_login().feed(early)


@pytest.mark.parametrize("again", [auth(10, SASL), auth(3), auth(5, b"salt"), auth(99)])
def test_a_server_may_not_begin_anew_in_the_middle(again):
    client = new_login()
    client.feed(auth(10, SASL))
    with pytest.raises(errors.UpstreamNotPostgres, match="PostgreSQL") as caught:
        client.feed(again)
    assert "out of order" in caught.value.detail


def test_as_much_work_as_is_allowed_is_done():
    server, client = Server(iterations=login.MOST_ITERATIONS // 100), new_login()
    client.feed(server.verdict(client.feed(challenged(server, client))))
    assert client.proven


def test_a_refused_role_is_a_failed_login_with_the_server_s_words():
    server, client = Server(), new_login()
    client.feed(challenged(server, client))
    with pytest.raises(errors.UpstreamLoginFailed) as caught:
        client.feed(error_response("28P01", 'password authentication failed for user "x"'))
    assert caught.value.detail == '28P01: password authentication failed for user "x"'


def test_a_full_server_is_full_and_not_a_refused_role():
    with pytest.raises(errors.UpstreamFull):
        new_login().feed(error_response("53300", "sorry, too many clients already"))


def test_a_talkative_server_is_left():
    client = new_login()
    assert client.feed(notice_response("01000", "and another thing") * 500) == b""
    with pytest.raises(errors.UpstreamNotPostgres):
        client.feed(notice_response("01000", "and another thing"))


def test_no_password_is_seen():
    client = new_login(password="pencil-of-the-poet")
    sent = client.first + client.feed(auth(10, SASL))
    assert b"pencil" not in sent
    assert "pencil" not in repr(client)


scripts = st.lists(
    st.one_of(
        st.sampled_from(
            [auth(10, SASL), AUTH_OK, AFTER, auth(5, b"salt"), auth(12, b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")]
        ),
        st.binary(max_size=60).map(lambda data: auth(11, data)),
        st.from_regex(
            rb"r=rOprNGfwEbeRWgbNEkqO[!-+]{0,5},s=[A-Za-z0-9+/]{0,24}={0,2},i=[0-9]{0,5}", fullmatch=True
        ).map(lambda data: auth(11, data)),
        st.binary(max_size=60).map(lambda data: auth(12, data)),
        st.binary(max_size=40),
    ),
    max_size=6,
)


@given(scripts)
def test_no_liar_is_ever_proven(script):
    """Whatever a server without the verifier says, it is a problem or nothing: never a proof."""
    client = new_login()
    try:
        for data in script:
            client.feed(data)
    except (errors.FluxError, Unproven):
        pass
    assert not client.proven
    assert not client.ready


# ------------------------------------------------------------------ the probe


def test_the_probe_is_a_startup_of_a_user_that_need_not_exist():
    assert take_first_packet(bytearray(PROBE)).parameters["user"] == "flux_probe"


@pytest.mark.parametrize("answer", [AUTH_OK, auth(10, SASL), auth(5, b"salt"), auth(3)])
def test_whatever_asks_for_a_password_is_postgres(answer):
    assert read_probe_answer(bytearray(answer)) is True


@pytest.mark.parametrize("sqlstate", ["28000", "28P01", "3D000", "42501", "0A000"])
def test_a_refusal_of_the_probe_s_user_is_postgres_too(sqlstate):
    assert read_probe_answer(bytearray(error_response(sqlstate, "no pg_hba.conf entry"))) is True


@pytest.mark.parametrize(
    ("sqlstate", "problem"),
    [("57P03", errors.UpstreamStarting), ("57P01", errors.UpstreamStarting), ("53300", errors.UpstreamFull)],
)
def test_a_server_that_takes_nobody_says_why(sqlstate, problem):
    with pytest.raises(problem, match="Postgres") as caught:
        read_probe_answer(bytearray(error_response(sqlstate, "the database system is starting up")))
    assert "starting up" in caught.value.detail


def test_a_notice_is_no_answer_yet():
    buffer = bytearray(notice_response("01000", "x") * 5000)
    assert read_probe_answer(buffer) is False
    buffer += AUTH_OK
    assert read_probe_answer(buffer) is True


def test_half_an_answer_is_none_yet():
    assert read_probe_answer(bytearray(AUTH_OK[:-1])) is False


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH", b"HTTP/1.1 400", b"N", b"S", AFTER])
def test_what_is_not_postgres_is_said_to_be_none(answer):
    with pytest.raises(errors.UpstreamNotPostgres):
        read_probe_answer(bytearray(answer), ended=True)


def test_a_silent_end_is_a_database_that_does_not_answer():
    with pytest.raises(errors.UpstreamUnreachable, match="without a word"):
        read_probe_answer(bytearray(), ended=True)


@given(st.binary(max_size=80), st.booleans())
def test_any_answer_to_the_probe_is_a_verdict(data, ended):
    verdict = None
    try:
        assert isinstance(read_probe_answer(bytearray(data), ended=ended), bool)
    except errors.FluxError as problem:
        verdict = problem
    assert verdict is None or verdict.code.startswith("upstream_")

"""Sealing, derived passwords, and verifiers that real Postgres accepts."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxplane import keychain
from fluxplane.keychain import Keychain
from fluxplane.lab.postgres import Server
from fluxplane.settings import OperatorError, Settings
from fluxplane.wire import Secret

KEYS = Keychain(b"k" * 32)
OTHER = Keychain(b"o" * 32)


@given(st.text(), st.text())
def test_what_was_sealed_is_unsealed(text, purpose):
    sealed = KEYS.seal(Secret(text), purpose=purpose)
    assert KEYS.unseal(sealed, purpose=purpose).reveal() == text
    assert len(text) < 4 or text.encode() not in sealed


def test_a_sealed_secret_cannot_be_moved_damaged_or_read_with_another_key():
    sealed = KEYS.seal(Secret("pw"), purpose="projects/password/1")
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for keys, text, purpose in (
        (KEYS, sealed, "projects/password/2"),
        (KEYS, damaged, "projects/password/1"),
        (OTHER, sealed, "projects/password/1"),
    ):
        with pytest.raises(OperatorError):
            keys.unseal(text, purpose=purpose)


def test_a_grants_password_is_the_same_each_time_and_nobody_elses():
    nonce = KEYS.nonce()
    assert KEYS.password("a" * 32, nonce) == KEYS.password("a" * 32, nonce)
    assert KEYS.verifier("a" * 32, nonce) == KEYS.verifier("a" * 32, nonce)
    others = [
        KEYS.password("b" * 32, nonce),
        KEYS.password("a" * 32, KEYS.nonce()),
        OTHER.password("a" * 32, OTHER.nonce()),
    ]
    assert KEYS.password("a" * 32, nonce) not in others
    assert len(KEYS.password("a" * 32, nonce).reveal()) == 32
    with pytest.raises(OperatorError):
        OTHER.password("a" * 32, nonce)


def test_with_several_keys_the_first_seals_and_each_opens_what_was_its_own():
    both = Keychain(b"o" * 32, b"k" * 32)
    nonce = KEYS.nonce()
    assert both.unseal(KEYS.seal(Secret("pw"), purpose="p"), purpose="p").reveal() == "pw"
    assert OTHER.unseal(both.seal(Secret("pw"), purpose="p"), purpose="p").reveal() == "pw"
    assert both.password("a" * 32, nonce) == KEYS.password("a" * 32, nonce)
    assert not both.is_current(nonce)
    assert both.is_current(both.nonce())


def test_postgres_takes_our_verifier_for_the_password(each_postgres: Server):
    password = Secret("correct horse")
    verifier = keychain.scram_verifier(password, b"0123456789abcdef")
    with psycopg.connect(each_postgres.url().reveal(), autocommit=True) as link:
        link.execute(f"CREATE ROLE scram_probe LOGIN PASSWORD '{verifier}'")
        try:
            where = {"host": "127.0.0.1", "port": each_postgres.port, "dbname": "template1", "user": "scram_probe"}
            link.execute("GRANT CONNECT ON DATABASE template1 TO scram_probe")
            psycopg.connect(**where, password="correct horse").close()
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(**where, password="wrong horse")
        finally:
            link.execute("REVOKE CONNECT ON DATABASE template1 FROM scram_probe")
            link.execute("DROP ROLE scram_probe")
    assert keychain.verifies(verifier, password)
    assert not keychain.verifies(verifier, Secret("wrong horse"))
    assert not keychain.verifies(None, password)
    assert not keychain.verifies("md5abcdef", password)


def settings(path: Path) -> Settings:
    return Settings(catalogue_url=Secret("postgresql://a:b@c/d"), key_file=path)


def test_a_key_file_is_made_once_and_private(tmp_path: Path):
    path = tmp_path / "key"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: keychain.load(settings(path)), range(8)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
    sealed = keychain.load(settings(path)).seal(Secret("x"), purpose="p")
    assert keychain.load(settings(path)).unseal(sealed, purpose="p") == Secret("x")


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path):
    path = tmp_path / "key"
    path.write_text(keychain.new_key().reveal())
    path.chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        keychain.load(settings(path))


@pytest.mark.parametrize("text", ["", "short", "not base64!", "QUJD"])
def test_a_key_that_is_none_is_said(tmp_path: Path, text: str):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(OperatorError):
        keychain.load(settings(path))


@pytest.mark.parametrize("first", [0xF8, 0xFC, 0x00], ids=["plus", "slash", "A"])
def test_a_key_may_begin_with_any_character_of_base64(tmp_path, first):
    """0xf8 begins with a +, 0xfc with a slash."""
    path = tmp_path / "key"
    key = base64.b64encode(bytes([first]) + bytes(31)).decode()
    path.write_text(key + "\n")
    path.chmod(0o600)
    sealed = keychain.load(settings(path)).seal(Secret("pw"), purpose="p")
    assert not keychain.take_next(path)
    assert path.read_text() == key + "\n"
    assert keychain.add_next(path)
    assert keychain.take_next(path)
    lines = path.read_text().split()
    assert (len(lines), lines[1]) == (2, key)
    assert keychain.load(settings(path)).unseal(sealed, purpose="p").reveal() == "pw"

"""Encrypted identity files on a real SSH host: opened by a passphrase that is in fluxd's memory and nowhere else."""

import logging
import shutil
import subprocess

import pytest

from fluxd import wire
from fluxd.core import errors
from fluxd.tunnels.passphrases import WRONG
from fluxplane.wire import Secret
from tests.fluxd.tunnels.rig import V1_HASH, until
from tests.fluxd.tunnels.test_restart import crashed_and_back

PASSPHRASE = "correct horse bättery staple"


def encrypt(identity_file, passphrase: str, *, old: str = "", pem: bool = False) -> None:
    """With ssh-keygen's own hand, in place. PEM has other encryption and other errors."""
    form = ("-m", "PEM") if pem else ()
    subprocess.run(
        ["ssh-keygen", "-q", "-p", *form, "-P", old, "-N", passphrase, "-f", identity_file],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def locked(rig):
    encrypt(rig.host.identity_file, PASSPHRASE)
    return rig


def saying(rig, passphrase: str | None) -> wire.SSH:
    path = str(rig.host.identity_file)
    said = (wire.Passphrase(file=path, passphrase=Secret(passphrase)),) if passphrase else ()
    return wire.SSH(identity_file=path, known_hosts=str(rig.host.known_hosts), passphrases=said)


async def refused(rig, **more) -> errors.FluxError:
    with pytest.raises(errors.SSHKeyEncrypted) as caught:
        await rig.open(V1_HASH, **more)
    return caught.value


async def test_it_is_asked_for_told_once_and_used_from_then_on(locked, caplog):
    caplog.set_level(logging.DEBUG)
    problem = await refused(locked)
    assert (problem.code, problem.message) == ("ssh_key_encrypted", errors.SSHKeyEncrypted.summary)
    wrong = await refused(locked, ssh=saying(locked, "wrong horse"))
    assert (wrong.code, wrong.message) == ("ssh_key_encrypted", WRONG)
    opened = await locked.open(V1_HASH, ssh=saying(locked, PASSPHRASE))
    assert await locked.ask(opened) == "postgres"
    await locked.host.hang_up()
    [host] = locked.up._hosts
    await until(lambda: host.generation == 2, "the connection again, by the passphrase in memory")
    await locked.up.close("yeastcoast")
    await locked.open(V1_HASH)
    kept = b"".join(path.read_bytes() for path in locked.state_dir.rglob("*") if path.is_file())
    assert str(locked.host.identity_file).encode() in kept, "the journal knows the file"
    said = f"{kept.decode()} {caplog.text} {wrong!r} {wrong.detail} {saying(locked, PASSPHRASE)!r} {locked.up.list()}"
    for secret in (PASSPHRASE, "bättery", "b\\u00e4ttery", "wrong horse"):
        assert secret not in said


async def test_a_file_that_was_encrypted_anew_is_asked_for_again(locked):
    await locked.open(V1_HASH, ssh=saying(locked, PASSPHRASE))
    await locked.up.close("yeastcoast")
    encrypt(locked.host.identity_file, "another", old=PASSPHRASE)
    assert (await refused(locked)).message == errors.SSHKeyEncrypted.summary
    assert await locked.ask(await locked.open(V1_HASH, ssh=saying(locked, "another"))) == "postgres"


async def test_who_joins_a_tunnel_that_came_back_is_asked(locked):
    """The passphrase went with the daemon that knew it."""
    await locked.open(V1_HASH, ssh=saying(locked, PASSPHRASE))
    await crashed_and_back(locked)
    assert (await refused(locked)).code == "ssh_key_encrypted"
    joined = await locked.open(V1_HASH, ssh=saying(locked, PASSPHRASE))
    assert await locked.ask(joined) == "postgres"


async def test_who_joins_is_asked_for_the_usual_key_too(small_rig, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    key = shutil.copy(small_rig.host.identity_file, tmp_path / ".ssh" / "id_ed25519")
    encrypt(key, PASSPHRASE)
    unnamed = {"known_hosts": str(small_rig.host.known_hosts)}
    opens = wire.SSH(passphrases=(wire.Passphrase(file=str(key), passphrase=Secret(PASSPHRASE)),), **unnamed)
    await small_rig.open(V1_HASH, ssh=opens)
    await crashed_and_back(small_rig)
    assert (await refused(small_rig, ssh=wire.SSH(**unnamed))).detail == str(key)
    assert await small_rig.ask(await small_rig.open(V1_HASH, ssh=opens)) == "postgres"


async def test_an_old_pem_file_alone_has_the_same_problem_and_the_same_way_out(small_rig, tmp_path):
    """Without a public half beside it nobody knows whether the host would take it: it is asked for all the same."""
    subprocess.run(["ssh-keygen", "-q", "-m", "PEM", "-t", "rsa", "-N", PASSPHRASE, "-f", tmp_path / "rsa"], check=True)
    (tmp_path / "rsa.pub").unlink()
    small_rig.host.identity_file = tmp_path / "rsa"
    assert (await refused(small_rig)).message == errors.SSHKeyEncrypted.summary
    assert (await refused(small_rig, ssh=saying(small_rig, "wrong"))).message == WRONG
    with pytest.raises(errors.SSHAuthFailed):
        await small_rig.open(V1_HASH, ssh=saying(small_rig, PASSPHRASE))


async def test_a_key_that_the_host_would_not_take_is_not_asked_for(small_rig, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", tmp_path / "other"], check=True)
    small_rig.host.identity_file = tmp_path / "other"
    with pytest.raises(errors.SSHAuthFailed):
        await small_rig.open(V1_HASH)


async def test_a_passphrase_that_an_open_file_does_not_need_is_not_kept(small_rig):
    await small_rig.open(V1_HASH, ssh=saying(small_rig, PASSPHRASE))
    assert small_rig.up._passphrases.of(str(small_rig.host.identity_file)) is None

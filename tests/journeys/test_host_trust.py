"""`fluxctl host trust`: a host's key comes into known_hosts when a person says so, and not otherwise."""

import subprocess
from pathlib import Path

import asyncssh
import pytest

from fluxctl.problems import PROBLEMS
from tests.furniture.processes import command
from tests.furniture.sshd import OpenSSH, SSHHost, has_sshd
from tests.furniture.terminal import at_a_terminal

pytestmark = [pytest.mark.journey, pytest.mark.skipif(not has_sshd(), reason="OpenSSH's server is not installed")]


@pytest.fixture
def bastion(ssh_home: Path):
    host = OpenSSH(ssh_home)
    host.server.start()
    host.port = host.server.port or 0
    yield host
    host.server.stop()


# The exit code of everything that SSH refuses.
SSH_FAILED = PROBLEMS["ssh_host_key_unknown"][2]


def name(host: SSHHost) -> str:
    return f"{host.host}:{host.port}"


def known(daemon) -> Path:
    return daemon.home / ".ssh" / "known_hosts"


def ssh_agrees(host: SSHHost, file: Path) -> bool:
    """Whether OpenSSH itself, strict, takes the host's key by what was written."""
    asked = host.ssh_argv()
    asked[asked.index(f"UserKnownHostsFile={host.known_hosts}")] = f"UserKnownHostsFile={file}"
    return subprocess.run([*asked, "getent hosts db"], capture_output=True, check=False, timeout=60).returncode != 255


def trusting(daemon, *words: str):
    argv = [command("fluxctl"), "host", "trust", *words]
    return at_a_terminal(argv, {**daemon.environment, "TERM": "dumb"}, daemon.home)


def test_yes_at_the_terminal_adds_the_key_that_was_shown(daemon, bastion):
    fingerprint = bastion.host_key.get_fingerprint()
    with trusting(daemon, name(bastion)) as terminal:
        terminal.read_until("[y/N]")
        assert fingerprint in terminal.shown
        assert not known(daemon).exists()
        terminal.type("y")
        assert terminal.end() == 0, terminal.shown
    assert "is known." in terminal.shown
    assert (known(daemon).stat().st_mode & 0o777, known(daemon).parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert ssh_agrees(bastion, known(daemon))


@pytest.mark.parametrize("answer", ["", "n", "no way"])
def test_anything_but_yes_writes_nothing(daemon, bastion, answer):
    with trusting(daemon, name(bastion)) as terminal:
        terminal.read_until("[y/N]")
        terminal.type(answer)
        assert terminal.end() == SSH_FAILED, terminal.shown
    assert "nothing written" in terminal.shown
    assert not known(daemon).exists()


def test_without_a_terminal_the_fingerprint_must_be_named(daemon, bastion):
    env = {"FLUX_DB_TUNNEL_SSH_HOST": bastion.host, "FLUX_DB_TUNNEL_SSH_PORT": str(bastion.port)}
    fingerprint = bastion.host_key.get_fingerprint()
    refused = daemon.flux("host", "trust", env=env, program="fluxctl", stdin="y\n")
    assert refused.returncode == SSH_FAILED
    assert f"`--fingerprint {fingerprint}`" in refused.stderr
    wrong = daemon.flux("host", "trust", "--fingerprint", "SHA256:another", env=env, program="fluxctl")
    assert wrong.returncode == SSH_FAILED
    assert not known(daemon).exists()
    done = daemon.flux("host", "trust", "--fingerprint", fingerprint, env=env, program="fluxctl")
    assert done.returncode == 0, done.stderr
    again = daemon.flux("host", "trust", name(bastion), program="fluxctl")
    assert (again.returncode, again.stdout) == (0, f"  root@{name(bastion)} is known.\n")
    assert len(known(daemon).read_text().splitlines()) == 1


def test_the_file_in_effect_is_added_to_even_if_its_last_line_is_torn(daemon, bastion, tmp_path):
    file = tmp_path / "mine"
    file.write_text("# no newline")
    words = ("--known-hosts", str(file), "--fingerprint", bastion.host_key.get_fingerprint())
    done = daemon.flux("host", "trust", name(bastion), *words, program="fluxctl")
    assert done.returncode == 0, done.stderr
    first, second = file.read_text().splitlines()
    assert first == "# no newline"
    assert second.startswith(f"[127.0.0.1]:{bastion.port} ssh-ed25519 ")
    assert not known(daemon).exists()


def test_a_changed_key_is_never_replaced(daemon, bastion):
    bastion.write_known_hosts()
    before = bastion.known_hosts.read_text()
    bastion.server.stop()
    bastion.new_host_key()
    bastion.server.start()
    words = ("--known-hosts", str(bastion.known_hosts), "--fingerprint", bastion.host_key.get_fingerprint())
    done = daemon.flux("host", "trust", name(bastion), *words, program="fluxctl")
    assert done.returncode == SSH_FAILED
    assert "is not the one you know" in done.stderr
    assert bastion.known_hosts.read_text() == before


def test_a_jump_host_before_it_is_asked_about_first_and_for_its_encrypted_key(daemon, bastion, tmp_path):
    home = tmp_path / "jump"
    home.mkdir()
    jump = OpenSSH(home, forced=False)
    jump.server.start()
    try:
        config = daemon.home / ".ssh" / "config"
        config.parent.mkdir(mode=0o700)
        asyncssh.read_private_key(jump.identity_file).write_private_key(key := tmp_path / "locked", passphrase="open")
        config.write_text(
            f"Host jump\n  HostName 127.0.0.1\n  Port {jump.server.port}\n  User {jump.user}\n"
            f"  IdentityFile {key}\nHost 127.0.0.1\n  ProxyJump jump\n"
        )
        with trusting(daemon, name(bastion)) as terminal:
            terminal.read_until(jump.host_key.get_fingerprint())
            terminal.read_until("[y/N]")
            terminal.type("y")
            terminal.read_until(f"Passphrase for {key}: ")
            terminal.type("open")
            terminal.read_until(bastion.host_key.get_fingerprint())
            terminal.read_until("[y/N]", times=2)
            terminal.type("y")
            assert terminal.end() == 0, terminal.shown
        assert len(known(daemon).read_text().splitlines()) == 2
    finally:
        jump.server.stop()


@pytest.mark.parametrize("words", [(), ("host:99999",), ("-o",), ("@",), ("$(id)",)])
def test_a_host_that_is_none(daemon, words):
    assert daemon.flux("host", "trust", *words, program="fluxctl").returncode == 2

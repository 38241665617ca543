"""Keys, hosts and ways to them as people have them in OpenSSH: each on a real sshd, with files of ssh-keygen's own."""

import shutil
import subprocess
from pathlib import Path

import asyncssh
import pytest
from asyncssh.public_key import _sk_alg_map
from asyncssh.sk import SSH_SK_ED25519

from fluxd import wire
from fluxd.tunnels.dial import Dialling, asks_for_passphrase, dial
from fluxplane.wire import Secret
from tests.fluxd.tunnels.rig import until
from tests.fluxd.tunnels.test_ssh import HOW, destination, problem_of_dialling
from tests.furniture.sshd import OpenSSH, serving

PASSPHRASE = "correct horse bättery staple"


def keygen(*words: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, words)], check=True, capture_output=True)


def new_key(path: Path, *, passphrase: str = "") -> Path:
    keygen("-t", "ed25519", "-N", passphrase, "-f", path)
    return path


def user_certificate(authority: Path, key: Path, user: str, *, validity: str = "always:forever") -> None:
    """ssh-keygen's `KEY-cert.pub` for *key*, good for logging in as *user*."""
    keygen("-s", authority, "-I", "ada", "-n", user, "-V", validity, f"{key}.pub")


async def gets_in(where, how: Dialling = HOW, *, agent: str = "") -> str:
    """Dial and leave; which host key was accepted."""
    connection = await dial(where, how, agent=agent, pinned=())
    key = connection.get_server_host_key()
    connection.close()
    await connection.wait_closed()
    return key.get_fingerprint() if key else ""


def by_config(path: Path, text: str) -> Dialling:
    path.write_text(text)
    path.chmod(0o600)
    return Dialling(config=str(path), connect_s=15)


# ----------------------------------------------------------------------- keys


async def test_an_identity_file_is_offered_alone_however_full_the_agent_is(openssh, ssh_agent, tmp_path):
    """More keys than sshd's MaxAuthTries has patience for."""
    for number in range(8):
        await ssh_agent.add(new_key(tmp_path / f"other{number}"))
    assert await gets_in(destination(openssh), agent=str(ssh_agent.socket))


async def test_the_agents_key_alone_is_enough(openssh, ssh_agent):
    await ssh_agent.add(openssh.identity_file)
    assert await gets_in(destination(openssh, identity=None), agent=str(ssh_agent.socket))


@pytest.mark.parametrize(
    ("named", "code"),
    [("{socket}", None), ("none", "ssh_auth_failed"), ("SSH_AUTH_SOCK", "ssh_auth_failed")],
)
async def test_an_agent_of_ssh_config_is_asked_instead_of_the_shells(openssh, ssh_agent, tmp_path, named, code):
    await ssh_agent.add(openssh.identity_file)
    how = by_config(tmp_path / "config", f"IdentityAgent {named.format(socket=ssh_agent.socket)}\nIdentityFile none\n")
    where = destination(openssh, identity=None)
    if code is None:
        assert await gets_in(where, how, agent=str(tmp_path / "nobody"))
    else:
        problem = await problem_of_dialling(where, how, agent=str(ssh_agent.socket) if named == "none" else "")
        assert problem.code == code


async def test_no_identity_file_means_none_of_the_usual_ones_either(openssh, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    shutil.copy(openssh.identity_file, tmp_path / ".ssh" / "id_ed25519")
    assert await gets_in(destination(openssh, identity=None))
    how = by_config(tmp_path / "config", "IdentityFile none\n")
    assert (await problem_of_dialling(destination(openssh, identity=None), how)).code == "ssh_auth_failed"


@pytest.fixture
async def certified(ssh_home):
    """An sshd that knows no key, only an authority; and that authority."""
    authority = new_key(ssh_home / "users_ca")
    host = OpenSSH(ssh_home, lines=(f"TrustedUserCAKeys {authority}.pub",))
    host.server.authorized_keys = ""
    async with serving(host):
        yield host, authority


async def test_a_user_certificate_beside_the_identity_file_is_used(certified, tmp_path):
    host, authority = certified
    key = new_key(tmp_path / "id")
    assert (await problem_of_dialling(destination(host, identity=str(key)))).code == "ssh_auth_failed"
    user_certificate(authority, key, host.user)
    assert await gets_in(destination(host, identity=str(key)))


async def test_a_user_certificate_of_the_agent_is_used(certified, ssh_agent, tmp_path):
    host, authority = certified
    key = new_key(tmp_path / "id")
    user_certificate(authority, key, host.user)
    await ssh_agent.add(key)
    assert await gets_in(destination(host, identity=None), agent=str(ssh_agent.socket))


async def test_a_certificate_file_of_ssh_config_is_used(certified, tmp_path):
    host, authority = certified
    key = new_key(tmp_path / "id")
    user_certificate(authority, key, host.user)
    elsewhere = shutil.move(f"{key}-cert.pub", tmp_path / "short-lived.pub")
    how = by_config(tmp_path / "config", f"Host *\n  IdentityFile {key}\n  CertificateFile {elsewhere}\n")
    assert await gets_in(destination(host, identity=None), how)


async def test_a_certificate_that_has_ended_is_refused(certified, tmp_path):
    host, authority = certified
    key = new_key(tmp_path / "id")
    user_certificate(authority, key, host.user, validity="20200101:20200102")
    assert (await problem_of_dialling(destination(host, identity=str(key)))).code == "ssh_auth_failed"


def security_key(path: Path) -> Path:
    """As `ssh-keygen -t ed25519-sk` leaves it, without the token that it would want to be touched."""
    make, _ = _sk_alg_map[SSH_SK_ED25519]
    point = asyncssh.generate_private_key("ssh-ed25519").public_data[-32:]
    path.write_bytes(make.make_private((point, "ssh:", 1, b"handle", b"")).export_private_key())
    path.chmod(0o600)
    return path


async def test_a_security_keys_file_wants_an_agent_or_the_extra(openssh, tmp_path):
    """asyncssh would load it, and break the connection when the host wants a signature."""
    key = security_key(tmp_path / "id_ed25519_sk")
    (openssh.home / "sshd" / "authorized_keys").write_bytes(asyncssh.read_private_key(key).export_public_key())
    problem = await problem_of_dialling(destination(openssh, identity=str(key)))
    assert problem.code == "ssh_key_unusable"
    assert "the extra fido2" in problem.detail
    how = by_config(tmp_path / "config", f"IdentityFile {key}\n")
    assert (await problem_of_dialling(destination(openssh, identity=None), how)).code == "ssh_auth_failed"


# --------------------------------------------------------------- encrypted keys


def locked(key: Path, path: Path) -> Path:
    """A copy of *key*, encrypted, with its public half beside it as ssh-keygen leaves it."""
    path.parent.mkdir(exist_ok=True)
    shutil.copy(key, path)
    path.chmod(0o600)
    path.with_name(f"{path.name}.pub").write_bytes(subprocess.check_output(["ssh-keygen", "-y", "-f", path]))
    keygen("-p", "-P", "", "-N", PASSPHRASE, "-f", path)
    return path


async def told(how: Dialling, path: Path) -> Dialling:
    """As *how*, after a caller has said what opens *path*."""
    await how.passphrases.learn(wire.SSH(passphrases=(wire.Passphrase(file=str(path), passphrase=Secret(PASSPHRASE)),)))
    return how


async def asked_for(where, how: Dialling) -> str | None:
    """The key that dialling wants a passphrase of."""
    problem = await problem_of_dialling(where, how)
    assert problem.code == "ssh_key_encrypted"
    return problem.detail


async def test_an_encrypted_identity_file_of_ssh_config_is_asked_for_and_used(openssh, tmp_path):
    key = locked(openssh.identity_file, tmp_path / "work")
    how = by_config(tmp_path / "config", f"Host 127.*\n  IdentityFile {key}\n")
    assert await asked_for(destination(openssh, identity=None), how) == str(key)
    assert await gets_in(destination(openssh, identity=None), await told(how, key))


async def test_the_usual_key_of_a_home_is_asked_for_and_used(openssh, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    key = locked(openssh.identity_file, tmp_path / ".ssh" / "id_ed25519")
    how = Dialling(config="/nonexistent")
    assert await asked_for(destination(openssh, identity=None), how) == str(key)
    assert await gets_in(destination(openssh, identity=None), await told(how, key))


async def test_only_the_key_that_the_host_would_take_is_asked_for(openssh, tmp_path):
    other = locked(new_key(tmp_path / "plain"), tmp_path / "other")
    key = locked(openssh.identity_file, tmp_path / "work")
    how = by_config(tmp_path / "config", f"IdentityFile {other}\nIdentityFile {key}\n")
    assert await asked_for(destination(openssh, identity=None), how) == str(key)


async def test_a_key_that_the_agent_has_is_not_asked_for(openssh, ssh_agent, tmp_path):
    await ssh_agent.add(openssh.identity_file)
    key = locked(openssh.identity_file, tmp_path / "work")
    for number in range(8):
        await ssh_agent.add(new_key(tmp_path / f"other{number}"))
    how = by_config(tmp_path / "config", f"IdentityFile {key}\nIdentitiesOnly yes\n")
    assert await gets_in(destination(openssh, identity=None), how, agent=str(ssh_agent.socket))


@pytest.mark.parametrize("named", [True, False])
async def test_a_public_key_names_the_agents_private_one(openssh, ssh_agent, tmp_path, named):
    """What people write whose keys never leave a hardware token."""
    for number in range(8):
        await ssh_agent.add(new_key(tmp_path / f"other{number}"))
    await ssh_agent.add(openssh.identity_file)
    half = tmp_path / "work.pub"
    half.write_bytes(openssh.client_key.export_public_key())
    how = by_config(tmp_path / "config", "" if named else f"IdentityFile {half}\nIdentitiesOnly yes\n")
    where = destination(openssh, identity=str(half) if named else None)
    assert await gets_in(where, how, agent=str(ssh_agent.socket))


async def test_identities_only_keeps_the_agents_other_keys_back(openssh, ssh_agent, tmp_path):
    await ssh_agent.add(openssh.identity_file)
    how = by_config(tmp_path / "config", f"IdentityFile {tmp_path}/none\nIdentitiesOnly yes\n")
    problem = await problem_of_dialling(destination(openssh, identity=None), how, agent=str(ssh_agent.socket))
    assert problem.code == "ssh_auth_failed"


async def test_an_identity_file_of_ssh_config_that_is_not_there_is_left_out(openssh, tmp_path):
    text = f"IdentityFile {tmp_path}/none\nIdentityFile {openssh.identity_file}\n"
    assert await gets_in(destination(openssh, identity=None), by_config(tmp_path / "config", text))


async def test_a_certificate_of_an_encrypted_key_is_used(certified, tmp_path):
    host, authority = certified
    key = locked(new_key(tmp_path / "plain"), tmp_path / "id")
    user_certificate(authority, key, host.user)
    how = by_config(tmp_path / "config", f"IdentityFile {key}\n")
    assert await asked_for(destination(host, identity=None), how) == str(key)
    assert await gets_in(destination(host, identity=None), await told(how, key))


async def test_a_jump_hosts_encrypted_key_is_asked_for_and_used(openssh, jump, tmp_path):
    key = locked(jump.identity_file, tmp_path / "jumping")
    text = block(jump, "jump").replace(str(jump.identity_file), str(key)) + "Host 127.0.0.1\n  ProxyJump jump\n"
    jump.known_hosts.write_text(known_as(jump, "jump", tmp_path).read_text())
    how = by_config(tmp_path / "config", text)
    assert await asks_for_passphrase(destination(openssh), how)
    assert await asked_for(destination(openssh), how) == str(key)
    assert await gets_in(destination(openssh), await told(how, key))
    assert not await asks_for_passphrase(destination(openssh), how)


# ----------------------------------------------------------------- ~/.ssh/config


def block(openssh, *names: str) -> str:
    """A Host block that leads to *openssh* by any of *names*."""
    return (
        f"Host {' '.join(names)}\n  HostName 127.0.0.1\n  Port {openssh.port}\n  User {openssh.user}\n"
        f"  IdentityFile {openssh.identity_file}\n  UserKnownHostsFile {openssh.known_hosts}\n"
    )


async def test_a_host_alias_with_its_key_and_known_hosts(openssh, tmp_path):
    where = destination(openssh, host="bastion", identity=None, known_hosts=None)
    how = by_config(tmp_path / "config", block(openssh, "bastion"))
    openssh.known_hosts.write_text(known_as(openssh, "bastion", tmp_path).read_text())
    assert await gets_in(where, how) == openssh.host_key.get_fingerprint()


async def test_an_included_file_counts(openssh, tmp_path):
    (tmp_path / "more.conf").write_text("Host bastion\n  HostName 127.0.0.1\n")
    how = by_config(tmp_path / "config", f"Include {tmp_path}/*.conf\n")
    where = destination(openssh, host="bastion", known_hosts=str(known_as(openssh, "bastion", tmp_path)))
    assert await gets_in(where, how)


@pytest.mark.parametrize("criteria", ["host bastion", "originalhost bastion", 'host bastion exec "true"'])
async def test_a_match_block_counts(openssh, tmp_path, criteria):
    how = by_config(tmp_path / "config", f"Match {criteria}\n  HostName 127.0.0.1\n")
    where = destination(openssh, host="bastion", known_hosts=str(known_as(openssh, "bastion", tmp_path)))
    assert await gets_in(where, how)


async def test_a_match_block_of_another_host_does_not(openssh, tmp_path):
    how = by_config(tmp_path / "config", "Match host other\n  Port 1\n")
    assert await gets_in(destination(openssh), how)


def known_as(openssh, name: str, tmp_path: Path) -> Path:
    """known_hosts with the host's key under *name*, at any port, and by its address."""
    line = openssh.host_key.export_public_key().decode().strip()
    path = tmp_path / "known_as"
    path.write_text(f"{name},[{name}]:{openssh.port},[127.0.0.1]:{openssh.port} {line}\n")
    return path


async def test_a_proxy_command_is_run_and_ends_with_the_connection(openssh, ssh_home, tmp_path):
    """The command people have: ssh itself, to another host."""
    ran = tmp_path / "ran"
    way = " ".join([*openssh.ssh_argv()[:-1], "-W", "%h:%p", openssh.destination])
    how = by_config(tmp_path / "config", f"Host *\n  ProxyCommand sh -c 'echo $$ > {ran}; exec {way}'\n")
    assert await gets_in(destination(openssh), how) == openssh.host_key.get_fingerprint()
    pid = int(ran.read_text())
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the proxy command's end")


@pytest.fixture
async def jump(ssh_home):
    """Another sshd, with keys of its own."""
    home = ssh_home / "jump"
    home.mkdir()
    async with serving(OpenSSH(home, forced=False)) as host:
        yield host


async def test_a_jump_host_is_reached_first_and_left_at_the_end(openssh, jump, tmp_path):
    text = block(jump, "jump") + "Host 127.0.0.1\n  ProxyJump jump\n"
    jump.known_hosts.write_text(known_as(jump, "jump", tmp_path).read_text())
    connection = await dial(destination(openssh), by_config(tmp_path / "config", text), agent="", pinned=())
    assert connection.get_server_host_key() == openssh.host_key.convert_to_public()
    assert jump.server.sessions()
    connection.close()
    await connection.wait_closed()
    await until(lambda: not jump.server.sessions(), "the jump host to be left")


async def test_a_jump_host_gets_the_requests_agent(openssh, jump, ssh_agent, tmp_path, monkeypatch):
    """Not that of the daemon's own environment, which may be nobody's."""
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nobody"))
    await ssh_agent.add(jump.identity_file)
    text = (
        f"Host jump\n  HostName 127.0.0.1\n  UserKnownHostsFile {jump.known_hosts}\n"
        f"Host 127.0.0.1\n  ProxyJump {jump.user}@jump:{jump.port}\n"
    )
    jump.known_hosts.write_text(known_as(jump, "jump", tmp_path).read_text())
    how = by_config(tmp_path / "config", text)
    assert await gets_in(destination(openssh), how, agent=str(ssh_agent.socket))


async def test_two_jumps_in_a_row(openssh, jump, tmp_path):
    text = block(jump, "one", "two") + "Host 127.0.0.1\n  ProxyJump one,two\n"
    known = known_as(jump, "one", tmp_path).read_text() + known_as(jump, "two", tmp_path).read_text()
    jump.known_hosts.write_text(known)
    assert await gets_in(destination(openssh), by_config(tmp_path / "config", text))


async def test_a_jump_host_for_every_host_is_not_reached_through_itself(openssh, jump, tmp_path):
    text = block(jump, "jump") + "Host *\n  ProxyJump jump\n"
    jump.known_hosts.write_text(known_as(jump, "jump", tmp_path).read_text())
    assert await gets_in(destination(openssh), by_config(tmp_path / "config", text))


async def test_jump_hosts_in_a_circle_are_a_mistake_in_the_config(openssh, jump, tmp_path):
    text = "Host one\n  ProxyJump two\nHost two\n  ProxyJump one\nHost 127.0.0.1\n  ProxyJump one\n"
    problem = await problem_of_dialling(destination(openssh), by_config(tmp_path / "config", text))
    assert problem.code == "ssh_config_invalid"
    assert "ProxyJump" in problem.message


async def test_a_jump_host_is_as_strictly_known(openssh, jump, tmp_path):
    text = block(jump, "jump") + "Host 127.0.0.1\n  ProxyJump jump\n"
    jump.known_hosts.write_text("")
    problem = await problem_of_dialling(destination(openssh), by_config(tmp_path / "config", text))
    assert problem.code == "ssh_host_key_unknown"
    assert problem.message.startswith("jump is not known yet")
    assert jump.host_key.get_fingerprint() in problem.message


async def test_a_host_behind_a_jump_that_cannot_be_dialled_leaves_the_jump(openssh, jump, tmp_path):
    text = block(jump, "jump") + "Host 127.0.0.1\n  ProxyJump jump\n"
    jump.known_hosts.write_text(known_as(jump, "jump", tmp_path).read_text())
    openssh.known_hosts.write_text("")
    problem = await problem_of_dialling(destination(openssh), by_config(tmp_path / "config", text))
    assert problem.code == "ssh_host_key_unknown"
    await until(lambda: not jump.server.sessions(), "the jump host to be left")


async def test_a_jump_host_that_lets_nobody_in_is_named(openssh, jump, tmp_path):
    text = block(jump, "jump").replace(str(jump.identity_file), str(openssh.identity_file))
    jump.known_hosts.write_text(known_as(jump, "jump", tmp_path).read_text())
    how = by_config(tmp_path / "config", text + "Host 127.0.0.1\n  ProxyJump jump\n")
    problem = await problem_of_dialling(destination(openssh), how)
    assert problem.code == "ssh_auth_failed"
    assert "@jump:" in problem.message


# ------------------------------------------------------------------ known_hosts


@pytest.fixture
async def vouched(ssh_home):
    """An sshd whose key an authority signed, for 127.0.0.1; and the authority's public line."""
    authority = new_key(ssh_home / "hosts_ca")
    key = ssh_home / "ssh_host_ed25519_key"
    host = OpenSSH(ssh_home, lines=(f"HostCertificate {key}-cert.pub",))
    keygen("-s", authority, "-I", "bastion", "-h", "-n", "127.0.0.1", f"{key}.pub")
    async with serving(host):
        yield host, Path(f"{authority}.pub").read_text().strip()


async def test_a_host_that_a_known_authority_vouches_for(vouched):
    host, authority = vouched
    host.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{host.port} {authority}\n")
    assert await gets_in(destination(host))


async def test_an_authority_for_other_hosts_vouches_for_nothing_here(vouched):
    host, authority = vouched
    host.known_hosts.write_text(f"@cert-authority *.example.com {authority}\n")
    assert (await problem_of_dialling(destination(host))).code == "ssh_host_key_unknown"


async def test_a_certificate_for_another_name_is_refused(ssh_home):
    authority, key = new_key(ssh_home / "hosts_ca"), ssh_home / "ssh_host_ed25519_key"
    host = OpenSSH(ssh_home, lines=(f"HostCertificate {key}-cert.pub",))
    keygen("-s", authority, "-I", "bastion", "-h", "-n", "other.example.com", f"{key}.pub")
    async with serving(host):
        line = Path(f"{authority}.pub").read_text().strip()
        host.known_hosts.write_text(f"@cert-authority * {line}\n")
        assert (await problem_of_dialling(destination(host))).code == "ssh_host_key_unknown"


async def test_a_revoked_authority_vouches_for_nothing(vouched):
    host, authority = vouched
    host.known_hosts.write_text(f"@cert-authority * {authority}\n@revoked * {authority}\n")
    assert (await problem_of_dialling(destination(host))).code == "ssh_host_key_revoked"


async def test_a_revoked_key_is_refused_though_an_authority_vouches_for_it(vouched):
    host, authority = vouched
    own = host.host_key.export_public_key().decode().strip()
    host.known_hosts.write_text(f"@cert-authority * {authority}\n@revoked * {own}\n")
    assert (await problem_of_dialling(destination(host))).code == "ssh_host_key_revoked"


async def test_a_hashed_key_that_changed_is_still_a_change(openssh):
    keygen("-H", "-f", openssh.known_hosts)
    assert "127.0.0.1" not in openssh.known_hosts.read_text()
    openssh.new_host_key()
    await openssh.restart()
    assert (await problem_of_dialling(destination(openssh))).code == "ssh_host_key_changed"

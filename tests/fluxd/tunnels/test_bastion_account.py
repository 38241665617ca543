"""The account that only forwards, as `fluxplane bastion-config` prints it: enough for a tunnel, and no more."""

from pathlib import Path

import pytest

from fluxd.core import errors
from fluxplane.bastion import SCRIPT_PATH, Bastion, Database
from tests.fluxd.tunnels.rig import V1_HASH, V2_HASH, Rig
from tests.furniture.needs import needs
from tests.furniture.sshd import OpenSSH, has_mount_namespaces, serving

ACCOUNT = "flux-tunnel"
UID = 64999
NAME = "flux-postgres-v2"


@pytest.fixture
async def account(ssh_home, open18):
    """A user of that name exists for this sshd alone; Postgres answers to `NAME` there, and to another name too."""
    needs(has_mount_namespaces(), "an account of a test's own needs a mount namespace")
    host = OpenSSH(ssh_home, forced=False)
    host.user = host.server.user = ACCOUNT
    script, passwd = ssh_home / "flux-bastion", ssh_home / "passwd"
    passwd.write_text(f"{Path('/etc/passwd').read_text()}{ACCOUNT}:x:{UID}:{UID}::/:/bin/sh\n")
    key = host.client_key.export_public_key().decode().strip()
    made = Bastion(ACCOUNT, (Database(NAME, open18.port),), keys=(key,))
    script.write_text(made.script())
    script.chmod(0o755)
    for directory in (ssh_home, ssh_home / "sshd"):  # sshd reads authorized_keys as the account
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)
    host.server.authorized_keys = made.authorized_keys().replace(SCRIPT_PATH, str(script))
    host.server.lines = tuple(made.sshd_config().replace(SCRIPT_PATH, str(script)).splitlines()[1:])
    binds = f'mount --bind "{ssh_home}/hosts" /etc/hosts && mount --bind "{passwd}" /etc/passwd && exec "$@"'
    host.server.wrapper = ("unshare", "--mount", "sh", "-c", binds, "sh")
    host.names = {NAME: "127.0.0.1", "flux-other-db": "127.0.0.1"}
    host.publish()
    async with serving(host):
        yield host


@pytest.fixture
async def bastion(account, contract_plane, open18, tmp_path):
    rig = Rig(account, contract_plane, open18, tmp_path / "state")
    rig.plane.projects[V2_HASH].internal_host = NAME
    yield rig
    await rig.close()


async def test_a_tunnel_goes_through_it_without_root_a_shell_or_docker(bastion):
    opened = await bastion.open()
    assert await bastion.ask(opened) == opened.credential.username
    assert bastion.up.show("foundry").resolution_method == "getent"
    owners = {Path(f"/proc/{pid}").stat().st_uid for pid in bastion.host.server.sessions()}
    assert UID in owners
    bastion.host.server.hang_up()
    assert await bastion.ask(opened) == opened.credential.username, "and again after a break"


async def test_another_database_is_not_to_be_had_through_it(bastion):
    bastion.plane.projects[V1_HASH].internal_host = "flux-other-db"
    with pytest.raises(errors.DockerUnavailable) as caught:
        await bastion.open(V1_HASH)
    assert "only forwards to its databases" in caught.value.detail
    assert "getent hosts" in caught.value.hint


async def test_where_the_host_answers_more_than_it_lets_through_that_is_named(
    account, contract_plane, open18, tmp_path
):
    """The operator has changed the script, and forgotten permitopen."""
    script = account.home / "flux-bastion"
    script.write_text(script.read_text().replace(f"getent hosts {NAME}", "getent hosts flux-other-db"))
    rig = Rig(account, contract_plane, open18, tmp_path / "state")
    rig.plane.projects[V1_HASH].internal_host = "flux-other-db"
    with pytest.raises(errors.SSHForwardingRefused) as caught:
        await rig.open(V1_HASH)
    assert "permitopen" in caught.value.hint
    await rig.close()

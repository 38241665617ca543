"""What the environment says, and in which order."""

from pathlib import Path

import pytest

from fluxplane.settings import Limits, OperatorError, Settings
from fluxplane.wire import Secret

BASE = {"FLUXPLANE_CATALOGUE_URL": "postgresql://plane:pw@db:5432/fluxplane"}


def read(**environ: str) -> Settings:
    return Settings.from_environment(BASE | environ)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("", "root", 22)),
        ({"DOCKER_HOST": "ssh://ops@box:2222"}, ("box", "ops", 2222)),
        ({"DOCKER_HOST": "ssh://box"}, ("box", "root", 22)),
        ({"DOCKER_HOST": "unix:///var/run/docker.sock"}, ("", "root", 22)),
        ({"DOCKER_HOST": "ssh://ops@box:2222", "FLUX_DB_TUNNEL_SSH_HOST": "bastion"}, ("bastion", "ops", 2222)),
        ({"DOCKER_HOST": "ssh://ops@box", "FLUX_DB_TUNNEL_SSH_USER": "dev"}, ("box", "dev", 22)),
        ({"DOCKER_HOST": "ssh://box:2222", "FLUX_DB_TUNNEL_SSH_PORT": "2200"}, ("box", "root", 2200)),
    ],
)
def test_the_ssh_host_comes_from_its_variables_then_from_docker_host(environ, expected):
    settings = read(**environ)
    assert (settings.ssh_host, settings.ssh_user, settings.ssh_port) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("flux-postgres-v2", 5432, "flux-postgres-v2")),
        ({"FLUX_SHARED_POSTGRES_URL": "postgres://a:b@pool:6000/x"}, ("pool", 6000, "pool")),
        (
            {"FLUX_SHARED_POSTGRES_URL": "postgres://a:b@pool/x", "FLUX_SHARED_POSTGRES_TUNNEL_CONTAINER": "c"},
            ("pool", 5432, "c"),
        ),
        ({"FLUX_SHARED_POSTGRES_TUNNEL_HOST": "inner"}, ("inner", 5432, None)),
        (
            {
                "FLUX_SHARED_POSTGRES_TUNNEL_HOST": "inner",
                "FLUX_SHARED_POSTGRES_TUNNEL_PORT": "7000",
                "FLUX_SHARED_POSTGRES_TUNNEL_CONTAINER": "c",
                "FLUX_SHARED_POSTGRES_URL": "postgres://a:b@pool:6000/x",
            },
            ("inner", 7000, "c"),
        ),
    ],
)
def test_the_pools_target_comes_from_the_tunnel_variables_then_from_its_url(environ, expected):
    settings = read(**environ)
    assert (settings.pool_host, settings.pool_port, settings.pool_container) == expected


@pytest.mark.parametrize("text", ["1", "true", "YES", " True "])
def test_readwrite_is_allowed_by_the_contracts_words(text):
    assert read(FLUX_DB_ACCESS_ALLOW_READWRITE=text).allow_readwrite


@pytest.mark.parametrize("text", ["", "0", "no", "on", "2", "readwrite"])
def test_readwrite_is_off_otherwise(text):
    assert not read(FLUX_DB_ACCESS_ALLOW_READWRITE=text).allow_readwrite


def test_the_default_limits_are_the_contracts_and_fit_a_pool_of_200_connections():
    limits = Limits()
    assert (limits.reads_per_minute, limits.sensitive_per_minute) == (120, 20)
    assert (limits.writes_per_minute, limits.audit_per_minute) == (30, 600)
    assert (limits.live_roles_per_user, limits.live_roles_per_project, limits.connections_per_role) == (20, 10, 8)
    assert limits.live_roles_per_user * limits.connections_per_role < 200


def test_each_limit_can_be_set():
    assert read(FLUXPLANE_LIMIT_LIVE_ROLES_PER_USER="3").limits.live_roles_per_user == 3


def test_a_secret_may_stand_in_a_file(tmp_path: Path):
    file = tmp_path / "url"
    file.write_text("postgresql://a:b@c/d\n")
    assert read(FLUXPLANE_POOL_URL_FILE=str(file)).pool_url == Secret("postgresql://a:b@c/d")


def test_host_keys_are_read_without_names_and_comments(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(
        "# the bastion\nssh-ed25519 AAAAone root@box\n[box]:2222 ecdsa-sha2-nistp256 AAAAtwo\n\n@odd x\n#ssh-rsa AAAA\n"
    )
    keys = read(FLUX_DB_TUNNEL_SSH_HOST_KEYS=str(file)).host_keys
    assert keys == ("ssh-ed25519 AAAAone", "ecdsa-sha2-nistp256 AAAAtwo")


@pytest.mark.parametrize(
    "environ",
    [
        {"FLUX_DB_TUNNEL_SSH_PORT": "abc"},
        {"FLUX_DB_TUNNEL_SSH_PORT": "70000"},
        {"FLUX_DB_TUNNEL_SSH_HOST": "-oProxyCommand=x"},
        {"FLUX_SHARED_POSTGRES_URL": "mysql://a:hunter2@b/c"},
        {"FLUX_SHARED_POSTGRES_URL": "postgres://a:hunter2@b:port/c"},
        {"DOCKER_HOST": "ssh://u:hunter2@h:port"},
        {"FLUXPLANE_LIMIT_READS_PER_MINUTE": "many"},
        {"FLUX_DB_TUNNEL_SSH_HOST_KEYS": "/nowhere"},
        {"FLUXPLANE_POOL_URL_FILE": "/nowhere"},
    ],
)
def test_what_cannot_be_understood_is_said_without_the_secret(environ):
    with pytest.raises(OperatorError) as failure:
        read(**environ)
    assert "hunter2" not in str(failure.value)


def test_settings_show_no_secret():
    settings = read(FLUXPLANE_KEY="hunter2", FLUX_SHARED_POSTGRES_URL="postgres://a:hunter3@b/c")
    assert "hunter" not in repr(settings)
    assert "pw@" not in repr(settings)

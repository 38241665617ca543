"""Which base, which token, which SSH identity: the contract's rules, and the one that is ours."""

import os
import socket

import pytest

from fluxctl.environment import DEFAULT_API_BASE, Environment, normalised, parse_dotenv
from fluxctl.problem import Problem

EVIL = "https://elsewhere.example/api"


def env(home, flags=None, **variables):
    return Environment(variables, str(home), flags)


def test_a_base_has_one_form():
    for text in ("http://h:1", "http://h:1/", "http://h:1/api/", "http://h:1/api/api", " http://h:1/api// "):
        assert normalised(text) == "http://h:1/api"
    assert normalised("  ") == DEFAULT_API_BASE


def test_a_token_of_the_shell_is_for_the_shells_base(home):
    both = env(home, FLUX_API_BASE="http://h:1", FLUX_API_TOKEN=" t ")
    assert both.plane() == {"api_base": "http://h:1/api", "token": "t"}
    assert env(home, FLUX_API_TOKEN="t").plane() == {"api_base": DEFAULT_API_BASE, "token": "t"}


def test_a_cloned_repositorys_dotenv_does_not_get_the_shells_token(home):
    (home / ".env").write_text(f"FLUX_API_BASE={EVIL}\n")
    found = env(home, FLUX_API_TOKEN="mine")
    assert found.plane() == {"api_base": EVIL}
    assert "the environment" in found.withheld()
    assert EVIL in found.withheld()
    assert "mine" not in found.withheld()


def test_a_cloned_repositorys_dotenv_does_not_get_the_token_of_env_local(home):
    (home / ".env").write_text(f"FLUX_API_BASE={EVIL}\n")
    (home / ".env.local").write_text("FLUX_API_TOKEN=mine\n")
    assert env(home).plane() == {"api_base": EVIL}


def test_a_dotenv_with_both_gets_its_own_token(home):
    (home / ".env").write_text("FLUX_API_BASE=https://staging.example\nFLUX_API_TOKEN=theirs\n")
    assert env(home, FLUX_API_TOKEN="mine").plane() == {"api_base": "https://staging.example/api", "token": "theirs"}


def test_a_token_of_a_dotenv_is_not_sent_to_the_shells_base(home):
    (home / ".env").write_text("FLUX_API_TOKEN=theirs\n")
    assert env(home, FLUX_API_BASE=EVIL).plane() == {"api_base": EVIL}
    assert env(home).plane() == {"api_base": DEFAULT_API_BASE, "token": "theirs"}


def test_a_base_given_by_flag_gets_only_a_token_made_for_it(home):
    assert env(home, {"api_base": EVIL}, FLUX_API_TOKEN="mine").plane() == {"api_base": EVIL}
    flagged = env(home, {"api_base": "http://h:1"}, FLUX_API_TOKEN="t", FLUX_API_BASE="http://h:1/api")
    assert flagged.plane() == {"api_base": "http://h:1/api", "token": "t"}


def test_nothing_is_said_to_be_withheld_when_there_is_nothing(home):
    assert env(home).withheld() is None
    assert env(home, FLUX_API_TOKEN="t").withheld() is None


def test_the_shell_wins_over_dotenv_and_env_local_over_env(home):
    (home / ".env").write_text("FLUX_API_BASE=http://one\n")
    assert env(home).api_base == "http://one/api"
    (home / ".env.local").write_text("FLUX_API_BASE=http://two\n")
    assert env(home).api_base == "http://two/api"
    assert env(home, FLUX_API_BASE="http://three").api_base == "http://three/api"
    assert env(home, FLUX_API_BASE="  ").api_base == "http://two/api"


def test_dotenv_is_read_beside_the_nearest_flux_json(home):
    (home / "flux.json").write_text("{}")
    (home / ".env").write_text("FLUX_API_BASE=http://root\n")
    below = home / "a" / "b"
    below.mkdir(parents=True)
    (below / ".env").write_text("FLUX_API_BASE=http://below\n")
    assert env(below).api_base == "http://root/api"


def test_dotenv_lines():
    text = "# c\nA=1\nA=2\n B = 'x y' \nC=\"q\"\nD='open\n=nothing\nword\nE=a=b\nexport F=1\n"
    assert parse_dotenv(text) == {"A": "1", "B": "x y", "C": "q", "D": "'open", "E": "a=b", "export F": "1"}


def test_ssh_comes_from_flags_then_the_environment(home):
    variables = {"FLUX_DB_TUNNEL_SSH_HOST": "h1", "FLUX_DB_TUNNEL_SSH_USER": "u1", "FLUX_DB_TUNNEL_SSH_PORT": "2201"}
    assert env(home, **variables).ssh() == {"host": "h1", "user": "u1", "port": 2201}
    flags = {"ssh_host": "h2", "ssh_port": 22, "ssh_user": None}
    assert env(home, flags, **variables).ssh() == {"host": "h2", "user": "u1", "port": 22}


def test_paths_are_absolute(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", "/home/someone")
    found = env(home, {"identity_file": "~/.ssh/id"}, FLUX_DB_TUNNEL_KNOWN_HOSTS="k").ssh()
    assert found == {"identity_file": "/home/someone/.ssh/id", "known_hosts": f"{os.path.realpath(home)}/k"}


def test_docker_host_counts_when_it_is_ssh(home):
    assert env(home, DOCKER_HOST="ssh://u@h:2222").ssh() == {"docker_host": "ssh://u@h:2222"}
    assert env(home, DOCKER_HOST="unix:///run/docker.sock").ssh() == {}


def test_the_docker_network_is_the_first_of_the_contract_s_two_names(home):
    theirs = {"FLUX_SHARED_POSTGRES_TUNNEL_DOCKER_NETWORK": "pool-net"}
    assert env(home, **theirs).ssh() == {"prefer_network": "pool-net"}
    assert env(home, **theirs, FLUX_DB_TUNNEL_PREFER_NETWORK="mine").ssh() == {"prefer_network": "mine"}
    assert env(home, **theirs, FLUX_DB_TUNNEL_PREFER_NETWORK=" ").ssh() == {"prefer_network": "pool-net"}


def test_nothing_but_the_plane_and_its_token_is_read_from_a_dotenv(home):
    """A cloned repository does not choose the SSH host."""
    (home / ".env").write_text("FLUX_DB_TUNNEL_SSH_HOST=evil\nDOCKER_HOST=ssh://evil\nFLUX_DB_TUNNEL_KNOWN_HOSTS=k\n")
    assert env(home).ssh() == {}
    assert env(home).plane() == {"api_base": DEFAULT_API_BASE}


def test_an_agent_is_sent_while_it_is_a_socket(home):
    path = str(home / "agent")
    assert env(home, SSH_AUTH_SOCK=path).ssh() == {}
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(path)
        assert env(home, SSH_AUTH_SOCK=path).ssh() == {"agent": path}


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "h;x", "$(x)", "a" * 300])
def test_a_host_that_is_none_is_refused_here(home, host):
    for broken in (env(home, {"ssh_host": host}), env(home, FLUX_DB_TUNNEL_SSH_HOST=host)):
        with pytest.raises(Problem) as caught:
            broken.ssh()
        assert caught.value.code == "ssh_target_invalid"


@pytest.mark.parametrize("port", ["abc", "80abc", "0", "65536", "-1", "٣"])
def test_a_port_that_is_none_is_refused_here(home, port):
    with pytest.raises(Problem, match="FLUX_DB_TUNNEL_SSH_PORT"):
        env(home, FLUX_DB_TUNNEL_SSH_PORT=port).ssh()

"""The resolver's two questions, with every answer they get."""

import shlex
import subprocess
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import errors
from fluxd.core.resolver import (
    Answer,
    Upstream,
    docker_problem,
    docker_question,
    getent_question,
    locate,
    networks_to_try,
    read_addresses,
    read_getent,
)
from fluxd.core.target import clean

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,30}\Z")
addresses = st.ip_addresses().map(str)


# ------------------------------------------------------------- the questions


def test_the_questions_are_exactly_these():
    assert getent_question("flux-postgres-v2") == "getent hosts flux-postgres-v2"
    assert docker_question("flux-abc1234-acme-db") == (
        "docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' --type container flux-abc1234-acme-db"
    )
    assert docker_question("db", "flux-network") == (
        """docker inspect -f '{{(index .NetworkSettings.Networks "flux-network").IPAddress}}' --type container db"""
    )
    assert "GlobalIPv6Address" in docker_question("db", v6=True)


@given(names, names)
def test_a_shell_reads_a_question_as_the_argv_that_was_meant(container, network):
    argv = shlex.split(docker_question(container, network))
    assert argv[:3] == ["docker", "inspect", "-f"]
    assert argv[4:] == ["--type", "container", container]
    assert f'"{network}"' in argv[3]


def test_a_real_shell_reads_them_so_too():
    line = docker_question("db", "flux-network").replace("docker", "printf '%s|'", 1)
    out = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert out.split("|")[2] == '{{(index .NetworkSettings.Networks "flux-network").IPAddress}}'


@given(st.text(max_size=40))
def test_no_name_from_a_plan_reaches_a_shell_unless_it_is_a_name(text):
    for question in (getent_question, docker_question):
        try:
            line = question(text)
        except errors.ResolverFailed:
            continue
        assert shlex.split(line)[-1] == text
        assert shlex.quote(text) == text
        assert not text.startswith("-")


@pytest.mark.parametrize("network", ['x" }}', "a b", "-x", "", "{{.}}", "a\n"])
def test_no_network_leaves_its_template(network):
    with pytest.raises(errors.SSHTargetInvalid, match="network"):
        docker_question("db", network)


# ---------------------------------------------------------------- the answers


def ask(name="db.example", *answers, port=5432, **options):
    """Play *answers* to the resolver; what it found, and the questions it asked."""
    asked, search = [], locate(name, port, **options)
    try:
        asked.append(next(search))
        for answer in answers:
            asked.append(search.send(answer))  # noqa: PERF401 - what was asked before it ended counts
    except StopIteration as found:
        return found.value, asked
    raise AssertionError(f"it wants to know more: {asked[-1]}")


UNKNOWN = Answer(2, "", "")


def ok(out):
    return Answer(0, out, "")


@given(addresses)
def test_what_getent_knows_is_reached_by_its_name(address):
    found, asked = ask("db.example", ok(f"{address}      db.example db\n"))
    assert found == Upstream("db.example", 5432, address, "getent")
    assert asked == ["getent hosts db.example"]


def test_getent_s_first_line_counts_even_after_blank_ones():
    assert read_getent(ok("\n\n  10.0.0.1 a\n10.0.0.2 b\n")) == "10.0.0.1"


@pytest.mark.parametrize("out", ["", "\n", "garbage", "fe80::1%eth0 h", "1.2.3 h", "10.0.0.1.5 h", "h 10.0.0.1"])
def test_garbage_of_getent_is_no_address(out):
    assert read_getent(ok(out)) is None


def test_getent_that_fails_is_not_believed():
    assert read_getent(Answer(2, "10.0.0.1 h", "")) is None


@given(addresses)
def test_docker_is_asked_next_and_its_address_is_used(address):
    found, asked = ask("db", UNKNOWN, *([ok(f"{address} \n")] if "." in address else [ok(" "), ok(f"{address} ")]))
    assert found == Upstream(address, 5432, address, "docker_inspect")
    assert asked[1] == docker_question("db")


def test_docker_is_asked_for_the_container_s_name():
    _, asked = ask("db", UNKNOWN, ok("10.0.0.1 "), container="flux-abc1234-acme-db")
    assert asked[1].endswith("--type container flux-abc1234-acme-db")


def test_the_same_address_twice_is_one():
    found, _ = ask("db", UNKNOWN, ok("10.0.0.1 10.0.0.1 invalid IP <no value>"))
    assert found.address == "10.0.0.1"


def test_of_several_addresses_the_preferred_network_s_is_taken():
    found, asked = ask("db", UNKNOWN, ok("10.0.0.1 10.0.0.2"), ok("10.0.0.2\n"), prefer_network="mine")
    assert found.address == "10.0.0.2"
    assert asked[2] == docker_question("db", "mine")


def test_without_a_preference_the_platform_s_networks_are_tried_in_order():
    absent = Answer(1, "", "template: :1:3: executing: nil pointer evaluating *network.EndpointSettings.IPAddress")
    found, asked = ask("db", UNKNOWN, ok("10.0.0.1 10.0.0.2"), absent, ok("10.0.0.1"))
    assert found.address == "10.0.0.1"
    assert asked[2:] == [docker_question("db", "flux-v2-shared"), docker_question("db", "flux-network")]


def test_networks_are_tried_once_each():
    assert networks_to_try("flux-network") == ["flux-network", "flux-v2-shared"]


def test_several_addresses_on_unknown_networks_are_a_problem_that_names_them():
    with pytest.raises(errors.MultipleAddresses) as caught:
        ask("db", UNKNOWN, ok("10.0.0.1 10.0.0.2"), ok(""), ok(""))
    assert "10.0.0.1, 10.0.0.2" in caught.value.detail
    assert "FLUX_DB_TUNNEL_PREFER_NETWORK" in caught.value.hint


def test_a_container_on_ipv6_only_is_found():
    found, asked = ask("db", UNKNOWN, ok(" "), ok("fd00::5 "))
    assert str(found) == "[fd00::5]:5432"
    assert asked[2] == docker_question("db", v6=True)


def test_a_container_without_an_address_is_stopped():
    with pytest.raises(errors.ContainerNotRunning):
        ask("db", UNKNOWN, ok("\n"), ok("\n"))


# ruff: noqa: E501 - quoted as they came
DOCKER_SAYS = [
    (errors.DockerPermissionDenied, 1, "Got permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"),
    (errors.DockerPermissionDenied, 1, "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get http://%2Fvar: dial unix /var/run/docker.sock: connect: permission denied"),
    (errors.DockerPermissionDenied, 1, "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock"),
    (errors.DockerPermissionDenied, 1, "dial unix /run/user/1000/x.sock: connect: permission denied"),
    (errors.DockerPermissionDenied, 126, "sh: 1: docker: Permission denied"),
    (errors.DockerUnavailable, 1, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"),
    (errors.DockerUnavailable, 1, "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct"),
    (errors.DockerUnavailable, 1, "error during connect: Get http://x: EOF"),
    (errors.DockerUnavailable, 127, "sh: 1: docker: not found"),
    (errors.DockerUnavailable, 127, "bash: line 1: docker: command not found"),
    (errors.DockerUnavailable, 127, "zsh:1: command not found: docker"),
    (errors.DockerUnavailable, 127, "fish: Unknown command: docker"),
    (errors.DockerUnavailable, 127, ""),
    (errors.ContainerNotFound, 1, "Error: No such object: flux-abc1234-acme-db"),
    (errors.ContainerNotFound, 1, "error: no such object: db"),
    (errors.ContainerNotFound, 1, "Error response from daemon: No such container: db"),
    (errors.ContainerNotFound, 125, "Error: no container with name or ID db found: no such container"),
    (errors.SSHAuthFailed, 255, "root@docker.example: Permission denied (publickey,password)."),
    (errors.SSHAuthFailed, 255, "Host key verification failed."),
    (errors.SSHUnreachable, 255, "ssh: connect to host h port 22: Connection refused"),
    (errors.SSHUnreachable, 255, "ssh: connect to host h port 22: Connection timed out"),
    (errors.SSHUnreachable, 255, "ssh: Could not resolve hostname h: Name or service not known"),
    (errors.ResolverFailed, 255, ""),
    (errors.ResolverFailed, 1, "This account may only forward."),
    (errors.ResolverFailed, None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "exit_code", "text"), DOCKER_SAYS)
def test_what_docker_says_is_the_problem_it_means(kind, exit_code, text):
    with pytest.raises(errors.FluxError) as caught:
        ask("db", UNKNOWN, Answer(exit_code, "", text))
    assert type(caught.value) is kind
    assert clean(text)[:100] in caught.value.detail
    assert "getent hosts" in caught.value.detail


def test_a_killed_command_says_so():
    assert "was killed" in docker_problem(Answer(None, "", "")).detail


@given(st.integers(0, 255) | st.none(), st.text(max_size=200), st.text(max_size=2000))
def test_any_answer_is_addresses_or_a_problem_fit_for_a_terminal(exit_code, out, err):
    answer = Answer(exit_code, out, err)
    for address in read_addresses(answer):
        ip_address(address)
    detail = docker_problem(answer).detail
    assert detail.isprintable()
    assert len(detail) <= 460


@given(st.lists(st.tuples(st.integers(0, 2), st.text("0123456789. abc:\n", max_size=40)), min_size=9, max_size=9))
def test_the_resolver_always_ends_in_an_address_or_a_problem(script):
    try:
        found, asked = ask("db", *(Answer(code, out, "") for code, out in script))
    except errors.FluxError:
        return
    ip_address(found.address)
    assert len(asked) <= 6

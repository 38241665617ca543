"""The SSH destination in people's words."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import errors
from fluxd.core.target import (
    Target,
    Words,
    check_host,
    check_port,
    check_user,
    choose_target,
    clean,
    parse_docker_host,
    split_port,
)

PLAN = Words("203.0.113.7", "root", 22)
EMPTY_PLAN = Words("", "root", 22)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,30}\Z")
addresses = st.ip_addresses().map(str)
hosts = names | addresses
ports = st.integers(1, 65535)


def test_the_plan_decides_when_nobody_else_says():
    assert choose_target(plan=PLAN) == Target("203.0.113.7", "root", 22)


def test_flag_before_environment_before_plan_word_by_word():
    flag, environment = Words(user="ann"), Words("bastion", "bob", "2222")
    assert choose_target(flag, environment, plan=PLAN) == Target("bastion", "ann", 2222)


def test_docker_host_counts_only_where_nobody_names_a_host():
    docker = "ssh://deploy@other:2200"
    assert choose_target(plan=PLAN, docker_host=docker) == Target("203.0.113.7", "root", 22)
    assert choose_target(Words("bastion"), plan=EMPTY_PLAN, docker_host=docker) == Target("bastion", "root", 22)
    assert choose_target(plan=EMPTY_PLAN, docker_host=docker) == Target("other", "deploy", 2200)
    assert choose_target(Words(user="ann"), plan=EMPTY_PLAN, docker_host=docker) == Target("other", "ann", 2200)


def test_docker_host_without_a_user_takes_the_plan_s():
    assert choose_target(plan=Words("", "tunnel", 2022), docker_host="ssh://other") == Target("other", "tunnel", 2022)


@pytest.mark.parametrize("docker", [None, "", "unix:///var/run/docker.sock", "tcp://h:2375", "h", "ssh:h"])
def test_no_host_at_all_is_a_problem_that_names_the_variable(docker):
    with pytest.raises(errors.SSHHostMissing) as caught:
        choose_target(plan=EMPTY_PLAN, docker_host=docker)
    assert "FLUX_DB_TUNNEL_SSH_HOST" in caught.value.hint


def test_a_broken_docker_host_does_not_matter_where_it_is_not_asked():
    assert choose_target(plan=PLAN, docker_host="ssh://-oProxyCommand=x").host == PLAN.host


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://h", Words("h")),
        ("ssh://root@h", Words("h", "root")),
        ("ssh://root@h:2222", Words("h", "root", 2222)),
        ("SSH://root@h:2222/", Words("h", "root", 2222)),
        ("ssh://root@h:2222/run/docker.sock", Words("h", "root", 2222)),
        ("ssh://root@[2001:db8::7]:2222", Words("2001:db8::7", "root", 2222)),
        ("ssh://[::1]", Words("::1")),
        ("ssh://2001:db8::7", Words("2001:db8::7")),
        ("ssh://::1", Words("::1")),
        ("  ssh://h  ", Words("h")),
    ],
)
def test_docker_host_as_people_write_it(text, words):
    assert parse_docker_host(text) == words


@given(hosts, names, ports)
def test_a_target_reads_back_from_its_docker_host(host, user, port):
    target = Target(host, user, port)
    words = parse_docker_host(f"ssh://{target}")
    assert Target(words.host, words.user, words.port) == target


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh://@h", "ssh://h:", "ssh://h:x", "ssh://h:0", "ssh://h:65536", "ssh://[::1", "ssh://[::1]x", "ssh://-h",
     "ssh://-l@h", "ssh://a b", "ssh://h;id", "ssh://$(id)@h", "ssh://h\n", "ssh://h%41", "ssh://u%40x@h"],
)  # fmt: skip
def test_an_ssh_docker_host_that_is_none_is_refused(text):
    if text.strip() != text:
        text = text.strip() + "\n-oProxyCommand=x"
    with pytest.raises(errors.SSHTargetInvalid):
        parse_docker_host(text)


def test_a_password_in_docker_host_is_refused_and_not_repeated():
    with pytest.raises(errors.SSHTargetInvalid) as caught:
        parse_docker_host("ssh://root:hunter2@h")
    assert "hunter2" not in str(caught.value) + caught.value.hint


@given(st.text(max_size=60))
def test_any_docker_host_is_words_or_a_problem(text):
    try:
        words = parse_docker_host("ssh://" + text)
    except errors.SSHTargetInvalid:
        return
    assert check_host(words.host) == words.host


@given(st.text(max_size=30) | st.from_regex(r"-[a-zA-Z]{1,9}"))
def test_no_accepted_word_is_an_option_or_means_something_to_a_shell(text):
    for check in (check_host, check_user):
        try:
            word = check(text)
        except errors.SSHTargetInvalid:
            continue
        assert not word.startswith("-")
        assert shlex.quote(word) == word
        assert word.isascii()


@pytest.mark.parametrize("host", ["h", "a.b-c_d", "10.0.0.1", "::1", "[::1]", "2001:db8::7", "xn--bcher-kva.example"])
def test_hosts(host):
    assert check_host(host) == host.strip("[]")


@pytest.mark.parametrize(
    "host", ["", "-h", ".h", "a:b", "h:22", "fe80::1%eth0", "[hh", "hhh]", "h\n", "h h", "bücher", "a" * 254]
)
def test_not_hosts(host):
    with pytest.raises(errors.SSHTargetInvalid):
        check_host(host)


@pytest.mark.parametrize(("port", "number"), [("22", 22), (22, 22), ("00022", 22), ("1", 1), (65535, 65535)])
def test_ports(port, number):
    assert check_port(port) == number


def test_without_a_word_it_is_root_at_22():
    assert choose_target(Words("bastion"), plan=Words()) == Target("bastion", "root", 22)


@pytest.mark.parametrize(
    "port", ["", "0", 0, 65536, "65536", "22x", "80abc", " 22", "+22", "2_2", "٢٢", True, None, 22.0]
)
def test_not_ports(port):
    with pytest.raises(errors.SSHTargetInvalid):
        check_port(port)


@pytest.mark.parametrize("port", [0, "80abc"])
def test_a_wrong_port_is_an_error_and_not_the_next_source_s(port):
    with pytest.raises(errors.SSHTargetInvalid):
        choose_target(Words(port=port), plan=PLAN)


@given(hosts, ports)
def test_a_host_and_port_split_again(host, port):
    assert split_port(str(Target(host, "u", port)).partition("@")[2]) == (host, str(port))


@given(st.text(max_size=100))
def test_foreign_text_is_shown_on_one_printable_line(text):
    assert clean(text).isprintable()

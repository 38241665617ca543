"""
Where the database is, as the SSH host sees it: two questions and the reading of their answers.

``getent hosts NAME``, then ``docker inspect``: exact command lines for the SSH host's shell. Names come from a plan,
that is from another machine: each is held to a pattern and quoted all the same. No question is asked here: `locate`
yields command lines and is sent their `Answer`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from . import errors
from .errors import FluxError, SSHTargetInvalid
from .target import bracketed, clean, is_address, shown

# Fallback networks of the platform, after the one that the user prefers.
KNOWN_NETWORKS: Final = ("flux-v2-shared", "flux-network")

# A diagnostic of the SSH host is shown up to this many characters.
MOST_DIAGNOSTIC: Final = 400

# Docker's own rule for networks and containers.
_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}\Z")
_HOST_NAME = re.compile(r"[A-Za-z0-9:][A-Za-z0-9._:-]{0,252}\Z")

Method = Literal["getent", "docker_inspect"]


class Answer(NamedTuple):
    """
    What the SSH host answered to a question. `exit_code` is None when a signal ended the command.

    Whoever reads it off the wire bounds its length; here it is only text.
    """

    exit_code: int | None
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """
    Where channels go.

    `connect_to` is what the SSH host is asked to reach: the *name* when getent knew it, so that sshd resolves it at
    every connect; else `address`, which docker may give to another container later.
    """

    connect_to: str
    port: int
    address: str
    method: Method

    def __str__(self) -> str:
        return f"{bracketed(self.connect_to)}:{self.port}"


def locate(
    name: str, port: int, *, container: str | None = None, prefer_network: str | None = None
) -> Generator[str, Answer, Upstream]:
    """
    Find *name*, asking `getent hosts` and then `docker inspect` of *container* (default: *name*).

    Yields each question as a command line for the SSH host's shell, and is sent its `Answer`.

    Raises:
        FluxError: what went wrong, by class; the SSH host's own words are its detail.
    """
    networks = networks_to_try(prefer_network)
    answer = yield getent_question(name)
    address = read_getent(answer)
    if address is not None:
        return Upstream(name, port, address, "getent")
    heard = [_diagnostic("getent hosts", answer)]
    address = yield from _ask_docker(container or name, networks, heard)
    return Upstream(address, port, address, "docker_inspect")


def getent_question(name: str) -> str:
    """
    ``getent hosts NAME``.

    Raises:
        ResolverFailed: the plan's name is not one.
    """
    return shlex.join(["getent", "hosts", _checked(_HOST_NAME, name, "host")])


def docker_question(container: str, network: str | None = None, *, v6: bool = False) -> str:
    """
    ``docker inspect`` for a container's addresses on all networks, or on one. Never without ``-f``: a plain inspect
    would answer with the container's environment, which holds passwords.

    Raises:
        ResolverFailed: the plan's container name is not one.
    """
    field = "GlobalIPv6Address" if v6 else "IPAddress"
    if network is None:
        template = f"{{{{range .NetworkSettings.Networks}}}}{{{{.{field}}}}} {{{{end}}}}"
    else:
        template = f'{{{{(index .NetworkSettings.Networks "{check_network(network)}").{field}}}}}'
    name = _checked(_DOCKER_NAME, container, "container")
    return shlex.join(["docker", "inspect", "-f", template, "--type", "container", name])


def check_network(name: str) -> str:
    """
    A docker network's name.

    Raises:
        SSHTargetInvalid: it is not one.
    """
    if _DOCKER_NAME.match(name):
        return name
    raise SSHTargetInvalid(
        f"{shown(name)} is not the name of a docker network.",
        hint="Check FLUX_DB_TUNNEL_PREFER_NETWORK: letters, digits, dot, dash and underscore.",
    )


def read_getent(answer: Answer) -> str | None:
    """The address in the first field of the first line, IPv4 or IPv6; None when getent does not know the name."""
    fields = answer.out.split(maxsplit=1)
    known = answer.exit_code == 0 and fields and is_address(fields[0])
    return fields[0] if known else None


def read_addresses(answer: Answer) -> list[str]:
    """Every address in a docker answer that succeeded, each once, in its order."""
    if answer.exit_code != 0:
        return []
    return list(dict.fromkeys(word for word in answer.out.split() if is_address(word)))


def networks_to_try(prefer: str | None) -> list[str]:
    """
    The user's network, then the platform's shared ones, each once.

    Raises:
        SSHTargetInvalid: *prefer* is not the name of a network.
    """
    return list(dict.fromkeys([*([check_network(prefer)] if prefer else []), *KNOWN_NETWORKS]))


def docker_problem(answer: Answer) -> FluxError:
    """Which problem a failed `docker inspect` is, by the words of several docker versions and shells."""
    text = answer.err or answer.out
    kind = next((kind for pattern, kind in _DOCKER_FAILURES if pattern.search(text)), None)
    if kind is None and answer.exit_code in _NO_PROGRAM:
        kind = errors.DockerUnavailable
    return (kind or errors.ResolverFailed)(detail=_diagnostic("docker inspect", answer))


def _ask_docker(container: str, networks: Iterable[str], heard: list[str]) -> Generator[str, Answer, str]:
    answer = yield docker_question(container)
    if answer.exit_code != 0:
        raise _with_detail(docker_problem(answer), heard)
    found = read_addresses(answer)
    v6 = not found
    if v6:
        found = read_addresses((yield docker_question(container, v6=True)))
    if not found:
        raise _with_detail(errors.ContainerNotRunning(), heard)
    if len(found) == 1:
        return found[0]
    for network in networks:
        here = read_addresses((yield docker_question(container, network, v6=v6)))
        if here:
            return here[0]
    raise errors.MultipleAddresses(detail=f"It has {', '.join(found)}.")


# In this order; the first that matches decides. Texts of docker 20 to 29, podman's docker, dash, bash, zsh and OpenSSH.
_DOCKER_FAILURES: Final[tuple[tuple[re.Pattern[str], type[FluxError]], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), kind)
    for pattern, kind in (
        # Before docker's own, since the SSH host may be called docker.
        (r"permission denied \([a-z,-]+\)|host key verification failed", errors.SSHAuthFailed),
        (
            r"permission denied.{0,80}docker|docker.{0,200}permission denied|dial unix.{0,200}permission denied",
            errors.DockerPermissionDenied,
        ),
        (
            r"(cannot|failed to) connect to the docker|error during connect|docker.{0,20}not found|not found: docker",
            errors.DockerUnavailable,
        ),
        (r"no such (object|container)|no container with name or id", errors.ContainerNotFound),
        (r"permission denied", errors.SSHAuthFailed),
        (
            r"connection refused|timed out|could not resolve|no route to host|network is unreachable",
            errors.SSHUnreachable,
        ),
    )
)
_NO_PROGRAM: Final = (126, 127)


def _with_detail(problem: FluxError, heard: Iterable[str]) -> FluxError:
    problem.detail = " ".join([*heard, *([problem.detail] if problem.detail else [])])
    return problem


def _diagnostic(question: str, answer: Answer) -> str:
    end = "was killed" if answer.exit_code is None else f"ended with {answer.exit_code}"
    words = clean(answer.err or answer.out)[:MOST_DIAGNOSTIC]
    return f"`{question}` {end}" + (f": {words}" if words else ".")


def _checked(pattern: re.Pattern[str], name: str, what: str) -> str:
    if pattern.match(name):
        return name
    raise errors.ResolverFailed(f"The plan's {what} name is {shown(name)}: nothing to ask a shell for.")

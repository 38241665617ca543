"""
Which SSH host to dial, in the user's words: flags and environment, the plan, ``DOCKER_HOST``.

Every word is held to a pattern before any ssh_config is read, since asyncssh runs ``Match exec`` in a shell. What the
user's ssh_config makes of the host (aliases, jumps) is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Final, TypeVar

from .errors import SSHHostMissing, SSHTargetInvalid

T = TypeVar("T")

DEFAULT_USER: Final = "root"
DEFAULT_PORT: Final = 22

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class Words:
    """What one source says of the SSH host; None where it says nothing. Nothing is checked yet."""

    host: str | None = None
    user: str | None = None
    port: int | str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """An SSH destination that may be dialled."""

    host: str
    user: str = DEFAULT_USER
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"{self.user}@{bracketed(self.host)}:{self.port}"


def choose_target(*asked: Words, plan: Words, docker_host: str | None = None) -> Target:
    """
    The SSH host to dial: each word from the first that says it, *asked* (flags, then environment) before *plan*.

    ``DOCKER_HOST`` counts only where nobody else names a host, and then before the plan's user and port, which are
    another host's defaults.

    Raises:
        SSHHostMissing: nobody names one.
        SSHTargetInvalid: a word is not of its pattern.
    """
    host = _first(*(words.host for words in asked), plan.host)
    docker = Words() if host or not docker_host else parse_docker_host(docker_host)
    order = (*asked, docker, plan)
    host = host or docker.host
    if not host:
        raise SSHHostMissing
    return Target(
        host=check_host(host),
        user=check_user(str(_first(*(words.user for words in order)) or DEFAULT_USER)),
        port=check_port(_first(*(words.port for words in order), DEFAULT_PORT)),
    )


def parse_docker_host(text: str) -> Words:
    """
    ``ssh://[user@]host[:port]``, IPv6 in brackets. Any other kind of ``DOCKER_HOST`` names no SSH host: empty words.

    Raises:
        SSHTargetInvalid: an ssh URL without a usable host, or with a password (which is not repeated in the message).
    """
    scheme, colon, rest = text.strip().partition("://")
    if not colon or scheme.lower() != "ssh":
        return Words()
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, where = authority.rpartition("@")
    if ":" in user:
        raise SSHTargetInvalid("DOCKER_HOST holds a password; SSH URLs take none.")
    host, port = split_port(where)
    return Words(check_host(host), check_user(user) if at else None, None if port is None else check_port(port))


def split_port(text: str) -> tuple[str, str | None]:
    """
    ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a bare IPv6 address, as host and port text.

    Raises:
        SSHTargetInvalid: brackets that do not pair, or something between ``]`` and the port's colon.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise SSHTargetInvalid(f"{shown(text)} is not a host and port.")
        return host, rest[1:] or None if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def check_host(text: str) -> str:
    """
    A name or an address, without brackets.

    Raises:
        SSHTargetInvalid: anything that could be an option, a pattern or a command to somebody.
    """
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if is_address(host) or (_WORD.match(host) and ":" not in host):
        return host
    raise SSHTargetInvalid(f"{shown(text)} is not a host name or address.")


def check_user(text: str) -> str:
    """
    A user name.

    Raises:
        SSHTargetInvalid: it is not one.
    """
    if _WORD.match(text):
        return text
    raise SSHTargetInvalid(f"{shown(text)} is not a user name for SSH.")


def check_port(port: object) -> int:
    """
    A port from a number or its decimal text: 1 to 65535, nothing around it.

    Raises:
        SSHTargetInvalid: it is not one.
    """
    number = int(port) if isinstance(port, str) and _PORT.match(port) else port
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 65535:
        return number
    raise SSHTargetInvalid(f"{shown(str(port))} is not a port: 1 to 65535.")


def bracketed(host: str) -> str:
    """The host as it stands before ``:port``."""
    return f"[{host}]" if ":" in host else host


def shown(text: str) -> str:
    """Foreign text, made fit for a terminal: quoted, on one line, and not long."""
    return repr(clean(text)[:80])


def clean(text: str) -> str:
    """Foreign text on one line, without anything that could repaint a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def is_address(text: str) -> bool:
    """IPv4 or IPv6, without a scope: a zone means another thing on another machine."""
    try:
        return isinstance(ip_address(text), IPv4Address | IPv6Address) and "%" not in text
    except (AddressValueError, ValueError):
        return False


def _first(*said: T | None) -> T | None:
    return next((word for word in said if word not in {None, ""}), None)

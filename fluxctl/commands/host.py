"""
`fluxctl host trust`: an SSH host's key into known_hosts, once a person has compared its fingerprint.

fluxd asks the host and says which key is not known yet, on the very way that a tunnel takes; what is written is this
side's doing, and only ever at the end of the file. A key that differs from the one in known_hosts is never replaced.
"""

from __future__ import annotations

import os
import sys

from fluxctl import environment, opening, options, screen
from fluxctl.client import Client
from fluxctl.options import Command, Option
from fluxctl.problem import Problem, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fluxctl.options import Arguments
    from fluxd.shapes import UnknownKey

# The host itself, and as many jump hosts before it as fluxd goes through.
_MOST_HOSTS = 9


def trust(arguments: Arguments) -> int:
    names: Sequence[str | None] = arguments.positionals or [None]
    for name in names:
        _trust(Client(environment.of_shell({**arguments.values, **_target(name)})), arguments.fingerprint)
    return 0


def _trust(client: Client, confirmed: str | None) -> None:
    """One destination: each host on the way to it that is not known yet."""
    for _ in range(_MOST_HOSTS):
        found = client.host_key()
        unknown = found["unknown"]
        if unknown is None:
            screen.line(f"{found['host']} is known.")
            return
        _confirm(unknown, confirmed)
        _append(unknown["file"], unknown["line"])
        screen.line(f"{unknown['host']} is trusted from now on; its key is in {unknown['file']}.")
        if unknown["file"] == os.devnull:
            break
    raise Problem("ssh_host_key_unknown", "It is still not known after its key was added to known_hosts.")


def _confirm(unknown: UnknownKey, confirmed: str | None) -> None:
    """
    Return if a person vouches for the key, by word or on the terminal.

    Raises:
        Problem: nobody does.
    """
    shown = f"{unknown['algorithm']} {unknown['fingerprint']}"
    if confirmed is not None:
        if confirmed != unknown["fingerprint"]:
            raise Problem("ssh_host_key_unknown", f"{unknown['host']} shows another key than you named: {shown}.")
        return
    screen.note(f"{unknown['host']} is not known yet. It shows the key\n  {shown}")
    if not sys.stdin.isatty():
        hint = f"Compare it with your operator's, then repeat with `--fingerprint {unknown['fingerprint']}`."
        raise Problem("ssh_host_key_unknown", "There is no terminal to ask whether you trust it.", hint=hint)
    sys.stderr.write("Is that the fingerprint that your operator gave you? Trust it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Problem("ssh_host_key_unknown", "Nothing was trusted, and nothing written.")


def _append(path: str, line: str) -> None:
    """*line* at the end of *path*, which nobody else may read if it is new."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120 - pathlib costs a start
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            file.write(f"{chr(10) if torn else ''}{line}\n".encode())
    except OSError as error:
        raise Problem("path_not_allowed", f"{path} cannot be written: {error.strerror}.") from error


def _target(name: str | None) -> Mapping[str, object]:
    """`[user@]host[:port]`, an IPv6 address in brackets, as the flags that say the same."""
    if name is None:
        return {}
    user, _, where = name.rpartition("@")
    host, port = where, ""
    if where.startswith("["):
        host, _, port = where[1:].partition("]")
        port = port.removeprefix(":")
    elif where.count(":") == 1:
        host, _, port = where.partition(":")
    if not host:
        raise usage(f"{name} names no host.")
    said = {"ssh_host": host, "ssh_user": user, "ssh_port": options.port("the port", port) if port else None}
    return {flag: value for flag, value in said.items() if value}


COMMANDS = {
    "trust": Command(
        trust,
        positionals=("[HOST...]",),
        options=(
            Option("--fingerprint", takes="SHA256:…", says="the key's, to trust it without being asked"),
            *opening.SSH_FLAGS,
        ),
        notes="HOST is [user@]host[:port] (default: FLUX_DB_TUNNEL_SSH_HOST). A key that changed is never replaced.",
    ),
}

"""
What an SSH host of the lab answers: the resolver's two questions, and no other command.

`getent hosts NAME`, and `docker inspect` for a container's addresses (a `-f` template over its networks; a plain
inspect would show its environment, and passwords with it). Run as a program it is sshd's ForceCommand:
``python -I -S resolver.py TABLE.json`` reads the question from SSH_ORIGINAL_COMMAND. Standard library only, and nothing
of ours: it is started anew for every question.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

FIELD: Final = r"(?P<field>IPAddress|GlobalIPv6Address)"
ON_EVERY_NETWORK: Final = re.compile(
    r"\{\{ ?range \.NetworkSettings\.Networks ?\}\}\{\{ ?\." + FIELD + r" ?\}\} \{\{ ?end ?\}\}"
)
ON_ONE_NETWORK: Final = re.compile(
    r"\{\{ ?\(index \.NetworkSettings\.Networks \"(?P<network>[\w.-]+)\"\)\." + FIELD + r" ?\}\}"
)
REFUSAL: Final = "This account answers `getent hosts NAME` and `docker inspect -f …` for addresses, and nothing else.\n"


class Answer(NamedTuple):
    exit_code: int
    out: str = ""
    err: str = ""


class Table(NamedTuple):
    """`names`: what getent knows, name to address. `containers`: what docker knows, name to {network: address}."""

    names: Mapping[str, str] = MappingProxyType({})
    containers: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    def to_json(self) -> str:
        return json.dumps([dict(self.names), {name: dict(networks) for name, networks in self.containers.items()}])

    @staticmethod
    def from_json(text: str) -> Table:
        return Table(*json.loads(text))


def answer(command: str, table: Table) -> Answer:
    """What *command*, as it came over SSH, is answered. Anything unexpected is refused with exit code 126."""
    try:
        words = shlex.split(command)
    except ValueError:
        return Answer(126, err=REFUSAL)
    match words:
        case ["getent", "hosts", name]:
            return _getent(name, table)
        case ["docker", "inspect", *rest]:
            return _docker_inspect(rest, table)
    return Answer(126, err=REFUSAL)


def _getent(name: str, table: Table) -> Answer:
    """As getent(1) does: nothing and 2 for a name it does not know."""
    address = table.names.get(name)
    return Answer(2) if address is None else Answer(0, f"{address:<15} {name}\n")


def _docker_inspect(words: list[str], table: Table) -> Answer:
    match words:
        case ["-f" | "--format", template, container] | ["-f" | "--format", template, "--type", "container", container]:
            return _addresses(template, container, table)
    return Answer(126, err=REFUSAL)


def _addresses(template: str, container: str, table: Table) -> Answer:
    """As docker(1) says it: networks in the order of their names."""
    asked = ON_EVERY_NETWORK.fullmatch(template) or ON_ONE_NETWORK.fullmatch(template)
    if asked is None:
        return Answer(126, err=REFUSAL)
    networks = table.containers.get(container)
    if networks is None:
        return Answer(1, "\n", f"Error response from daemon: No such container: {container}\n")
    v6 = asked["field"] == "GlobalIPv6Address"
    visible = {name: address if (":" in address) == v6 else "" for name, address in sorted(networks.items())}
    if asked.re is ON_EVERY_NETWORK:
        return Answer(0, "".join(f"{address} " for address in visible.values()) + "\n")
    return Answer(0, visible.get(asked["network"], "<no value>") + "\n")


def main() -> int:
    table = Table.from_json(Path(sys.argv[1]).read_text())
    code, out, err = answer(os.environ.get("SSH_ORIGINAL_COMMAND", ""), table)
    sys.stdout.write(out)
    sys.stderr.write(err)
    return code


if __name__ == "__main__":
    sys.exit(main())

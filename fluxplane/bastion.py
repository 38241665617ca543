"""
A forwarding-only account on the SSH host, as text for its operator: what `fluxplane bastion-config` prints.

Root is not needed on the SSH host, nor a shell, nor docker. Three parts: a script that answers the resolver's questions
for the named databases and nothing else, a `Match` block of sshd_config(5), and the line for authorized_keys. A channel
may name exactly these databases (`permitopen` compares the words of the request, not addresses: sshd(8)), so the names
must resolve on the SSH host. Where they do not, `docker` lets the account ask docker through sudo, for these containers
only; their addresses change, so that any host on the database's port must then be permitted.

Pure: it knows names and answers text. Names are checked again here, since they end in a shell script.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fluxplane.settings import OperatorError

SCRIPT_PATH: Final = "/usr/local/libexec/flux-bastion"
PARTS: Final = ("script", "sshd_config", "authorized_keys", "sudoers")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")
_ACCOUNT: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_KEY: Final = re.compile(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}( [^\x00-\x1f\x7f]*)?\Z")

# The networks that the client tries by name when a container has several addresses.
_NETWORKS: Final = ("flux-v2-shared", "flux-network")
_FIELDS: Final = ("IPAddress", "GlobalIPv6Address")


@dataclass(frozen=True, slots=True)
class Database:
    """One database as a plan names it."""

    host: str
    port: int
    container: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        for name in (self.host, self.container, self.network):
            if name is not None and not _NAME.match(name):
                raise OperatorError(f"{name!r} is not a name that may stand in a script.")


@dataclass(frozen=True, slots=True)
class Bastion:
    """
    One account for these databases.

    Raises:
        OperatorError: the account, a name or a key is not one.
    """

    account: str
    databases: tuple[Database, ...]
    keys: tuple[str, ...] = ()
    docker: bool = False

    def __post_init__(self) -> None:
        if not _ACCOUNT.match(self.account):
            raise OperatorError(f"{self.account!r} is not the name of an account.")
        for key in self.keys:
            if not _KEY.match(key):
                raise OperatorError("That is not an OpenSSH public key (one line: type, base64, comment).")

    def text(self, part: str | None = None) -> str:
        """One of `PARTS`, or all of them with where each belongs."""
        made = {"script": self.script, "sshd_config": self.sshd_config, "authorized_keys": self.authorized_keys}
        if self.docker:
            made["sudoers"] = self.sudoers
        if part is not None:
            if part not in made:
                raise OperatorError("Without --docker there is nothing for sudoers.")
            return made[part]()
        return "\n".join(f"# ==== {self._place(name)}\n{make()}" for name, make in made.items())

    def _place(self, part: str) -> str:
        return {
            "script": f"{SCRIPT_PATH} (owner root, mode 0755)",
            "sshd_config": f"/etc/ssh/sshd_config.d/{self.account}.conf (then: sshd -t && systemctl reload ssh)",
            "authorized_keys": f"~{self.account}/.ssh/authorized_keys (one line for each person)",
            "sudoers": f"/etc/sudoers.d/{self.account} (check with: visudo -c)",
        }[part]

    def script(self) -> str:
        """A POSIX shell script that compares the question with known ones, as a whole, and runs a fixed command."""
        arms = "".join(
            f"  {shlex.quote(question)}) exec {shlex.join(command)} ;;\n" for question, command in self._questions()
        )
        return (
            "#!/bin/sh\n"
            "# Answers where the databases are, and nothing else. The question is compared, never run.\n"
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin; export PATH\n"
            'case "$SSH_ORIGINAL_COMMAND" in\n'
            f"{arms}"
            '  *) echo "This account only forwards to its databases." >&2; exit 126 ;;\n'
            "esac\n"
        )

    def sshd_config(self) -> str:
        return (
            f"Match User {self.account}\n"
            "    AuthenticationMethods publickey\n"
            "    AllowTcpForwarding local\n"
            f"    PermitOpen {' '.join(self._permitted())}\n"
            "    PermitListen none\n"
            f"    ForceCommand {SCRIPT_PATH}\n"
            "    AllowAgentForwarding no\n"
            "    AllowStreamLocalForwarding no\n"
            "    GatewayPorts no\n"
            "    PermitTTY no\n"
            "    PermitTunnel no\n"
            "    PermitUserRC no\n"
            "    X11Forwarding no\n"
            "    ClientAliveInterval 30\n"
            "    ClientAliveCountMax 3\n"
        )

    def authorized_keys(self) -> str:
        """The same limits once more on the key, so that either file alone holds."""
        opened = ",".join(f'permitopen="{place}"' for place in self._permitted())
        limits = f'restrict,port-forwarding,{opened},command="{SCRIPT_PATH}"'
        return "".join(f"{limits} {key}\n" for key in self.keys or ("ssh-ed25519 AAAA… person@laptop",))

    def sudoers(self) -> str:
        commands = [command for _, command in self._docker_questions()]
        lines = dict.fromkeys(" ".join(_sudoers_word(word) for word in command[2:]) for command in commands)
        return "".join(f"{self.account} ALL=(root) NOPASSWD: {line}\n" for line in lines)

    def _permitted(self) -> list[str]:
        places = dict.fromkeys(
            f"*:{base.port}" if self.docker else f"{base.host}:{base.port}" for base in self.databases
        )
        return list(places)

    def _questions(self) -> Iterable[tuple[str, list[str]]]:
        for base in self.databases:
            yield f"getent hosts {base.host}", ["getent", "hosts", base.host]
        if self.docker:
            yield from self._docker_questions()

    def _docker_questions(self) -> Iterable[tuple[str, list[str]]]:
        """As our client asks, and as the existing one does; both answered by the stricter command."""
        for base in self.databases:
            name = base.container or base.host
            for template in _templates(base.network):
                command = ["sudo", "-n", "/usr/bin/docker", "inspect", "-f", template, "--type", "container", name]
                yield shlex.join(["docker", "inspect", "-f", template, "--type", "container", name]), command
                yield shlex.join(["docker", "inspect", "-f", template, name]), command


def _templates(network: str | None) -> Iterable[str]:
    for field in _FIELDS:
        yield f"{{{{range .NetworkSettings.Networks}}}}{{{{.{field}}}}} {{{{end}}}}"
        for name in dict.fromkeys([*([network] if network else []), *_NETWORKS]):
            yield f'{{{{(index .NetworkSettings.Networks "{name}").{field}}}}}'


def _sudoers_word(word: str) -> str:
    """sudoers(5): these characters are its own."""
    return re.sub(r"([\\,:=])", r"\\\1", word)

"""
What every command that reaches a database shares: its flags, what is refused before anything is asked, the request.

The flags are the contract's; every `flux db` command accepts all of them, even where they mean nothing. Refused is only
what would deceive: two opposite words, an address that shows the database to the network, `--readonly` or `--ttl` for a
v1 project, whose one user is a superuser without an end.
"""

from __future__ import annotations

from fluxctl import options, project, screen
from fluxctl.options import Option
from fluxctl.problem import Problem, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from fluxctl.client import Client
    from fluxctl.options import Arguments
    from fluxctl.project import Project
    from fluxd.shapes import MintGrant, OpenTunnel

PROJECT_FLAGS = (
    Option("-p", "--project", takes="NAME", says="the project's name (wins over NAME)"),
    Option("--hash", takes="HEX", says="the project's hash, 7 hex digits (default: flux.json's)"),
)
API_BASE_FLAG = Option("--api-base", takes="URL", says="the control plane (default: FLUX_API_BASE)")
SSH_FLAGS = (
    Option("--ssh-host", takes="HOST", says="SSH host (default: FLUX_DB_TUNNEL_SSH_HOST, else the plan's)"),
    Option("--ssh-user", takes="USER", says="SSH user (default: FLUX_DB_TUNNEL_SSH_USER, else the plan's)"),
    Option("--ssh-port", takes="PORT", check=options.port, says="SSH port (default: FLUX_DB_TUNNEL_SSH_PORT, …)"),
    Option("--identity-file", takes="PATH", says="private key (default: FLUX_DB_TUNNEL_IDENTITY_FILE, the agent)"),
    Option("--known-hosts", takes="PATH", says="known_hosts (default: FLUX_DB_TUNNEL_KNOWN_HOSTS, ~/.ssh's)"),
)
FORWARD_FLAGS = (
    Option("--local-port", takes="PORT", check=options.port, says="local port (default: the last one, from 15432)"),
    Option("--strict-port", says="fail when the port is in use, instead of taking the next free one"),
    Option("--host", takes="HOST", says="local address, loopback only (default 127.0.0.1)"),
)
ACCESS_FLAGS = (
    Option("--readonly", says="read-only (the default for v2)"),
    Option("--readwrite", says="read/write, where the platform allows it"),
    Option("--ttl", takes="SECONDS", check=options.ttl, says="how long the temporary role lives (at most 28800)"),
    Option("--renew", says="prolong the temporary role by itself while clients are connected (v2)"),
    Option("--reason", takes="TEXT", says="why, for the platform's audit"),
)
JSON_FLAG = Option("--json", says="print JSON")

# The contract's, on every `flux db` command.
DB_FLAGS = (
    *PROJECT_FLAGS,
    *FORWARD_FLAGS,
    *SSH_FLAGS,
    *ACCESS_FLAGS,
    Option("--keepalive", says="accepted; keepalives are always on"),
    Option("--print-config", says="print the GUI block and open nothing (db tunnel)"),
    Option("--create-temp-credentials", says="make a temporary role (db gui-config, v2)"),
    API_BASE_FLAG,
    JSON_FLAG,
    Option("--verbose", says="say more on stderr"),
)


def refuse_contradictions(arguments: Arguments) -> None:
    """
    Check what can be checked before anything is asked of anybody.

    Raises:
        Problem: usage, local_host_forbidden.
    """
    if arguments.readonly and arguments.readwrite:
        raise usage("--readonly and --readwrite exclude each other.")
    if arguments.host is not None and not is_loopback(arguments.host):
        raise Problem("local_host_forbidden", f"--host {arguments.host} would show the database to your network.")


def refuse_for_dedicated(arguments: Arguments, *, readonly_too: bool = True) -> None:
    """
    Refuse what changes nothing for a v1 project, but reads as if it did.

    Raises:
        Problem: wrong_mode.
    """
    deceiving = ["--readonly"] if readonly_too and arguments.readonly else []
    deceiving += ["--ttl"] if arguments.ttl is not None else []
    if deceiving:
        raise Problem(
            "wrong_mode",
            f"{' and '.join(deceiving)} would change nothing: a v1 dedicated project's one user is the superuser.",
            hint="Leave it out. `flux db shell --readonly` starts a session that is read-only until you say otherwise.",
        )


def refuse_early_for_dedicated(client: Client, chosen: Project, arguments: Arguments, *, readonly_too: bool) -> None:
    """As `refuse_for_dedicated`, before a tunnel is opened; the mode is asked for only when it matters."""
    if (readonly_too and arguments.readonly) or arguments.ttl is not None:
        plan = client.plan(chosen.hash)["plan"]
        if plan["mode"] == "v1_dedicated":
            refuse_for_dedicated(arguments, readonly_too=readonly_too)


def is_loopback(host: str) -> bool:
    """127.0.0.0/8 in full, ::1 or localhost; everything else is somebody's network."""
    if host.lower() in {"localhost", "::1", "[::1]"}:
        return True
    parts = host.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isdigit() and int(part) < 256 for part in parts)


def is_free(host: str, port: int) -> bool:
    """Whether a tunnel could listen there now."""
    from _socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET, socket  # noqa: PLC0415 - only where it is asked

    host = _plain_host(host) or host
    probe = socket(AF_INET6 if ":" in host else AF_INET)
    try:
        probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        probe.bind((host, port))
    except OSError:
        return False
    finally:
        probe.close()
    return True


def chosen_project(arguments: Arguments) -> Project:
    """The project that the command line or flux.json names."""
    return project.choose(arguments.name, arguments.project, arguments.hash)


def access(arguments: Arguments) -> str:
    return "readwrite" if arguments.readwrite else "readonly"


def open_body(arguments: Arguments, chosen: Project, *, hold: bool, credential: str) -> OpenTunnel:
    """`POST /v1/tunnels` as these arguments mean it. The name stays here: see `warn_of_other_name`."""
    body: dict[str, Any] = {
        "hash": chosen.hash,
        "access": access(arguments),
        "credential": credential,
        "hold": hold,
        **_if_given(
            local_port=arguments.local_port,
            local_host=_plain_host(arguments.host),
            strict_port=arguments.strict_port or None,
            renew=arguments.renew or None,
            ttl_s=arguments.ttl,
            reason=arguments.reason,
        ),
    }
    return body  # type: ignore[return-value]


def mint_body(arguments: Arguments) -> MintGrant:
    """`POST /v1/grants/{hash}` as these arguments mean it."""
    body: dict[str, Any] = {
        "access": access(arguments),
        **_if_given(ttl_s=arguments.ttl, reason=arguments.reason),
    }
    return body  # type: ignore[return-value]


def warn_of_other_name(chosen: Project, name: str) -> None:
    """A name that is not this hash's is only a label: say so, and go on with the plane's."""
    if chosen.name is not None and chosen.name != name:
        screen.warning(f"the project with hash {chosen.hash} is called {name}, not {chosen.name}.")


def say_notices(*answers: Mapping[str, Any]) -> None:
    """What the daemon wants said aloud, each once."""
    said = dict.fromkeys(notice for answer in answers for notice in answer.get("notices") or ())
    for notice in said:
        screen.note(notice)


def _plain_host(host: str | None) -> str | None:
    return {"localhost": "127.0.0.1", "[::1]": "::1"}.get(host.lower(), host) if host else None


def _if_given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""
What a request to open a tunnel means: where to listen, which SSH host, what its user should be told; and whether a
tunnel that is open already is the one that is wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fluxd import wire
from fluxd.core.errors import LocalHostForbidden, TunnelOpenDifferently
from fluxd.core.target import Target, Words, choose_target
from fluxplane import wire as plane_wire

from .dial import Dialling, overruled
from .forward import LOOPBACK
from .sshconfig import unhonoured
from .tunnel import Tunnel

NO_REVOKE: Final = (
    "This control plane cannot renew or revoke credentials: a role ends at its expiry, not when its tunnel closes."
)


def loopback(asked: str | None) -> str:
    """
    The address to listen on: loopback only.

    Raises:
        LocalHostForbidden: any other would show the database to the network.
    """
    host = {None: LOOPBACK, "localhost": LOOPBACK, "[::1]": "::1"}.get(asked, asked or LOOPBACK)
    numbers = host.split(".")
    if host == "::1" or (len(numbers) == 4 and numbers[0] == "127" and all(n.isdecimal() for n in numbers)):
        return host
    raise LocalHostForbidden


def notices(request: wire.OpenTunnel, plan: plane_wire.AccessPlan) -> list[str]:
    """What the plan says otherwise than *request* expects."""
    said = []
    if request.project is not None and request.project != plan.project_name:
        said.append(f"The project with hash {request.hash} is called {plan.project_name}, not {request.project}.")
    if isinstance(plan, plane_wire.PooledPlan) and not {"revoke", "grant_id"} <= set(plan.extensions):
        said.append(NO_REVOKE)
    return said


def not_honoured(target: Target, asked: wire.SSH) -> list[str]:
    """What the user's ssh_config says of the host, and fluxd does otherwise. Reads files: for a thread."""
    how = Dialling()
    said = []
    if found := unhonoured(Path(how.config), target.host):
        said.append(f"Your ~/.ssh/config for {target.host} sets what fluxd does not honour: {', '.join(found)}.")
    for keyword, theirs, ours in overruled(target, how):
        if getattr(asked, keyword.lower()) is None:
            said.append(
                f"For {target.host} your ~/.ssh/config says {keyword} {theirs}, the platform {ours}, which counts. "
                f"To use yours, set FLUX_DB_TUNNEL_SSH_{keyword.upper()}={theirs}."
            )
    return said


def target(asked: wire.SSH, plan: plane_wire.AccessPlan) -> Target:
    """By flag or environment (both are *asked*), the plan, DOCKER_HOST, in this order."""
    return choose_target(
        Words(asked.host, asked.user, asked.port),
        plan=Words(plan.tunnel.ssh_host, plan.tunnel.ssh_user, plan.tunnel.ssh_port),
        docker_host=asked.docker_host,
    )


def must_be_same(tunnel: Tunnel, asked: wire.OpenTunnel) -> None:
    """
    That the open tunnel is what *asked* wants, where that says anything.

    Raises:
        TunnelOpenDifferently: naming both.
    """
    have_ssh = tunnel.host.destination.target
    wanted: list[tuple[str, object, object]] = [
        ("SSH host", asked.ssh.host, have_ssh.host),
        ("SSH user", asked.ssh.user, have_ssh.user),
        ("SSH port", asked.ssh.port, have_ssh.port),
        ("local port", asked.local_port, tunnel.port),
        ("local address", asked.local_host and loopback(asked.local_host), tunnel.facts.local_host),
    ]
    for what, want, have in wanted:
        if want is not None and want != have:
            raise TunnelOpenDifferently(
                f"The tunnel {tunnel.facts.id} to {tunnel.facts.project} is open with the {what} {have}, "
                f"and you ask for {want}.",
                hint=f"Close it first (`fluxctl tunnel close {tunnel.facts.id}`), or ask without the differing option.",
            )

"""
The way from here to a project's Postgres, tried step by step on its own connection: no port is bound, no role made.

Each step is a check; the first that fails carries the problem that opening a tunnel would have met, and those behind it
are not tried.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import FluxError, NotAuthenticated, ShownKey
from fluxd.core.target import Words, choose_target
from fluxplane.wire import AccessPlan

from .dial import Destination, Dialling, stranger_before
from .passphrases import Passphrases
from .probe import prove_postgres
from .ssh import Host
from .whereabouts import Whereabouts

Step = Callable[[], Awaitable[str]]
STEPS = ("ssh host", "database's place", "postgres")


async def examine_way(
    plan: AccessPlan, ssh: wire.SSH, clock: Clock, passphrases: Passphrases, *, connect_s: float
) -> list[wire.Check]:
    """One check for each step: reach the SSH host, ask it where Postgres is, hear Postgres answer."""
    try:
        destination = _destination(plan, ssh)
    except FluxError as error:
        return [failed(STEPS[0], error), *(_not_tried(name) for name in STEPS[1:])]
    how = Dialling(connect_s=connect_s, passphrases=passphrases)
    async with _host(destination, plan, ssh, clock, how) as host:
        where = _whereabouts(plan, ssh, host, clock)

        async def reach() -> str:
            await passphrases.learn(ssh)
            await host.reach()
            return f"{destination} lets you in."

        async def locate() -> str:
            found = await where.locate()
            return f"Postgres is at {found.connect_to}:{found.port} from there ({found.method})."

        async def answer() -> str:
            await prove_postgres(where.open_stream)
            return "Postgres answers and takes connections."

        return await in_turn(dict(zip(STEPS, (reach, locate, answer), strict=True)))


async def host_key(ssh: wire.SSH, *, connect_s: float) -> wire.HostKey:
    """
    Which key on the way to the host that *ssh* names is not in known_hosts.

    Raises:
        FluxError: it names none, or nothing can be said of it.
    """
    target = choose_target(Words(ssh.host, ssh.user, ssh.port), plan=Words(), docker_host=ssh.docker_host)
    destination = Destination(target, ssh.identity_file, ssh.known_hosts)
    met = await stranger_before(destination, Dialling(connect_s=connect_s), agent=ssh.agent)
    return wire.HostKey(host=str(destination), unknown=_shown_key(met) if met else None)


def _shown_key(met: ShownKey) -> wire.UnknownKey:
    return wire.UnknownKey(
        host=met.host, algorithm=met.algorithm, fingerprint=met.fingerprint, line=met.line, file=met.file
    )


async def in_turn(steps: dict[str, Step]) -> list[wire.Check]:
    """Each step's check, until one fails; the rest are not tried."""
    checks: list[wire.Check] = []
    for name, step in steps.items():
        if any(check.verdict in {"fail", "skip"} for check in checks):
            checks.append(_not_tried(name))
            continue
        try:
            checks.append(wire.Check(name=name, verdict="ok", message=await step()))
        except FluxError as error:
            checks.append(failed(name, error))
    return checks


def failed(name: str, error: FluxError) -> wire.Check:
    message = f"{error.message} {error.detail}" if error.detail else error.message
    return wire.Check(name=name, verdict="fail", message=message, hint=error.hint)


def _not_tried(name: str) -> wire.Check:
    return wire.Check(name=name, verdict="skip", message="Not tried: an earlier step failed.")


def _destination(plan: AccessPlan, ssh: wire.SSH) -> Destination:
    target = choose_target(
        Words(ssh.host, ssh.user, ssh.port),
        plan=Words(plan.tunnel.ssh_host, plan.tunnel.ssh_user, plan.tunnel.ssh_port),
        docker_host=ssh.docker_host,
    )
    return Destination(target, ssh.identity_file, ssh.known_hosts)


@asynccontextmanager
async def _host(
    destination: Destination, plan: AccessPlan, ssh: wire.SSH, clock: Clock, how: Dialling
) -> AsyncIterator[Host]:
    host = Host(destination, how, clock, lambda _host, _name: None)
    host.agent, host.pinned = ssh.agent, plan.host_keys
    try:
        yield host
    finally:
        await host.aclose()


def _whereabouts(plan: AccessPlan, ssh: wire.SSH, host: Host, clock: Clock) -> Whereabouts:
    return Whereabouts(
        plan,
        host,
        clock,
        proof=_no_proof,
        say=lambda _notice: None,
        moved=lambda: None,
        prefer_network=ssh.prefer_network,
    )


def _no_proof() -> NoReturn:
    raise NotAuthenticated("A check logs in nowhere.")

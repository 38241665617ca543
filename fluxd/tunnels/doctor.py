"""
The way from here to a project's Postgres, tried step by step on its own connection: no role is made.

Each step is a check; the first that fails carries the problem that opening a tunnel would have met, and those behind it
are not tried. Without a project's plan the way ends at the SSH host that the shell names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, NoReturn

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import (
    FluxError,
    NotAuthenticated,
    ShownKey,
    SSHAuthFailed,
    SSHHostKeyChanged,
    SSHHostKeyRevoked,
    SSHHostKeyUnknown,
    SSHHostMissing,
    SSHKeyEncrypted,
    SSHKeyUnusable,
)
from fluxd.core.target import Words, choose_target
from fluxplane.wire import AccessPlan

from .dial import Destination, Dialling, stranger_before
from .passphrases import Passphrases
from .probe import prove_postgres
from .ssh import Host
from .whereabouts import Whereabouts

Verdict = Literal["warn", "fail"]
STEPS: Final = ("ssh host", "host key", "authentication", "resolver", "postgres")
ASK_FOR_PROJECT: Final = "Not asked: name a PROJECT for it."
ASK_FOR_HOST: Final = "Not asked: name a PROJECT for it, or set FLUX_DB_TUNNEL_SSH_HOST."
USE_SCRAM: Final = "Its operator can change that: password_encryption = scram-sha-256, and set the passwords anew."


async def examine_way(
    plan: AccessPlan | None, ssh: wire.SSH, clock: Clock, passphrases: Passphrases, *, connect_s: float
) -> list[wire.Check]:
    """One check for each of `STEPS`. Without a *plan*, of the SSH host that *ssh* names, if it names one."""
    try:
        destination = _destination(plan, ssh)
        await passphrases.learn(ssh)
    except SSHHostMissing as error:
        return [failed(STEPS[0], error), *_not_tried(1)] if plan else [_skipped(name, ASK_FOR_HOST) for name in STEPS]
    except FluxError as error:
        return [failed(STEPS[0], error), *_not_tried(1)]
    how = Dialling(connect_s=connect_s, passphrases=passphrases)
    async with _host(destination, plan.host_keys if plan else (), ssh, clock, how) as host:
        try:
            await host.reach()
        except FluxError as error:
            return _unreached(error, known=plan is not None)
        checks = [
            _ok("ssh host", f"{destination} answers."),
            _ok("host key", f"{host.key_fingerprint} is the one you know."),
            _ok("authentication", f"{destination} lets you in."),
        ]
        if plan is None:
            return checks + [_skipped(name, ASK_FOR_PROJECT) for name in STEPS[3:]]
        return checks + await _examine_database(_whereabouts(plan, ssh, host, clock))


def _unreached(problem: FluxError, *, known: bool) -> list[wire.Check]:
    """
    Three steps are one dial: its problem says how far it came.

    *known*: the keys that the plan pins were looked at. Else an unknown host may be known to it, and is no failure.
    """
    passed = _HOW_FAR.get(type(problem), 0)
    verdict: Verdict = "warn" if isinstance(problem, SSHHostKeyUnknown) and not known else "fail"
    before = [_ok(name, "It is well.") for name in STEPS[:passed]]
    return [*before, failed(STEPS[passed], problem, verdict), *_not_tried(passed + 1)]


_HOW_FAR: Final[Mapping[type[FluxError], int]] = {
    SSHHostKeyUnknown: 1,
    SSHHostKeyChanged: 1,
    SSHHostKeyRevoked: 1,
    SSHAuthFailed: 2,
    SSHKeyUnusable: 2,
    SSHKeyEncrypted: 2,
}


async def _examine_database(where: Whereabouts) -> list[wire.Check]:
    try:
        found = await where.locate()
    except FluxError as error:
        return [failed("resolver", error), *_not_tried(4)]
    resolver = _ok("resolver", f"Postgres is at {found.connect_to}:{found.port} from there ({found.method}).")
    try:
        unproving = await prove_postgres(where.open_stream)
    except FluxError as error:
        return [resolver, failed("postgres", error)]
    if unproving is None:
        return [resolver, _ok("postgres", "Postgres answers and takes connections.")]
    said = f"Postgres answers, but asks for {unproving}: it cannot be proven to be the project's own."
    return [resolver, wire.Check(name="postgres", verdict="warn", message=said, hint=USE_SCRAM)]


async def host_key(ssh: wire.SSH, passphrases: Passphrases, *, connect_s: float) -> wire.HostKey:
    """
    Which key on the way to the host that *ssh* names is not in known_hosts.

    Raises:
        FluxError: it names none, or nothing can be said of it.
    """
    destination, how = _destination(None, ssh), Dialling(connect_s=connect_s, passphrases=passphrases)
    met = await stranger_before(destination, how, agent=ssh.agent)
    return wire.HostKey(host=str(destination), unknown=_shown_key(met) if met else None)


def _shown_key(met: ShownKey) -> wire.UnknownKey:
    return wire.UnknownKey(
        host=met.host, algorithm=met.algorithm, fingerprint=met.fingerprint, line=met.line, file=met.file
    )


def failed(name: str, error: FluxError, verdict: Verdict = "fail") -> wire.Check:
    message = f"{error.message} {error.detail}" if error.detail else error.message
    return wire.Check(name=name, verdict=verdict, message=message, hint=error.hint)


def _ok(name: str, message: str) -> wire.Check:
    return wire.Check(name=name, verdict="ok", message=message)


def _skipped(name: str, why: str) -> wire.Check:
    return wire.Check(name=name, verdict="skip", message=why)


def _not_tried(first: int) -> list[wire.Check]:
    """The steps from number *first* on."""
    return [_skipped(name, "Not tried: an earlier step failed.") for name in STEPS[first:]]


def _destination(plan: AccessPlan | None, ssh: wire.SSH) -> Destination:
    planned = Words(plan.tunnel.ssh_host, plan.tunnel.ssh_user, plan.tunnel.ssh_port) if plan else Words()
    target = choose_target(Words(ssh.host, ssh.user, ssh.port), plan=planned, docker_host=ssh.docker_host)
    return Destination(target, ssh.identity_file, ssh.known_hosts)


@asynccontextmanager
async def _host(
    destination: Destination, pinned: Sequence[str], ssh: wire.SSH, clock: Clock, how: Dialling
) -> AsyncIterator[Host]:
    host = Host(destination, how, clock, lambda _host, _name: None, pinned=tuple(pinned))
    host.agent = ssh.agent
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

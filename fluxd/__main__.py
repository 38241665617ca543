"""
Boot, serve, drain.

The only module that knows every other one: it reads the settings, claims the socket, puts the organs together, and
takes them apart in the opposite order when SIGTERM or SIGINT comes. A second signal does not wait for the drain.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import Final

from aiohttp import web

from fluxd import address, launchd, logs, safesocket, settings
from fluxd.api import VERSION, Api, Organs, heads
from fluxd.clock import Clock
from fluxd.core.errors import FluxError, SocketUnsafe
from fluxd.declared import Declared
from fluxd.doctor import Doctor
from fluxd.keychain import SystemKeyring, TokenFile
from fluxd.metrics import Metrics
from fluxd.plane import ControlPlane, Tokens
from fluxd.settings import Settings
from fluxd.systemd import Manager
from fluxd.tunnels.listeners import Listeners
from fluxd.tunnels.passphrases import Passphrases
from fluxd.tunnels.supervisor import Supervisor

log = logging.getLogger(__name__)

DRAIN_WITHIN_S: Final = 20.0
# What is still being answered when we stop gets this long.
ANSWERS_WITHIN_S: Final = 2.0
BACKLOG: Final = 128

_FLAGS: Final = {"log_level": "--log-level", "log_format": "--log-format", "token_file": "--token-file"}
EXAMPLES: Final = (
    ("fluxd", "what `fluxctl` starts by itself"),
    ("fluxd --log-level debug --log-format json", "what happens, an object a line"),
    ("fluxd --token-file ~/.config/fluxd/tokens", "where there is no keyring"),
    ("FLUXD_CONFIG_DIR=/tmp/try fluxd --check-config", "a configuration, before it counts"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The `fluxd` command. Exit codes: 0 stopped when told, else that of the problem (see core.errors)."""
    asked = _arguments(argv)
    try:
        chosen = _chosen(asked)
        if asked.check_config:
            file = chosen.config_dir / settings.FILE_NAME
            sys.stdout.write(f"{file}: {'nothing is wrong' if file.exists() else 'not there; all is default'}\n")
            return 0
        journald = logs.is_journal(sys.stderr)
        # Where the journal keeps and rotates what we say, nobody needs a file.
        logs.configure(
            chosen.log_level, chosen.log_format, journald=journald, directory=None if journald else chosen.log_dir
        )
        asyncio.run(serve(chosen, partial(_chosen, asked)))
    except FluxError as error:
        _say(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fluxd",
        description="Keeps tunnels to private databases open; fluxctl talks to it. Runs in the foreground.",
        epilog="\n".join(
            [
                "The socket is $FLUXD_SOCKET, else fluxd/fluxd.sock in your runtime directory.",
                "",
                "examples:",
                *(f"  {line:<48}# {says}" for line, says in EXAMPLES),
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fluxd {VERSION}")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="default: info")
    parser.add_argument("--log-format", choices=["text", "json"], help="default: text")
    parser.add_argument("--token-file", type=_absolute, metavar="PATH", help="logins there (0600), not in the keyring")
    parser.add_argument("--check-config", action="store_true", help="read the settings, say what is wrong, and leave")
    return parser.parse_args(argv)


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _chosen(asked: argparse.Namespace) -> Settings:
    """What environment and file say, except where the command line says otherwise."""
    read = settings.load()
    given = {name: value for name in _FLAGS if (value := getattr(asked, name))}
    return replace(read, **given, sources={**read.sources, **{name: _FLAGS[name] for name in given}})


def _say(error: FluxError) -> None:
    lines = [f"fluxd: {error.message}", error.detail, error.hint]
    sys.stderr.write("\n  ".join(line for line in lines if line) + "\n")


async def serve(chosen: Settings, read_again: Callable[[], Settings]) -> None:
    """
    Serve until SIGTERM or SIGINT, then leave nothing behind. At SIGHUP *read_again* says what is chosen from then on.

    Raises:
        FluxdAlreadyRunning, SocketUnsafe: nothing was started.
    """
    stop, again = _on_signals()
    path = _socket_path()
    manager = Manager.of(os.environ)
    claim = safesocket.claim(path, _activated(manager, path))
    try:
        async with AsyncExitStack() as organs:
            reload = await _put_together(organs, chosen, claim, manager)
            manager.ready("serving")
            log.info("fluxd %s serves %s", VERSION, path)
            await _until_stopped(stop, again, partial(_reload, read_again, reload), manager)
            manager.stopping()
            log.info("stopping")
    finally:
        claim.release()


def _socket_path() -> Path:
    try:
        return Path(address.socket_path())
    except PermissionError as error:
        raise SocketUnsafe(detail=str(error)) from error


def _activated(manager: Manager, path: Path) -> socket | None:
    """The API's socket where the service manager opened it. Other ones under its name would answer nobody."""
    ours: socket | None = None
    for one in (*manager.take("api"), *launchd.activated("api")):
        if ours is None and safesocket.serves(one, path):
            ours = one
        else:
            one.close()
    return ours


async def _put_together(
    organs: AsyncExitStack, chosen: Settings, claim: safesocket.Claim, manager: Manager
) -> Callable[[Settings], Awaitable[None]]:
    """Start every organ; *organs* stops them in the opposite order. What it answers applies settings read again."""
    clock, metrics, passphrases = Clock(), Metrics(version=VERSION), Passphrases()
    keyring = TokenFile(chosen.token_file) if chosen.token_file else SystemKeyring()
    control = await organs.enter_async_context(ControlPlane(metrics.plane_answered))
    tokens = Tokens(control=control, keychain=keyring, state_dir=chosen.state_dir)
    listeners = Listeners(manager)
    supervisor = Supervisor(
        control=control,
        tokens=tokens,
        state_dir=chosen.state_dir,
        settings=chosen.tunnels,
        clock=clock,
        listeners=listeners,
        passphrases=passphrases,
    )
    doctor = Doctor(
        socket=claim.path,
        state_dir=chosen.state_dir,
        control=control,
        tokens=tokens,
        keyring=keyring,
        clock=clock,
        ssh_connect_s=chosen.tunnels.ssh_connect_s,
        passphrases=passphrases,
        port_of=supervisor.port_of,
    )
    metrics.watch(
        tunnels=supervisor.list,
        hosts=supervisor.hosts,
        pending=supervisor.pending_revocations,
        happened=supervisor.happened,
    )
    declared = Declared(supervisor, tokens, clock)
    api = Api(
        Organs(
            tunnels=supervisor,
            control=control,
            tokens=tokens,
            logins=keyring,
            doctor=doctor,
            metrics=metrics,
            clock=clock,
            socket=claim.path,
            settings=chosen,
            declared=declared,
        )
    )
    await supervisor.start()
    # Before anybody is answered: what is declared is there from the start on.
    await declared.apply(chosen.declared)
    await organs.enter_async_context(_http(api, claim))
    organs.push_async_callback(_drain, supervisor)
    organs.push_async_callback(declared.aclose)
    organs.callback(api.stopping.set)
    await organs.enter_async_context(_alongside(manager.feed_watchdog(), listeners.discard_untaken()))

    async def apply(changed: Settings) -> None:
        api.settings_read_again(changed)
        await declared.apply(changed.declared)

    return apply


async def _until_stopped(
    stop: asyncio.Event, again: asyncio.Event, reload: Callable[[], Awaitable[None]], manager: Manager
) -> None:
    """Wait for *stop*, and *reload* whenever *again* is set."""
    stopping = asyncio.ensure_future(stop.wait())
    while not stop.is_set():
        asked = asyncio.ensure_future(again.wait())
        await asyncio.wait({stopping, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if again.is_set() and not stop.is_set():
            again.clear()
            await reload()
            manager.ready("serving")


async def _reload(read: Callable[[], Settings], apply: Callable[[Settings], Awaitable[None]]) -> None:
    """A mistake in the settings leaves everything as it was."""
    try:
        changed = read()
    except FluxError as error:
        log.error("the settings were not read again: %s", error.message)  # noqa: TRY400 - a user's mistake has no trace
        return
    logs.set_level(changed.log_level)
    await apply(changed)
    log.info("the settings were read again")


@asynccontextmanager
async def _http(api: Api, claim: safesocket.Claim) -> AsyncIterator[None]:
    """The API on the claimed socket."""
    runner = web.AppRunner(
        api.application(),
        handler_cancellation=True,
        access_log=None,
        logger=heads.log,
        shutdown_timeout=ANSWERS_WITHIN_S,
        # How long the rest of a refused body is read away, so that the answer is not lost in a reset.
        lingering_time=1.0,
    )
    await runner.setup()
    try:
        # Not web.SockSite, which would wait for a request's head for ever.
        assert runner.server is not None
        connected = api.heads.bounded(runner.server)
        serving = await asyncio.get_running_loop().create_server(connected, sock=claim.listener, backlog=BACKLOG)
        try:
            yield
        finally:
            serving.close()
    finally:
        await runner.cleanup()


async def _drain(supervisor: Supervisor) -> None:
    try:
        async with asyncio.timeout(DRAIN_WITHIN_S):
            await supervisor.aclose()
    except TimeoutError:
        log.warning("the tunnels did not close within %.0f s; revocations go on at the next start", DRAIN_WITHIN_S)


@asynccontextmanager
async def _alongside(*works: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Work that goes on beside everything else, from the event loop itself, and is cancelled at the end."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


def _on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """
    The first is set by SIGTERM or SIGINT, the second by SIGHUP, which must not end a daemon that is still starting.

    A second SIGTERM or SIGINT ends the process as if we had never asked.
    """
    stop, again, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def stopping(number: signal.Signals) -> None:
        if stop.is_set():
            loop.remove_signal_handler(number)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping, number)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    return stop, again


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())

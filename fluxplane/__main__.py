"""
The operator's command: `fluxplane serve`, and what sets a platform up.

Settings come from the environment (`settings`); secrets never from an argv. What goes wrong is one line on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib
import importlib.util
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

if missing := [name for name in ("asyncpg", "cryptography") if importlib.util.find_spec(name) is None]:
    sys.exit(f"fluxplane needs {' and '.join(missing)}: pip install 'flux-db-access[plane]'")

from fluxplane import access, api, audit, bastion, catalogue, doctor, examples, pool, registry, rekey, roles
from fluxplane.backups import jobs
from fluxplane.catalogue import Catalogue
from fluxplane.policy import Refusal
from fluxplane.registry import Project
from fluxplane.settings import OperatorError, Settings
from fluxplane.wire import V1, V2, Secret

Run = Callable[[argparse.Namespace], Awaitable[int]]
V1_URL: Final = "FLUXPLANE_PROJECT_POSTGRES_URL"


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 it could not be (one line on stderr says why), 2 usage."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(_awaited(arguments.run, arguments))
    except (OperatorError, Refusal) as failure:
        print(f"fluxplane: {failure}", file=sys.stderr)
    except catalogue.DatabaseFailure as failure:
        print(f"fluxplane: {catalogue.describe(failure)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


async def _awaited(run: Run, arguments: argparse.Namespace) -> int:
    return await run(arguments)


# --------------------------------------------------------------- the tree of words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fluxplane", description="The Flux platform's reference control plane.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = _command(commands, "serve", _serve, "answer the contract's HTTP routes, and end leases that are over")
    serve.add_argument("--listen", type=_address, default=("127.0.0.1", 8080), metavar="HOST:PORT")
    serve.add_argument("--contract-only", action="store_true", help="without our extensions, as the existing platform")
    _command(commands, "migrate", _migrate, "make or update the catalogue's database")
    _command(commands, "doctor", _doctor, "check catalogue, key and pool")
    _user(_group(commands, "user", "people"))
    _token(_group(commands, "token", "their tokens"))
    _project(_group(commands, "project", "their projects"))
    _pool(_group(commands, "pool", "the shared Postgres of v2 projects"))
    _key(_group(commands, "key", "the key that seals secrets: how to change it"))
    _bastion(commands)
    if importlib.util.find_spec("fluxplane.lab.cli"):
        importlib.import_module("fluxplane.lab.cli").add(commands)
    _show_examples(parser)
    return parser


def _show_examples(parser: argparse.ArgumentParser) -> None:
    """In the help of *parser*, and of every one below it."""
    parser.epilog, parser.formatter_class = examples.of(parser.prog), argparse.RawDescriptionHelpFormatter
    for one in below(parser):
        _show_examples(one)


def below(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of its commands; none for a command that has none."""
    groups = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    return [one for choices in groups for one in choices.values()]


def _command(commands: Any, word: str, run: Run, help_: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(word, help=help_, description=help_.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def _group(commands: Any, word: str, help_: str) -> Any:
    return commands.add_parser(word, help=help_).add_subparsers(required=True, metavar="COMMAND")


def _user(commands: Any) -> None:
    create = _command(commands, "create", _create_user, "register a person")
    create.add_argument("name", help="such as an e-mail address")
    create.add_argument("--admin", action="store_true", help="cliRole admin instead of operator")


def _token(commands: Any) -> None:
    create = _command(commands, "create", _create_token, "print a new token: it is shown this once")
    create.add_argument("--user", required=True)
    listing = _command(commands, "list", _list_tokens, "a user's tokens: id, made, last used")
    listing.add_argument("--user", required=True)
    revoke = _command(commands, "revoke", _revoke_token, "end a token at once; its grants live on")
    revoke.add_argument("id", type=_uuid, help="from `token list`")


def _project(commands: Any) -> None:
    create = _command(commands, "create", _create_project, "register a project; v2: make its schema and roles too")
    create.add_argument("--user", required=True, help="whose")
    create.add_argument("--slug", required=True)
    create.add_argument("--mode", required=True, choices=(V1, V2))
    create.add_argument("--hash", help="seven hexadecimal digits (default: random)")
    create.add_argument("--description")
    create.add_argument("--schema", help="v2: register this existing schema")
    create.add_argument("--container", help="v1: its database container (default: flux-<hash>-<slug>-db)")
    create.add_argument("--internal-host", help="v1: what the SSH host calls the database (default: the container)")
    create.add_argument("--internal-port", type=_port, help="v1 (default: 5432)")
    create.add_argument(
        "--postgres-url",
        metavar="FILE",
        help=f"v1: a file with the database's URL, or - for stdin; or set {V1_URL}. Without: the container is asked",
    )
    listing = _command(commands, "list", _list_projects, "everybody's projects")
    listing.add_argument("--user", help="only this one's")
    delete = _command(commands, "delete", _delete_project, "end a project's roles and forget it; its data stays")
    delete.add_argument("--user", required=True)
    delete.add_argument("--hash", required=True)
    delete.add_argument("--skip-backup-check", action="store_true", help="even without a restore-verified backup")


def _pool(commands: Any) -> None:
    prepare = _command(commands, "prepare", _prepare, "close the pool to strangers and install flux_plane.*")
    prepare.add_argument("--dry-run", action="store_true", help="only print what would change")
    prepare.add_argument("--functions-only", action="store_true", help="install the functions, close nothing")
    prepare.add_argument("--allow", action="append", default=[], metavar="ROLE", help="a login that keeps its access")


def _key(commands: Any) -> None:
    _command(commands, "add", _add_key, "make the next key, for every replica to know before it is used")
    _command(commands, "rotate", _rotate_key, "use the next key from now on, and seal everything with it")
    _command(commands, "prune", _prune_keys, "forget the keys that nothing needs any more")


def _bastion(commands: Any) -> None:
    config = _command(commands, "bastion-config", _bastion_config, "print a forwarding-only account for the SSH host")
    config.add_argument("--user", help="with --hash: for a v1 project of this person; without: for the pool")
    config.add_argument("--hash")
    config.add_argument("--account", default="flux-tunnel", help="its name on the SSH host (default: %(default)s)")
    config.add_argument("--key", action="append", default=[], metavar="FILE", help="a public key that may use it")
    config.add_argument("--docker", action="store_true", help="names do not resolve there: let it ask docker by sudo")
    config.add_argument("--part", choices=bastion.PARTS, help="only this file's text")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError("expected HOST:PORT, such as 127.0.0.1:8080")
    return host, int(port)


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("expected the id of a token, from `fluxplane token list`") from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("expected a port, 1 to 65535")
    return int(text)


# ------------------------------------------------------------------- what they do


def _settings() -> Settings:
    return Settings.from_environment(os.environ)


async def _serve(arguments: argparse.Namespace) -> int:
    settings = dataclasses.replace(_settings(), contract_only=arguments.contract_only)
    host, port = arguments.listen
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with api.serve(settings, host, port) as bound:
        print(f"fluxplane listens on http://{f'[{host}]' if ':' in host else host}:{bound}/api", flush=True)
        await stop.wait()
    return 0


async def _migrate(_: argparse.Namespace) -> int:
    return _print_changes(await catalogue.migrate(_settings()))


async def _doctor(_: argparse.Namespace) -> int:
    checks = await doctor.examine(_settings())
    for check in checks:
        print(f"{check.verdict:<5} {check.name}: {check.message}")
        if check.hint:
            print(f"      {check.hint}")
    return 1 if any(check.verdict == "fail" for check in checks) else 0


async def _create_user(arguments: argparse.Namespace) -> int:
    async with catalogue.connect(_settings()) as store:
        user_id = await registry.create_user(store, arguments.name, cli_role="admin" if arguments.admin else "operator")
    print(user_id)
    return 0


async def _create_token(arguments: argparse.Namespace) -> int:
    async with catalogue.connect(_settings()) as store:
        token = await registry.create_token(store, arguments.user)
    print(token.reveal())
    return 0


async def _list_tokens(arguments: argparse.Namespace) -> int:
    async with catalogue.connect(_settings()) as store:
        for token in await registry.tokens(store, arguments.user):
            used = audit.iso(token.last_used_at) if token.last_used_at else "never used"
            print(f"{token.id}  {audit.iso(token.created_at)}  {used}")
    return 0


async def _revoke_token(arguments: argparse.Namespace) -> int:
    async with catalogue.connect(_settings()) as store:
        await registry.revoke_token(store, arguments.id)
    return 0


async def _create_project(arguments: argparse.Namespace) -> int:
    settings = _settings()
    new = registry.NewProject(
        user=arguments.user,
        slug=arguments.slug,
        mode=arguments.mode,
        hash=arguments.hash,
        postgres_url=_project_url(arguments.postgres_url) if arguments.mode == V1 else None,
        internal_host=arguments.internal_host,
        internal_port=arguments.internal_port,
        container=arguments.container,
        schema=arguments.schema,
        description=arguments.description,
    )
    async with catalogue.connect(settings) as store:
        project = await registry.create_project(store, settings, new)
    print(f"{project.slug} {project.hash} {project.mode} {project.id}")
    return 0


def _project_url(source: str | None) -> Secret | None:
    """A URL with a password, from a file, stdin or the environment; an argv would show it to everybody."""
    try:
        if source == "-":
            return Secret(sys.stdin.readline().strip())
        text = Path(source).read_text() if source else os.environ.get(V1_URL, "")
    except OSError as failure:
        raise OperatorError(f"{source} cannot be read: {failure.strerror}.") from failure
    return Secret(text.strip()) if text.strip() else None


async def _list_projects(arguments: argparse.Namespace) -> int:
    async with catalogue.connect(_settings()) as store:
        for owner, project in await registry.owned(store, arguments.user):
            print(f"{project.slug:<32} {project.hash}  {project.mode:<12}  {project.lifecycle:<8}  {owner}")
    return 0


async def _delete_project(arguments: argparse.Namespace) -> int:
    settings = _settings()
    async with _plane(settings) as plane:
        project = await _named(plane.store, arguments.user, arguments.hash)
        await access.delete(plane, audit.plane(), project, skip_backup_check=arguments.skip_backup_check)
    print(f"{project.slug} {project.hash} is forgotten; its data was left as it is.")
    return 0


@contextlib.asynccontextmanager
async def _plane(settings: Settings) -> AsyncIterator[access.Plane]:
    async with (
        catalogue.connect(settings) as store,
        roles.connect(settings) as pool_roles,
        jobs.running(store, settings, hourly=False) as backups,
    ):
        yield access.Plane(settings, store, pool_roles, backups)


async def _named(store: Catalogue, user: str, hash_: str) -> Project:
    project = await registry.find_project(store, user, hash_.strip().lower())
    if project is None:
        raise OperatorError(f"{user} has no project with the hash {hash_}.")
    return project


async def _prepare(arguments: argparse.Namespace) -> int:
    settings = _settings()
    async with catalogue.connect(settings) as store:
        changes = await pool.prepare(
            settings,
            store,
            dry_run=arguments.dry_run,
            functions_only=arguments.functions_only,
            allow=tuple(arguments.allow),
        )
    return _print_changes(changes)


async def _add_key(_: argparse.Namespace) -> int:
    print(rekey.add(_settings()))
    return 0


async def _rotate_key(_: argparse.Namespace) -> int:
    print(await rekey.rotate(_settings()))
    return 0


async def _prune_keys(_: argparse.Namespace) -> int:
    print(await rekey.prune(_settings()))
    return 0


async def _bastion_config(arguments: argparse.Namespace) -> int:
    made = bastion.Bastion(
        account=arguments.account,
        databases=(await _database(arguments),),
        keys=tuple(_key_line(Path(name)) for name in arguments.key),
        docker=arguments.docker,
    )
    print(made.text(arguments.part), end="")
    return 0


async def _database(arguments: argparse.Namespace) -> bastion.Database:
    settings = _settings()
    if arguments.hash is None:
        return bastion.Database(settings.pool_host, settings.pool_port, settings.pool_container)
    if arguments.user is None:
        raise OperatorError("A hash is unique per person only: give --user too.")
    async with catalogue.connect(settings) as store:
        project = await _named(store, arguments.user, arguments.hash)
    if project.mode == V2:
        raise OperatorError(f"{project.slug} is a pooled project: leave --user and --hash out for the pool's account.")
    place = access.dedicated_database(project)
    return bastion.Database(place.internal_host, place.internal_port, place.container_name, place.docker_network_name)


def _key_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as failure:
        raise OperatorError(f"{path} is not a public key that can be read.") from failure


def _print_changes(changes: list[str]) -> int:
    print("\n".join(changes) if changes else "Nothing to change.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

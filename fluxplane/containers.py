"""
What the docker client says of a project's container: does it run, with which POSTGRES_PASSWORD, and at which address?

The client's own environment (DOCKER_HOST, …) decides which engine is asked. Names go after ``--`` and are held to
the wire's pattern; the password travels through a pipe, never through an argv.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Final, Literal

from fluxplane.wire import HOST_PATTERN, Secret

Status = Literal["running", "stopped", "missing"]
TIMEOUT_S: Final = 10
_MISSING: Final = re.compile(r"no such (object|container)", re.IGNORECASE)


class DockerUnreachable(Exception):
    """No docker client, no engine, or no answer in time."""


async def status(container: str) -> Status:
    """
    Raises:
        DockerUnreachable
    """
    answer = await _inspect("{{json .State.Running}}", container)
    if answer is None:
        return "missing"
    return "running" if answer.strip() == "true" else "stopped"


async def postgres_password(container: str) -> Secret | None:
    """
    POSTGRES_PASSWORD of a container that runs; None when it does not, or has none.

    It is what the container was started with: a password changed in the database since is not seen.

    Raises:
        DockerUnreachable
    """
    if await status(container) != "running":
        return None
    answer = await _inspect("{{json .Config.Env}}", container)
    for entry in _strings(answer):
        name, _, value = entry.partition("=")
        if name == "POSTGRES_PASSWORD" and value:
            return Secret(value)
    return None


async def address(container: str) -> str | None:
    """
    An address of a container, by which this machine's own docker engine reaches it; None when it has none.

    Raises:
        DockerUnreachable
    """
    answer = await _inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", container)
    return next(iter((answer or "").split()), None)


def _strings(answer: str | None) -> list[str]:
    try:
        entries = json.loads(answer or "[]")
    except ValueError:
        return []
    return [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []


async def _inspect(template: str, container: str) -> str | None:
    if not re.fullmatch(HOST_PATTERN, container):
        return None
    argv = ["docker", "inspect", "--type", "container", "-f", template, "--", container]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _output(argv)
    except (OSError, TimeoutError) as failure:
        raise DockerUnreachable("the docker client is missing or does not answer") from failure


async def _output(argv: list[str]) -> str | None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return out.decode(errors="replace")
    if _MISSING.search(err.decode(errors="replace")):
        return None
    raise DockerUnreachable("the docker engine cannot be reached")

"""How the control plane itself reads a project's database: through which login, and how much of it."""

from __future__ import annotations

import asyncio
from typing import Final

from fluxplane import containers, registry
from fluxplane.backups.dump import Source
from fluxplane.backups.programs import Login, Unable
from fluxplane.catalogue import Catalogue
from fluxplane.registry import Project
from fluxplane.settings import OperatorError, Settings, database_of, password_of, split_url, user_of
from fluxplane.wire import V1

RESOLVED_WITHIN_S: Final = 5
_BACKUP_URL: Final = "FLUXPLANE_POOL_BACKUP_URL"


async def source_of(store: Catalogue, settings: Settings, project: Project) -> Source:
    """
    A v1 project's whole database as its superuser; a v2 tenant's schema by the pool's login for backups.

    Raises:
        OperatorError: the plane was not told how to read this project's database.
        Unable: a container's password cannot be had.
    """
    if project.mode != V1:
        return Source(_pool_login(settings), project.api_schema)
    password = await registry.stored_password(store, project)
    if password is not None:
        return Source(Login(project.reached_host or "", project.reached_port or 5432, "postgres", password))
    try:
        return Source(await _containers_login(project, project.internal_port or 5432))
    except containers.DockerUnreachable as failure:
        raise Unable(f"Docker cannot be reached: {failure}.") from failure


def _pool_login(settings: Settings) -> Login:
    url = settings.pool_backup_url
    if url is None:
        raise OperatorError(f"{_BACKUP_URL} is not set: it names the pool's login for backups.")
    parts = split_url(url, _BACKUP_URL)
    return Login(
        parts.hostname or "",
        parts.port or 5432,
        user_of(url, _BACKUP_URL),
        password_of(url, _BACKUP_URL),
        database_of(url, _BACKUP_URL),
    )


async def _containers_login(project: Project, port: int) -> Login:
    """By the container's name where docker's own resolver answers it to us, else by its address."""
    name = project.container_name
    password = await containers.postgres_password(name)
    if password is None:
        raise Unable(f"The container {name} is missing, stopped or has no password.")
    host = project.internal_host or (name if await _resolves(name) else await containers.address(name))
    return Login(host or name, port, "postgres", password)


async def _resolves(name: str) -> bool:
    try:
        async with asyncio.timeout(RESOLVED_WITHIN_S):
            return bool(await asyncio.get_running_loop().getaddrinfo(name, None))
    except (OSError, TimeoutError):
        return False

"""`GET /v1/doctor`: the way to a database, step by step, and the first step that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fluxd.asking import Asker, asker
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles

WAY = ["project", "ssh host", "database's place", "postgres"]


@pytest.fixture
async def fluxd(daemon: Daemon) -> AsyncIterator[Asker]:
    async with asker(daemon.socket) as ask:
        yield ask


async def examined(fluxd: Asker, lab: Lab, hash_: str, **changes: Any) -> dict[str, dict[str, Any]]:
    said = await fluxd.get(
        f"/v1/doctor?project={hash_}",
        Flux_Api_Base=lab.facts["api_base"],
        Authorization=f"Bearer {lab.facts['token']}",
        Flux_SSH=json.dumps(lab.facts["ssh"] | changes),
    )
    assert said.status == 200
    return {check["name"]: check for check in said.body["checks"]}


async def test_the_whole_way_of_both_modes_is_well_and_costs_no_role(each_lab: Lab, fluxd: Asker):
    before = await asyncio.to_thread(temporary_roles, each_lab.pool_admin_url)
    for hash_ in ("5774112", "ffca33f"):
        checks = await examined(fluxd, each_lab, hash_)
        assert [checks[name]["verdict"] for name in WAY] == ["ok"] * 4, checks
    assert await asyncio.to_thread(temporary_roles, each_lab.pool_admin_url) == before
    assert (await fluxd.get("/v1/status")).body["hosts"] == []


async def test_a_project_nobody_knows_ends_there(lab: Lab, fluxd: Asker):
    checks = await examined(fluxd, lab, "fffffff")
    assert checks["project"]["verdict"] == "fail"
    assert "ssh host" not in checks


async def test_an_ssh_host_that_is_not_there_is_named_and_the_rest_is_not_tried(lab: Lab, fluxd: Asker):
    checks = await examined(fluxd, lab, "5774112", port=9)
    assert checks["ssh host"]["verdict"] == "fail"
    assert "FLUX_DB_TUNNEL_SSH_PORT" in checks["ssh host"]["hint"]
    assert [checks[name]["verdict"] for name in WAY[2:]] == ["skip", "skip"]


async def test_a_key_that_is_not_let_in_is_told_as_such(lab: Lab, fluxd: Asker):
    checks = await examined(fluxd, lab, "5774112", user="nobody-at-all")
    assert checks["ssh host"]["verdict"] == "fail"

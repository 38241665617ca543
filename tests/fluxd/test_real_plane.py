"""fluxd's side of the wire against the real control plane: `fluxplane serve`, a real pool."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator

import pytest

from fluxd.core import errors
from fluxd.plane import Caller, ControlPlane, normalised
from fluxplane.lab.postgres import Server
from fluxplane.wire import GrantRequest, PooledCredentials, PooledPlan, Secret, TunnelReport
from tests.fluxplane.conftest import USER, furnish, serving, settings_for
from tests.furniture.provoked import provoked

FOUNDRY = "5774112"


@dataclasses.dataclass
class Asking:
    control: ControlPlane
    caller: Caller
    extensions: list[str]

    async def mint(self, grant_id: str, access="readonly", ttl_s: int | None = None):
        request = GrantRequest(access=access, ttl_seconds=ttl_s, grant_id=grant_id)
        return await self.control.grant(self.caller, FOUNDRY, request, extensions=self.extensions)


@pytest.fixture
async def asking(pool18: Server) -> AsyncIterator[Asking]:
    settings = settings_for(pool18)
    token = await furnish(settings)
    async with serving(settings, token) as plane, ControlPlane() as control:
        caller = Caller(normalised(plane.base), token, USER)
        plan, _raw = await control.plan(caller, FOUNDRY)
        yield Asking(control, caller, plan.extensions)


async def test_whose_token_it_is(asking: Asking):
    assert asking.caller.token is not None
    assert (await asking.control.verify(asking.caller.api_base, asking.caller.token)).user == USER


async def test_a_wrong_token_is_refused(asking: Asking):
    with pytest.raises(errors.NotAuthenticated):
        await asking.control.verify(asking.caller.api_base, Secret("flx_live_x"))


async def test_plan_project_list_credentials_and_activity_are_of_the_contracts_shape(asking: Asking):
    control, caller = asking.control, asking.caller
    plan, raw = await control.plan(caller, FOUNDRY, ssh_host="bastion.example", ssh_port=2222)
    assert isinstance(plan, PooledPlan)
    assert raw["tunnel"]["sshHost"] == plan.tunnel.ssh_host == "bastion.example"
    assert (await control.project(caller, FOUNDRY)).slug == "foundry"
    assert [one.slug for one in await control.projects(caller)] == ["foundry", "neighbour"]
    assert isinstance(await control.credentials(caller, FOUNDRY), PooledCredentials)
    assert (await control.activity(caller, FOUNDRY, limit=5)).hash == FOUNDRY


async def test_a_strangers_project_is_not_found(asking: Asking):
    with pytest.raises(errors.ProjectNotFound):
        await asking.control.plan(asking.caller, "fffffff")


async def test_a_grants_whole_life(asking: Asking):
    grant_id = secrets.token_hex(16)
    first = await asking.mint(grant_id, ttl_s=600)
    again = await asking.mint(grant_id, ttl_s=600)
    assert (first.grant.username, first.grant.password) == (again.grant.username, again.grant.password)
    assert 590 < first.remaining_s <= 600
    assert 28790 < (first.max_remaining_s or 0) <= 28800
    renewal = await asking.control.renew(asking.caller, grant_id, 3600)
    assert 3590 < renewal.remaining_s <= 3600
    revoked = await asking.control.revoke(asking.caller.api_base, grant_id, None)
    assert revoked.state in {"ended", "ending"}
    with pytest.raises(errors.LeaseOver):
        await asking.control.renew(asking.caller, grant_id, 3600)
    with pytest.raises(errors.LeaseOver):
        await asking.mint(grant_id)


async def test_an_id_never_seen_leaves_a_tombstone(asking: Asking):
    grant_id = secrets.token_hex(16)
    assert (await asking.control.revoke(asking.caller.api_base, grant_id, asking.caller.token)).state == "tombstone"
    with pytest.raises(errors.LeaseOver):
        await asking.mint(grant_id)


async def test_readwrite_is_off_unless_the_platform_allows_it(asking: Asking):
    with pytest.raises(errors.ReadwriteDisabled):
        await asking.mint(secrets.token_hex(16), access="readwrite")


async def test_too_long_a_life_is_told_as_such(asking: Asking):
    with pytest.raises(errors.TTLOutOfRange) as caught:
        await asking.mint(secrets.token_hex(16), ttl_s=99999)
    provoked("ttl_out_of_range", caught.value, says="28800")


async def test_a_role_beyond_the_cap_is_told_as_such(pool18: Server):
    settings = settings_for(pool18)
    settings = dataclasses.replace(settings, limits=dataclasses.replace(settings.limits, live_roles_per_project=1))
    token = await furnish(settings)
    async with serving(settings, token) as plane, ControlPlane() as control:
        asking = Asking(control, Caller(normalised(plane.base), token, USER), ["grant_id", "revoke"])
        await asking.mint(grant_id := secrets.token_hex(16))
        with pytest.raises(errors.TooManyLiveRoles) as caught:
            await asking.mint(secrets.token_hex(16))
        provoked("too_many_live_roles", caught.value, says="1")
        await control.revoke(asking.caller.api_base, grant_id, token)


async def test_a_tunnel_is_reported(asking: Asking):
    report = TunnelReport(event="opened", access="readonly", tunnel_id="t-3f9a")
    await asking.control.report(asking.caller, FOUNDRY, report)


async def test_a_plane_of_the_contract_alone_lists_no_extension(pool18: Server):
    settings = dataclasses.replace(settings_for(pool18), contract_only=True)
    token = await furnish(settings)
    async with serving(settings, token) as plane, ControlPlane() as control:
        caller = Caller(normalised(plane.base), token, USER)
        plan, raw = await control.plan(caller, FOUNDRY)
        assert plan.extensions == []
        assert "extensions" not in raw
        granted = await control.grant(
            caller, FOUNDRY, GrantRequest(access="readonly", grant_id="f" * 32), extensions=()
        )
        assert 3500 < granted.remaining_s <= 3602
        assert granted.max_remaining_s is None
        with pytest.raises(errors.NotSupportedByPlane):
            await control.revoke(caller.api_base, "f" * 32, token)

"""The furniture's own control plane answers in the contract's recorded shapes, where no extension is asked for."""

import aiohttp
import pytest

from tests.furniture import recorded
from tests.furniture.contract import TOKEN, ContractPlane, Project, serving_contract
from tests.furniture.recorded import EXCHANGES

SAME = ["verify", "plan v1", "plan v2", "grant", "no such project", "no token"]


@pytest.fixture
async def plane(open18):
    plane = ContractPlane(open18.url().reveal(), extensions=())
    plane.ssh = {"sshHost": "203.0.113.7", "sshUser": "root", "sshPort": 22}
    plane.projects["abc1234"] = Project(
        "acme", "abc1234", "v1_dedicated", "flux-abc1234-acme-db", 5432, "flux-abc1234-acme-db"
    )
    plane.projects["def5678"] = Project("pooly", "def5678", "v2_shared", "flux-postgres-v2", 5432, "flux-postgres-v2")
    async with serving_contract(plane):
        yield plane


@pytest.mark.parametrize("name", SAME)
async def test_it_answers_in_the_recorded_shape(plane, name):
    one = EXCHANGES[name]
    headers = {"Authorization": f"Bearer {TOKEN}"} if one.token else {}
    url = plane.api_base.removesuffix("/api") + recorded.BELOW + one.path
    async with (
        aiohttp.ClientSession() as http,
        http.request(one.method, url, json=one.sends, headers=headers) as answer,
    ):
        body = await answer.json()
    assert (answer.status, shape(body)) == (one.status, shape(one.answers))


def shape(value: object) -> object:
    """Fields and kinds, whatever they say."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    return [type(value[0])] if isinstance(value, list) else type(value)

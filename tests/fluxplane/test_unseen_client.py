"""
A client of the contract that this plane has never seen: Node's fetch asks what was recorded, and is answered it.

The plane is furnished with the very projects of the contract's sheet, so that their answers are the same to the byte,
but for what is made anew each time.
"""

import asyncio
import dataclasses
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from fluxplane import catalogue, registry
from fluxplane.settings import Limits
from fluxplane.wire import Secret
from tests.fluxplane.conftest import Caller, World
from tests.furniture import recorded
from tests.furniture.needs import needs_program
from tests.furniture.recorded import EXCHANGES, Exchange, differences

WHO = "a@b"
# Ours dumps v1 projects too, and does not call a superuser's access read-only.
OURS = {"plan v1": {"dump": True, "readonly": False}, "plan v1 with flags": {"dump": True, "readonly": False}}
USUAL = [one for one in EXCHANGES.values() if one.name != "rate limited"]


@pytest.fixture(scope="module")
def token(world18: World) -> Secret:
    """Of somebody who has the two projects of the sheet, and no other."""
    return asyncio.run(furnished(world18))


async def furnished(world: World) -> Secret:
    async with catalogue.connect(world.settings) as store:
        await registry.create_user(store, WHO)
        acme = registry.NewProject(
            user=WHO,
            slug="acme",
            mode="v1_dedicated",
            hash="abc1234",
            jwt_secret=Secret("s3cr3t"),
            postgres_url=Secret(f"postgres://postgres:pw%2Fx@127.0.0.1:{world.server.port}/postgres"),
        )
        pooly = registry.NewProject(
            user=WHO,
            slug="pooly",
            mode="v2_shared",
            hash="def5678",
            id=uuid.UUID("01234567-89ab-4def-8123-456789abcdef"),
            jwt_secret=Secret("s3cr3t"),
        )
        for project in (acme, pooly):
            await registry.create_project(store, world.settings, project)
        return await registry.create_token(store, WHO)


@pytest.fixture(params=[True, False], ids=["the contract alone", "with our extensions"])
async def plane(world18: World, token: Secret, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Caller, bool]]:
    async with world18.serving(contract_only=request.param) as caller:
        yield dataclasses.replace(caller, token=token), request.param


async def asked_by_node(caller: Caller, exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    needs_program("node")
    assert caller.token is not None
    own = caller.token.reveal()
    requests = [
        {"method": one.method, "path": one.path, "body": one.sends, "token": own if one.token == "own" else one.token}
        for one in exchanges
    ]
    asking = {"base": caller.base + recorded.BELOW, "requests": requests}
    done = await asyncio.to_thread(
        subprocess.run,
        ["node", recorded.PLACE / "ask.mjs"],
        input=json.dumps(asking),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


async def test_every_recorded_request_is_answered_as_recorded(plane: tuple[Caller, bool]):
    caller, contract_only = plane
    answers = await asked_by_node(caller, USUAL)
    found = {}
    for exchange, answer in zip(USUAL, answers, strict=True):
        wrong = differences(ours(exchange), json.loads(answer["text"]), may_grow=not contract_only)
        wrong += [] if answer["status"] == exchange.status else [f"status {answer['status']}"]
        wrong += [] if answer["headers"]["cache-control"] == exchange.cache_control else ["cache-control"]
        wrong += [] if answer["headers"]["content-type"].startswith("application/json") else ["content-type"]
        found |= {exchange.name: wrong} if wrong else {}
    assert found == {}
    assert len(answers) == len(EXCHANGES) - 1


def ours(exchange: Exchange) -> Exchange:
    if exchange.name not in OURS:
        return exchange
    body = recorded.body(exchange.name)
    body["capabilities"] |= OURS[exchange.name]
    return dataclasses.replace(exchange, answers=body)


async def test_the_twenty_first_sensitive_request_of_a_minute_is_refused_as_recorded(world18: World, token: Secret):
    limited, wrong_access = EXCHANGES["rate limited"], dataclasses.replace(EXCHANGES["grant"], sends={"access": "x"})
    async with world18.serving(limits=Limits()) as caller:
        # A window may end meanwhile: then it is the next one's twenty-first.
        answers = await asked_by_node(dataclasses.replace(caller, token=token), [wrong_access] * 41)
    assert {answer["status"] for answer in answers} == {400, limited.status}
    refused = next(answer for answer in answers if answer["status"] == limited.status)
    body = json.loads(refused["text"])
    assert differences(limited, body) == []
    assert refused["headers"]["retry-after"] == str(body["retryAfterSec"])


def test_a_difference_is_found_wherever_it_is():
    grant = EXCHANGES["grant"]
    good = recorded.body("grant")
    assert differences(grant, good | {"password": "A" * 32}) == []
    for bad in (
        good | {"password": "short"},
        good | {"access": "readwrite"},
        good | {"searchPath": ["public"]},
        good | {"more": 1},
        {key: value for key, value in good.items() if key != "expiresAt"},
        [good],
    ):
        assert differences(grant, bad) != []
    assert differences(grant, good | {"more": 1}, may_grow=True) == []

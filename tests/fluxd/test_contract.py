"""
Schemathesis asks everything that the contract allows, and much that it does not: no 5xx, no answer beside the contract.

It speaks TCP only, so a relay of plain bytes stands before the socket; fluxd itself has no other way in. What the
schema cannot say (that a path exists, that an address is a URL) may be refused, but only as the contract says.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tests.fluxd.asking import Asker, asker
from tests.fluxd.contract_plane import TOKEN
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.leaks import lasting
from tests.furniture.processes import end

GOLDEN = Path(__file__).parents[2] / "docs" / "api" / "openapi.json"
DOCUMENT = json.loads(GOLDEN.read_text())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
STREAM = "GET /v1/events"
OPERATIONS = sorted(one.ok().label for one in SCHEMA.get_all_operations() if one.ok().label != STREAM)
CONFORMANCE = [
    not_a_server_error,
    checks.allow_header_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]


@dataclass(frozen=True)
class Served:
    """fluxd's API at *url*, by TCP, and a control plane that knows one v1 project."""

    url: str
    plane: str


@contextlib.contextmanager
def reachable_by_tcp(path: Path) -> Iterator[Served]:
    call = [sys.executable, "-m", "tests.fluxd.by_tcp", str(path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as relay:
        assert relay.stdout is not None
        try:
            yield Served(**json.loads(relay.stdout.readline()))
        finally:
            end(relay)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    home = Path(tempfile.mkdtemp(prefix="fluxd-"))
    own = Daemon(home)
    with contextlib.ExitStack() as stack:
        with lasting():
            own.start(FLUXD_TOKEN_FILE=str(home / "tokens"))
            found = stack.enter_context(reachable_by_tcp(own.socket))
        yield found
    own.stop()
    assert "Traceback" not in own.said()
    shutil.rmtree(home)


def aimed(case: schemathesis.Case, served: Served) -> schemathesis.Case:
    """*case* for the control plane on this machine: whatever else is odd about it, it asks nobody else's."""
    case.headers = {
        **(case.headers or {}),
        "Host": "localhost",
        "Flux-Api-Base": served.plane,
        "Authorization": f"Bearer {TOKEN}",
    }
    if case.operation.path == "/v1/hosts/key":
        # A host that happens to be one would be dialled, wherever it is; that it cannot be reached is a rightful 502.
        case.headers["Flux-SSH"] = str(case.headers.get("Flux-SSH", "")).replace('"host":', '"nohost":')
    if isinstance(case.body, dict):
        if case.operation.path == "/v1/login":
            case.body["api_base"] = served.plane
        else:
            case.body["plane"] = {"api_base": served.plane, "token": TOKEN}
    if case.path_parameters and "hash" in case.path_parameters and case.id.endswith(("0", "2", "4", "6", "8")):
        case.path_parameters["hash"] = "abc1234"
    return case


def test_every_route_but_the_stream_is_asked():
    assert len(OPERATIONS) == sum(len(methods) for methods in DOCUMENT["paths"].values()) - 1


def test_every_example_is_of_its_own_schema():
    import jsonschema_rs

    examples = list(media_with_examples(DOCUMENT))
    assert len(examples) > 10
    for media in examples:
        schema = {"components": DOCUMENT["components"], **media["schema"]}
        jsonschema_rs.Draft202012Validator(schema).validate(media["example"])


def media_with_examples(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "example" in node and "schema" in node:
            yield node
        for inner in node.values():
            yield from media_with_examples(inner)


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_gets_a_5xx_or_an_answer_beside_the_contract(served: Served, label: str):
    operation = SCHEMA.find_operation_by_label(label)
    assert operation is not None
    odd = [schemathesis.GenerationMode.NEGATIVE] if operation.body else []

    @given(st.data())
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def asked(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from([schemathesis.GenerationMode.POSITIVE, *odd]))
        case = aimed(data.draw(operation.as_strategy(generation_mode=mode)), served)
        case.validate_response(case.call(base_url=served.url), checks=CONFORMANCE)

    asked()


async def test_what_a_working_daemon_answers_is_of_the_contract_too(lab: Lab, daemon: Daemon):
    """The answers of success, with a lab: a tunnel's whole life, each body held to its schema."""
    facts = lab.facts
    plane = {"api_base": facts["api_base"], "token": facts["token"]}
    ssh = dict(facts["ssh"])
    hash_ = next(one["hash"] for one in facts["projects"] if one["slug"] == "foundry")
    v1 = next(one["hash"] for one in facts["projects"] if one["slug"] == "yeastcoast")
    headers = {"Flux_Api_Base": plane["api_base"], "Authorization": f"Bearer {plane['token']}"}
    async with asker(daemon.socket) as fluxd:
        body = {"hash": hash_, "plane": plane, "ssh": ssh, "credential": "new"}
        opened = await answered(fluxd, "POST /v1/tunnels", "/v1/tunnels", body)
        name = opened["tunnel"]["id"]
        again = await answered(fluxd, "POST /v1/tunnels", "/v1/tunnels", body)
        assert again["credential"]["username"] != opened["credential"]["username"]
        await answered(fluxd, "GET /v1/tunnels", "/v1/tunnels")
        await answered(fluxd, "GET /v1/tunnels/{name}", f"/v1/tunnels/{name}")
        await answered(fluxd, "POST /v1/tunnels/{name}/renew", f"/v1/tunnels/{name}/renew", {"plane": plane})
        await answered(fluxd, "GET /v1/status", "/v1/status")
        await answered(fluxd, "GET /v1/plans/{hash}", f"/v1/plans/{hash_}", **headers)
        await answered(fluxd, "POST /v1/grants/{hash}", f"/v1/grants/{hash_}", {"plane": plane})
        await answered(fluxd, "GET /v1/projects", "/v1/projects", **headers)
        for project in (hash_, v1):
            for rest in ("", "/credentials", "/activity"):
                await answered(fluxd, f"GET /v1/projects/{{hash}}{rest}", f"/v1/projects/{project}{rest}", **headers)
        await answered(fluxd, "GET /v1/doctor", f"/v1/doctor?project={hash_}", Flux_SSH=json.dumps(ssh), **headers)
        async with fluxd.session.get("http://localhost/v1/events") as stream:
            conforms(STREAM, 200, json.loads(await stream.content.readline()))
        await answered(fluxd, "DELETE /v1/tunnels/{name}", f"/v1/tunnels/{name}")
        await answered(fluxd, "DELETE /v1/tunnels/{name}", "/v1/tunnels/foundry")
        await answered(fluxd, "DELETE /v1/ports/{name}", "/v1/ports/foundry")


async def answered(fluxd: Asker, label: str, path: str, body: Any = None, **headers: str) -> Any:
    said = await fluxd.ask(label.split(" ", maxsplit=1)[0], path, body, **headers)
    assert said.status < 300, said.body
    conforms(label, said.status, said.body)
    return said.body


def conforms(label: str, status: int, body: Any) -> None:
    """That *body* is what the golden contract says for *status* of that operation."""
    import jsonschema_rs

    method, path = label.split(" ")
    response = DOCUMENT["paths"][path][method.lower()]["responses"][str(status)]
    if status == 204:
        assert body is None
        return
    (content,) = response["content"].values()
    schema = {"components": DOCUMENT["components"], **content["schema"]}
    jsonschema_rs.Draft202012Validator(schema).validate(body)

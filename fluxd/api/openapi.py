"""
The socket's contract as OpenAPI 3.1, made from the route table and the wire's structs. Nothing is written by hand.

`docs/api/openapi.json` is its golden copy, and `GET /openapi.json` serves it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fluxd import wire
from fluxd.api.examples import EXAMPLES
from fluxd.core.errors import FluxError

_TEMPLATE: Final = "#/components/schemas/{name}"


@dataclass(frozen=True)
class Query:
    """A query parameter; *kind* is its type as msgspec knows it."""

    name: str
    kind: Any
    description: str


@dataclass(frozen=True)
class Route:
    """
    One row of the route table.

    *operation* is the operation's id and the name of the method that answers; *answers* maps a status to the body's
    type, None for an empty body; *takes_plane* and *takes_ssh* say that the headers of that name are read.
    """

    method: str
    path: str
    operation: str
    summary: str
    answers: Mapping[int, Any]
    body: Any = None
    query: tuple[Query, ...] = ()
    takes_plane: bool = False
    takes_ssh: bool = False
    media: str = "application/json"
    problems: tuple[type[FluxError], ...] = field(default=())


def document(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    """The whole contract of *routes*."""
    table = list(routes)
    named = {**_components(table), "Problem": _components_of([wire.Problem])["Problem"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fluxd",
            "version": version,
            "description": (
                "The per-user daemon for private database access, on a Unix socket: $FLUXD_SOCKET, else "
                "fluxd/fluxd.sock in the runtime directory. HTTP/1.1 with Host `localhost`, without Origin or Referer, "
                "from processes of the same user. Durations are seconds, instants RFC 3339 in UTC. Answers only grow: "
                "ignore fields you do not know. Send `Flux-Api-Version` to be told when versions differ."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "over the Unix socket"}],
        "paths": _paths(table),
        "components": {
            "schemas": dict(sorted(named.items())),
            "responses": {"Problem": _any_problem()},
            "securitySchemes": {
                "plane": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The control plane's token, on GET and DELETE; fluxd looks for one without it.",
                }
            },
        },
    }


def text(routes: Iterable[Route], *, version: str) -> str:
    return json.dumps(document(routes, version=version), indent=2, ensure_ascii=False) + "\n"


def _paths(table: list[Route]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.operation, "summary": route.summary}
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": _media(route.body)}
        operation["requestBody"] = {"required": _requires(route.body), "content": content}
    operation["responses"] = {
        **{str(status): _response(route, status, kind) for status, kind in route.answers.items()},
        **_problem_responses(route),
        "default": {"$ref": "#/components/responses/Problem"},
    }
    if route.takes_plane:
        operation["security"] = [{"plane": []}, {}]
    return operation


def _media(kind: Any) -> dict[str, Any]:
    """A body's schema, and an example where there is one."""
    if (example := EXAMPLES.get(kind)) is None:
        return {"schema": _schema(kind)}
    return {"schema": _schema(kind), "example": json.loads(wire.encode(example))}


def _requires(kind: Any) -> bool:
    return any(one.required for one in msgspec.structs.fields(kind))


def _response(route: Route, status: int, kind: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"description": _STATUS_WORDS.get(status, "the answer")}
    if kind is not None:
        described["content"] = {route.media: _media(kind)}
    return described


_STATUS_WORDS: Final = {
    200: "done",
    201: "opened by this call",
    202: "begun, and going on",
    206: "the part asked for",
    204: "done, nothing to say",
}


def _problem_responses(route: Route) -> dict[str, Any]:
    """One entry per status, naming the codes that a client should know how to meet."""
    by_status: dict[int, list[type[FluxError]]] = {}
    for kind in route.problems:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        str(status): _problem_response(", ".join(f"`{kind.code}`" for kind in kinds))
        for status, kinds in sorted(by_status.items())
    }


def _problem_response(codes: str) -> dict[str, Any]:
    return {"description": codes, "content": {"application/problem+json": {"schema": _schema(wire.Problem)}}}


def _any_problem() -> dict[str, Any]:
    return {"description": "any problem", "content": {"application/problem+json": _media(wire.Problem)}}


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]} for name in _in_path(route.path)
    ]
    parameters += [
        {"name": one.name, "in": "query", "description": one.description, "schema": _schema(one.kind)}
        for one in route.query
    ]
    if route.takes_plane:
        parameters.append(_header("Flux-Api-Base", "the control plane's base address", {"type": "string"}))
    if route.takes_ssh:
        content = {"application/json": {"schema": _schema(wire.SSH)}}
        parameters.append({"name": "Flux-SSH", "in": "header", "content": content})
    return parameters


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_PATH_SCHEMAS: Final[Mapping[str, Any]] = {
    "name": {"type": "string", "minLength": 1, "description": "a tunnel's id, slug, hash or port"},
    "id": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "description": "a backup's or restore's id"},
    "hash": {"type": "string", "pattern": "^[a-f0-9]{7}$", "description": "project hash, 7 hex digits"},
}


def _in_path(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _schema(kind: Any) -> dict[str, Any]:
    (found,), _named = msgspec.json.schema_components([kind], schema_hook=_secret, ref_template=_TEMPLATE)
    return found


def _components(table: list[Route]) -> dict[str, Any]:
    kinds = [kind for route in table for kind in (route.body, *route.answers.values()) if kind is not None]
    return _components_of([*kinds, *([wire.SSH] if any(route.takes_ssh for route in table) else [])])


def _components_of(kinds: list[Any]) -> dict[str, Any]:
    _found, named = msgspec.json.schema_components(kinds, schema_hook=_secret, ref_template=_TEMPLATE)
    return named


def _secret(kind: type) -> dict[str, Any]:
    if kind is wire.Secret:
        return {"type": "string", "format": "password"}
    raise NotImplementedError(kind)

"""
The contract's requests and answers, each once: for servers that play them back and clients that ask them.

`exchanges.json` was written from the contract's sheet. What code of ours sends and answers is compared with it, so that
a change which both ends of ours agree on still shows.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BELOW = "/api/cli/v1"
PLACE = Path(__file__).parent


@dataclass(frozen=True)
class Exchange:
    """`token` is the caller's own, unless the record names another (or none)."""

    name: str
    method: str
    path: str
    sends: Any
    status: int
    answers: Any
    varies: dict[str, str] = field(default_factory=dict)
    token: str | None = "own"
    cache_control: str = "private, no-store"

    @property
    def route(self) -> str:
        """As the playing planes of the tests name it."""
        return f"{self.method} {self.path.partition('?')[0]}"


def _read() -> dict[str, Exchange]:
    found = json.loads((PLACE / "exchanges.json").read_text())["exchanges"]
    return {
        name: Exchange(
            name,
            one["request"]["method"],
            one["request"]["path"],
            one["request"].get("body"),
            one["status"],
            one["body"],
            one.get("varies", {}),
            one["request"].get("token", "own"),
            one.get("cacheControl", Exchange.cache_control),
        )
        for name, one in found.items()
    }


EXCHANGES = _read()


def body(name: str) -> Any:
    """A copy of what is answered in the exchange *name*."""
    return copy.deepcopy(EXCHANGES[name].answers)


def differences(exchange: Exchange, answered: Any, *, may_grow: bool = False) -> list[str]:
    """Where *answered* is not what was recorded, nor varies as it may; fields of its own count unless it *may_grow*."""
    found = _compare(exchange.answers, answered, exchange.varies, "")
    return [one for one in found if not (may_grow and one.endswith(_MORE))]


_MORE = "is not in the contract"


def _compare(expected: Any, found: Any, varies: dict[str, str], at: str) -> Iterator[str]:
    if at in varies:
        text = found if isinstance(found, str) else json.dumps(found)
        if type(found) is not type(expected) or not re.fullmatch(varies[at], text, re.DOTALL):
            yield f"{at}: {found!r} does not fit {varies[at]}"
    elif isinstance(expected, dict) and isinstance(found, dict):
        yield from (f"{_below(at, key)} is missing" for key in expected.keys() - found.keys())
        yield from (f"{_below(at, key)} {_MORE}" for key in found.keys() - expected.keys())
        for key in expected.keys() & found.keys():
            yield from _compare(expected[key], found[key], varies, _below(at, key))
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _compare(one, other, varies, _below(at, str(number)))
    elif type(expected) is not type(found) or expected != found:
        yield f"{at}: {found!r}, recorded is {expected!r}"


def _below(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key

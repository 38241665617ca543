"""
JSON without `import json`, whose decoder imports `re`: that alone costs as much as the whole interpreter's start.

Reading is CPython's own C scanner (`_json.make_scanner`, what `json` uses), writing is ours. Where `_json` is missing,
or no longer takes what we give it, `json` does the work and only the start is slower.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Settings:
    """What the C scanner asks of a `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - an instance's attribute in json too; the scanner clears it

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


def loads(data: bytes) -> Any:
    """
    What *data* says.

    Raises:
        ValueError: it is not one JSON value in UTF-8, or is nested too deep.
    """
    text = data.decode("utf-8").strip(" \t\r\n")
    try:
        value, end = _scanner()(text, 0)
    except StopIteration as stop:
        raise ValueError(f"no JSON value at character {stop.value}") from None
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    except SystemError:
        # The scanner takes its JSONDecodeError from `json.decoder` only if that was imported, and else raises nothing.
        raise ValueError("not one JSON value") from None
    if end != len(text):
        raise ValueError(f"something follows the JSON value at character {end}")
    return value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """*value* (dicts with text keys, lists, text, numbers, booleans, None) as JSON, as `json.dumps` would write it."""
    return _write(value, "\n" if indent else "", " " * (indent or 0))


def _scanner() -> Any:
    try:
        from _json import make_scanner  # noqa: PLC0415

        return make_scanner(_Settings)  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError):
        from json import JSONDecoder  # noqa: PLC0415

        return JSONDecoder().scan_once  # type: ignore[attr-defined]


def _quote(text: str) -> str:
    try:
        from _json import encode_basestring  # noqa: PLC0415
    except ImportError:
        from json.encoder import encode_basestring  # noqa: PLC0415
    quoted: str = encode_basestring(text)
    return quoted


def _write(value: Any, margin: str, step: str) -> str:
    if isinstance(value, str):
        return _quote(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    inner = margin + step
    if isinstance(value, dict):
        return _wrap("{}", [f"{_quote(key)}: {_write(one, inner, step)}" for key, one in value.items()], margin, inner)
    return _wrap("[]", [_write(one, inner, step) for one in value], margin, inner)


def _wrap(brackets: str, items: list[str], margin: str, inner: str) -> str:
    if not items:
        return brackets
    between = "," + inner if inner else ", "
    return f"{brackets[0]}{inner}{between.join(items)}{margin}{brackets[1]}"

"""
Which address a control plane has, whether a token may travel there, and who is asking.

The normal form is the contract's: one ``/api`` at the end, no slash behind it. Everything that is keyed by a control
plane (ports, tokens, tunnels) uses it, so it must be one text per plane: scheme and host are lower-case besides.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fluxd.core.errors import BadAPIBase, InsecureAPIBase
from fluxplane.wire import Secret

DEFAULT_API_BASE: Final = "https://flux.vsl-base.com/api"

# Narrow on purpose: two URL parsers cannot disagree about what is left.
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Caller:
    """
    Who asks which control plane. *api_base* is in normal form; *account* keys ports and tunnels, since a project's
    hash is unique per account only; without a *token* nothing can be asked but the end of a grant.
    """

    api_base: str
    token: Secret | None
    account: str


def normalised(text: str | None) -> str:
    """
    *text* as a base address, the default one if it is None or blank.

    Raises:
        BadAPIBase: not an http or https URL, or one with a user, query or fragment.
        InsecureAPIBase: plain http to anything but this machine.
    """
    trimmed = (text or "").strip().rstrip("/")
    if not trimmed:
        return DEFAULT_API_BASE
    parts = _URL.fullmatch(trimmed)
    if parts is None or not 0 < int(parts["port"] or 1) <= 65535:
        raise BadAPIBase(f"The control plane's address is not a URL: {_shown(trimmed)}")
    if parts["scheme"].lower() == "http" and not _is_loopback(parts["host"]):
        raise InsecureAPIBase(f"{_shown(trimmed)} is plain http; a token is sent over that to this machine only.")
    return _joined(parts)


def _joined(parts: re.Match[str]) -> str:
    path = re.sub(r"(?:/api)+$", "", parts["path"].rstrip("/"), flags=re.IGNORECASE)
    port = f":{int(parts['port'])}" if parts["port"] else ""
    return f"{parts['scheme'].lower()}://{parts['host'].lower()}{port}{path}/api"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _shown(text: str) -> str:
    """For people: one line, no terminal controls, and never a password of a URL's user part."""
    plain = re.sub(r"[^\x20-\x7e]", "?", text)
    return re.sub(r"//[^/@]*@", "//…@", plain)[:200]


def same_origin(one: str, other: str) -> bool:
    """Whether two absolute URLs name the same scheme, host and port: only there a token may follow."""
    try:
        return _origin(one) == _origin(other)
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

"""
What of the user's ``~/.ssh/config`` can we not honour?

asyncssh reads the file and skips, in silence, every keyword that it does not know. Most of those do not matter to a
forward; these do, or people think that they do, so they are named. Only the blocks that apply to the host count; a
``Match`` is taken to apply, since deciding it may mean to run a command.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

# The spelling people know. Ours and asyncssh's answer to each stands in docs/decisions.
UNHONOURED: Final = (
    "BindInterface",
    "CheckHostIP",
    "ControlMaster",
    "ControlPath",
    "ControlPersist",
    "DynamicForward",
    "HostbasedAcceptedAlgorithms",
    "KnownHostsCommand",
    "LocalCommand",
    "LocalForward",
    "NoHostAuthenticationForLocalhost",
    "ProxyUseFdpass",
    "PubkeyAcceptedAlgorithms",
    "RemoteForward",
    "RequiredRSASize",
    "RevokedHostKeys",
    "SecurityKeyProvider",
    "StrictHostKeyChecking",
    "VerifyHostKeyDNS",
)
_SPELT: Final = {name.lower(): name for name in UNHONOURED}
DEEPEST_INCLUDE: Final = 16


def unhonoured(config: Path, host: str) -> list[str]:
    """The keywords that *config* sets for *host* and that are not honoured, each once, in their order."""
    settings = _settings(config.expanduser(), host, DEEPEST_INCLUDE)
    found = (keyword for keyword, value in settings if not _is_ours(keyword, value))
    return list(dict.fromkeys(_SPELT[keyword] for keyword in found if keyword in _SPELT))


def _is_ours(keyword: str, value: str) -> bool:
    """Whether we do as the setting says anyhow."""
    return keyword == "stricthostkeychecking" and value.lower() in ("yes", "true", "ask")


def _settings(config: Path, host: str, depth: int) -> Iterator[tuple[str, str]]:
    applies = True
    for keyword, words in _lines(config):
        if keyword == "host":
            applies = _matches(words, host)
        elif keyword == "match":
            applies = True
        elif keyword == "include" and applies and depth:
            for path in _included(words):
                yield from _settings(path, host, depth - 1)
        elif applies:
            yield keyword, " ".join(words)


def _lines(config: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        text = config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            words = shlex.split(line.replace("=", " ", 1), comments=True)
        except ValueError:
            continue
        if len(words) > 1:
            yield words[0].lower(), words[1:]


def _matches(patterns: list[str], host: str) -> bool:
    if any(fnmatchcase(host, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(host, pattern) for pattern in patterns if not pattern.startswith("!"))


def _included(patterns: list[str]) -> Iterator[Path]:
    for pattern in patterns:
        path = Path(pattern).expanduser()
        root = Path(path.anchor) if path.is_absolute() else Path("~/.ssh").expanduser()
        yield from sorted(root.glob(str(path.relative_to(root) if path.is_absolute() else path)))

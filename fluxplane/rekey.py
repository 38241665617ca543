"""
Changing the plane's key without losing a secret or a second of service.

Three steps, each of which may be repeated: `add` makes the next key, which every replica is to know before it is used;
`rotate` puts it first and seals everything anew; `prune` forgets what nothing needs any more. At no moment is anything
sealed with a key that is not in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fluxplane import catalogue, keychain
from fluxplane.catalogue import Catalogue
from fluxplane.registry import sealed_for
from fluxplane.settings import OperatorError, Settings

# column of `projects` -> what it is sealed for
_SEALED: Final = {"sealed_password": "password", "sealed_jwt_secret": "jwt"}


def add(settings: Settings) -> str:
    """Make the next key; tells what was done."""
    if keychain.add_next(_file(settings)):
        return "The next key is in the file. Have every replica read it (copy, restart), then: fluxplane key rotate"
    return "The next key is in the file already. When every replica has read it: fluxplane key rotate"


async def rotate(settings: Settings) -> str:
    """Use the next key, and seal everything with it; one that broke off goes on. Tells what was done."""
    taken = keychain.take_next(_file(settings))
    async with catalogue.connect(settings) as store:
        count = await _seal_anew(store)
    if not taken and not count:
        raise OperatorError("There is no next key: fluxplane key add")
    return f"{count} secrets are sealed with the new key. Have every replica read it, then: fluxplane key prune"


async def prune(settings: Settings) -> str:
    """Forget the keys that nothing is sealed with and no live role's password comes from. Tells what was done."""
    path = _file(settings)
    async with catalogue.connect(settings) as store:
        used = await _in_use(store)
    dropped = keychain.drop_unused(path, used)
    first, *others = keychain.ids(path)
    still = sum(one in used for one in others if one != first)
    return f"{dropped} keys removed." + (f" {still} older ones are still needed." if still else "")


def _file(settings: Settings) -> Path:
    if settings.key is not None or settings.key_file is None:
        raise OperatorError("Only a key in a file (FLUXPLANE_KEY_FILE, without FLUXPLANE_KEY) is changed by a command.")
    return settings.key_file


async def _seal_anew(store: Catalogue) -> int:
    """Have every stored secret sealed by the first key; how many were not."""
    columns, count = ", ".join(_SEALED), 0
    async with store.db.acquire() as link, link.transaction():
        for row in await link.fetch(f"SELECT id, {columns} FROM projects ORDER BY id FOR UPDATE"):
            for column, what in _SEALED.items():
                sealed = row[column]
                if sealed is None or store.keys.is_current(bytes(sealed)):
                    continue
                purpose = sealed_for(what, row["id"])
                anew = store.keys.seal(store.keys.unseal(bytes(sealed), purpose=purpose), purpose=purpose)
                await link.execute(f"UPDATE projects SET {column} = $2 WHERE id = $1", row["id"], anew)
                count += 1
    return count


async def _in_use(store: Catalogue) -> set[bytes]:
    """The ids of the keys that something was made with which is still needed."""
    rows = await store.db.fetch(
        f"SELECT unnest(ARRAY[{', '.join(_SEALED)}]) AS made FROM projects"
        " UNION SELECT nonce FROM grants WHERE state IN ('minting', 'live')"
    )
    return {keychain.id_of(bytes(row["made"])) for row in rows if row["made"] is not None}

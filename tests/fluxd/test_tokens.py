"""A token belongs to the base it was made for, wherever it is found."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxd import wire
from fluxd.core import errors
from fluxd.plane import DEFAULT_API_BASE, ControlPlane, Tokens
from fluxplane.wire import Secret
from tests.fluxd.contract_plane import TOKEN, VERIFIED, ContractPlane, contract_plane

OTHER = "https://elsewhere.example/api"


class Drawer:
    """A keyring with two logins in it, or a locked one."""

    def __init__(self, *, locked: bool = False, **kept: str) -> None:
        self.locked = locked
        self.kept = kept

    async def get(self, api_base: str) -> Secret | None:
        if self.locked:
            raise errors.KeyringUnavailable("The system keyring is locked.")
        return Secret(self.kept[api_base]) if api_base in self.kept else None


@pytest.fixture
async def plane() -> AsyncIterator[ContractPlane]:
    async with contract_plane() as running:
        running.say("GET /auth/verify", VERIFIED)
        yield running


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".flux").mkdir(mode=0o700)
    (tmp_path / ".flux" / "config.json").write_text(json.dumps({"token": "flx_live_of_the_file"}))
    return tmp_path


def tokens(control: ControlPlane, home: Path, drawer: Drawer | None = None, **environ: str) -> Tokens:
    return Tokens(
        control=control, keychain=drawer or Drawer(), state_dir=home / "state", environ={"HOME": str(home), **environ}
    )


async def test_the_requests_own_token_is_used_for_its_own_base(control: ControlPlane, home: Path, plane: ContractPlane):
    caller = await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))
    assert (caller.api_base, caller.token, caller.account) == (plane.base, Secret(TOKEN), "a@b")


async def test_a_foreign_base_collects_nothing(control: ControlPlane, home: Path, plane: ContractPlane):
    """A cloned repository's .env names a base; every token that we have was made for another."""
    found = tokens(
        control,
        home,
        Drawer(**{DEFAULT_API_BASE: "of-the-keyring", OTHER: "of-another"}),
        FLUX_API_TOKEN="of-the-shell",
    )
    with pytest.raises(errors.NotAuthenticated) as caught:
        await found.resolve(wire.Plane(plane.base))
    assert plane.asked == []
    assert f"fluxctl login --api-base {plane.base}" in (caught.value.hint or "")


async def test_a_token_without_a_base_was_made_for_the_default_one(control: ControlPlane, home: Path):
    found = tokens(control, home, FLUX_API_BASE=OTHER)
    assert found.base(wire.Plane(token=Secret(TOKEN))) == DEFAULT_API_BASE
    assert found.base(wire.Plane()) == OTHER


async def test_our_environments_token_is_for_our_environments_base(control: ControlPlane, home: Path):
    found = tokens(control, home, FLUX_API_BASE=OTHER, FLUX_API_TOKEN=" of-the-shell ")
    assert await found.token(OTHER) == Secret("of-the-shell")
    assert await found.token(DEFAULT_API_BASE) == Secret("flx_live_of_the_file")


async def test_our_environments_token_alone_is_for_the_default_base(control: ControlPlane, home: Path):
    found = tokens(control, home, FLUX_API_TOKEN="of-the-shell")
    assert await found.token(DEFAULT_API_BASE) == Secret("of-the-shell")
    with pytest.raises(errors.NotAuthenticated):
        await found.token(OTHER)


async def test_the_keyring_comes_before_the_existing_clis_file(control: ControlPlane, home: Path):
    found = tokens(control, home, Drawer(**{DEFAULT_API_BASE: "of-the-keyring"}))
    assert await found.token(DEFAULT_API_BASE) == Secret("of-the-keyring")


async def test_the_existing_clis_file_counts_for_the_default_base_only(control: ControlPlane, home: Path):
    found = tokens(control, home)
    assert await found.token(DEFAULT_API_BASE) == Secret("flx_live_of_the_file")
    with pytest.raises(errors.NotAuthenticated):
        await found.token(OTHER)


async def test_a_locked_keyring_does_not_hide_the_existing_clis_file(control: ControlPlane, home: Path):
    found = tokens(control, home, Drawer(locked=True))
    assert await found.token(DEFAULT_API_BASE) == Secret("flx_live_of_the_file")


async def test_a_locked_keyring_is_named_when_nothing_else_is_found(control: ControlPlane, home: Path):
    with pytest.raises(errors.NotAuthenticated) as caught:
        await tokens(control, home, Drawer(locked=True)).token(OTHER)
    assert "locked" in (caught.value.detail or "")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 7}', b'{"token": "  "}', b"\xff", b"[" * 100_000])
async def test_a_broken_file_counts_as_absent(control: ControlPlane, home: Path, content: bytes):
    (home / ".flux" / "config.json").write_bytes(content)
    with pytest.raises(errors.NotAuthenticated):
        await tokens(control, home).token(DEFAULT_API_BASE)


async def test_a_pipe_in_the_files_place_keeps_nobody_waiting(control: ControlPlane, home: Path):
    (home / ".flux" / "config.json").unlink()
    os.mkfifo(home / ".flux" / "config.json")
    with pytest.raises(errors.NotAuthenticated):
        await tokens(control, home).token(DEFAULT_API_BASE)


async def test_the_account_is_asked_once_however_many_ask(control: ControlPlane, home: Path, plane: ContractPlane):
    found = tokens(control, home)
    callers = await asyncio.gather(*(found.resolve(wire.Plane(plane.base, Secret(TOKEN))) for _ in range(20)))
    assert {caller.account for caller in callers} == {"a@b"}
    assert len(plane.asked) == 1


async def test_a_restart_without_network_still_knows_the_account(control: ControlPlane, home: Path):
    async with contract_plane() as plane:
        plane.say("GET /auth/verify", VERIFIED)
        await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))
    assert (await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))).account == "a@b"
    with pytest.raises(errors.PlaneUnreachable):
        await tokens(control, home).resolve(wire.Plane(plane.base, Secret("another")))


async def test_what_is_remembered_holds_no_token_and_is_ours_alone(
    control: ControlPlane, home: Path, plane: ContractPlane
):
    await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))
    saved = home / "state" / "accounts.json"
    assert TOKEN not in saved.read_text()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert [one.name for one in saved.parent.iterdir()] == ["accounts.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version":2,"accounts":{}}', b"\x00"])
async def test_a_damaged_memory_only_costs_asking_again(
    control: ControlPlane, home: Path, plane: ContractPlane, content: bytes
):
    (home / "state").mkdir()
    (home / "state" / "accounts.json").write_bytes(content)
    assert (await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))).account == "a@b"


async def test_a_plane_that_does_not_say_whose_token_it_is_gets_a_stable_pseudonym(control: ControlPlane, home: Path):
    async with contract_plane() as plane:
        one = await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))
        again = await tokens(control, home / "elsewhere").resolve(wire.Plane(plane.base, Secret(TOKEN)))
        other = await tokens(control, home).resolve(wire.Plane(plane.base, Secret("another")))
    assert one.account == again.account != other.account
    assert TOKEN[9:20] not in one.account


async def test_a_refused_token_is_told_as_such(control: ControlPlane, home: Path, plane: ContractPlane):
    plane.say("GET /auth/verify", {"error": "Unauthorized"}, status=401)
    with pytest.raises(errors.NotAuthenticated):
        await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))
    plane.say("GET /auth/verify", VERIFIED)
    assert (await tokens(control, home).resolve(wire.Plane(plane.base, Secret(TOKEN)))).account == "a@b"

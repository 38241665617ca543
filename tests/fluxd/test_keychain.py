"""A login goes into a real Secret Service and comes out again; a locked one and none are told apart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from fluxd.core.errors import KeyringUnavailable
from fluxd.keychain import SystemKeyring, TokenFile
from fluxplane.wire import Secret
from tests.fluxd.asking import Asker, asker
from tests.fluxd.contract_plane import TOKEN, VERIFIED, ContractPlane, contract_plane
from tests.furniture.daemon import Daemon
from tests.furniture.secrets import keyring_daemon, needs_secret_service, session_bus

BASE = "https://h/api"


@pytest.fixture
async def plane() -> AsyncIterator[ContractPlane]:
    async with contract_plane() as serving:
        serving.say("GET /auth/verify", VERIFIED)
        serving.say("GET /list", [])
        yield serving


@contextlib.asynccontextmanager
async def running(home: Path, **environment: str) -> AsyncIterator[Asker]:
    """A fluxd with *environment*, and somebody who asks it."""
    own = Daemon(home)
    await asyncio.to_thread(own.start, **environment)
    try:
        async with asker(own.socket) as fluxd:
            yield fluxd
    finally:
        await asyncio.to_thread(own.stop)


def on(bus: Mapping[str, str]) -> dict[str, str]:
    return {"DBUS_SESSION_BUS_ADDRESS": bus["DBUS_SESSION_BUS_ADDRESS"]}


def everything_in(home: Path) -> str:
    return "\n".join(path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file())


@needs_secret_service
async def test_a_login_survives_a_restart_in_the_keyring_alone(daemon_home: Path, plane: ContractPlane):
    with session_bus(daemon_home) as bus, keyring_daemon(bus, unlocked=True):
        async with running(daemon_home, **on(bus)) as fluxd:
            said = await fluxd.ask("PUT", "/v1/login", {"token": TOKEN, "api_base": plane.base})
            assert (said.status, said.body["user"], said.body["stored_in"]) == (200, "a@b", "keyring")
        assert TOKEN not in everything_in(daemon_home), "the keyring's own file is encrypted"

        async with running(daemon_home, **on(bus)) as fluxd:
            assert (await fluxd.get("/v1/projects", Flux_Api_Base=plane.base)).status == 200
            assert plane.asked[-1].headers["Authorization"] == f"Bearer {TOKEN}"
            checks = (await fluxd.get("/v1/doctor", Flux_Api_Base=plane.base)).body["checks"]
            assert next(one for one in checks if one["name"] == "keyring")["verdict"] == "ok"
            assert (await fluxd.ask("DELETE", "/v1/login", Flux_Api_Base=plane.base)).body["stored_in"] is None
            assert (await fluxd.get("/v1/projects", Flux_Api_Base=plane.base)).code == "not_authenticated"


@needs_secret_service
async def test_a_login_is_for_its_own_base_alone(daemon_home: Path, plane: ContractPlane):
    with session_bus(daemon_home) as bus, keyring_daemon(bus, unlocked=True):
        async with running(daemon_home, **on(bus)) as fluxd, contract_plane() as elsewhere:
            await fluxd.ask("PUT", "/v1/login", {"token": TOKEN, "api_base": plane.base})
            assert (await fluxd.get("/v1/projects", Flux_Api_Base=elsewhere.base)).code == "not_authenticated"
            assert elsewhere.asked == []


@needs_secret_service
async def test_a_locked_keyring_is_told_as_such_within_its_time(daemon_home: Path, plane: ContractPlane):
    with session_bus(daemon_home) as bus:
        with keyring_daemon(bus, unlocked=True):
            async with running(daemon_home, **on(bus)) as fluxd:
                assert (await fluxd.ask("PUT", "/v1/login", {"token": TOKEN, "api_base": plane.base})).status == 200
        with keyring_daemon(bus, unlocked=False):
            async with running(daemon_home, **on(bus)) as fluxd:
                said = await fluxd.get("/v1/projects", Flux_Api_Base=plane.base)
                assert said.code == "not_authenticated"
                assert said.body["detail"].endswith("The system keyring is locked.")


async def test_no_keyring_is_told_as_such_and_nothing_is_written(daemon_home: Path, plane: ContractPlane):
    async with running(daemon_home) as fluxd:
        said = await fluxd.ask("PUT", "/v1/login", {"token": TOKEN, "api_base": plane.base})
    assert (said.status, said.code) == (503, "keyring_unavailable")
    assert said.body["message"] == "This machine has no system keyring."
    assert "token_file" in said.body["hint"]
    assert TOKEN not in everything_in(daemon_home)


async def test_a_keyring_that_never_answers_is_not_waited_for(monkeypatch):
    """A library that hangs in D-Bus: the thread is left behind, the request is not."""
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        "fluxd.keychain._keyring", lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
    )
    monkeypatch.setattr("fluxd.keychain.ASK_WITHIN_S", 0.1)
    with pytest.raises(KeyringUnavailable, match="does not answer"):
        await SystemKeyring().get(BASE)
    release.set()


@pytest.mark.parametrize(
    "backend",
    ["keyring.backends.null.Keyring", "keyring.backends.fail.Keyring", "tests.fluxd.plaintext.PlaintextKeyring"],
)
async def test_a_backend_that_keeps_nothing_safe_counts_as_none(monkeypatch, backend: str):
    import keyring.core

    monkeypatch.setattr("keyring.core._keyring_backend", keyring.core.load_keyring(backend))
    with pytest.raises(KeyringUnavailable, match="no system keyring"):
        await SystemKeyring().put(BASE, Secret(TOKEN))


# ------------------------------------------------------------------- the token file


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens")


async def test_the_file_keeps_one_token_for_each_base(tokens: TokenFile, tmp_path: Path):
    await tokens.put(BASE, Secret("one"))
    await tokens.put("https://i/api", Secret("two"))
    await tokens.put(BASE, Secret("three"))
    assert (await tokens.get(BASE), await tokens.get("https://i/api")) == (Secret("three"), Secret("two"))
    assert stat.S_IMODE((tmp_path / "tokens").stat().st_mode) == 0o600
    assert await tokens.delete(BASE)
    assert not await tokens.delete(BASE)
    assert await tokens.get(BASE) is None


async def test_a_file_written_by_hand_is_read(tokens: TokenFile, tmp_path: Path):
    (tmp_path / "tokens").write_text(f"# mine\n\n  {BASE}   abc  \nbroken\n")
    (tmp_path / "tokens").chmod(0o600)
    assert await tokens.get(BASE) == Secret("abc")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
async def test_a_file_that_others_may_read_is_refused(tokens: TokenFile, tmp_path: Path, mode: int):
    (tmp_path / "tokens").write_text(f"{BASE} abc\n")
    (tmp_path / "tokens").chmod(mode)
    with pytest.raises(KeyringUnavailable, match="chmod 600"):
        await tokens.get(BASE)
    with pytest.raises(KeyringUnavailable):
        await tokens.put(BASE, Secret("x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_somebody_elses_file_is_refused(tokens: TokenFile, tmp_path: Path):
    (tmp_path / "tokens").write_text(f"{BASE} abc\n")
    (tmp_path / "tokens").chmod(0o600)
    os.chown(tmp_path / "tokens", 65534, 65534)
    with pytest.raises(KeyringUnavailable):
        await tokens.get(BASE)


async def test_a_daemon_told_to_keeps_logins_in_the_file(daemon_home: Path, plane: ContractPlane):
    async with running(daemon_home, FLUXD_TOKEN_FILE=str(daemon_home / "tokens")) as fluxd:
        said = await fluxd.ask("PUT", "/v1/login", {"token": TOKEN, "api_base": plane.base})
        assert said.body["stored_in"] == "file"
        assert (await fluxd.get("/v1/projects", Flux_Api_Base=plane.base)).status == 200
    assert (daemon_home / "tokens").read_text() == f"{plane.base} {TOKEN}\n"

"""The second place: a backup's copy is whole or not there, comes back when it is needed, and goes with its backup."""

import asyncio
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import stat
import threading
import uuid
from pathlib import Path

import pytest

from fluxplane import catalogue, doctor
from fluxplane.backups import shelf
from fluxplane.backups.offsite import copy
from fluxplane.backups.programs import BackupFailed, Unable
from tests.fluxplane.backups.conftest import V1, V2, base, made, newest
from tests.fluxplane.conftest import serving


@pytest.fixture
def offsite(settings):
    """As `settings`, with a second place; and that."""
    settings, token = settings
    place = settings.backups.directory.parent / "offsite"
    place.mkdir()
    backups = dataclasses.replace(settings.backups, offsite=place)
    return dataclasses.replace(settings, backups=backups), token, place


def at(place: Path, backup: dict) -> Path:
    return place / backup["primaryArtifactRelativePath"]


async def told(plane, words: dict) -> dict:
    """The newest backup, once these words are told of it: a sweep runs when the plane starts."""
    async with asyncio.timeout(20):
        while not words.items() <= (found := await newest(plane, V2)).items():
            await asyncio.sleep(0.05)
    return found


async def set_(settings, change: str, backup: dict) -> None:
    async with catalogue.connect(settings) as store:
        await store.db.execute(f"UPDATE backups SET {change} WHERE id = $1", uuid.UUID(backup["id"]))


VERIFIED = "restore = 'restore_verified', restore_at = clock_timestamp()"


async def test_a_backup_is_copied_checked_and_told_of(offsite):
    settings, token, place = offsite
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
    copy = at(place, backup)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == backup["checksumSha256"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert {name: value for name, value in backup.items() if name.startswith("offsite")} == {
        "offsiteStatus": "complete",
        "offsiteProvider": "directory",
        "offsiteKey": backup["primaryArtifactRelativePath"],
        "offsiteCompletedAt": backup["offsiteCompletedAt"],
        "offsiteSizeBytes": backup["sizeBytes"],
        "offsiteContentSha256": backup["checksumSha256"],
    }
    assert list(place.glob("*/*")) == [copy]


async def test_without_a_second_place_nothing_is_told_of_one(settings):
    settings, token = settings
    async with serving(settings, token) as plane:
        assert not [name for name in await made(plane, V2) if name.startswith("offsite")]


@pytest.mark.parametrize("harm", ["removed", "changed"])
async def test_a_file_that_is_lost_comes_back_and_stays_verified(offsite, harm):
    settings, token, _ = offsite
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        await set_(settings, VERIFIED, backup)
        path = Path(backup["primaryArtifactAbsolutePath"])
        data = path.read_bytes()
        path.unlink() if harm == "removed" else path.write_bytes(bytes(reversed(data)))
        found = await newest(plane, V2)
        assert path.read_bytes() == data
    assert states(found) == ("artifact_valid", "restore_verified", "present")


@contextlib.contextmanager
def hanging(file: Path):
    """The file as one whose disk does not answer, until what is in it is `written` to it."""
    file.unlink()
    os.mkfifo(file)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))  # who waits for it goes on


async def written(file: Path, data: bytes) -> None:
    async with asyncio.timeout(10):
        await asyncio.to_thread(file.write_bytes, data)


async def begun(path: Path) -> None:
    """Somebody brings the file back."""
    async with asyncio.timeout(10):
        while not path.with_name(path.name + ".partial").exists():
            await asyncio.sleep(0.02)


def states(backup: dict) -> tuple[str, str, str]:
    return (
        backup["artifactValidationStatus"],
        backup["restoreVerificationStatus"],
        backup["localArtifactStatus"],
    )


async def test_a_file_that_comes_back_stays_verified_however_many_look(offsite, monkeypatch):
    """In one plane whoever wants it waits for the first look; another plane says that nobody knows yet."""
    settings, token, place = offsite
    monkeypatch.setattr(shelf, "LOOKED_WITHIN_S", 30)
    async with serving(settings, token) as plane, serving(settings, token) as replica:
        backup = await made(plane, V2)
        await set_(settings, VERIFIED, backup)
        path = Path(backup["primaryArtifactAbsolutePath"])
        data = path.read_bytes()
        with hanging(at(place, backup)):
            path.unlink()
            async with asyncio.TaskGroup() as looks:
                first = looks.create_task(newest(plane, V2))
                await begun(path)
                second = looks.create_task(newest(plane, V2))
                verified = looks.create_task(plane.post(f"{base(V2)}/{backup['id']}/verify"))
                assert states(await newest(replica, V2)) == ("pending", "pending", "missing")
                answer = await replica.post(f"{base(V2)}/{backup['id']}/verify")
                assert answer.status == 404
                await written(at(place, backup), data)
        assert verified.result().status == 200
        for found in (first.result(), second.result(), await newest(replica, V2)):
            assert states(found) == ("artifact_valid", "restore_verified", "present")
    assert path.read_bytes() == data


async def test_a_list_and_the_gate_answer_while_a_file_comes_back(offsite, monkeypatch):
    settings, token, place = offsite
    monkeypatch.setattr(shelf, "LOOKED_WITHIN_S", 0.1)
    restore = f"/api/cli/v1/projects/{V1}/restores"
    async with serving(settings, token) as plane:
        backup = await made(plane, V1)
        await set_(settings, VERIFIED, backup)
        path = Path(backup["primaryArtifactAbsolutePath"])
        data = path.read_bytes()
        with hanging(at(place, backup)):
            path.unlink()
            assert states(await newest(plane, V1)) == ("pending", "pending", "missing")
            refused = await plane.post(restore, json={"acknowledged": True})
            assert (refused.status, refused.body["code"]) == (412, "artifact_pending")
            await written(at(place, backup), data)
            async with asyncio.timeout(10):
                while states(await newest(plane, V1)) != ("artifact_valid", "restore_verified", "present"):
                    await asyncio.sleep(0.05)
        assert (await plane.post(restore, json={"acknowledged": True})).status == 200


async def test_a_plane_stops_although_its_second_place_hangs(offsite, monkeypatch):
    settings, token, place = offsite
    monkeypatch.setattr(shelf, "LOOKED_WITHIN_S", 0.1)
    async with contextlib.AsyncExitStack() as stack:
        plane = await stack.enter_async_context(serving(settings, token))
        backup = await made(plane, V2)
        with hanging(at(place, backup)):
            Path(backup["primaryArtifactAbsolutePath"]).unlink()
            await newest(plane, V2)
            async with asyncio.timeout(5):
                await stack.aclose()
        async with asyncio.timeout(5):
            while any(thread.name.startswith("offsite") for thread in threading.enumerate()):
                await asyncio.sleep(0.02)
    assert list(settings.backups.directory.glob("*/*")) == []


async def test_a_copy_that_was_changed_does_not_come_back(offsite):
    settings, token, place = offsite
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        at(place, backup).write_bytes(bytes(reversed(at(place, backup).read_bytes())))
        path = Path(backup["primaryArtifactAbsolutePath"])
        path.unlink()
        assert (await newest(plane, V2))["artifactValidationStatus"] == "artifact_invalid"
        assert not path.exists()
        assert list(path.parent.glob("*")) == []


async def test_a_copy_that_is_gone_is_told_and_made_again(offsite):
    settings, token, place = offsite
    async with serving(settings, token) as plane:
        backup = await made(plane, V2)
        at(place, backup).unlink()
        found = await newest(plane, V2)
        assert (found["offsiteStatus"], found["offsiteError"]) == (
            "failed",
            "The offsite copy is gone or was changed.",
        )
    # What a crash left is begun anew.
    at(place, backup).with_name(at(place, backup).name + ".partial").write_bytes(b"half of it" * 9999)
    async with serving(settings, token) as plane:
        found = await told(plane, {"offsiteStatus": "complete"})
    assert "offsiteError" not in found
    assert hashlib.sha256(at(place, backup).read_bytes()).hexdigest() == backup["checksumSha256"]
    assert list(place.glob("*/*.partial")) == []


async def test_older_backups_are_copied_when_a_second_place_is_named(offsite):
    settings, token, place = offsite
    before = dataclasses.replace(settings, backups=dataclasses.replace(settings.backups, offsite=None))
    async with serving(before, token) as plane:
        backup = await made(plane, V2)
    async with serving(settings, token) as plane:
        await told(plane, {"offsiteStatus": "complete"})
    assert at(place, backup).exists()


@pytest.mark.parametrize("strict", [False, True])
async def test_a_second_place_that_is_not_mounted(offsite, strict):
    """The backup counts all the same, unless the operator wants it otherwise; nothing is copied beside the mount."""
    settings, token, place = offsite
    settings = dataclasses.replace(settings, backups=dataclasses.replace(settings.backups, offsite_strict=strict))
    place.rmdir()
    async with serving(settings, token) as plane:
        answer = await plane.post(base(V2))
        found = await newest(plane, V2)
    assert not place.exists()
    if strict:
        assert (answer.status, found["status"]) == (500, "failed")
        assert "offsite" in answer.body["error"]
        assert list(settings.backups.directory.glob("*/*.dump*")) == []
    else:
        assert (answer.status, found["status"], found["offsiteStatus"]) == (200, "complete", "failed")
        assert "No such file or directory" in found["offsiteError"]
    checks = {one.name: one.verdict for one in await doctor.examine(settings)}
    assert checks["backup offsite"] == "fail"


async def test_retention_removes_the_copy_too(offsite):
    settings, token, place = offsite
    bounds = dataclasses.replace(settings.backups, retention_count=1, retention_days=1)
    settings = dataclasses.replace(settings, backups=bounds)
    async with serving(settings, token) as plane:
        old, new = [await made(plane, V2) for _ in range(2)]
    await set_(settings, VERIFIED, new)
    await set_(settings, f"{VERIFIED}, created_at = created_at - interval '3 days'", old)
    async with serving(settings, token) as plane:
        async with asyncio.timeout(10):
            while len((await plane.get(base(V2))).body["backups"]) == 2:
                await asyncio.sleep(0.05)
    assert list(place.glob("*/*")) == [at(place, new)]
    assert not Path(old["primaryArtifactAbsolutePath"]).exists()


@pytest.mark.parametrize("strict", [False, True])
async def test_a_copy_that_takes_too_long_is_given_up(offsite, strict):
    settings, token, place = offsite
    bounds = dataclasses.replace(settings.backups, offsite_strict=strict, offsite_within_s=0)
    async with serving(dataclasses.replace(settings, backups=bounds), token) as plane:
        for _ in range(2):  # none holds up the next
            answer = await plane.post(base(V2))
            found = await newest(plane, V2)
            if strict:
                assert (answer.status, found["status"]) == (500, "failed")
                assert "was not done within 0 s" in answer.body["error"]
            else:
                assert (answer.status, found["status"], found["offsiteStatus"]) == (200, "complete", "failed")
                assert "was not done within 0 s" in found["offsiteError"]
    assert list(place.glob("*/*")) == []


def test_who_comes_too_late_to_copy_leaves_the_finished_file_alone(tmp_path, monkeypatch):
    """Between its opening of the file and its lock another one is done: what it holds has another name now."""
    source, target = tmp_path / "source", tmp_path / "target"
    partial = tmp_path / "target.partial"
    source.write_bytes(b"other")
    partial.write_bytes(b"finished")
    flock = fcntl.flock

    def after_the_others_rename(*lock):
        partial.rename(target)
        flock(*lock)

    monkeypatch.setattr(fcntl, "flock", after_the_others_rename)
    with pytest.raises(Unable):
        copy(source, target, (5, hashlib.sha256(b"other").hexdigest()), threading.Event())
    assert target.read_bytes() == b"finished"


def test_a_copy_that_was_left_ends_without_a_trace(tmp_path):
    source, target, left = tmp_path / "source", tmp_path / "target", threading.Event()
    source.write_bytes(b"whole")
    left.set()
    with pytest.raises(BackupFailed):
        copy(source, target, (5, hashlib.sha256(b"whole").hexdigest()), left)
    assert list(tmp_path.iterdir()) == [source]

"""The restore gate: every state of the newest backup with every flag. The client's copy is held to the same table."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from fluxplane.backups import freshness, gate

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def backup(age=HOUR, **fields):
    return {"id": "b", "format": "pg_custom", "createdAt": freshness.instant(NOW - age)} | fields


COMPLETE = {"status": "complete"}
VERIFIED = {"status": "complete", "restoreVerificationStatus": "restore_verified"}
VALID = {"artifactValidationStatus": "artifact_valid"}

NEWEST = [
    ("none", [], "no_backups"),
    ("queued", [backup(status="queued")], "latest_not_complete"),
    ("running", [backup(status="running")], "latest_not_complete"),
    ("failed", [backup(status="failed")], "latest_not_complete"),
    ("failed after a verified one", [backup(status="failed"), backup(**VERIFIED)], "latest_not_complete"),
    ("running, marked verified", [backup(**VERIFIED | {"status": "running"})], "latest_not_complete"),
    ("nothing but a status", [backup(**COMPLETE)], "artifact_pending"),
    ("null artifact", [backup(**COMPLETE, artifactValidationStatus=None)], "artifact_pending"),
    ("pending artifact", [backup(**COMPLETE, artifactValidationStatus="pending")], "artifact_pending"),
    ("invalid artifact", [backup(**COMPLETE, artifactValidationStatus="artifact_invalid")], "pipeline_incomplete"),
    ("unknown artifact word", [backup(**COMPLETE, artifactValidationStatus="other")], "pipeline_incomplete"),
    ("valid, unverified", [backup(**COMPLETE, **VALID)], "not_restore_verified"),
    ("valid, pending", [backup(**COMPLETE, **VALID, restoreVerificationStatus="pending")], "not_restore_verified"),
    ("restore failed", [backup(**COMPLETE, **VALID, restoreVerificationStatus="restore_failed")], "restore_failed"),
    ("restore skipped", [backup(**COMPLETE, restoreVerificationStatus="skipped")], "restore_failed"),
    ("verified", [backup(**VERIFIED, **VALID)], "restorable"),
    ("verified whatever the file", [backup(**VERIFIED, artifactValidationStatus="artifact_invalid")], "restorable"),
    ("verified before a bad one", [backup(**VERIFIED), backup(status="failed")], "restorable"),
    ("verified, a day old", [backup(timedelta(hours=24), **VERIFIED)], "restorable"),
    ("verified, older", [backup(timedelta(hours=24, seconds=1), **VERIFIED)], "too_old"),
    ("verified, without a date", [{"id": "b", **VERIFIED}], "too_old"),
    ("verified, with a broken date", [backup(**VERIFIED) | {"createdAt": "yesterday"}], "too_old"),
    ("verified, with a date of no zone", [backup(**VERIFIED) | {"createdAt": "2026-11-22T11:00:00"}], "too_old"),
    ("verified, five minutes ahead", [backup(timedelta(minutes=-5), **VERIFIED)], "restorable"),
    ("verified, from the far future", [backup(timedelta(days=-1), **VERIFIED)], "too_old"),
]
FLAGS = list(itertools.product([False, True], repeat=4))


def expected(found, pooled, scratch, acknowledged, skip):
    """The design in one breath: pooled never, scratch always, else acknowledged and verified (or explicitly not)."""
    if pooled or not (scratch or acknowledged):
        return False
    return scratch or skip or found == "restorable"


def table():
    """Every case with its expected outcome: the client's test runs the same ones."""
    for (name, backups, found), flags in itertools.product(NEWEST, FLAGS):
        yield name, backups, found, dict(zip(("pooled", "scratch", "acknowledged", "skip"), flags, strict=True))


def outcome(module, backups, flags):
    return module.judge(
        pooled=flags["pooled"],
        backups=backups,
        now=NOW,
        acknowledged=flags["acknowledged"],
        skip_backup_check=flags["skip"],
        scratch=flags["scratch"],
    )


@pytest.mark.parametrize(("name", "backups", "found", "flags"), list(table()))
def test_the_gate_lets_through_what_the_design_says(name, backups, found, flags):
    verdict = outcome(gate, backups, flags)
    assert verdict.allowed is expected(found, **flags)
    if verdict.classification is not None:
        assert found == verdict.classification
    if not verdict.allowed and flags["acknowledged"] and not flags["pooled"]:
        assert (verdict.ground, verdict.classification) == ("no_safe_backup", found)


def test_every_classification_has_words():
    assert set(gate.SAYS) == set(gate.Classification.__args__)


def test_the_contracts_classification_ignores_age():
    assert gate.classify([backup(timedelta(days=900), **VERIFIED)]) == "restorable"


def test_a_setting_moves_the_bound():
    old = [backup(timedelta(hours=30), **VERIFIED)]
    judged = [
        gate.judge(pooled=False, backups=old, now=NOW, acknowledged=True, max_age_s=hours * 3600) for hours in (29, 31)
    ]
    assert [one.allowed for one in judged] == [False, True]

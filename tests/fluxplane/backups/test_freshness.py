"""How old the newest verified backup may be, and which may go."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxplane.backups.freshness import Kept, Policy, freshness, instant, superfluous

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
POLICY = Policy()


def kept(name, days, *, verified=True):
    begun = NOW - timedelta(days=days)
    return Kept(name, begun, begun + timedelta(minutes=1) if verified else None)


@pytest.mark.parametrize(
    ("backups", "tier", "compliant"),
    [
        ([], "no_backups", False),
        ([kept("a", 1, verified=False)], "never_verified", False),
        ([kept("a", 1)], "fresh", True),
        ([kept("a", 7)], "fresh", True),
        ([kept("a", 7.1)], "stale", False),
        ([kept("a", 1, verified=False), kept("b", 9)], "stale", False),
    ],
)
def test_the_tier_follows_the_newest_verified_backup(backups, tier, compliant):
    said = freshness(backups, POLICY, NOW)
    assert (tier, compliant) == (said["freshness"]["tier"], said["freshness"]["platformBackupCompliant"])
    assert said["effectivePolicy"] == {"intervalDays": 7, "retentionCount": 4, "retentionDays": 30}


def test_an_instant_is_written_as_the_contract_does():
    assert instant(datetime(2025, 6, 1, 12, 34, 56, 789_123, tzinfo=UTC)) == "2025-06-01T12:34:56.789Z"


def test_only_backups_that_are_many_and_old_go():
    backups = [kept(f"b{days}", days) for days in (40, 50, 60, 1, 2, 29)]
    assert superfluous(backups, POLICY, NOW) == ["b60", "b50"]


@given(
    st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=30),
    st.integers(1, 6),
    st.integers(0, 60),
)
def test_retention_never_takes_the_newest_nor_an_unverified_one(made, count, days):
    backups = [kept(str(number), age, verified=verified) for number, (age, verified) in enumerate(made)]
    going = set(superfluous(backups, Policy(7, count, days), NOW))
    verified = sorted((one for one in backups if one.verified_at), key=lambda one: one.created_at, reverse=True)
    assert going <= {one.id for one in verified if NOW - one.created_at > timedelta(days=days)}
    assert len(verified) - len(going) >= min(count, len(verified))

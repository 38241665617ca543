"""A lease ends when it should, whatever the clocks, sleeps and boots around it do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.errors import LeaseOver, PlaneAnswerInvalid, RenewLimit
from fluxd.core.lease import MAX_LIFE_S, WARN_BEFORE_S, Lease, parse_instant, seconds_left

WALL = datetime(2026, 11, 22, 12, tzinfo=UTC)
clock = st.floats(0, 1e8)
lives = st.floats(1, MAX_LIFE_S)
skews = st.timedeltas(timedelta(minutes=-10), timedelta(minutes=10))
walls = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - zone follows


def lease(left=3600.0, now=1000.0, most=None):
    return Lease.granted(now, WALL, left, most)


@given(clock, lives, st.floats(0, 2 * MAX_LIFE_S))
def test_remaining_counts_down_to_zero_and_stays_there(now, left, passed):
    asked = now + passed
    assert lease(left, now).remaining(asked) == pytest.approx(max(0.0, left - passed), abs=1e-4)


@given(clock, lives, st.floats(0, 2 * MAX_LIFE_S))
def test_it_is_over_exactly_when_nothing_remains(now, left, passed):
    given_ = lease(left, now)
    assert (given_.state(now + passed) == "over") == (given_.remaining(now + passed) == 0)


def test_the_states_of_an_hour():
    hour = lease(3600.0, now=0.0)
    states = [hour.state(now) for now in (0, 2999.9, 3000, 3599.9, 3600, 9999)]
    assert states == ["live", "live", "expiring", "expiring", "over", "over"]


def test_a_short_lease_is_live_first():
    short = lease(5.0, now=1000.0)
    assert [short.state(1000 + passed) for passed in (0, 2.4, 2.5, 5)] == ["live", "live", "expiring", "over"]


def test_a_lease_expires_from_its_first_warning_on():
    middling = lease(610.0, now=0.0)
    assert [middling.state(9.9), middling.state(10.1)] == ["live", "expiring"]


def test_warnings_come_at_ten_and_two_minutes():
    hour = lease(3600.0, now=0.0)
    assert [hour.due_warning(now) for now in (2999, 3000, 3479, 3480, 3599, 3600)] == [None, 600, 600, 120, 120, None]


@given(lives, st.lists(st.floats(0, MAX_LIFE_S), max_size=60).map(sorted))
def test_each_warning_comes_once_and_never_out_of_order(left, moments):
    given_, seen = lease(left, now=0.0), []
    for now in moments:
        due = given_.due_warning(now, seen)
        if due is not None:
            assert given_.remaining(now) <= due < left
            seen.append(due)
    assert seen == sorted(set(seen), reverse=True)


@given(lives)
def test_who_wakes_when_told_hears_every_warning(left):
    given_, now, seen = lease(left, now=0.0), 0.0, []
    while given_.state(now) != "over":
        now = given_.next_wake(now)
        due = given_.due_warning(now, seen)
        seen += [] if due is None else [due]
    assert now == given_.ends_at
    assert seen == [before for before in WARN_BEFORE_S if before < left]


def test_a_sleep_past_both_warnings_gives_the_latest_only():
    hour = lease(3600.0, now=0.0)
    assert hour.due_warning(3500, []) == 120
    assert hour.due_warning(3500, [120]) is None


def test_when_it_is_over_the_end_is_what_to_wake_for():
    assert lease(60.0, now=0.0).next_wake(99.0) == 60.0


@given(clock, st.floats(-10, 1e9), st.none() | st.floats(-10, 1e9))
def test_no_plane_can_give_more_than_eight_hours(now, left, most):
    given_ = Lease.granted(now, WALL, left, most)
    assert now <= given_.ends_at <= given_.limit_at <= now + MAX_LIFE_S + 1e-6


@given(clock, lives, st.lists(st.tuples(st.floats(0, 7200), st.floats(0, 1e6)), max_size=20))
def test_renewals_never_pass_the_limit(now, left, renewals):
    given_ = first = lease(left, now)
    for passed, asked in renewals:
        now += passed
        given_ = given_.renewed(now, asked)
        assert given_.ends_at <= first.limit_at <= first.granted_at + MAX_LIFE_S + 1e-6


def test_a_renewal_lengthens():
    assert lease(60.0, now=0.0).renewed(30.0, 3600.0).remaining(30.0) == 3600.0


def test_a_renewal_asks_for_what_the_limit_leaves():
    day = lease(3600.0, now=0.0)
    assert day.renewal_ttl_s(100.0, 600) == 600
    assert day.renewal_ttl_s(3000.0, 28800) == 28800 - 3000
    assert day.renewal_ttl_s(100.0, None) is None


def test_an_ended_lease_is_not_renewed():
    with pytest.raises(LeaseOver):
        lease(60.0, now=0.0).renewal_ttl_s(60.0, None)


def test_a_lease_at_its_limit_is_not_renewed():
    with pytest.raises(RenewLimit):
        lease(28800.0, now=0.0).renewal_ttl_s(10.0, 60)
    with pytest.raises(RenewLimit):
        lease(60.0, now=0.0, most=60.0).renewal_ttl_s(10.0, None)


@given(lives, walls, st.floats(0, 1e6))
def test_in_the_same_boot_the_wall_clock_changes_nothing(left, wall, passed):
    given_ = lease(left)
    assert given_.restored(same_boot=True, now=given_.granted_at + passed, wall=wall) == given_


@given(clock, lives, st.floats(0, MAX_LIFE_S), clock)
def test_after_another_boot_the_wall_clock_decides(now, left, passed, new_now):
    back = lease(left, now).restored(same_boot=False, now=new_now, wall=WALL + timedelta(seconds=passed))
    assert back.remaining(new_now) == pytest.approx(max(0.0, left - passed), abs=1e-3)
    assert back.limit_at - back.granted_at == pytest.approx(MAX_LIFE_S, abs=1e-3)
    assert back.expires_at - (WALL + timedelta(seconds=left)) < timedelta(milliseconds=1)


@given(lives, walls, clock)
def test_a_wall_clock_set_back_across_a_boot_gives_back_no_more_than_the_lease(left, wall, now):
    assert lease(left).restored(same_boot=False, now=now, wall=wall).remaining(now) <= left + 1e-6


@given(walls, st.floats(1, MAX_LIFE_S), skews, st.floats(0, 5))
def test_the_skew_between_the_two_machines_changes_nothing(wall, life, skew, request_s):
    """The plane's two instants are off by the same, so what is left is not."""
    there = (wall + skew).replace(microsecond=0)
    left = seconds_left(
        (there + timedelta(seconds=life)).isoformat(),
        date=format_datetime(there, usegmt=True),
        request_s=request_s,
        wall=wall,
    )
    assert left == pytest.approx(max(0.0, life - request_s), abs=1e-3)


def test_expires_in_wins_over_every_clock():
    assert seconds_left("nonsense", date="nonsense", request_s=0.5, wall=WALL, expires_in_s=5.0) == 4.5


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_without_a_readable_date_header_this_machine_s_clock_stands_in(date):
    assert seconds_left("2026-11-22T13:00:00Z", date=date, request_s=1.0, wall=WALL) == 3599.0


def test_nothing_is_left_of_the_past():
    assert seconds_left("2026-11-22T11:00:00Z", date=None, request_s=1.0, wall=WALL) == 0
    assert seconds_left("", date=None, request_s=9.0, wall=WALL, expires_in_s=5.0) == 0


def test_an_expiry_that_is_no_date_is_the_plane_s_fault():
    with pytest.raises(PlaneAnswerInvalid, match="expiresAt"):
        seconds_left("soon", date=None, request_s=0, wall=WALL)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T12:00:00.000Z",
        "2026-11-22T12:00:00+00:00",
        "2026-11-22T13:30:00+01:30",
        "2026-11-22T12:00:00",
        "2026-11-22 12:00:00",
        "20261122T120000Z",
        " Sun, 22 Nov 2026 12:00:00 GMT ",
        "Sun, 22 Nov 2026 14:00:00 +0200",
    ],
)
def test_dates_as_planes_write_them(text):
    assert parse_instant(text) == WALL


@given(st.text() | st.from_regex(r"[0-9T:Z.+ -]{1,40}"))
def test_any_text_is_a_date_or_none(text):
    found = parse_instant(text)
    assert found is None or found.utcoffset() == timedelta(0)


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))])))
def test_an_iso_date_reads_back(moment):
    if datetime(2, 1, 1, tzinfo=UTC) < moment < datetime(9998, 1, 1, tzinfo=UTC):
        assert parse_instant(moment.isoformat()) == moment


def test_people_are_shown_the_end_on_their_own_clock():
    assert lease(3600.0).expires_at == WALL + timedelta(hours=1)


def test_a_lease_of_just_ten_minutes_hears_of_two_only():
    ten = lease(600.0)
    assert ten.next_wake(1000.0) == ten.ends_at - 120
    assert ten.due_warning(1000.0) is None


def test_a_plane_that_gives_nothing_gives_nothing():
    assert lease(0.0).remaining(1000.0) == 0


def test_a_lease_is_a_value():
    assert replace(lease()) == lease()

"""Delays double, stay under their cap, are jittered, and never end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.backoff import Backoff

fractions = st.floats(0, 1, exclude_max=True)
moments = st.floats(0, 1e9)


def test_the_first_try_is_due_at_once():
    assert Backoff().wait_s(now=100.0) == 0


def test_delays_double_up_to_the_cap():
    backoff, waits = Backoff(first_s=1, cap_s=5, jitter=0), []
    for _ in range(5):
        backoff = backoff.failed(now=0, fraction=0.5)
        waits.append(backoff.wait_s(now=0))
    assert waits == [1, 2, 4, 5, 5]


def test_jitter_takes_at_most_its_part_away():
    assert Backoff(first_s=8, jitter=0.5).failed(0, fraction=0).wait_s(0) == 8
    assert Backoff(first_s=8, jitter=0.5).failed(0, fraction=0.5).wait_s(0) == 6


@given(st.lists(fractions, min_size=1, max_size=50), st.floats(0.01, 10), st.floats(10, 100), st.floats(0, 1))
def test_every_delay_stays_between_its_bounds(rolls, first, cap, jitter):
    backoff = Backoff(first_s=first, cap_s=cap, jitter=jitter)
    for count, roll in enumerate(rolls):
        backoff = backoff.failed(now=0, fraction=roll)
        full = min(cap, first * 2**count)
        assert full * (1 - jitter) <= backoff.wait_s(0) <= full


@given(st.integers(0, 10**6), moments)
def test_it_never_gives_up_and_never_overflows(failures, now):
    assert 0 <= Backoff(failures=failures, cap_s=30).failed(now, 0.3).wait_s(now) <= 30 + 1e-6


@given(moments, fractions)
def test_waiting_shortens_the_wait(now, roll):
    backoff = Backoff(first_s=4, jitter=0.5).failed(now, roll)
    assert backoff.wait_s(now + 1) == pytest.approx(backoff.wait_s(now) - 1, abs=1e-5)
    assert backoff.wait_s(now + 4.001) == 0


@given(st.integers(1, 100), moments)
def test_reset_forgets_every_failure(failures, now):
    assert Backoff(failures=failures, due_at=now + 9).reset() == Backoff()


def test_redials_begin_quickly_and_end_at_half_a_minute():
    assert Backoff().failed(0, 0).wait_s(0) == 0.25
    assert Backoff(failures=99).failed(0, 0).wait_s(0) == 30


@pytest.mark.parametrize("edge", [{"jitter": 0}, {"jitter": 1}, {"first_s": 30}])
def test_the_edges_of_sense_are_allowed(edge):
    assert 0 <= Backoff(**edge).failed(0, 0.5).wait_s(0) <= 30


@pytest.mark.parametrize("wrong", [{"first_s": 0}, {"first_s": 31}, {"jitter": 1.1}, {"jitter": -0.1}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="first_s"):
        Backoff(**wrong)

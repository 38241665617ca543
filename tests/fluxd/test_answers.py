"""What the control plane's answers mean, however odd they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core import errors
from fluxd.plane import answers
from fluxd.plane.answers import Reply
from fluxplane.wire import Secret

NOON = datetime(2025, 6, 1, 12, 0, 0, tzinfo=UTC)
BASE = "https://h/api"


def reply(status: int = 200, body: bytes = b"", *, took_s: float = 0.0, at: datetime | None = NOON, **rest) -> Reply:
    return Reply(status, body, took_s, format_datetime(at, usegmt=True) if at else None, **rest)


def said(status: int, body: bytes, **rest) -> errors.FluxError:
    return answers.problem(answers.refusal(reply(status, body, **rest), Secret("tok")), BASE)


def test_seconds_left_are_counted_on_the_planes_own_clock():
    assert answers.seconds_left("2025-06-01T13:00:00Z", None, reply(took_s=2.5)) == 3597.5


def test_the_extension_counts_before_the_date():
    assert answers.seconds_left("2025-06-01T13:00:00Z", 60.0, reply(took_s=2.0)) == 58.0


def test_an_expiry_in_the_past_leaves_nothing():
    assert answers.seconds_left("2025-06-01T11:00:00Z", None, reply()) == 0.0


def test_no_plane_can_give_more_than_eight_hours():
    assert answers.seconds_left("9999-12-31T23:59:59Z", None, reply()) == answers.LONGEST_S
    assert answers.seconds_left("x", 1e300, reply()) == answers.LONGEST_S


@pytest.mark.parametrize("text", ["", "soon", "2025-13-45", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_expiry_nobody_can_read_is_not_guessed(text: str):
    assert answers.seconds_left(text, None, reply()) in {None, 0.0, answers.LONGEST_S}
    assert answers.seconds_left("soon", None, reply()) is None


def test_without_the_planes_date_nothing_is_guessed():
    assert answers.seconds_left("2025-06-01T13:00:00Z", None, reply(at=None)) is None


@pytest.mark.parametrize(
    "text",
    [
        "2025-06-01T13:00:00Z",
        "2025-06-01T13:00:00.000Z",
        "2025-06-01T15:00:00+02:00",
        "2025-06-01 13:00:00",
        "Sun, 01 Jun 2025 13:00:00 GMT",
    ],
)
def test_every_usual_way_to_write_an_instant_is_read(text: str):
    assert answers.instant(text) == NOON + timedelta(hours=1)


@given(st.text(max_size=40), st.none() | st.floats(), st.floats(0, 1e6), st.text(max_size=40))
def test_no_expiry_and_no_date_crashes_it(expires_at: str, expires_in: float | None, took_s: float, date: str):
    left = answers.seconds_left(expires_at, expires_in, Reply(200, b"", took_s, date))
    assert left is None or 0.0 <= left <= answers.LONGEST_S


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.PlaneRefused),
        (401, errors.NotAuthenticated),
        (403, errors.Forbidden),
        (404, errors.ProjectNotFound),
        (405, errors.NotSupportedByPlane),
        (409, errors.ProjectNotAvailable),
        (410, errors.LeaseOver),
        (412, errors.PlaneRefused),
        (418, errors.PlaneRefused),
        (429, errors.RateLimited),
        (500, errors.PlaneFailed),
        (501, errors.NotSupportedByPlane),
        (503, errors.PlaneFailed),
    ],
)
def test_each_refusal_of_the_contract_has_its_problem(status: int, kind: type[errors.FluxError]):
    assert type(said(status, b'{"error":"because"}')) is kind


def test_a_refused_token_names_the_base_and_the_way_out():
    problem = said(401, b'{"error":"Unauthorized"}')
    assert BASE in (problem.detail or "")
    assert f"fluxctl login --api-base {BASE}" in (problem.hint or "")


def test_a_401_is_one_whatever_its_body_is():
    assert said(401, b"<html>").code == "not_authenticated"


def test_another_servers_404_says_nothing_about_projects():
    assert said(404, b"<html><body>nginx</body></html>").code == "plane_answer_invalid"


def test_the_planes_own_words_are_the_message():
    assert said(500, b'{"error":"pool is full"}').message == "pool is full"


def test_its_words_come_on_one_line_without_terminal_controls():
    assert said(500, b'{"error":"a\\u001b[2Jb\\r\\nc\\u202ed"}').message == "a [2Jb c d"


def test_its_words_never_repeat_our_token():
    assert "tok" not in said(500, b'{"error":"bad tok en"}').message


def test_a_long_answer_is_cut():
    assert len(said(500, b'{"error":"' + b"x" * 9000 + b'"}').message) == 500


def test_a_pause_is_taken_from_the_header_or_the_body():
    assert (
        said(429, b'{"error":"rate limit exceeded","tier":"sensitive","limit":20,"retryAfterSec":37}').retry_after_s
        == 37
    )
    assert said(429, b"", retry_after="12").retry_after_s == 12
    assert said(429, b"", retry_after="999999").retry_after_s == 3600
    assert said(429, b"", retry_after="tomorrow").retry_after_s is None


@given(st.integers(300, 999), st.binary(max_size=200))
def test_no_refusal_crashes_it(status: int, body: bytes):
    problem = said(status, body)
    assert problem.message
    assert problem.hint

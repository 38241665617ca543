"""Mode, access and time to live: properties over everything a body may hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxplane import policy
from fluxplane.policy import Refusal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries({}, optional={"access": JSON, "ttlSeconds": JSON, "grantId": JSON, "reason": JSON})


@given(BODIES, st.booleans(), st.none() | st.text())
def test_whatever_is_asked_the_answer_is_within_bounds_or_a_refusal(body, allow, header):
    try:
        ask = policy.asked(body, allow_readwrite=allow, header_grant_id=header)
    except Refusal as refusal:
        assert refusal.status in {400, 403}
        return
    assert 0 < ask.ttl_s <= policy.MAX_TTL_S
    assert ask.access == "readonly" or allow
    assert ask.grant_id is None or len(ask.grant_id) == 32


@given(BODIES)
def test_readwrite_is_never_given_where_the_platform_forbids_it(body):
    with pytest.raises(Refusal):
        policy.asked(body | {"access": " ReadWrite "}, allow_readwrite=False)


@given(st.floats() | st.integers())
def test_a_number_is_floored_refused_or_ignored(value):
    try:
        seconds = policy.ttl(value, default=7)
    except Refusal:
        assert math.floor(value) <= 0 or math.floor(value) > policy.MAX_TTL_S
        return
    finite = isinstance(value, int) or math.isfinite(value)
    assert seconds == (math.floor(value) if finite else 7)


@given(st.none() | st.booleans() | st.text() | st.lists(st.integers()))
def test_what_is_no_number_is_the_default(value):
    assert policy.ttl(value, default=1234) == 1234


def test_the_defaults_are_the_contracts():
    assert policy.DEFAULT_TTL_S == {"readonly": 3600, "readwrite": 1800}
    assert policy.MAX_TTL_S == 28_800


@given(st.text())
def test_a_slug_is_letters_digits_and_single_dashes(name):
    try:
        slug = policy.slug(name)
    except ValueError:
        return
    assert slug == policy.slug(slug)
    assert slug.strip("-") == slug
    assert "--" not in slug
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(st.text())
def test_a_hash_is_seven_hex_digits_or_refused(text):
    try:
        found = policy.project_hash(text)
    except Refusal as refusal:
        assert refusal.status == 400
        return
    assert len(found) == 7
    assert set(found) <= set("0123456789abcdef")


@given(st.text())
def test_parse_int_is_positive_or_nothing(text):
    number = policy.parse_int(text)
    assert number is None or number > 0


@given(st.none() | st.integers(1, policy.MAX_TTL_S), st.sampled_from(["readonly", "readwrite"]), st.floats(-1e6, 28800))
def test_no_renewal_passes_the_maximum(asked, access, left):
    try:
        seconds = policy.renewed_ttl(asked, access, left_of_max_s=left)
    except Refusal as refusal:
        assert refusal.status == 409
        assert left <= 0
        return
    assert 0 < seconds <= left


@given(st.sampled_from(["readonly", "readwrite"]), st.from_regex(r"[a-f0-9]{7}", fullmatch=True))
def test_a_role_name_fits_postgres(access, hash_):
    name = policy.temporary_username(access, hash_, "deadbeef")
    assert len(name.encode()) <= 63
    assert name.startswith("flux_temp_rw_" if access == "readwrite" else "flux_temp_ro_")

"""A control plane has one address, and a token never travels in clear beyond this machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fluxd.core.errors import BadAPIBase, FluxError, InsecureAPIBase
from fluxd.plane import DEFAULT_API_BASE, normalised
from fluxd.plane.base import same_origin


@pytest.mark.parametrize(
    "text", ["https://h:1", "https://h:1/", "https://h:1/api/", "https://h:1/api/api", " https://h:1/API "]
)
def test_every_spelling_of_one_plane_is_the_same_base(text: str):
    assert normalised(text) == "https://h:1/api"


@pytest.mark.parametrize("text", [None, "", "   ", "\n"])
def test_nothing_means_the_default(text: str | None):
    assert normalised(text) == DEFAULT_API_BASE == "https://flux.vsl-base.com/api"


def test_a_path_before_api_is_kept():
    assert normalised("https://h/flux/api/api/") == "https://h/flux/api"


def test_scheme_and_host_have_one_case_and_the_path_its_own():
    assert normalised("HTTPS://Flux.Example.COM/Some") == "https://flux.example.com/Some/api"


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "127.8.9.1", "[::1]:80", "localhost", "LOCALHOST:3"])
def test_plain_http_is_for_this_machine(host: str):
    assert normalised(f"http://{host}") == f"http://{host.lower()}/api"


@pytest.mark.parametrize(
    "text",
    [
        "http://example.com",
        "http://10.0.0.1",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://[::2]",
    ],
)
def test_plain_http_to_anybody_else_is_refused(text: str):
    with pytest.raises(InsecureAPIBase):
        normalised(text)


@pytest.mark.parametrize(
    "text",
    [
        "flux.example.com",
        "ftp://h",
        "https://",
        "https://user:pw@h",
        "https://h?x=1",
        "https://h#x",
        "https://h:0",
        "https://h:65536",
        "https://h\\@evil",
        "https://h evil",
        "http://127.1",
        "https://-h",
        "//h",
        "https://h/\x00",
        "https://h/é",
    ],
)
def test_what_is_not_a_plain_address_is_refused(text: str):
    with pytest.raises((BadAPIBase, InsecureAPIBase)):
        normalised(text)


def test_a_password_in_the_address_is_not_repeated():
    with pytest.raises(BadAPIBase) as caught:
        normalised("https://me:hunter2@h/")
    assert "hunter2" not in caught.value.message


@given(st.text(max_size=60) | st.from_regex(r"https?://[ -~]{0,40}", fullmatch=True))
def test_whatever_is_accepted_is_in_normal_form_and_another_parser_agrees(text: str):
    try:
        base = normalised(text)
    except FluxError:
        return
    assert normalised(base) == base
    assert base.endswith("/api")
    parsed = URL(base)
    assert parsed.scheme == "https" or parsed.host in {"localhost", "::1"} or str(parsed.host).startswith("127.")
    assert parsed.user is None
    assert not parsed.query_string


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://h/api", "https://h:443/x", True),
        ("http://h/api", "http://h:80/", True),
        ("https://h/api", "http://h/api", False),
        ("https://h/api", "https://h:444/api", False),
        ("https://h/api", "https://i/api", False),
        ("https://h/api", "https://h:x/api", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool):
    assert same_origin(one, other) is same

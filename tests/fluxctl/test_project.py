import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxctl import project
from fluxctl.problem import Problem


@pytest.fixture
def declared(home, monkeypatch):
    (home / "flux.json").write_text(json.dumps({"slug": "Declared", "hash": "ABC1234", "apiUrl": "x"}))
    below = home / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)


@pytest.fixture
def nowhere(home, monkeypatch):
    monkeypatch.chdir(home)


def chosen(*names):
    found = project.choose(*names)
    return found.name, found.hash


def test_flux_json_is_looked_up_towards_the_root(declared):
    assert chosen(None, None, None) == ("declared", "abc1234")


def test_an_explicit_project_wins_over_the_positional(declared):
    assert chosen("first", "Second Name", None) == ("second-name", "abc1234")


def test_a_hash_on_the_command_line_takes_no_name_from_flux_json(declared):
    assert chosen(None, None, " DEF5678 ") == (None, "def5678")


def test_a_name_needs_a_hash(nowhere):
    with pytest.raises(Problem) as caught:
        chosen("acme", None, None)
    assert (caught.value.code, caught.value.exit_code) == ("project_missing", 2)


def test_a_hash_may_stand_where_the_name_goes(nowhere):
    assert chosen("abc1234", None, None) == (None, "abc1234")


@pytest.mark.parametrize("text", ["abc", "abc12345", "ghijklm", "", "abc123g"])
def test_a_hash_is_seven_hex_digits(nowhere, text):
    with pytest.raises(Problem) as caught:
        chosen("acme", None, text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"slug":"a"}',
        '{"hash":"abc1234"}',
        '{"slug":"","hash":"abc1234"}',
        '{"slug":"a","hash":"x"}',
    ],
)
def test_a_broken_flux_json_is_named(home, nowhere, text):
    (home / "flux.json").write_text(text)
    with pytest.raises(Problem) as caught:
        chosen(None, None, None)
    assert caught.value.code == "flux_json_invalid"
    assert "flux.json" in caught.value.detail


def test_a_broken_flux_json_is_nobodys_business_when_the_hash_is_given(home, nowhere):
    (home / "flux.json").write_text("{")
    assert chosen("acme", None, "abc1234") == ("acme", "abc1234")


def test_a_placeholder_says_to_initialise_first(home, nowhere):
    (home / "flux.json").write_text('{"slug":"a","hash":"REPLACE_AFTER_FLUX_INIT"}')
    with pytest.raises(Problem, match="not initialised"):
        chosen(None, None, None)


@pytest.mark.parametrize(
    ("name", "slug"), [("My Project!", "my-project"), ("--a__b--", "a-b"), ("Ünï", "n"), ("a-1", "a-1")]
)
def test_slugs(name, slug):
    assert project.slugified(name) == slug


@given(st.text())
def test_a_slug_is_one_or_there_is_none(name):
    try:
        slug = project.slugified(name)
    except Problem:
        return
    assert project.slugified(slug) == slug
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug.strip("-") == slug

"""Which local port: sticky, never another project's, strict or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxd.core.errors import NoPortLeft, PortTaken
from fluxd.core.ports import FIRST_PORT, is_port, next_port, owner_of, propose_port

numbers = st.integers(1, 65535)
# A crowded corner makes collisions likely, which the whole range would not.
crowded = st.integers(15430, 15445) | st.integers(65530, 65535)
owners = st.dictionaries(st.sampled_from("abcdefgh"), crowded, max_size=8)
busy_ports = st.sets(crowded, max_size=20)


def test_the_first_port_is_15432():
    assert next_port(set()) == 15432 == FIRST_PORT


@given(busy_ports, crowded)
def test_next_port_is_the_lowest_that_is_free(taken, first):
    free = [port for port in range(first, 65536) if port not in taken]
    if free:
        assert next_port(taken, first=first) == free[0]
    else:
        with pytest.raises(NoPortLeft):
            next_port(taken, first=first)


@given(busy_ports, crowded)
def test_strict_means_this_port_or_none(taken, first):
    if first in taken:
        with pytest.raises(PortTaken, match=str(first)):
            next_port(taken, first=first, strict=True)
    else:
        assert next_port(taken, first=first, strict=True) == first


@given(owners, busy_ports, st.none() | crowded, st.booleans())
def test_nobody_is_proposed_a_busy_port_or_one_that_another_project_owns(owned, busy, requested, strict):
    try:
        port = propose_port("a", owned=owned, busy=busy, requested=requested, strict=strict)
    except (PortTaken, NoPortLeft):
        return
    assert is_port(port)
    assert port not in busy
    assert port not in {theirs for key, theirs in owned.items() if key != "a"}


@given(owners, crowded)
def test_a_project_comes_back_to_its_own_port(others, mine):
    others.pop("a", None)
    owned = {key: port for key, port in others.items() if port != mine} | {"a": mine}
    assert propose_port("a", owned=owned) == mine
    assert propose_port("a", owned=owned, strict=True) == mine


def test_a_busy_sticky_port_gives_way_to_the_next_free_one():
    assert propose_port("a", owned={"a": 15440, "b": 15441}, busy={15440}) == 15442


def test_a_busy_sticky_port_is_an_error_when_strict():
    with pytest.raises(PortTaken, match="15440 is in use"):
        propose_port("a", owned={"a": 15440}, busy={15440}, strict=True)


def test_an_explicit_port_wins_over_the_sticky_one():
    assert propose_port("a", owned={"a": 15440}, requested=16000) == 16000


@given(crowded, st.integers(0, 120))
def test_an_explicit_busy_port_is_followed_by_99_more_tries(requested, count):
    busy = set(range(requested, requested + count))
    last = min(requested + 99, 65535)
    if requested + count <= last:
        assert propose_port("a", owned={}, busy=busy, requested=requested) == requested + count
    else:
        with pytest.raises(PortTaken, match=str(last)):
            propose_port("a", owned={}, busy=busy, requested=requested)


def test_an_explicit_strict_port_of_another_project_is_refused_and_says_so():
    with pytest.raises(PortTaken, match="kept for another project") as caught:
        propose_port("a", owned={"b": 16000}, requested=16000, strict=True)
    assert "tunnel forget" in caught.value.hint


def test_two_projects_that_own_the_same_port_on_disk_both_move_away():
    owned = {"a": 15440, "b": 15440}
    assert propose_port("a", owned=owned) != 15440
    assert propose_port("b", owned=owned) != 15440


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), busy_ports)
def test_no_port_is_ever_owned_twice(keys, busy):
    """Whatever the order in which projects come, recording what was proposed keeps the owners apart."""
    owned = {}
    for key in keys:
        port = propose_port(key, owned=owned, busy=busy)
        assert owned.get(key, port) == port
        owned[key] = port
    assert len(set(owned.values())) == len(owned)


@given(owners, crowded)
def test_the_owner_of_a_port_is_found(owned, port):
    found = owner_of(port, owned)
    assert (found is None) == (port not in owned.values())
    assert found is None or owned[found] == port


@given(st.one_of(numbers))
def test_ports_are_1_to_65535(number):
    assert is_port(number)


@pytest.mark.parametrize("wrong", [0, -1, 65536, True, 15432.0, "15432", None])
def test_nothing_else_is_a_port(wrong):
    assert not is_port(wrong)

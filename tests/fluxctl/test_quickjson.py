import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxctl import quickjson

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values)
def test_it_reads_what_json_writes(value):
    assert quickjson.loads(json.dumps(value).encode("utf-8", "surrogatepass")) == value


@given(values, st.sampled_from([None, 2]))
def test_it_writes_what_json_writes(value, indent):
    assert quickjson.dumps(value, indent=indent) == json.dumps(value, indent=indent, ensure_ascii=False)


@given(st.binary() | st.text().map(str.encode))
def test_it_takes_and_refuses_the_same_bytes(data):
    try:
        expected = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        with pytest.raises(ValueError):
            quickjson.loads(data)
    else:
        found = quickjson.loads(data)
        assert found == expected or math.isnan(found)


NO_JSON = ["", " ", "{", "[1,", "1 2", '{"a":1}x', "NaN", "[Infinity]", '"\x01"', '"\\q"', "[" * 100_000]


@pytest.mark.parametrize("text", NO_JSON)
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        quickjson.loads(text.encode())


def test_it_is_one_too_where_nobody_has_imported_json():
    """As in the client, and not here: the C scanner then knows no exception to raise."""
    program = """
import sys
from fluxctl import quickjson
for text in eval(sys.stdin.read()):
    try:
        print(quickjson.loads(text.encode()))
    except ValueError:
        pass
assert "json" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=repr(NO_JSON), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bytes_that_are_no_utf8_are_a_value_error():
    with pytest.raises(ValueError):
        quickjson.loads(b'"\xff"')


def _refuse(_name):
    raise ValueError

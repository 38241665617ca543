"""
Each way it fails has a test that provokes it and sees what a person sees.

The tests' sources are read, so that this holds whichever of them are run. Only a call of `provoked` counts that stands
where a test cannot pass without it: not in a branch, a loop or a helper, nor behind a statement that raises.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxctl.problems import PROBLEMS
from fluxd.core.errors import PortTaken, every_error
from tests.furniture.provoked import provoked

TESTS = Path(__file__).parents[1]
MAYBE_NEVER = (
    *(ast.If, ast.IfExp, ast.Match, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.BoolOp, ast.comprehension),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    *(ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)
SWALLOWING = {"raises", "suppress"}


def codes_provoked(source: str) -> set[str]:
    """The codes that *source*'s tests cannot pass without provoking."""
    found = set()
    for test in ast.parse(source).body:
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test_"):
            parameters = parametrized(test)
            for call in certain(test.body):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "provoked":
                    found |= named(call.args[0], parameters)
    return found


def certain(nodes: list[ast.stmt] | list[ast.AST]) -> Iterator[ast.AST]:
    """*nodes* and what is in them, as far as it is run whenever the test passes."""
    for node in nodes:
        if isinstance(node, MAYBE_NEVER) or (isinstance(node, ast.With | ast.AsyncWith) and swallows(node)):
            continue
        yield node
        inside = [node.test] if isinstance(node, ast.Assert) else ast.iter_child_nodes(node)
        yield from certain(list(inside))


def swallows(block: ast.With | ast.AsyncWith) -> bool:
    """What stands in it may be left out: an earlier statement of it raises."""
    return any(
        isinstance(one, ast.Attribute) and one.attr in SWALLOWING for item in block.items for one in ast.walk(item)
    )


def parametrized(test: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, set[str]]:
    """The strings that each parameter of *test* takes, one after another."""
    found: dict[str, set[str]] = {}
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.parametrize":
            names = ast.literal_eval(mark.args[0])
            rows = mark.args[1].elts if isinstance(mark.args[1], ast.List | ast.Tuple) else []
            for row in rows:
                cells = [row] if isinstance(names, str) else row.elts if isinstance(row, ast.Tuple) else []
                for name, cell in zip([names] if isinstance(names, str) else names, cells, strict=False):
                    found.setdefault(name, set()).update(named(cell, {}))
    return found


def named(node: ast.AST, parameters: dict[str, set[str]]) -> set[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    return parameters.get(node.id, set()) if isinstance(node, ast.Name) else set()


def test_every_problem_has_a_test_that_provokes_it():
    found = set().union(*(codes_provoked(path.read_text()) for path in TESTS.rglob("test_*.py")))
    missing = [kind.code for kind in every_error() if kind.code not in found]
    assert missing == []


def test_the_clients_table_has_the_same_codes():
    assert list(PROBLEMS) == [kind.code for kind in every_error()]


COUNTED = """
@pytest.mark.parametrize(("code", "status"), [("a", 1), ("b", 2)])
async def test_it(code, status):
    async with something() as one:
        told = provoked(code, await one.ask())
    assert "x" in provoked("c", told)
"""
NOT_COUNTED = """
def helper():
    provoked("a", 1)

def test_it():
    if False:
        provoked("b", 1)
    for one in []:
        provoked("c", one)
    with pytest.raises(Exception):
        boom()
        provoked("d", 1)
    assert True, provoked("e", 1)
    [provoked("f", one) for one in ()]
    def inner():
        provoked("g", 1)
    False and provoked("h", 1)
    try:
        boom()
        provoked("i", 1)
    except Exception:
        pass
    "provoked('j', 1)"
"""


def test_only_calls_that_a_test_cannot_pass_without_are_counted():
    assert codes_provoked(COUNTED) == {"a", "b", "c"}
    assert codes_provoked(NOT_COUNTED) == set()


GOOD = {"code": "port_taken", "message": PortTaken.summary, "hint": PortTaken.hint}
STDERR = f"Error: {PortTaken.summary}\nHINT: {PortTaken.hint}\n"


def done(stderr: str, code: int = PortTaken.exit_code, stdout: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(["flux"], code, stdout, stderr)


def test_what_says_all_of_it_is_it():
    for seen in (GOOD, done(STDERR)):
        assert provoked("port_taken", seen).splitlines() == [PortTaken.summary, "", PortTaken.hint]


@pytest.mark.parametrize(
    "seen",
    [
        GOOD | {"code": "no_port_left"},
        GOOD | {"message": "It failed."},
        GOOD | {"hint": ""},
        PortTaken(),
        done(STDERR, code=1),
        done(STDERR, stdout="something"),
        done(f"Error: {PortTaken.summary}\n"),
        done(f"HINT: {PortTaken.hint}\n"),
        done(STDERR + "Traceback (most recent call last):\n"),
    ],
)
def test_what_does_not_is_not(seen):
    with pytest.raises(AssertionError):
        provoked("port_taken", seen)

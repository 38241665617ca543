"""
What a test opened, it closed: tasks, file descriptors (so sockets too), threads and child processes.

Furniture that lasts longer than one test opens its things inside `lasting()`.
"""

import asyncio
import contextlib
import gc
import inspect
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

GRACE_S = 1.0

_lasting: set[str] = set()


def held() -> set[str]:
    """Every descriptor with what it is open on, every thread, every child of this process."""
    return _descriptors() | _threads() | _children()


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is opened in this block and still open at its end may outlive the test."""
    before = held()
    yield
    _lasting.update(held() - before)


def _descriptors() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(f"fd {path.name} -> {path.readlink()}")
    return {one for one in found if f"/proc/{os.getpid()}/fd" not in one}


def _threads() -> set[str]:
    return {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}


def _children() -> set[str]:
    found = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(f"child process {pid}" for pid in path.read_text().split())
    return found


def _leaked(before: set[str]) -> set[str]:
    return held() - before - _lasting


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    item.stash[_BEFORE] = held()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item):
    result = yield
    if _leaked(item.stash[_BEFORE]):
        gc.collect()
    if leaked := _leaked(item.stash[_BEFORE]):
        _lasting.update(leaked)  # told once, not with every later test
        pytest.fail(f"left open by this test: {', '.join(sorted(leaked))}", pytrace=False)
    return result


_BEFORE = pytest.StashKey[set[str]]()


@pytest.fixture(autouse=True)
def tasks_end(request: pytest.FixtureRequest) -> None:
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_task_left")


@pytest.fixture
async def no_task_left():
    before = asyncio.all_tasks()
    yield
    tasks = asyncio.all_tasks() - before - {asyncio.current_task()}
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=GRACE_S)
    if tasks:
        pytest.fail(f"tasks left running: {', '.join(map(str, tasks))}", pytrace=False)

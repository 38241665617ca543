"""What the documents say is so: NOTICE, and the operator's guide."""

import argparse
import dataclasses
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from fluxplane.__main__ import _parser
from fluxplane.settings import Limits

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/operators.md").read_text()


def notice_module():
    spec = importlib.util.spec_from_file_location("notice", ROOT / "docs/notice.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="made on 3.11, whose backports later ones do not install")
def test_notice_names_every_package_with_its_licence():
    assert (ROOT / "NOTICE").read_text() == notice_module().notice(), "run `make notice`"


def test_no_licence_asks_for_more_than_to_be_named():
    """asyncssh offers EPL-2.0 or GPL: linking with either leaves our own code under Apache-2.0."""
    module = notice_module()
    licences = {name: module.licence(name, module.metadata(name)) for name in module.closure("")}
    strict = {name for name, told in licences.items() if re.search(r"GPL|EPL|MPL", told)}
    assert strict == {"asyncssh"}


def test_the_guide_holds_the_shipped_unit():
    assert (ROOT / "systemd/fluxplane.service").read_text().rstrip() in GUIDE


def test_every_variable_of_the_guide_is_read_somewhere():
    source = "".join(path.read_text() for path in (ROOT / "fluxplane").rglob("*.py"))
    source += " ".join(f"FLUXPLANE_LIMIT_{field.name.upper()}" for field in dataclasses.fields(Limits))
    for name in set(re.findall(r"`?\b(FLUX[A-Z]*_[A-Z_]+[A-Z])\b", GUIDE)) - {"FLUX_API_BASE"}:
        assert name in source, f"{name} is in docs/operators.md only"


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", GUIDE, re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("fluxplane ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_guide_is_understood(line: str):
    assert isinstance(_parser().parse_args(shlex.split(line)[1:]), argparse.Namespace)


def test_the_unit_starts_a_command_that_is_understood():
    [line] = re.findall(r"^ExecStart=(.*)$", (ROOT / "systemd/fluxplane.service").read_text(), re.MULTILINE)
    assert _parser().parse_args(shlex.split(line)[1:]).listen == ("127.0.0.1", 8787)

"""The examples of `fluxplane --help`: every command has some, and each is one that its parser takes."""

import argparse
import shlex

import pytest

from fluxplane import __main__ as program
from fluxplane.examples import EXAMPLES


def everything(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [parser, *(one for child in program.below(parser) for one in everything(child))]


def test_every_command_has_some_and_shows_them():
    parsers = {one.prog: one for one in everything(program._parser())}
    assert set(parsers) == set(EXAMPLES)
    for prog, parser in parsers.items():
        shown = parser.format_help()
        assert all(f"\n  {line}\n" in shown for line in EXAMPLES[prog])


@pytest.mark.parametrize("line", sorted({line for lines in EXAMPLES.values() for line in lines}))
def test_each_is_taken(line):
    words = [word for word in shlex.split(line) if not word.startswith("FLUXPLANE_")]
    assert words[0] == "fluxplane"
    assert callable(program._parser().parse_args(words[1:]).run)

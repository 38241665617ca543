"""What is made from the code is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_generated_file_is_current():
    assert generator().stale() == []


def test_a_file_that_was_edited_by_hand_is_noticed(tmp_path: Path, monkeypatch):
    module = generator()
    for name, make in module.FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(make())
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.stale() == []
    (tmp_path / "fluxctl/problems.py").write_text("PROBLEMS = {}\n")
    assert module.stale() == ["fluxctl/problems.py"]


def test_every_problem_has_a_code_of_its_own_and_a_section_in_the_guide():
    module = generator()
    kinds = module.errors.every_error()
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert {kind.exit_code for kind in kinds} <= set(module.EXIT_CODES)

"""The list of mutations cannot rot: every old line stands once, what replaces it is Python, and every test exists."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutations import MUTATIONS, Mutation, mutated  # noqa: E402


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies_and_its_test_exists(mutation: Mutation) -> None:
    original = (ROOT / mutation.file).read_text()
    changed = mutated(original, mutation)
    assert changed != original
    ast.parse(changed)
    file, _, name = mutation.test.partition("::")
    functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name.split("[")[0] in functions


def test_there_are_twenty_at_least_and_each_is_one_line() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20
    assert all(mutation.old.strip("\n").count("\n") == 0 for mutation in MUTATIONS)


def test_a_stale_mutation_is_named() -> None:
    with pytest.raises(ValueError, match="stands 0 times in"):
        mutated("other text", MUTATIONS[0])

"""docs/pitfalls.md names tests that exist, for every row; what has none says why."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", (ROOT / "docs" / "pitfalls.md").read_text(), re.MULTILINE)
WITHOUT = {27}


def test_every_row_is_there() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 36))


@pytest.mark.parametrize(("number", "tests"), [(int(n), tests) for n, _, tests in ROWS], ids=lambda x: str(x)[:3])
def test_the_named_tests_exist(number: int, tests: str) -> None:
    found = re.findall(r"`([^`]+\.py)::([^`]+)`", tests)
    assert bool(found) != (number in WITHOUT)
    for file, name in found:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"

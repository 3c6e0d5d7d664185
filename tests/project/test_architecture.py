"""The import rules that import-linter cannot express: heavy packages stay in modules that are named for them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "vllm", "transformers"}
PACKAGES = ("gym_servers", "environments", "curriculum", "genrm")


def imported(path: Path) -> set[str]:
    """Top-level names that a module imports anywhere in it, lazily too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def may_import_heavy(path: Path) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return (
        relative.startswith(("gym_servers/models/vllm", "gym_servers/models/transformers"))
        or relative == "gym_servers/hosts/ray.py"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_servers_and_verifiers_need_no_trainer_packages(package: str) -> None:
    bad = {
        path.relative_to(ROOT).as_posix(): sorted(imported(path) & HEAVY)
        for path in (ROOT / package).rglob("*.py")
        if not may_import_heavy(path) and imported(path) & HEAVY
    }
    assert not bad, f"torch, ray, vllm and transformers belong in rl_trainer and in modules named for them: {bad}"


def test_no_eval_of_text() -> None:
    """pitfall 24: `eval` and `exec` of model text was a CVE elsewhere; neither call occurs in our packages, but for the one by which
    the sandbox's child, confined by then, runs its program."""
    bad = []
    for package in (*PACKAGES, "rl_trainer"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
                    bad.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert bad == ["gym_servers/sandbox/fork_server.py: exec(code, main.__dict__)"]

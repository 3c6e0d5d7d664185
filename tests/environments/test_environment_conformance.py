"""Recorded `/verify` requests and their verdicts, through `omnigym verify` as a user calls it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import agrees
from typer.testing import CliRunner

from gym_servers import cli

Line = dict[str, Any]
COUNTS = {
    "competition_code": 46,
    "competition_math": 106,
    "instruction_following": 338,
    "mcqa": 125,
    "structured_outputs": 80,
    "workplace_assistant": 37,
}
OURS = {"competition_code": {"unit_test_timeout_secs": "test_cpu_seconds", "num_processes": None, "debug": None}}
"""What we call a setting of the reference; None: we have nothing like it."""
pytestmark = pytest.mark.conformance


def settings_of(case: Line) -> dict[str, Any]:
    """The case's settings by our names."""
    names = OURS.get(case["environment"], {})
    given = {names.get(key, key): value for key, value in (case.get("server_config") or {}).items()}
    return {key: value for key, value in given.items() if key is not None}


def verify(environment: str, cases: list[Line], settings: dict[str, Any], folder: Path) -> list[Line]:
    """The output lines of `omnigym verify` for `cases`."""
    given, out = folder / "in.jsonl", folder / "out.jsonl"
    given.write_text("".join(json.dumps({"id": case["id"], "request": case["request"]}) + "\n" for case in cases))
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = ["verify", environment, "--cases", str(given), "--out", str(out), *pairs]
    result = CliRunner().invoke(cli.build(), command)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [case["id"] for case in cases]
    return lines


@pytest.mark.parametrize("environment", sorted(COUNTS))
def test_recorded_verdicts(
    environment: str, conformance: Path, conform: Callable[[str, dict[str, bool], str], None], tmp_path: Path
) -> None:
    file = f"verify/{environment}.jsonl"
    cases = [json.loads(line) for line in (conformance / file).read_text().splitlines()]
    assert len(cases) == COUNTS[environment]
    by_settings: dict[str, list[Line]] = defaultdict(list)
    for case in cases:
        settings = settings_of(case)
        if "database" in case:
            settings["database"] = str(conformance / case["database"])
        by_settings[json.dumps(settings)].append(case)
    got = {
        line["id"]: line
        for settings, some in by_settings.items()
        for line in verify(environment, some, json.loads(settings), tmp_path)
    }
    found = {case["id"]: agrees(got[case["id"]], case["expected"]) for case in cases}
    conform(file, found, f"environments/{environment}/README.md")

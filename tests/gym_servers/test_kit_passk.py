"""pass@k and row materialisation: by hand, by enumeration, and against the recorded cases."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_servers.materialize import MaterializeError, rollout_rows
from gym_servers.passk import mean_and_stderr, pass_at_k, sample_metrics
from gym_servers.protocol import OmnigymError


def cases(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    subsets = list(itertools.combinations(samples, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert math.isclose(pass_at_k(len(samples), sum(samples), k), expected, abs_tol=1e-12)


@pytest.mark.parametrize(("n", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_what_it_is_not_defined_for(n: int, right: int, k: int) -> None:
    with pytest.raises(OmnigymError, match=f"pass@{k}"):
        pass_at_k(n, right, k)


def test_standard_error_by_hand() -> None:
    mean, error = mean_and_stderr([0.0, 0.5, 1.0, 0.5])
    assert mean == 0.5
    assert math.isclose(error, math.sqrt(0.5 / 3) / 2)
    assert math.isnan(mean_and_stderr([1.0])[1])


@pytest.mark.conformance
def test_pass_at_k_conformance(conformance: Path, conform: Callable[[str, dict[str, bool], str], None]) -> None:
    rows = cases(conformance, "pass_at_k_metrics.jsonl")
    for case in rows:
        got, wanted = sample_metrics(case["tasks"], case.get("answer_key")), dict(case["expected"])
        assert got.keys() == wanted.keys(), case["id"]
        for metrics in (got, wanted):
            for name, values in metrics.pop("per_sample_aggregate", {}).items():
                metrics[f"per_sample_aggregate/{name}"] = values
        assert got.keys() == wanted.keys(), case["id"]
        for name, expected in wanted.items():
            assert got[name] == pytest.approx(expected, abs=1e-9), (case["id"], name)
    assert len(rows) == 8
    conform("pass_at_k_metrics.jsonl", {case["id"]: True for case in rows}, "docs/architecture.md")


@pytest.mark.conformance
def test_materialisation_conformance(conformance: Path, conform: Callable[[str, dict[str, bool], str], None]) -> None:
    rows = cases(conformance, "rollout_row_materialization.jsonl")
    for case in rows:
        config = dict(case["config"])
        config["add_seed"] = config.pop("num_repeats_add_seed", False)
        if "raises" in case["expected"]:
            with pytest.raises(ValueError):
                list(rollout_rows(case["input_rows"], **config))
        else:
            assert list(rollout_rows(case["input_rows"], **config)) == case["expected"]["rows"], case["id"]
    assert len(rows) == 12
    conform("rollout_row_materialization.jsonl", {case["id"]: True for case in rows}, "docs/architecture.md")


def test_rollout_rows_share_nothing_and_leave_the_input_alone() -> None:
    source = {"responses_create_params": {"input": "q", "metadata": {"a": "b"}}, "agent_ref": {"name": "x"}}
    kept = json.dumps(source)
    first, second = rollout_rows([source], num_repeats=2, add_seed=True)
    first["responses_create_params"]["metadata"]["a"] = "changed"
    assert second["responses_create_params"]["metadata"] == {"a": "b", "extra_body": '{"seed": 1}'}
    assert json.dumps(source) == kept


def test_errors_say_what_to_add() -> None:
    with pytest.raises(MaterializeError, match="row 1 has no agent: give agent_name"):
        list(rollout_rows([{"agent_ref": {"name": "x"}}, {"x": 1}]))
    with pytest.raises(MaterializeError, match="nothing of agent 'y': add it, or '_default'"):
        list(rollout_rows([{"agent_ref": {"name": "y"}}], num_repeats={"x": 1}))

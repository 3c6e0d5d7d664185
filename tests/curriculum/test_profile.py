"""Profiles: parquet there and back, what is refused and how, and the filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from profiles import profile_of

from curriculum.filter import filter_tasks
from curriculum.profile import DTYPES, SCHEMA, ProfileError, profile_writer, read_profile, write_profile

GOOD: dict[str, list[Any]] = {
    "task_id": ["t1", "t0", "t1"],
    "domain": ["math", "math", "code"],
    "pass_rate": [0.5, 1.0, 0.125],
    "n": [8, 8, 8],
    "stderr": [0.18, 0.0, 0.12],
    "mean_tokens": [40.0, 12.5, 96.0],
    "truncated": [0.0, 0.0, 0.25],
    "weights": ["w1", "w1", "w1"],
}


def written(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_there_and_back(tmp_path: Path) -> None:
    profile = profile_of({"b": [k / 8 for k in range(9)], "a": [0.5], "ä": [0.25]}, weights="3f1c")
    write_profile(tmp_path / "p.parquet", profile)
    again = read_profile(tmp_path / "p.parquet")
    assert again.weights == "3f1c" and len(again) == 11
    for name in DTYPES:
        assert getattr(again, name).tolist() == getattr(profile, name).tolist()


def test_a_profile_is_sorted_and_found_by_name(tmp_path: Path) -> None:
    profile = read_profile(written(tmp_path / "p.parquet", GOOD))
    assert profile.domain.tolist() == ["code", "math", "math"]
    assert profile.task_id.tolist() == ["t1", "t0", "t1"]
    assert profile.mean_tokens.tolist() == [96.0, 12.5, 40.0]
    assert profile.domains == ["code", "math"] and profile.rows("math") == slice(1, 3)
    assert profile.find("math", np.array(["t1", "t2", "t0", "a"])).tolist() == [2, -1, 1, -1]
    assert profile.find("poetry", np.array(["t1"])).tolist() == [-1]
    assert profile.take(np.array([2, 0])).task_id.tolist() == ["t1", "t1"]


def test_row_groups_are_appended_and_the_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    rows = {name: GOOD[name] for name in DTYPES}
    with profile_writer(path, "w1") as writer:
        writer.append(**rows)
        assert not path.exists()
        writer.append(**{**rows, "task_id": ["t2", "t3", "t4"]})
    with pq.ParquetFile(path) as file:
        assert file.metadata.num_row_groups == 2
    assert read_profile(path).task_id.tolist() == ["t1", "t4", "t0", "t1", "t2", "t3"]
    with pytest.raises(RuntimeError), profile_writer(path, "w2") as writer:
        writer.append(**rows)
        raise RuntimeError
    assert len(read_profile(path)) == 6 and [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


@pytest.mark.parametrize("name", SCHEMA.names)
def test_each_missing_column_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "p.parquet", {key: value for key, value in GOOD.items() if key != name})
    with pytest.raises(ProfileError, match=rf"p\.parquet: column \['{name}'\] is missing; found"):
        read_profile(path)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_each_null_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "p.parquet", {**GOOD, name: [GOOD[name][0], None, GOOD[name][2]]})
    with pytest.raises(ProfileError, match=rf"p\.parquet: row 1: field '{name}' is null"):
        read_profile(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "pass_rate",
            [0.5, 1.25, 0.1],
            r"row 1 \(domain 'math', task 't0'\): field 'pass_rate' must be in \[0, 1\], found 1.25",
        ),
        ("pass_rate", [-0.5, 1.25, 0.1], r"row 0 .* found -0.5 \(2 such rows\)"),
        ("pass_rate", [0.5, 0.5, float("nan")], "row 2 .*'code'.*must be in .*found nan"),
        ("n", [8, 0, 8], "row 1 .*'n' must be at least 1, found 0"),
        ("stderr", [0.1, -0.1, 0.1], "row 1 .*'stderr' must be at least 0"),
        ("mean_tokens", [1.0, 1.0, float("inf")], "row 2 .*'mean_tokens' must be at least 0, found inf"),
        ("truncated", [0.0, 0.0, 1.5], "row 2 .*'truncated' must be in"),
        ("task_id", ["t1", "t1", "t1"], r"row 1 \(domain 'math', task 't1'\): is in row 0 too"),
        ("task_id", ["t1", "", "t1"], "row 1: field 'task_id' is empty"),
        ("domain", ["math", "math", ""], "row 2: field 'domain' is empty"),
        (
            "weights",
            ["w1", "w1", "w2"],
            "row 2: field 'weights' is 'w2', that of row 0 is 'w1': a profile is of one model",
        ),
        ("weights", ["", "", ""], "checksum of the profiled model's weights, found ''"),
        ("pass_rate", ["half", "all", "none"], "column 'pass_rate' must be double, found string"),
        ("n", [8.0, 8.0, 8.0], "column 'n' must be int64, found double"),
        ("task_id", [1, 2, 3], "column 'task_id' must be string, found int64"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, name: str, values: list[Any], message: str) -> None:
    path = written(tmp_path / "p.parquet", {**GOOD, name: values})
    with pytest.raises(ProfileError, match=r"p\.parquet: .*" + message):
        read_profile(path)


def test_files_that_are_no_profile_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"no profile '.*absent'.*omnigym profile"):
        read_profile(tmp_path / "absent")
    (tmp_path / "text").write_text("pass_rate\n0.5\n")
    with pytest.raises(ProfileError, match="text: not a parquet file"):
        read_profile(tmp_path / "text")
    write_profile(tmp_path / "whole", profile_of({"a": [0.5] * 999}))
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-200])
    with pytest.raises(ProfileError, match="cut: not a parquet file"):
        read_profile(tmp_path / "cut")
    empty = written(tmp_path / "empty", {name: pa.array([], SCHEMA.field(name).type) for name in SCHEMA.names})
    with pytest.raises(ProfileError, match="empty: it holds no task"):
        read_profile(empty)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    good = profile_of({"a": [0.5, 0.25]})
    columns: dict[str, Any] = {name: getattr(good, name) for name in DTYPES}
    for change, message in [
        ({"n": np.array([8])}, "differ in length"),
        ({"n": np.array([[8, 8]])}, "'n' must be one value a task"),
        ({"pass_rate": np.array(["x", "y"])}, "'pass_rate' must be float64"),
    ]:
        with pytest.raises(ProfileError, match=message):
            type(good)(**{**columns, **change}, weights="w")


def test_the_filter_by_hand() -> None:
    """Sorted: a-000 0, a-001 0.5, a-002 1, b-000 1, b-001 0, b-002 0.875."""
    profile = profile_of({"a": [0.0, 0.5, 1.0], "b": [1.0, 0.0, 0.875]})
    found = filter_tasks(profile, hold_out_unsolved=False)
    assert (found.kept.tolist(), found.solved.tolist(), found.unsolved.tolist()) == ([0, 1, 4, 5], [2, 3], [])
    found = filter_tasks(profile, hold_out_unsolved=True)
    assert (found.kept.tolist(), found.solved.tolist(), found.unsolved.tolist()) == ([1, 5], [2, 3], [0, 4])

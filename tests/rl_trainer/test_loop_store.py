"""The run folder: what was committed comes back bit for bit, what was not is void."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_servers.protocol import Failure, Rollout, Segment
from rl_trainer.store import RunStore, StoreError

finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    segments = []
    for _ in range(draw(st.integers(0, 3))):
        n = draw(st.integers(0, 6))
        segments.append(
            Segment(
                token_ids=draw(st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n)),
                mask=draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)),
                lp_gen=draw(st.lists(finite, min_size=n, max_size=n)),
                weight_version=draw(st.integers(0, 99)),
                break_reason=draw(st.sampled_from(["", "branch"])),
            )
        )
    text = draw(st.text(st.characters(exclude_categories=["Cs"])))
    failure = draw(st.sampled_from([None, Failure(kind="timeout", message="late")]))
    return Rollout(
        task_id="t",
        environment="e",
        segments=segments,
        failure=failure,
        output=[{"type": "message", "role": "assistant", "content": text}],
        reward=None if failure else draw(finite),
        parts={"a": [1, "x"]},
    )


@given(st.lists(rollouts(), max_size=5))
@settings(max_examples=40, deadline=None)
def test_rollouts_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, many: list[Rollout]) -> None:
    store = RunStore.create(tmp_path_factory.mktemp("runs"), "r", "a: 1\n")
    writer = store.writer("step_000000")
    for rollout in many:
        writer.add(rollout)
    assert not store.committed("step_000000")
    writer.commit()
    assert store.read("step_000000") == many


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore.create(tmp_path, "r", "a: 1\n")
    writer = store.writer("x")
    for k in range(3):
        writer.add(Rollout(task_id=f"t{k}", environment="e", reward=0.5))
    writer.commit()
    return store


def test_lines_are_readable_with_zcat(store: RunStore) -> None:
    lines = subprocess.run(["zcat", str(store.rollouts / "x.jsonl.gz")], capture_output=True, check=True).stdout
    assert [json.loads(line)["task_id"] for line in lines.splitlines()] == ["t0", "t1", "t2"]


def test_what_was_not_committed_is_void(store: RunStore) -> None:
    writer = store.writer("x")  # started again: the old marker is gone at once
    writer.add(Rollout(task_id="new", environment="e", reward=0.0))
    writer.abandon()
    assert not store.committed("x")
    with pytest.raises(StoreError, match="no complete rollouts 'x'"):
        store.read("x")


def test_damage_is_noticed(store: RunStore) -> None:
    path = store.rollouts / "x.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="its marker says .* it is damaged"):
        store.read("x")


def test_metrics_survive_a_cut_line_and_can_be_rewritten(store: RunStore) -> None:
    for step in range(4):
        store.log({"step": step, "value": step / 2})
    store.log({"step": 2, "evaluation": "eval_000002"})
    with store.metrics_file.open("ab") as file:
        file.write(b'{"step": 4, "val')
    assert [r["step"] for r in store.metrics()] == [0, 1, 2, 3, 2]
    store.rewrite_metrics(row for row in store.metrics() if row["step"] < 2)
    assert [r["step"] for r in store.metrics()] == [0, 1]
    store.log({"step": 2})
    assert [r["step"] for r in store.metrics()] == [0, 1, 2]


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    folders = {RunStore.create(tmp_path, "r", "").folder for _ in range(3)}
    assert len(folders) == 3
    with pytest.raises(StoreError, match=r"is no run folder: it holds no config\.yaml"):
        RunStore.open(tmp_path)


def test_one_run_has_one_process(store: RunStore) -> None:
    code = f"from pathlib import Path; from rl_trainer.store import RunStore; RunStore.open(Path({str(store.folder)!r})).lock()"
    store.lock()
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode == 1 and "is going on in another process" in second.stderr
    store._lock.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["_tokens", "_lines"])
def test_a_disk_that_is_full_at_the_commit_is_the_same_error(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is buffered reaches the disk only then; giving up afterwards hides nothing."""
    writer = store.writer("y")
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(writer, name, full)
        writer.add(Rollout(task_id="t", environment="e", segments=[Segment(token_ids=[1], mask=[0], lp_gen=[0.0])]))
        with pytest.raises(StoreError, match=r"cannot write the rollouts .*y\.\*: No space left on device.*resume"):
            writer.commit()
        writer.abandon()
    assert not store.committed("y")


def test_a_folder_is_gone_on_with_as_it_was_begun(store: RunStore) -> None:
    store.claim("rollouts")
    store.claim("rollouts")
    with pytest.raises(
        StoreError, match=r"begun as 'rollouts', not as 'train': go on with --rollouts-only, or train on"
    ):
        store.claim("train")


def test_a_full_disk_is_an_error_that_says_so(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = store.writer("y")
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(writer, "_tokens", full)
        with pytest.raises(StoreError, match=r"cannot write .*No space left on device.*resume"):
            writer.add(Rollout(task_id="t", environment="e", segments=[Segment(token_ids=[1], mask=[0], lp_gen=[0.0])]))

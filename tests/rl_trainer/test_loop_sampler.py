"""The plan of a run: a function of (seed, step), in the mixture's ratios, without replacement within an epoch."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_servers.protocol import RowError
from gym_servers.rows import named_tasks
from rl_trainer.config import ConfigError, RunConfig
from rl_trainer.generation import plan_rollouts
from rl_trainer.sampler import RandomSampler
from rl_trainer.tasks import LoadedTask, drop_long_prompts, load_heldout, load_rows


def tasks(name: str, n: int) -> list[LoadedTask]:
    return [LoadedTask(name, f"{name}{k}", {}) for k in range(n)]


def make(seed: int = 0, n: int = 7, batch: int = 5) -> RandomSampler:
    return RandomSampler({"a": tasks("a", n), "b": tasks("b", 3)}, {"a": 3, "b": 1, "off": 0}, batch, seed)


@given(seed=st.integers(0, 1000), step=st.integers(0, 40))
def test_a_batch_depends_on_seed_and_step_only(seed: int, step: int) -> None:
    fresh, used = make(seed), make(seed)
    order = list(range(step + 3))
    random.Random(seed).shuffle(order)
    for other in order:
        used.next(other)
    assert used.next(step) == fresh.next(step)


def test_every_task_stands_once_in_an_epoch() -> None:
    sampler = make(seed=3, n=30, batch=4)
    drawn = [p.task.task_id for step in range(40) for p in sampler.next(step) if p.task.environment == "a"]
    for epoch in range(len(drawn) // 30):
        assert Counter(drawn[30 * epoch : 30 * epoch + 30]) == Counter(f"a{k}" for k in range(30))
    assert drawn[:30] != drawn[30:60]


def test_ratios_and_groups() -> None:
    sampler = make()
    plan = [p for step in range(20) for p in sampler.next(step)]
    assert Counter(p.task.environment for p in plan) == {"a": 75, "b": 25}
    assert len({p.group for p in plan}) == 100  # a task that comes twice is two groups (pitfall 31)
    assert [p.task.task_id for p in make(seed=1).next(0)] != [p.task.task_id for p in make(seed=2).next(0)]


def test_seeds_are_of_the_place_not_of_the_run() -> None:
    batch = make().next(2)
    one, two = (plan_rollouts(7, run, "step_000002", batch, 4) for run in ("x", "y"))
    assert [p.seed for p in one] == [p.seed for p in two]
    assert len({p.seed for p in one}) == 20
    assert {p.rollout_id for p in one}.isdisjoint(p.rollout_id for p in two)
    other = plan_rollouts(7, "x", "step_000003", batch, 4)
    assert {p.seed for p in one}.isdisjoint(p.seed for p in other)


def test_held_out_seeds_are_those_of_the_task() -> None:
    batch = make().next(0)
    before, after = (plan_rollouts(7, "x", label, batch, 2, "heldout") for label in ("eval_before", "eval_after"))
    assert [p.seed for p in before] == [p.seed for p in after]


def test_long_prompts_are_dropped_by_name() -> None:
    rows = [LoadedTask("a", f"t{n}", {"n": n}) for n in (3, 10, 11)]
    kept, dropped = drop_long_prompts(rows, lambda row: int(row["n"]), 10)
    assert [task.task_id for task in kept] == ["t3", "t10"]
    assert dropped == ["a/t11 (11 tokens)"]


def test_equal_rows_do_not_merge_and_equal_ids_are_refused() -> None:
    loaded = list(named_tasks([("1", {"x": 1}), ("2", {"x": 1}), ("3", {"x": 2})]))
    assert len({task_id for task_id, _ in loaded}) == 3
    with pytest.raises(RowError, match="f:2: task_id 'q' is also that of f:1: ids must differ"):
        list(named_tasks([("f:1", {"task_id": "q"}), ("f:2", {"task_id": "q"})]))
    with pytest.raises(RowError, match="f:1: field 'task_id' must be a string, found int"):
        list(named_tasks([("f:1", {"task_id": 3})]))


def test_a_resume_with_other_tasks_says_what_changed() -> None:
    """Also where there are as many as before: of the same number, another one, and the same in another order."""
    state = json.loads(json.dumps(make(seed=3).state_dict()))  # as a checkpoint keeps it
    make(seed=3).load_state_dict(state)
    for ids in (["a0", "a1", "a2", "a3", "a4", "a5", "other"], ["a1", "a0", *(f"a{k}" for k in range(2, 7))]):
        changed = [LoadedTask("a", task_id, {}) for task_id in ids]
        sampler = RandomSampler({"a": changed, "b": tasks("b", 3)}, {"a": 3, "b": 1}, 5, 3)
        with pytest.raises(ConfigError, match="^environment 'a' has 7 tasks as before, but other ones or in another"):
            sampler.load_state_dict(state)
    with pytest.raises(
        ConfigError, match="the seed was 3 and is 4; environment 'a' had 7 tasks and has 8: the run can"
    ):
        make(seed=4, n=8).load_state_dict(state)
    with pytest.raises(ConfigError, match="^environment 'b' is gone; environment 'c' is new: the run cannot go on"):
        RandomSampler({"a": tasks("a", 7), "c": tasks("c", 3)}, {"a": 3, "c": 1}, 5, 3).load_state_dict(state)


def test_a_pool_is_shuffled_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled: list[int] = []
    plain = random.Random.shuffle

    def counted(self: random.Random, order: list[Any]) -> None:
        shuffled.append(len(order))
        plain(self, order)

    monkeypatch.setattr(random.Random, "shuffle", counted)
    sampler = RandomSampler({"a": tasks("a", 100)}, {"a": 1}, 10, 0)
    for step in range(20):
        sampler.next(step)
    assert shuffled.count(100) == 2


def test_files_and_generators(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tasks.jsonl"
    row = '{"responses_create_params": {"input": "1+1?"}, "expected_answer": "2"}\n'
    path.write_text(row * 2)
    base = {"model": "m", "steps": 1, "mixture": {"competition_math": 1}, "val": {"tasks": 5}}
    config = RunConfig.model_validate({**base, "tasks": {"competition_math": {"file": str(path)}}})
    assert len(load_rows(config, "competition_math")) == 2
    path.write_text(row + '{"responses_create_params": {"input": "1+1?"}}\n')
    with pytest.raises(RowError, match=r"tasks\.jsonl:2: environment 'competition_math'.*expected_answer"):
        load_rows(config, "competition_math")
    path.write_text(row + row[:30])
    with pytest.raises(RowError, match=r"tasks\.jsonl:2: not valid JSON.*is it cut off\?"):
        load_rows(config, "competition_math")
    path.write_text("\n")
    with pytest.raises(ConfigError, match=r"tasks\.competition_math\.file: '.*tasks\.jsonl' holds no row"):
        load_rows(config, "competition_math")
    generated = RunConfig.model_validate({**base, "tasks": {"competition_math": {"n": 20, "seed": 3}}})
    train = load_rows(generated, "competition_math")
    heldout = load_heldout(generated, "competition_math")
    assert (len(train), len(heldout)) == (20, 5)

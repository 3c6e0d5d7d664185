"""The plan of a run: a function of (seed, step), in the mixture's ratios, without replacement within an epoch."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.options import CurriculumError, CurriculumOptions, Order
from curriculum.profile import Profile
from gym_servers.protocol import OmnigymError, RowError
from gym_servers.rows import named_tasks
from rl_trainer.config import ConfigError, RunConfig
from rl_trainer.generation import plan_rollouts
from rl_trainer.sampler import Sampler
from rl_trainer.tasks import LoadedTask, drop_long_prompts, load_heldout, load_rows


def tasks(name: str, n: int) -> list[LoadedTask]:
    return [LoadedTask(name, f"{name}{k}", {}) for k in range(n)]


def options(seed: int = 0, batch: int = 5, order: Order = "random", steps: int = 50) -> CurriculumOptions:
    ratios = {"a": 3.0, "b": 1.0, "off": 0.0}
    return CurriculumOptions(ratios=ratios, batch_size=batch, steps=steps, seed=seed, order=order)


def make(seed: int = 0, n: int = 7, batch: int = 5) -> Sampler:
    return Sampler({"a": tasks("a", n), "b": tasks("b", 3)}, options(seed, batch))


def profile_of(rates: dict[str, list[float]], weights: str = "w") -> Profile:
    """Tasks a0, a1, ... of domain a with these pass rates, of 4 rollouts each."""
    names = [(domain, f"{domain}{k}", rate) for domain, found in rates.items() for k, rate in enumerate(found)]
    n = len(names)
    return Profile(
        task_id=np.array([name for _, name, _ in names]),
        domain=np.array([domain for domain, _, _ in names]),
        pass_rate=np.array([rate for _, _, rate in names]),
        n=np.full(n, 4),
        stderr=np.zeros(n),
        mean_tokens=np.ones(n),
        truncated=np.zeros(n),
        weights=weights,
    )


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


def test_what_is_no_prompt_is_named_by_its_line() -> None:
    def count(row: dict[str, object]) -> int:
        raise OmnigymError("field 'input' must be a string")

    with pytest.raises(RowError, match=r"^rows\.jsonl:7: environment 'e': field 'input' must be a string$"):
        drop_long_prompts([LoadedTask("e", "t", {}, "rows.jsonl:7")], count, 9)


def test_equal_rows_do_not_merge_and_equal_ids_are_refused() -> None:
    loaded = list(named_tasks([("1", {"x": 1}), ("2", {"x": 1}), ("3", {"x": 2})]))
    assert len({task_id for task_id, _ in loaded}) == 3
    with pytest.raises(RowError, match="f:2: task_id 'q' is also that of f:1: ids must differ"):
        list(named_tasks([("f:1", {"task_id": "q"}), ("f:2", {"task_id": "q"})]))
    with pytest.raises(RowError, match="f:1: field 'task_id' must be a string, found int"):
        list(named_tasks([("f:1", {"task_id": 3})]))
    assert [name for name, _ in named_tasks([("f:1", {"task_id": "é" * 100})])] == ["é" * 100]
    with pytest.raises(RowError, match="f:1: field 'task_id' has 202 bytes, at most 200 are allowed"):
        list(named_tasks([("f:1", {"task_id": "é" * 101})]))


def test_a_resume_with_other_tasks_says_what_changed() -> None:
    """Also where there are as many as before: of the same number, another one, and the same in another order."""
    state = json.loads(json.dumps(make(seed=3).state_dict()))  # as a checkpoint keeps it
    make(seed=3).load_state_dict(state)
    for ids in (["a0", "a1", "a2", "a3", "a4", "a5", "other"], ["a1", "a0", *(f"a{k}" for k in range(2, 7))]):
        changed = [LoadedTask("a", task_id, {}) for task_id in ids]
        sampler = Sampler({"a": changed, "b": tasks("b", 3)}, options(3))
        with pytest.raises(ConfigError, match="^environment 'a' has 7 tasks as before, but other ones or in another"):
            sampler.load_state_dict(state)
    with pytest.raises(
        ConfigError, match="the seed was 3 and is 4; environment 'a' had 7 tasks and has 8: the run can"
    ):
        make(seed=4, n=8).load_state_dict(state)
    with pytest.raises(ConfigError, match="^environment 'b' is gone; environment 'c' is new: the run cannot go on"):
        other = options(3).model_copy(update={"ratios": {"a": 3.0, "c": 1.0}})
        Sampler({"a": tasks("a", 7), "c": tasks("c", 3)}, other).load_state_dict(state)


def test_a_run_may_go_on_for_longer_unless_its_target_moves() -> None:
    pools = {"a": tasks("a", 8), "b": tasks("b", 4)}
    rates = profile_of({"a": [0.25, 0.5] * 4, "b": [0.5] * 4})
    orders: tuple[Order, ...] = ("random", "sequential", "gaussian")
    for order in orders:
        short, long = (Sampler(pools, options(1, order=order, steps=steps), rates) for steps in (5, 9))
        state = json.loads(json.dumps(short.state_dict()))
        if order == "gaussian":
            with pytest.raises(CurriculumError, match="steps was 5 and is 9"):
                long.load_state_dict(state)
        else:
            long.load_state_dict(state)
            assert [long.next(step) for step in range(5)] == [short.next(step) for step in range(5)]
        other = Sampler(pools, options(1, order=order, steps=5), profile_of({"a": [0.25] * 8, "b": [0.5] * 4}))
        with pytest.raises(
            CurriculumError, match="domain 'a' has 8 eligible tasks as before, but other ones or other pass"
        ):
            other.load_state_dict(state)


def test_a_gaussian_plan_takes_the_run_s_own_tasks_from_the_profile() -> None:
    """Solved tasks never; tasks of the profile that the run has not are no part of it; missing ones are counted."""
    pools = {"a": tasks("a", 4), "b": tasks("b", 2)}
    sampler = Sampler(
        pools,
        options(order="gaussian", batch=4, steps=3),
        profile_of({"a": [1.0, 0.5, 0.75, 0.25, 0.5], "b": [0.5, 1.0]}),
    )
    seen = {planned.task.task_id for step in range(3) for planned in sampler.next(step)}
    assert seen == {"a1", "a2", "a3", "b0"}  # 3 of a and 1 of b each step; a0 and b1 are solved, a4 is not the run's
    names = [("a", "a2"), ("b", "b1"), ("a", "nobody"), ("nothing", "a2")]
    assert [sampler.plan(0).pass_rate(*name) for name in names] == [0.75, 1.0, None, None]
    with pytest.raises(
        ConfigError, match=r"^2 of 4 tasks of environment 'a' are not in the profile, such as 'a2': .*--config"
    ):
        Sampler(pools, options(order="gaussian"), profile_of({"a": [0.5, 0.5], "b": [0.5, 0.5]}))
    with pytest.raises(ConfigError, match=r"raise failure_limit \(0\.4\)"):
        Sampler(pools, options(order="gaussian"), profile_of({"a": [0.5, 0.5], "b": [0.5, 0.5]}), 0.4)
    lacking = Sampler(pools, options(order="gaussian"), profile_of({"a": [0.5, 0.5], "b": [0.5, 0.5]}), 0.5)
    assert lacking.left_out.startswith("2 tasks, such as a/a2, are not in the profile")
    assert {p.task.task_id for step in range(3) for p in lacking.next(step)} <= {"a0", "a1", "b0", "b1"}
    with pytest.raises(CurriculumError, match="needs a profile"):
        Sampler(pools, options(order="gaussian"))


def test_a_new_plan_begins_at_its_step_and_moves_nothing_before_it() -> None:
    pools = {"a": tasks("a", 40), "b": tasks("b", 20)}
    old, new = ({"a": [rate] * 20 + [0.5] * 20, "b": [0.5] * 20} for rate in (0.25, 1.0))
    plain, moved = (Sampler(pools, options(2, order="gaussian", steps=6), profile_of(old)) for _ in range(2))
    state = json.loads(json.dumps(plain.state_dict()))
    moved.replan(4, profile_of(new, weights="v"))
    assert [moved.next(step) for step in range(4)] == [plain.next(step) for step in range(4)]
    later = [planned.task for step in (4, 5) for planned in moved.next(step)]
    assert not {f"a{k}" for k in range(20)} & {task.task_id for task in later}  # solved by now
    assert Counter(task.environment for task in later) == {"a": 8, "b": 2} or Counter(
        task.environment for task in later
    ) == {"a": 7, "b": 3}
    assert [p.group for p in moved.next(5)] == [f"s000005-g{k:04d}" for k in range(5)]
    assert (
        moved.plan(5).planner.options.mean(1) == 0.35 == plain.plan(5).planner.options.mean(5)
    )  # the target ends with the run
    with pytest.raises(CurriculumError, match="no step 2"):
        moved.plan(5).planner.batch(2)
    moved.load_state_dict(state)  # the checkpoint is from before the new plan
    with pytest.raises(ConfigError, match="^the profile of step 4 is gone: the run cannot go on"):
        plain.load_state_dict(moved.state_dict())


def test_a_profile_that_makes_no_plan_leaves_the_one_before() -> None:
    """All tasks of an environment are solved by now, or one has no pass rate: the run is not lost for it, and says so."""
    pools = {"a": tasks("a", 4), "b": tasks("b", 2)}
    before = {"a": [0.5] * 4, "b": [0.5] * 2}
    plain, moved = (Sampler(pools, options(order="gaussian", steps=6), profile_of(before)) for _ in range(2))
    said = moved.replan(2, profile_of({"a": [0.5] * 4, "b": [1.0] * 2}))
    assert "makes no plan, the one before goes on: domain 'b' has no eligible task" in said
    assert "1 of 2 tasks of environment 'b' are not in" in moved.replan(3, profile_of({"a": [0.5] * 4, "b": [0.5]}))
    assert [moved.next(step) for step in range(6)] == [plain.next(step) for step in range(6)] and moved.profiled == 3
    plain.load_state_dict(moved.state_dict())
    assert moved.replan(4, profile_of(before)) == "new plan from step 4"


def test_replacements_are_of_the_same_environments_and_move_nothing() -> None:
    sampler, fresh = (make(seed=4, n=60, batch=8) for _ in range(2))
    batch = sampler.next(3)
    first, second = sampler.replacements(3, 0), sampler.replacements(3, 1)
    for again in (first, second):
        assert [p.task.environment for p in again] == [p.task.environment for p in batch]
    of_a = [[p.task.task_id for p in found if p.task.environment == "a"] for found in (batch, first, second)]
    assert len({*of_a[0], *of_a[1], *of_a[2]}) == sum(map(len, of_a))
    assert len({p.group for found in (batch, first, second) for p in found}) == 24
    assert sampler.next(4) == fresh.next(4) and fresh.replacements(3, 1) == second


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

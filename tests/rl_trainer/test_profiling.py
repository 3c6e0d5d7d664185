"""A profile in the making: the figures of a task by hand, the journal after a kill, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from loop_world import write_config

from curriculum.profile import read_profile
from gym_servers.checkpoints import checkpoint_digest
from gym_servers.protocol import Failure, OmnigymError, Rollout, RowError
from gym_servers.rollouts import RolloutRequest
from rl_trainer.config import load_config
from rl_trainer.generation import RolloutPlan
from rl_trainer.profile_command import TaskFiles
from rl_trainer.profiling import NamedTask, Profiler, Tally, collect_profile, made_with

MADE_WITH = {"weights": "w1", "sampling": {"temperature": 1.0}}
TASKS: list[NamedTask] = [("a", f"t{k}", {"question": k}) for k in range(4)] + [("b", "t0", {"question": "b"})]


def rollout(request: RolloutRequest, reward: float | None, **values: Any) -> Rollout:
    failure = None if reward is not None else Failure(kind="timeout", message="slow")
    return Rollout(
        task_id=request.task_id,
        environment=request.environment,
        attempt=request.attempt,
        seed=request.seed,
        reward=reward,
        failure=failure,
        **values,
    )


def profiler(path: Path, n: int = 4, seed: int = 0, **made_with: Any) -> Profiler:
    return Profiler(path, {**MADE_WITH, **made_with}, n, seed)


def fill(profiler: Profiler, tasks: list[NamedTask] = TASKS, stop_after: int | None = None) -> list[tuple[str, str]]:
    """Answer what is asked for: attempt k of a task earns k % 2. Returns whose rollouts were sampled; stops in the middle."""
    sampled = []
    for count, request in enumerate(profiler.requests(tasks)):
        if count == stop_after:
            break
        sampled.append((request.environment, request.task_id))
        profiler.add(rollout(request, float(request.attempt % 2), usage={"sampled_tokens": 3 + request.attempt}))
    return sampled


def test_figures_of_a_task_by_hand() -> None:
    """Rewards 1, 0.5, 0 of three that did not fail: mean 0.5; variance (ddof 1) 0.25, so the error is 0.5 / sqrt(3). Sampled tokens are 10,
    20 and 33 - 3 that an abandoned attempt had: 60 / 3."""
    tally = Tally(0, 0)
    tokens = [{"sampled_tokens": 10}, {"sampled_tokens": 20}, {"sampled_tokens": 33, "dropped_tokens": 3}]
    for attempt, reward in ((2, 0.0), (0, 1.0), (1, 0.5)):
        request = RolloutRequest({}, "t", "a", attempt=attempt)
        tally.add(rollout(request, reward, usage=tokens[attempt], truncated=attempt == 2))
    tally.add(rollout(RolloutRequest({}, "t", "a", attempt=3), None, usage={"sampled_tokens": 99}))
    assert tally.ended == 4
    assert tally.figures() == {
        "n": 3,
        "pass_rate": 0.5,
        "stderr": pytest.approx(0.5 / math.sqrt(3)),
        "mean_tokens": 20.0,
        "truncated": pytest.approx(1 / 3),
    }
    lone, none = Tally(0, 0), Tally(0, 0)
    lone.add(rollout(RolloutRequest({}, "t", "a"), 1.0))
    none.add(rollout(RolloutRequest({}, "t", "a"), None))
    assert (lone.figures()["pass_rate"], lone.figures()["stderr"]) == (1.0, 0.5)
    assert none.figures() == {"n": 0}  # not a rate of 0
    with pytest.raises(OmnigymError, match="environment 'a' task 't': reward -3; a pass rate is a mean of rewards in"):
        lone.add(rollout(RolloutRequest({}, "t", "a", attempt=1), -3.0))


def test_a_finished_task_is_never_sampled_again_and_the_parquet_is_that_of_an_undisturbed_profile(
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    with profiler(whole) as made:
        fill(made)
        made.publish()
    with profiler(cut) as made:
        first = fill(made, stop_after=2 * 4 + 3)  # two tasks are finished, the third has three of its four rollouts
    with (tmp_path / "cut.parquet.journal").open("ab") as file:
        file.write(b'{"place": 2, "mark": "00')  # what a kill in the middle of a write leaves
    assert not cut.exists()
    with profiler(cut) as made:
        second = fill(made)
        outcome = made.publish()
    assert {("a", "t0"), ("a", "t1")}.isdisjoint(second) and second.count(("a", "t2")) == 4 == first.count(("a", "t0"))
    assert cut.read_bytes() == whole.read_bytes()
    profile = read_profile(cut)
    assert (profile.task_id.tolist(), profile.domain.tolist()) == (["t0", "t1", "t2", "t3", "t0"], ["a"] * 4 + ["b"])
    assert set(profile.pass_rate) == {0.5} and set(profile.mean_tokens) == {4.5} and profile.weights == "w1"
    assert (outcome.tasks, outcome.pass_rates) == ({"a": 4, "b": 1}, {"a": 2.0, "b": 0.5})
    with profiler(cut) as made:  # all is there: nothing is sampled
        assert fill(made) == []
        made.publish()
    assert cut.read_bytes() == whole.read_bytes()


def test_seeds_do_not_depend_on_what_was_done_before(tmp_path: Path) -> None:
    with profiler(tmp_path / "one") as one, profiler(tmp_path / "two") as two:
        seeds = {(r.environment, r.task_id, r.attempt): r.seed for r in one.requests(TASKS)}
        later = {(r.environment, r.task_id, r.attempt): r.seed for r in two.requests(TASKS[2:])}
    assert len(set(seeds.values())) == 20
    assert later == {key: seed for key, seed in seeds.items() if key in later}


def test_a_run_s_rollouts_are_planned_as_there_is_room(tmp_path: Path) -> None:
    """Nothing is kept of tasks that are not under way, however many there are."""
    done: list[str] = []

    class OneByOne:
        def collect(self, plans: Iterable[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
            for plan in plans:
                assert len(made._open) == 1
                request = RolloutRequest({}, plan.task.task_id, plan.task.environment, plan.group, plan.attempt, 0)
                on_done(rollout(request, 1.0))
                done.append(plan.rollout_id)

    with profiler(tmp_path / "p.parquet", n=2) as made:
        found = collect_profile(made, TASKS, OneByOne(), 0.0, lambda rollout: None)  # type: ignore[arg-type]
    assert found.tasks == {"a": 4, "b": 1} and len(done) == 10
    with profiler(tmp_path / "p.parquet", n=2) as made:
        collect_profile(made, TASKS, None, 0.0, lambda rollout: None)  # type: ignore[arg-type]  # nothing is left


def test_a_task_whose_rollouts_all_failed_is_reported_and_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    with profiler(out, n=2) as made:
        for request in made.requests(TASKS):
            failed = request.task_id == "t1" or (request.task_id == "t2" and request.attempt == 0)
            made.add(rollout(request, None if failed else 1.0))
        outcome = made.publish()
    assert outcome.without == 1 and "1 tasks have no pass rate" in outcome.describe()
    assert outcome.describe().startswith(
        "a: 3 tasks, mean pass rate 1.000, 3 always solved, 0 never, 1 rollouts failed\nb: 1 tasks"
    )
    profile = read_profile(out)
    assert dict(zip(profile.task_id[profile.domain == "a"].tolist(), profile.n.tolist(), strict=False)) == {
        "t0": 2,
        "t2": 1,
        "t3": 2,
    }
    with profiler(out, n=2) as made:
        assert set(fill(made)) == {("a", "t1")}
        assert made.publish().without == 0
    with profiler(tmp_path / "none.parquet", n=1) as made:
        for request in made.requests(TASKS[:1]):
            made.add(rollout(request, None))
        with pytest.raises(
            OmnigymError, match=r"no task has a rollout that did not fail: '.*none\.parquet' was not written"
        ):
            made.publish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "w2"}, r"is of another model's profile \('w1', now 'w2'\): give another --out"),
        ({"sampling": {"temperature": 0.5}}, "made with another 'sampling'"),
        ({"n": 5}, r"made with another 'n' \(4, now 5\)"),
        ({"seed": 1}, r"made with another 'seed' \(0, now 1\)"),
    ],
)
def test_a_profile_made_otherwise_is_not_gone_on_with(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    out = tmp_path / "p.parquet"
    with profiler(out) as made:
        fill(made, stop_after=5)
    with pytest.raises(OmnigymError, match=message), profiler(out, **change):
        pass
    with profiler(out) as made:
        fill(made)
        with pytest.raises(OmnigymError, match="is being made by another"), profiler(out):
            pass


@pytest.mark.parametrize(
    "change",
    [
        ["sampling.max_tokens=20"],
        ["sampling.temperature=0.5"],
        ["engine.dtype=bfloat16"],
        ["engine.max_model_len=100"],
        ["settings={competition_math: {require_box: true}}"],
    ],
)
def test_what_changes_a_run_s_rollouts_makes_another_profile(tmp_path: Path, change: list[str]) -> None:
    file = write_config(tmp_path, tmp_path)
    assert made_with(load_config(file, change), "w1") != made_with(load_config(file), "w1")
    assert made_with(load_config(file, ["optimizer.lr=1"]), "w1") == made_with(load_config(file), "w1")


def test_other_tasks_in_place_of_those_that_were_profiled_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    with profiler(out) as made:
        fill(made, stop_after=9)
    changed: list[NamedTask] = [TASKS[0], ("a", "t1", {"question": "another"}), *TASKS[2:]]
    with profiler(out) as made, pytest.raises(OmnigymError, match="has another task than 'a/t1' at place 1"):
        fill(made, changed)
    with profiler(out) as made:
        fill(made, [*TASKS, ("c", "t0", {})])  # more at the end are no others
        assert made.publish().tasks == {"a": 4, "b": 1, "c": 1}
    foreign = tmp_path / "foreign.parquet"
    foreign.write_bytes(b"?")
    with pytest.raises(OmnigymError, match="foreign.parquet' exists, and no journal"), profiler(foreign):
        pass
    journal = tmp_path / "x.parquet.journal"
    journal.write_text('{"made": 1}\n')
    with (
        pytest.raises(OmnigymError, match=r"x\.parquet\.journal:1: not a line of `omnigym profile`"),
        profiler(tmp_path / "x.parquet"),
    ):
        pass


def test_rows_of_task_files_find_their_environments(tmp_path: Path) -> None:
    mixed, plain, twice = (tmp_path / name for name in ("mixed.jsonl", "plain.jsonl", "twice.jsonl"))
    mixed.write_text(
        '{"environment": "x", "task_id": "1"}\n{"agent_ref": {"name": "y"}, "task_id": "1"}\n\n{"environment": "x", "q": 1}\n'
    )
    plain.write_text('{"q": 1, "agent_ref": "z"}\n{"q": 1}\n')
    twice.write_text('{"task_id": "1"}\n')
    files = TaskFiles.parse([str(mixed), f"z={plain}"], [])
    assert files.environments() == ["x", "y", "z"]
    found = [(name, task_id) for name, task_id, _ in files.tasks()]
    assert found[:2] == [("x", "1"), ("y", "1")]  # an id is of its environment
    assert len(set(found)) == 5
    assert TaskFiles.parse([str(plain)], ["z=http://h"]).environments() == ["z"]
    with pytest.raises(
        RowError, match=r"twice\.jsonl:1: task_id '1' is also that of .*mixed\.jsonl:1: ids must differ"
    ):
        list(TaskFiles.parse([str(mixed), f"x={twice}"], []).tasks())
    with pytest.raises(RowError, match=r"plain\.jsonl:1: no environment: .* give --tasks NAME="):
        TaskFiles.parse([str(plain)], []).environments()
    with pytest.raises(RowError, match=r"mixed\.jsonl:2: environment 'y', which no --env names"):
        TaskFiles.parse([str(mixed)], ["x", "z"]).environments()
    with pytest.raises(OmnigymError, match="--tasks for 'y', which no --env names"):
        TaskFiles.parse([f"y={plain}"], ["x"])

    def refuse(name: str, row: dict[str, Any]) -> None:
        if name == "y":
            raise RowError("field 'q' is missing")

    with pytest.raises(RowError, match=r"mixed\.jsonl:2: field 'q' is missing"):
        list(files.tasks(refuse))


def test_a_folder_s_digest_is_the_one_that_trainer_and_engine_compute(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from rl_trainer.tiny_model import make_tiny_model
    from rl_trainer.weights import weights_digest

    model = make_tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    expected = weights_digest(tensors)
    assert checkpoint_digest(model) == expected
    names = sorted(tensors)  # in two files, with the tied head written out
    save_file({name: tensors[name] for name in names[:3]}, model / "model.safetensors")
    rest = {name: tensors[name] for name in names[3:]} | {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone()
    }
    save_file(rest, model / "model-2.safetensors")
    assert checkpoint_digest(model) == expected
    changed = dict(rest)
    changed[names[3]] = changed[names[3]] + 1
    save_file(changed, model / "model-2.safetensors")
    assert checkpoint_digest(model) != expected
    whole = (model / "model-2.safetensors").read_bytes()
    (model / "model-2.safetensors").write_bytes(whole[:-40])
    with pytest.raises(OmnigymError, match=r"model-2\.safetensors' ends in tensor '.*get the checkpoint again"):
        checkpoint_digest(model)
    (model / "model-2.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(OmnigymError, match="is no safetensors file"):
        checkpoint_digest(model)
    for file in model.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(OmnigymError, match="holds no .safetensors file"):
        checkpoint_digest(model)

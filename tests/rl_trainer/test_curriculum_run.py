"""The curriculum in a run: the batches that a profile asks for, what was observed, dynamic sampling, a new plan on a plateau."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_world import ANSWER, TASKS, TorchEngine, broken, easy_profile, make_run, small_config
from safetensors.torch import load_file

from curriculum.profile import read_profile
from gym_servers.protocol import Rollout
from rl_trainer.batch import rollout_key
from rl_trainer.dynamic_sampling import Places
from rl_trainer.evaluation import task_means
from rl_trainer.loop import Run
from rl_trainer.observed import Observed, difficulty
from rl_trainer.options import AlgorithmOptions
from rl_trainer.replan import plateaued, validation_scores
from rl_trainer.report import build_report
from rl_trainer.store import RunStore, is_dropped, step_label
from rl_trainer.tasks import LoadedTask, PlannedTask
from rl_trainer.tiny_model import make_tiny_model
from rl_trainer.weights import weights_digest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def digest(run: Run) -> str:
    return weights_digest(run.policy.worker.weights())  # type: ignore[attr-defined]


GAUSSIAN: dict[str, Any] = {"sampler": "gaussian", "curriculum": {"profile": "p.parquet", "samples": 2}}


def graded(group: str, *rewards: float) -> list[Rollout]:
    return [Rollout(task_id="t", environment="a", group=group, attempt=k, reward=r) for k, r in enumerate(rewards)]


def planned(*groups: str) -> list[PlannedTask]:
    return [PlannedTask(LoadedTask("a", "t", {}), group) for group in groups]


def test_plateaus_by_hand() -> None:
    """patience 2: the last two against the best before them."""
    assert not plateaued([0.5, 0.4], 2, 0.0)  # nothing before the last two
    assert plateaued([0.5, 0.4, 0.5], 2, 0.0)  # as good is no improvement
    assert not plateaued([0.5, 0.51, 0.4], 2, 0.0)  # the second was one
    assert plateaued([0.5, 0.51, 0.4], 2, 0.02)  # but not by more than 0.02
    assert plateaued([0.1, 0.5, 0.2, 0.3], 2, 0.0)
    assert not plateaued([0.5] * 9, 0, 0.0)  # switched off
    rows = [
        {"step": 0, "evaluation": "eval_before", "environments": {"a": {"pass_rate": 0.9, "tasks": 1}}},
        {"step": 1, "loss": 1.0, "environments": {}},
        *(
            {
                "step": done,
                "evaluation": f"eval_{done:06d}",
                "environments": {"a": {"pass_rate": rate, "tasks": 3}, "b": {"pass_rate": 0.0, "tasks": 1}},
            }
            for done, rate in ((2, 0.4), (4, 0.8), (6, 0.2))
        ),
    ]
    assert validation_scores(rows, 4) == [(4, pytest.approx(0.6)), (6, pytest.approx(0.15))]


def test_places_are_filled_by_the_first_group_with_spread() -> None:
    places = Places(planned("g0", "g1", "g2", "g3"), AlgorithmOptions())
    first = [*graded("g0", 1, 0), *graded("g1", 1, 1), *graded("g2", 0, 0), *graded("g3", 0.5, 0.5)]
    again = places.replace(first, planned("r0g0", "r0g1", "r0g2", "r0g3"))
    assert [planned.group for planned in again] == ["r0g1", "r0g2", "r0g3"]
    second = [*first, *graded("r0g1", 0, 1), *graded("r0g2", 1, 1), *graded("r0g3", 0, 0)]
    again = places.replace(second, planned("r1g0", "r1g1", "r1g2", "r1g3"))
    assert [planned.group for planned in again] == ["r1g2", "r1g3"]
    third = [*second, *graded("r1g2", 0, 0), *graded("r1g3", 0, 1)]
    # place 1 by its first replacement, place 3 by its second; place 2 stays with the plan's own
    assert places.dropped(third) == ["g1", "g3", "r0g2", "r0g3", "r1g2"]


def test_a_group_that_only_truncated_or_failed_rollouts_tell_apart_has_no_spread() -> None:
    group = graded("g0", 1, 1, 0, 0)
    group[2].truncated = True
    broken(group[3])
    assert [p.group for p in Places(planned("g0"), AlgorithmOptions()).replace(group, planned("r"))] == ["r"]
    unfiltered = AlgorithmOptions(overlong_filtering=False)
    assert Places(planned("g0"), unfiltered).replace(group, planned("r")) == []


def flat(*groups: str) -> Any:
    """Rewards 1, 1, 1 of a group that is named; 0, 0.25, 1 of others, none of which is the mean of its siblings'."""

    def change(rollout: Rollout) -> None:
        rollout.reward = 1.0 if rollout.group in groups else (0.0, 0.25, 1.0)[rollout.attempt]

    return change


def test_dropped_groups_are_stored_counted_and_in_no_book(model: Path, tmp_path: Path) -> None:
    """2 places x 3 rollouts x 8 tokens a step; the first place of step 0 is replaced once, the second of step 1 twice in vain."""
    config = small_config(model, tmp_path, steps=2, dynamic_sampling={"max_attempts": 2})
    run, world = make_run(config, model)
    world.change = flat("s000000-g0000", "s000001-g0001", "s000001-r00-g0001", "s000001-r01-g0001")
    run.train()
    first, second = (r for r in run.store.metrics() if "loss" in r)
    assert [first[f"rollouts_{kind}"] for kind in ("sampled", "kept", "dropped")] == [9, 6, 3]
    assert [second[f"rollouts_{kind}"] for kind in ("sampled", "kept", "dropped")] == [12, 6, 6]
    assert (first["groups_dropped"], second["groups_dropped"]) == (1, 2)
    assert (first["tokens_dropped"], second["tokens_dropped"]) == (3 * ANSWER, 6 * ANSWER)
    for record in (first, second):
        assert sum(record["books"].values()) == record["sampled_tokens"] == 2 * 3 * ANSWER
    assert first["books"]["zero_advantage"] == 0 and second["books"]["zero_advantage"] == 3 * ANSWER
    stored = {group: dropped for r in run.store.read(step_label(0)) for group, dropped in [(r.group, is_dropped(r))]}
    assert stored == {"s000000-g0000": True, "s000000-g0001": False, "s000000-r00-g0000": False}
    marker = json.loads((run.store.rollouts / f"{step_label(1)}.done").read_text())
    assert marker["count"] == 12 and marker["dropped"] == ["s000001-r00-g0001", "s000001-r01-g0001"]
    observed = list(Observed(run.store.folder).rows())
    assert [(row["group"], row["dropped"]) for row in observed if row["step"] == 0] == sorted(stored.items())
    assert [note for note in run.observer.notes if "groups_dropped" in note] == [  # type: ignore[attr-defined]
        "step 0: rollouts_sampled 9, rollouts_kept 6, rollouts_dropped 3, tokens_dropped 24, groups_dropped 1",
        "step 1: rollouts_sampled 12, rollouts_kept 6, rollouts_dropped 6, tokens_dropped 48, groups_dropped 2",
    ]
    # A replacement that was dropped changes nothing: training on the kept alone gives the same weights.
    kept_only = small_config(model, tmp_path / "kept", steps=2)
    again, _ = make_run(kept_only, model, engine=False)
    source = RunStore.create(tmp_path, "source", config.to_yaml())
    for step in range(2):
        writer = source.writer(step_label(step))
        for rollout in run.store.read(step_label(step)):
            if not is_dropped(rollout):
                writer.add(rollout)
        writer.commit()
    again.from_rollouts(source)
    assert digest(again) == digest(run)


@pytest.mark.parametrize("interrupted_after", [8, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_with_replacements_goes_on_as_if_nothing_had_happened(
    model: Path, tmp_path: Path, interrupted_after: int
) -> None:
    """Stopped among the replacements of step 0 (after its first 6 rollouts), and in step 1."""
    config = small_config(model, tmp_path, steps=2, dynamic_sampling={"max_attempts": 1})
    changed = flat("s000000-g0000")

    def run(store: RunStore | None = None, stop_after: int | None = None) -> tuple[Run, TorchEngine]:
        made, world = make_run(config, model, store)
        world.change, world.stop_after = changed, stop_after
        return made, world

    whole, world = run()
    whole.train()
    first, _ = run(stop_after=interrupted_after)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed, again = run(first.store)
    resumed.train()
    assert digest(resumed) == digest(whole)
    assert again.sampled == world.sampled[9 if interrupted_after > 9 else 0 :]
    assert list(Observed(first.store.folder).rows()) == list(Observed(whole.store.folder).rows())


def test_observed_pass_rates_by_hand(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path, steps=1, **GAUSSIAN), model, profile=easy_profile())

    def change(rollout: Rollout) -> None:
        rollout.reward = 0.5 if rollout.attempt else 0.0
        if rollout.attempt == 2 and rollout.group == "s000000-g0000":
            broken(rollout)

    run.config = run.config.model_copy(update={"failure_limit": 0.5})
    world.change = change
    run.train()
    rows = list(Observed(run.store.folder).rows())
    assert [(row["step"], row["n"], row["mean_reward"]) for row in rows] == [(0, 2, 0.25), (0, 3, pytest.approx(1 / 3))]
    batch = run.sampler.next(0)
    assert [(row["environment"], row["task_id"]) for row in rows] == [
        (p.task.environment, p.task.task_id) for p in batch
    ]
    (record,) = [r for r in run.store.metrics() if "loss" in r]
    rates = {"t0": 0.25, "t1": 0.5, "t2": 0.75}
    assert record["profile_pass_rate"] == pytest.approx(sum(rates[p.task.task_id] for p in batch) / 2)
    assert record["observed_pass_rate"] == pytest.approx((0.25 + 1 / 3) / 2)
    with_unknown = [*graded("g", 0, 1), *graded("g2", 1, 1)]
    with_unknown[0].task_id = with_unknown[1].task_id = "t0"
    assert difficulty(run.sampler.plan(0), with_unknown) == {"profile_pass_rate": 0.25, "observed_pass_rate": 0.5}
    plain, _ = make_run(small_config(model, tmp_path, steps=1), model)
    assert difficulty(plain.sampler.plan(0), graded("g", 0, 1)) == {}
    observed = Observed(run.store.folder)
    with observed.path.open("ab") as file:
        file.write(b'{"step": 1, "cut')
    observed.rewind(1)
    assert list(observed.rows()) == rows
    observed.rewind(0)
    assert list(observed.rows()) == []


PLATEAU: dict[str, Any] = {
    "sampler": "gaussian",
    "curriculum": {"profile": "p.parquet", "samples": 2, "replan": {"patience": 1}},
    "val": {"tasks": 1, "samples": 1, "every": 1},
}
"""No answer of the tiny model gets full marks, so every validation is 0: a plateau after 2 steps, and after each one more."""


def test_a_plateau_makes_a_new_profile_with_the_best_checkpoint_and_a_new_plan(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=4, **PLATEAU)
    run, world = make_run(config, model, heldout=True, profile=easy_profile())
    versions: list[tuple[int, str]] = []
    update = world.update_weights

    def noted(path: Path, digest: str, version: int, rehearsal: bool = False, back: bool = False) -> str:
        if not rehearsal:
            versions.append((version, digest))
        return update(path, digest, version, rehearsal, back)

    world.update_weights = noted  # type: ignore[method-assign]
    run.train()
    # Both plateaus go back to the same weights: their profile is sampled once.
    assert sum(not name.startswith(("step_", "eval_")) for name in world.sampled) == 2 * TASKS * 2
    assert any("is used again" in note for note in run.observer.notes)  # type: ignore[attr-defined]
    assert {rate for step in (1, 2, 3) for rate in task_means(run.store.read(f"eval_{step:06d}")).values()} == {0.0}
    # The first validation, of step 1, stays the best. Replanning before steps 2 and 3 goes back to it, and forward again.
    assert [version for version, _ in versions] == [0, 1, 2, 1, 2, 3, 1, 3, 4]
    assert len({digest for _, digest in versions}) == 5  # a version stands for one set of weights
    found = run.store.profiles()
    assert list(found) == [2, 3]
    for path in found.values():
        new = read_profile(path)
        assert len(new) == 2 * TASKS and set(new.n) == {2}
        assert new.weights == dict(versions)[1]
    assert [plan.start for plan in run.sampler.plans] == [0, 2, 3]
    held = {step: [p.task.task_id for p in run.sampler.next(step)] for step in range(4)}
    for step, ids in held.items():
        assert {r.task_id for r in run.store.read(step_label(step))} == set(ids)
    text = build_report(run.store).read_text()
    assert "batch difficulty" in text and text.count("<title>new profile at step 2</title>") >= 2
    records = [r for r in run.store.metrics() if "loss" in r]
    rates = read_profile(found[3])
    mean = np.mean(
        [run.sampler.plan(3).pass_rate(p.task.environment, p.task.task_id) or 0.0 for p in run.sampler.next(3)]
    )
    assert records[3]["profile_pass_rate"] == pytest.approx(mean) and len(rates) == 6


@pytest.mark.parametrize(
    "interrupted_after",
    [
        pytest.param(30, id="while it is profiled again"),
        *(pytest.param(k, marks=pytest.mark.slow) for k in (12, 17, 22, 25, 39, 50)),
    ],
)
def test_a_run_interrupted_across_a_new_plan_equals_an_undisturbed_one(
    model: Path, tmp_path: Path, whole: Run, interrupted_after: int
) -> None:
    config = small_config(model, tmp_path, steps=4, **PLATEAU)
    first, world = make_run(config, model, heldout=True, profile=easy_profile())
    world.stop_after = interrupted_after
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed, world = make_run(config, model, RunStore.open(first.store.folder), heldout=True, profile=easy_profile())
    resumed.train()
    assert digest(resumed) == digest(whole)
    assert kept(resumed.store) == kept(whole.store)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = small_config(model, tmp_path_factory.mktemp("whole"), steps=4, **PLATEAU)
    run, _ = make_run(config, model, heldout=True, profile=easy_profile())
    run.train()
    return run


def kept(store: RunStore) -> dict[str, Any]:
    """What a run leaves of its curriculum, and what came of it, times apart."""
    times = ("phase_seconds", "seconds", "tokens_per_second")
    return {
        "profiles": {step: path.read_bytes() for step, path in store.profiles().items()},
        "observed": list(Observed(store.folder).rows()),
        "metrics": [{key: value for key, value in row.items() if key not in times} for row in store.metrics()],
        "rollouts": [sorted((rollout_key(r), r.seed, r.text) for r in store.read(step_label(s))) for s in range(4)],
        "best": json.loads((store.checkpoints / "best.json").read_text()),
        "last": weights_digest(load_file(store.checkpoints / "step_000004" / "model.safetensors")),
    }

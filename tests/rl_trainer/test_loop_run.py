"""Whole runs with a tiny model: learning, kill and resume, and everything that must stop a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import need
from loop_world import Quiet, broken, make_run, small_config
from safetensors.torch import load_file

from gym_servers.protocol import Rollout
from rl_trainer.books import BooksError
from rl_trainer.checkpoint import CheckpointError, best_step, list_checkpoints
from rl_trainer.config import ConfigError
from rl_trainer.evaluation import summarize
from rl_trainer.generation import RunStopped
from rl_trainer.loop import Run
from rl_trainer.store import RunStore, step_label
from rl_trainer.tiny_model import make_tiny_model
from rl_trainer.weights import weights_digest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def digest(run: Run) -> str:
    return weights_digest(run.policy.worker.weights())  # type: ignore[attr-defined]


def history(run: Run) -> list[tuple[object, ...]]:
    """What was sampled and learnt, step by step, without times."""
    return [(r["step"], r["loss"], r["grad_norm"], r["books"]) for r in run.store.metrics() if "loss" in r]


def texts(run: Run, steps: int) -> list[list[tuple[str, int, str]]]:
    return [[(r.group, r.seed, r.text) for r in run.store.read(step_label(s))] for s in range(steps)]


def test_a_run_learns_and_writes_everything(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=8, group_size=6, tasks_per_step=4, checkpoint={"every": 3})
    run, world = make_run(config, model, heldout=True)
    result = run.train()
    assert result is not None
    records = [r for r in run.store.metrics() if "loss" in r]
    assert [r["step"] for r in records] == list(range(8))
    rewards = [sum(e["reward_mean"] for e in r["environments"].values()) / 2 for r in records]
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2  # even tokens are rewarded: the policy finds them
    assert world.version == 8
    assert [step for step, _ in list_checkpoints(run.store.checkpoints)] == [6, 8]
    assert all(r["abs_delta"] < 1e-4 for r in records)  # the sampler's log-probabilities are the trainer's
    assert all(sum(r["books"].values()) == r["sampled_tokens"] for r in records)
    assert records[0]["books"]["trained"] + records[0]["books"]["zero_advantage"] == 4 * 6 * 8
    assert {"generate", "advantages", "train", "sync"} <= set(records[0]["phase_seconds"])
    assert "checkpoint" in records[2]["phase_seconds"]
    wanted = "reward_mean reward_std zero_spread pass_rate length_mean length_p95 truncation failures entropy "
    wanted += "loss_token_share token_masked_fraction sequence_masked_fraction w_mean w_max kl_gen_train exp_abs_delta "
    wanted += "segments_per_rollout"
    for row in records:
        assert {"grad_norm", "lr", "canary", "tokens_per_second"} <= set(row)
        for figures in row["environments"].values():
            assert set(wanted.split()) <= set(figures)
    summary = summarize(*result, seconds=1.0, peak_rss_mb=1.0)
    assert summary["environments"]["a"]["before"]["n"] == 2 * 2
    evaluations = [r["evaluation"] for r in run.store.metrics() if "evaluation" in r]
    assert evaluations == ["eval_before", "eval_after"]
    assert list((run.store.folder / "tensorboard").iterdir())
    assert not list(run.store.folder.glob("*.safetensors"))


@pytest.mark.parametrize("interrupted_after", [3, 6 * 3 + 2])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    model: Path, tmp_path: Path, interrupted_after: int
) -> None:
    config = small_config(model, tmp_path)
    whole, _ = make_run(config, model)
    whole.train()
    first, world = make_run(config, model)
    world.stop_after = interrupted_after
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed, world = make_run(config, model, RunStore.open(first.store.folder))
    resumed.train()
    assert digest(resumed) == digest(whole)
    assert history(resumed) == history(whole)
    assert texts(resumed, 4) == texts(whole, 4)
    # only the step in flight and later ones were sampled again
    in_flight = interrupted_after // 6
    assert {name.split("/")[0] for name in world.sampled} == {step_label(s) for s in range(in_flight, 4)}
    if in_flight == 3:  # the checkpoint holds 2 steps: step 2 was trained again from disk
        assert any("training step 2 again" in note for note in resumed.observer.notes)  # type: ignore[attr-defined]


def test_a_step_killed_after_its_rollouts_were_written_is_trained_from_them(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=2)
    whole, _ = make_run(config, model)
    whole.train()
    first, _ = make_run(config, model)
    step = first.policy.train_step

    def killed(batch: object, number: int) -> object:
        if number == 1:
            raise KeyboardInterrupt
        return step(batch, number)  # type: ignore[arg-type]

    first.policy.train_step = killed  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed, world = make_run(config, model, RunStore.open(first.store.folder))
    resumed.train()
    assert world.sampled == []
    assert digest(resumed) == digest(whole)


def test_resume_with_other_tasks_is_refused(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=2)
    run, _ = make_run(config, model)
    run.train()
    other = config.model_copy(update={"seed": 5})
    resumed, _ = make_run(other, model, RunStore.open(run.store.folder))
    with pytest.raises(ConfigError, match="the seed was 0 and is 5"):
        resumed.train()


def test_failures_leave_their_group_and_are_in_the_books(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=1, failure_limit=0.2)
    run, world = make_run(config, model)
    world.change = lambda r: broken(r) if (r.group.endswith("g0000") and r.attempt == 1) else None
    run.train()
    (record,) = [r for r in run.store.metrics() if "loss" in r]
    assert record["books"]["failed"] == 8
    assert record["tokens"] == 5 * 8
    assert sum(e.get("failures_timeout", 0) for e in record["environments"].values()) == 1


def test_too_many_failures_stop_the_run_and_say_why(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path), model)
    world.change = lambda r: broken(r, "verifier_crash") if r.attempt == 1 and r.environment == "a" else None
    with pytest.raises(RunStopped, match=r"1 of 6 rollouts failed.*a: 1 x verifier_crash \(no answer\)"):
        run.train()
    assert not run.store.committed(step_label(0))  # a resumed run samples the step again
    assert run.policy.worker.optimizer.state_dict()["state"] == {}  # type: ignore[attr-defined]


def test_books_that_do_not_balance_name_the_rollout(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path), model)

    def one_more(rollout: Rollout) -> None:
        if rollout.group.endswith("g0001") and rollout.attempt == 2:
            rollout.usage["sampled_tokens"] += 1

    world.change = one_more
    stored = re.escape(str(run.store.rollouts / "step_000000.done"))
    with pytest.raises(BooksError, match=rf"s000000-g0001-a002: the engine sampled 9 tokens, 8 are booked.*'{stored}'"):
        run.train()


def test_abandoned_attempts_are_booked_as_cancelled(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path, steps=1), model)

    def retried(rollout: Rollout) -> None:
        rollout.usage["sampled_tokens"] += 5
        rollout.usage["dropped_tokens"] = 5

    world.change = retried
    run.train()
    (record,) = [r for r in run.store.metrics() if "loss" in r]
    assert record["books"]["cancelled"] == 6 * 5


def test_truncated_rollouts_are_overlong_and_a_lone_rest_is_a_dropped_group(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path, steps=1), model)

    def cut(rollout: Rollout) -> None:
        rollout.truncated = rollout.group.endswith("g0000") and rollout.attempt < 2

    world.change = cut
    run.train()
    (record,) = [r for r in run.store.metrics() if "loss" in r]
    assert (record["books"]["overlong"], record["books"]["dropped_group"]) == (16, 8)
    assert record["groups_without_baseline"] == 1
    assert record["tokens"] == 24


def test_rollouts_of_other_weights_are_refused(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path), model)

    def stale(rollout: Rollout) -> None:
        rollout.segments[0].weight_version = 7

    world.change = stale
    with pytest.raises(RunStopped, match="sampled with weights 7, the step's are 0"):
        run.train()


def test_a_sync_that_did_not_arrive_is_caught(model: Path, tmp_path: Path) -> None:
    """pitfalls 14 and 35: by the digest of what was received, and by the canary where the digest says nothing."""
    run, world = make_run(small_config(model, tmp_path), model)
    world.received = lambda digest: "0" * 64
    with pytest.raises(RunStopped, match="received digest 0000"):
        run.train()
    run, world = make_run(small_config(model, tmp_path), model)

    def after_start(rollout: Rollout) -> None:
        world.skip_loading = True

    world.change = after_start
    with pytest.raises(RunStopped, match=r"differ by .* on the canary"):
        run.train()


def test_a_sync_broken_from_the_first_is_caught_and_a_kill_does_not_move_the_reference(
    model: Path, tmp_path: Path
) -> None:
    """The reference is the engine's own load: what a broken sync makes of the weights never becomes what is normal."""
    run, world = make_run(small_config(model, tmp_path), model)
    load = world.policy.worker.load  # type: ignore[attr-defined]

    def broken(tensors: Any) -> None:
        load({name: tensor * 1.5 if "embed" in name else tensor for name, tensor in tensors.items()})

    world.policy.worker.load = broken  # type: ignore[attr-defined]
    with pytest.raises(RunStopped, match=r"differ by .* on the canary"):
        run.train()
    resumed, again = make_run(small_config(model, tmp_path), model, run.store)
    again.policy.worker.load = broken  # type: ignore[attr-defined]
    with pytest.raises(RunStopped, match=r"differ by .* on the canary"):
        resumed.train()
    (run.store.folder / "canary.json").unlink()
    run.checkpoint(1)
    late, _ = make_run(small_config(model, tmp_path), model, run.store)
    with pytest.raises(RunStopped, match=r"canary\.json is missing"):
        late.train()


BLIND = {"canary_factor": 1e9}
"""The canary as it is in bfloat16, where rounding is more than what a step changes."""


def test_a_tied_head_that_keeps_old_weights_is_caught_before_the_first_step(model: Path, tmp_path: Path) -> None:
    """The rehearsal finds what neither digest nor canary tell, and leaves the policy as it was, bit for bit."""
    healthy, _ = make_run(small_config(model, tmp_path, **BLIND), model)
    before = digest(healthy)
    healthy.start_sync(0)
    assert digest(healthy) == before == healthy._sent
    run, world = make_run(small_config(model, tmp_path, **BLIND), model)
    head = world.policy.worker.model.lm_head  # type: ignore[attr-defined]
    old = head.weight.detach().clone()
    load = world.policy.worker.load  # type: ignore[attr-defined]

    def unpacked(tensors: Any) -> None:
        load(tensors)
        head.weight = torch.nn.Parameter(old)

    world.policy.worker.load = unpacked  # type: ignore[attr-defined]
    with pytest.raises(RunStopped, match="rehearsal of the sync: .* a part of the engine keeps old weights"):
        run.train()
    assert digest(run) == before and not world.sampled


def test_the_same_update_twice_is_caught_without_the_canary(model: Path, tmp_path: Path) -> None:
    """The trainer exports what it exported before: the digest of what arrived is right, and says so. A step that moves nothing may."""
    run, _ = make_run(small_config(model, tmp_path, **BLIND), model)
    export, kept = run.policy.export, tmp_path / "kept"

    def stale(path: Path, dtype: str) -> str:
        if not kept.exists() or run._sent == "":
            export(kept, dtype)
        shutil.copy(kept, path)
        return weights_digest(load_file(kept))

    run.policy.export = stale  # type: ignore[method-assign]
    with pytest.raises(RunStopped, match=r"weights 1 are those of the last sync, byte for byte"):
        run.train()
    still, world = make_run(small_config(model, tmp_path, steps=1), model)
    world.change = lambda rollout: setattr(rollout, "reward", 1.0)  # no advantage, no gradient
    first = digest(still)
    still.train()
    assert still._sent == first


def test_a_finished_run_that_goes_on_is_evaluated_again(model: Path, tmp_path: Path) -> None:
    """The evaluation after 2 steps is not that of the 4 that the run has in the end."""
    short = small_config(model, tmp_path, steps=2)
    run, _ = make_run(short, model, heldout=True)
    run.train()
    longer = short.model_copy(update={"steps": 4})
    run, world = make_run(longer, model, RunStore.open(run.store.folder), heldout=True)
    result = run.train()
    assert result is not None
    assert {segment.weight_version for rollout in result[1] for segment in rollout.segments} == {4}
    assert [(r["step"], r["evaluation"]) for r in run.store.metrics() if "evaluation" in r] == [
        (0, "eval_before"),
        (4, "eval_after"),
    ]
    run, world = make_run(longer, model, RunStore.open(run.store.folder), heldout=True)
    run.train()
    assert world.sampled == []  # this one is of the weights that the run has


def test_fewer_steps_than_are_done_are_refused_and_change_nothing(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, checkpoint={"every": 1})
    run, _ = make_run(config, model)
    run.train()
    before = {path: (path / "model.safetensors").read_bytes() for _, path in list_checkpoints(run.store.checkpoints)}
    run, _ = make_run(config.model_copy(update={"steps": 3}), model, RunStore.open(run.store.folder))
    with pytest.raises(ConfigError, match=r"steps \(3\): the last checkpoint already holds 4; set it to 4 or more"):
        run.train()
    after = {path: (path / "model.safetensors").read_bytes() for _, path in list_checkpoints(run.store.checkpoints)}
    assert after == before


def test_the_last_weights_can_be_the_best(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=8, group_size=6, tasks_per_step=4)
    run, _ = make_run(config, model, heldout=True)
    run.train()
    assert best_step(run.store.checkpoints) == 8


def test_no_before_is_made_up_for_a_run_that_began_without_one(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path)
    run, _ = make_run(config, model)
    assert run.train() is None
    resumed, world = make_run(config, model, run.store, heldout=True)
    assert resumed.train() is None and not world.sampled


def test_training_from_rollouts_needs_no_engine_for_validation(model: Path, tmp_path: Path) -> None:
    source, _ = make_run(small_config(model, tmp_path / "a", steps=2), model)
    source.rollouts_only()
    config = small_config(model, tmp_path / "b", steps=3, val={"tasks": 2, "samples": 2, "every": 1})
    run, _ = make_run(config, model, heldout=True, engine=False)
    assert run.from_rollouts(source.store) == 2


def test_tokens_on_which_trainer_and_engine_disagree_are_shown_in_context(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path, steps=1), model)

    def far(rollout: Rollout) -> None:
        lp_gen = [
            value - 2.0 if sampled else 0.0
            for value, sampled in zip(rollout.segments[0].lp_gen, rollout.segments[0].mask, strict=True)
        ]
        rollout.segments[0] = rollout.segments[0].model_copy(update={"lp_gen": lp_gen})

    world.change = far
    run.train()
    notes = run.observer.notes  # type: ignore[attr-defined]
    assert any("masked_fraction is 100.0% (limit 5.0%)" in note for note in notes), notes
    assert sum("lp_gen" in note and " in " in note for note in notes) == 10


def test_rollouts_that_are_lost_or_doubled_are_noticed(model: Path, tmp_path: Path) -> None:
    run, world = make_run(small_config(model, tmp_path), model)
    whole = world.collect
    world.collect = lambda plans, on_done: whole(plans[1:], on_done)  # type: ignore[method-assign]
    with pytest.raises(RunStopped, match=r"missing: \['s000000-g0000-a000'\]"):
        run.train()


def test_a_full_disk_at_a_checkpoint_stops_the_run_which_then_goes_on(model: Path, tmp_path: Path) -> None:
    """A small tmpfs, which root may mount. What was there stays; with room again the run ends as an undisturbed one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = not os.geteuid() and not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)])
    need("root", mounted, "no tmpfs may be mounted here; the same with a file size limit is in test_train_storage.py")
    try:
        config = small_config(model, disk, steps=3, checkpoint={"every": 1, "keep_last": 1})
        store = RunStore.create(disk, "tiny", config.to_yaml())
        run, _ = make_run(config, model, store)
        with pytest.raises(
            CheckpointError, match=r"could not write the checkpoint of step \d .*MiB are free.*then resume"
        ):
            run.train()
        intact = list_checkpoints(store.checkpoints)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        resumed, _ = make_run(config, model, RunStore.open(store.folder))
        resumed.train()
        whole, _ = make_run(small_config(model, tmp_path, steps=3), model)
        whole.train()
        assert len(intact) == 1 and digest(resumed) == digest(whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)])


def test_rollouts_only_and_from_rollouts(model: Path, tmp_path: Path) -> None:
    config = small_config(model, tmp_path, steps=3)
    collected, _ = make_run(config, model)
    before = digest(collected)
    collected.rollouts_only()
    assert digest(collected) == before
    trained, _ = make_run(config, model, engine=False)
    assert trained.from_rollouts(collected.store) == 3
    assert digest(trained) != before
    assert [step for step, _ in list_checkpoints(trained.store.checkpoints)] == [2, 3]
    empty = RunStore.create(tmp_path, "empty", config.to_yaml())
    with pytest.raises(RunStopped, match="no complete rollouts"):
        make_run(config, model, engine=False)[0].from_rollouts(empty)


def test_validation_marks_the_best_checkpoint_and_keeps_it(model: Path, tmp_path: Path) -> None:
    val = {"every": 1, "tasks": 2, "samples": 1}
    config = small_config(model, tmp_path, val=val, checkpoint={"every": 10, "keep_last": 1})
    run, _ = make_run(config, model, heldout=True)
    scores = iter([0.1, 0.9, 0.5])

    original = run.evaluate

    def evaluate(label: str, done: int, samples: int) -> list[Rollout]:
        rollouts = original(label, done, samples)
        if label.startswith("eval_0"):
            score = next(scores)
            rollouts = [
                r.model_copy(update={"reward": float(k < score * len(rollouts))}) for k, r in enumerate(rollouts)
            ]
        return rollouts

    run.evaluate = evaluate  # type: ignore[method-assign]
    run.train()
    assert json.loads((run.store.checkpoints / "best.json").read_text())["step"] == 2
    assert [step for step, _ in list_checkpoints(run.store.checkpoints)] == [2, 4]


def test_observer_sees_every_rollout(model: Path, tmp_path: Path) -> None:
    run, _ = make_run(small_config(model, tmp_path, steps=2), model)
    run.train()
    assert isinstance(run.observer, Quiet) and run.observer.seen == 12

"""When validation no longer improves: a new profile, made with the best checkpoint, and a new plan of it for the steps that are left
(spec section 2, point 6; report, section 3.2.2).

The profile that a plan from step s is made of is `profiles/step_SSSSSS.parquet` in the run folder. Whether there is one is all that a
resumed run needs to know: the decision at s depends on the validations up to s alone, and a profile that a kill cut off goes on from
its journal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curriculum.profile import Profile, read_profile
from rl_trainer.config import RunConfig
from rl_trainer.generation import Generation, Observer
from rl_trainer.profiling import Profiler, collect_profile, copy_profile, made_with
from rl_trainer.sampler import Sampler
from rl_trainer.store import RunStore

VALIDATION = re.compile(r"eval_(\d{6,})")


def validation_scores(records: Iterable[Mapping[str, Any]], since: int) -> list[tuple[int, float]]:
    """(steps done, pass rate over all tasks) of the validations in metrics.jsonl from step `since` on."""
    scores: dict[int, float] = {}
    for record in records:
        match = VALIDATION.fullmatch(str(record.get("evaluation", "")))
        if match is None or int(match[1]) < since:
            continue
        rates = [(entry["pass_rate"], entry["tasks"]) for entry in record["environments"].values() if entry["tasks"]]
        tasks = sum(count for _, count in rates)
        if tasks:
            scores[int(match[1])] = sum(rate * count for rate, count in rates) / tasks
    return sorted(scores.items())


def plateaued(scores: Sequence[float], patience: int, min_improvement: float) -> bool:
    """Whether none of the last `patience` scores is better by more than min_improvement than the best one before them."""
    if patience < 1 or len(scores) <= patience:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience]) + min_improvement


def replan_due(config: RunConfig, store: RunStore, sampler: Sampler, step: int) -> bool:
    """Whether the validation after `step` steps is the last of a plateau, counted since the last profile."""
    wanted, since = config.curriculum.replan, sampler.profiled
    if not wanted.patience or since == step or step % config.val.every:
        return False
    scores = validation_scores(store.metrics(), since)
    if not scores or scores[-1][0] != step:
        return False
    return plateaued([score for _, score in scores], wanted.patience, wanted.min_improvement)


def new_profile(
    config: RunConfig,
    store: RunStore,
    sampler: Sampler,
    step: int,
    weights: str,
    generation: Generation,
    observer: Observer,
) -> Profile:
    """The profile of the plan that begins at `step`, made with the weights that the engine has, whose digest is `weights`. The last one
    that the run made, where it is of the same weights: sampled again, with the same seeds, it would be that one."""
    for before in list(store.profiles().values())[-1:]:
        if read_profile(before).weights == weights:
            copy_profile(before, store.profile_path(step))
            observer.note(
                f"step {step}: no validation is better than the one behind {before.name}, which is used again"
            )
            return read_profile(before)
    tasks = [(name, task.task_id, task.row) for name, members in sampler.tasks.items() for task in members]
    path, samples = store.profile_path(step), config.curriculum.samples
    observer.phase(step, "profile", len(tasks) * samples)
    with Profiler(path, made_with(config, weights), samples, config.seed) as profiler:
        found = collect_profile(profiler, tasks, generation, config.failure_limit, observer.rollout)
    observer.note(found.describe())
    return read_profile(path)

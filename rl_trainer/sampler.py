"""Which tasks a step trains on: a pure function of (profiles, seed, step), so that a resumed run plans what the first would have.

The plan itself is curriculum/plan.py's; here its places become task rows. The first plan holds from step 0. A new profile in the run
(rl_trainer/replan.py) makes a new plan over the steps that are left; each plan holds until the next one begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.options import CurriculumError, CurriculumOptions
from curriculum.plan import Planner
from curriculum.profile import Profile, read_profile
from gym_servers.checkpoints import checkpoint_digest
from rl_trainer.config import ConfigError, RunConfig
from rl_trainer.store import RunStore
from rl_trainer.tasks import LoadedTask, PlannedTask


class Plan:
    """One plan: of `steps` steps from step `start` of the run. profile None: for the orders that need no pass rates.

    missing: the share of an environment's tasks that the profile may lack, because all their rollouts failed. They are left out."""

    def __init__(
        self,
        tasks: Mapping[str, Sequence[LoadedTask]],
        options: CurriculumOptions,
        profile: Profile | None = None,
        start: int = 0,
        missing: float = 0.0,
    ) -> None:
        self.start, self.profile, self.left_out = start, None, list[str]()
        # Another seed, for the same one would draw a domain's tasks in the order that it had before.
        changed = {"steps": max(1, options.steps - start), "seed": options.seed + start}
        options = options.model_copy(update=changed)
        ratios = {name: ratio for name, ratio in options.ratios.items() if ratio > 0}
        if profile is None:
            self._members = [task for name in ratios for task in tasks[name]]
            self.planner = Planner({name: len(tasks[name]) for name in ratios}, options)
            return
        places = []
        for name in ratios:
            found, absent = _places(profile, name, tasks[name], missing)
            places.append(found)
            self.left_out += [f"{name}/{task_id}" for task_id in absent]
        self.profile = profile.take(np.concatenate(places))
        known = {(name, task.task_id): task for name in ratios for task in tasks[name]}
        names = zip(self.profile.domain.tolist(), self.profile.task_id.tolist(), strict=True)
        self._members = [known[name] for name in names]
        self.planner = Planner(self.profile, options)

    def batch(self, step: int) -> list[LoadedTask]:
        """Tasks of the run's step `step`."""
        return [self._members[index] for index in self.planner.batch(step - self.start)]

    def replacements(self, step: int, attempt: int) -> list[LoadedTask]:
        """Place by place what may stand in for `batch(step)`."""
        return [self._members[index] for index in self.planner.replacements(step - self.start, attempt)]

    def pass_rate(self, environment: str, task_id: str) -> float | None:
        """The profile's pass rate of a task; None without a profile, or where it has no such task."""
        if self.profile is None:
            return None
        place = int(self.profile.find(environment, np.array([task_id]))[0])
        return None if place < 0 else float(self.profile.pass_rate[place])


class Sampler:
    """Fixed ratios between environments, within one by `options.order`."""

    def __init__(
        self,
        tasks: Mapping[str, Sequence[LoadedTask]],
        options: CurriculumOptions,
        profile: Profile | None = None,
        missing: float = 0.0,
    ) -> None:
        self.tasks, self.options, self.missing = tasks, options, missing
        self.plans = [Plan(tasks, options, profile, missing=missing)]
        self.profiled = 0
        """Step of the last profile."""

    @property
    def left_out(self) -> str:
        """What the last plan leaves out because its profile lacks it, in words; "" for nothing."""
        names = self.plans[-1].left_out
        if not names:
            return ""
        return f"{len(names)} tasks, such as {names[0]}, are not in the profile, since all their rollouts failed: they are left out"

    def replan(self, step: int, profile: Profile) -> str:
        """A new plan of `profile` from `step` on. Where none can be made of it, such as when an environment's tasks are all solved by now,
        the one before goes on, and what is returned says why."""
        self.profiled = step
        try:
            self.plans.append(Plan(self.tasks, self.options, profile, step, self.missing))
        except (ConfigError, CurriculumError) as error:
            return f"the profile of step {step} makes no plan, the one before goes on: {error}"
        return "; ".join(filter(None, (f"new plan from step {step}", self.left_out)))

    def plan(self, step: int) -> Plan:
        """The plan that holds at `step`."""
        return [plan for plan in self.plans if plan.start <= step][-1]

    def next(self, step: int) -> list[PlannedTask]:
        """The batch of `step`, counted from 0."""
        return [PlannedTask(task, f"s{step:06d}-g{k:04d}") for k, task in enumerate(self.plan(step).batch(step))]

    def replacements(self, step: int, attempt: int) -> list[PlannedTask]:
        """Place by place what may stand in for the batch of `step`, of the same environments: a second stream, which never moves
        the plan. attempt counts from 0."""
        found = self.plan(step).replacements(step, attempt)
        return [PlannedTask(task, f"s{step:06d}-r{attempt:02d}-g{k:04d}") for k, task in enumerate(found)]

    def state_dict(self) -> dict[str, Any]:
        """What the plans depend on, to notice a resume with others: of each environment how many tasks, and a hash of their ids in
        order; of each plan what it says of itself, by its first step."""
        return {
            "seed": self.options.seed,
            "tasks": {name: _fingerprint(tasks) for name, tasks in self.tasks.items()},
            "plans": {str(plan.start): plan.planner.state_dict() for plan in self.plans},
        }

    def load_state_dict(self, state: Mapping[str, Any], done: int = 0) -> None:
        """Raises ConfigError or CurriculumError where a plan would not be the one that was interrupted. A plan that begins later than the
        state is new; one that ends before step `done` is not compared."""
        mine = self.state_dict()
        changed = [] if state["seed"] == mine["seed"] else [f"the seed was {state['seed']} and is {mine['seed']}"]
        for name in sorted(state["tasks"].keys() | mine["tasks"].keys()):
            then, now = state["tasks"].get(name), mine["tasks"].get(name)
            if then == now:
                continue
            if then is None or now is None:
                changed.append(f"environment '{name}' {'is new' if then is None else 'is gone'}")
            elif then["n"] != now["n"]:
                changed.append(f"environment '{name}' had {then['n']} tasks and has {now['n']}")
            else:
                changed.append(
                    f"environment '{name}' has {now['n']} tasks as before, but other ones or in another order"
                )
        changed += [
            f"the profile of step {start} is gone" for start in sorted(state["plans"].keys() - mine["plans"].keys())
        ]
        if changed:
            raise ConfigError(
                f"{'; '.join(changed)}: the run cannot go on where it stopped. Restore it, or start a new run."
            )
        for plan in self.plans[self.plans.index(self.plan(done)) :]:
            if str(plan.start) in state["plans"]:
                then = state["plans"][str(plan.start)]
                if self.options.order != "gaussian":  # only a moving target depends on how many steps there are
                    then = {**then, "options": {**then["options"], "steps": plan.planner.options.steps}}
                plan.planner.load_state_dict(then)


def _fingerprint(tasks: Sequence[LoadedTask]) -> dict[str, Any]:
    ids = "".join(f"{task.task_id}\n" for task in tasks)
    return {"n": len(tasks), "ids": hashlib.sha256(ids.encode()).hexdigest()[:16]}


def _places(
    profile: Profile, environment: str, tasks: Sequence[LoadedTask], missing: float
) -> tuple[NDArray[np.int64], list[str]]:
    """Indices in the profile of an environment's tasks, and the ids of those that it lacks. Raises ConfigError where these are more than the
    share `missing`."""
    found = profile.find(environment, np.array([task.task_id for task in tasks]))
    absent = [task.task_id for task, place in zip(tasks, found, strict=True) if place < 0]
    if len(absent) > missing * len(tasks):
        raise ConfigError(
            f"{len(absent)} of {len(tasks)} tasks of environment '{environment}' are not in the profile, such as '{absent[0]}': "
            "profile the tasks of this run with `omnigym profile --config` and its configuration"
            + (f", or raise failure_limit ({missing:g})" if missing else "")
        )
    return found[found >= 0], absent


def make_sampler(
    config: RunConfig,
    tasks: Mapping[str, Sequence[LoadedTask]],
    model: Path,
    store: RunStore | None = None,
) -> Sampler:
    """The sampler of a configuration. store: of a run that is resumed, with the profile that it began with and those that were made in it.
    Raises ConfigError, ProfileError or CurriculumError."""
    wanted = config.curriculum
    options = CurriculumOptions(
        ratios={name: config.mixture[name] for name in config.environments},
        batch_size=config.tasks_per_step,
        steps=config.steps,
        seed=config.seed,
        order=config.sampler,
        start_mean=wanted.start_mean,
        end_mean=wanted.end_mean,
        sigma=wanted.sigma,
        hold_out_unsolved=wanted.hold_out_unsolved,
    )
    profile, path = None, wanted.profile
    if store is not None and store.start_profile.is_file():
        path = store.start_profile
    if path is not None:
        profile = read_profile(path)
        digest = checkpoint_digest(model)
        if profile.weights != digest:
            raise ConfigError(
                f"curriculum.profile '{path}' is of weights {profile.weights[:16]}, model '{config.model}' has "
                f"{digest[:16]}: profile this model with `omnigym profile --config`"
            )
    sampler = Sampler(tasks, options, profile, config.failure_limit)
    for step, made in sorted(store.profiles().items()) if store is not None else ():
        sampler.replan(step, read_profile(made))
    return sampler

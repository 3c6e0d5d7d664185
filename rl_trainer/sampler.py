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

from curriculum.options import CurriculumError, CurriculumOptions
from curriculum.plan import Planner
from curriculum.profile import Profile, read_profile
from gym_servers.checkpoints import checkpoint_digest
from rl_trainer.config import ConfigError, RunConfig
from rl_trainer.tasks import LoadedTask, PlannedTask


class Plan:
    """One plan: of `steps` steps from step `start` of the run. profile None: for the orders that need no pass rates."""

    def __init__(
        self,
        tasks: Mapping[str, Sequence[LoadedTask]],
        options: CurriculumOptions,
        profile: Profile | None = None,
        start: int = 0,
    ) -> None:
        self.start, self.profile = start, None
        # Another seed, for the same one would draw a domain's tasks in the order that it had before.
        changed = {"steps": max(1, options.steps - start), "seed": options.seed + start}
        options = options.model_copy(update=changed)
        ratios = {name: ratio for name, ratio in options.ratios.items() if ratio > 0}
        if profile is None:
            self._members = [task for name in ratios for task in tasks[name]]
            self.planner = Planner({name: len(tasks[name]) for name in ratios}, options)
            return
        self.profile = profile.take(np.concatenate([_places(profile, name, tasks[name]) for name in ratios]))
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

    def pass_rates(self, names: Sequence[tuple[str, str]]) -> list[float]:
        """The profile's pass rate of each (environment, task id); none without a profile."""
        if self.profile is None:
            return []
        found = [int(self.profile.find(domain, np.array([task_id]))[0]) for domain, task_id in names]
        return [float(self.profile.pass_rate[index]) for index in found]


class Sampler:
    """Fixed ratios between environments, within one by `options.order`."""

    def __init__(
        self,
        tasks: Mapping[str, Sequence[LoadedTask]],
        options: CurriculumOptions,
        profile: Profile | None = None,
    ) -> None:
        self.tasks, self.options = tasks, options
        self.plans = [Plan(tasks, options, profile)]
        self.profiled = 0
        """Step of the last profile."""

    def replan(self, step: int, profile: Profile) -> str:
        """A new plan of `profile` from `step` on. Where none can be made of it, such as when an environment's tasks are all solved by now,
        the one before goes on, and what is returned says why."""
        self.profiled = step
        try:
            self.plans.append(Plan(self.tasks, self.options, profile, step))
        except (ConfigError, CurriculumError) as error:
            return f"the profile of step {step} makes no plan, the one before goes on: {error}"
        return f"new plan from step {step}"

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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ConfigError or CurriculumError where a plan would not be the one that was interrupted. A plan that begins later than the
        state is new."""
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
        for plan in self.plans:
            if str(plan.start) in state["plans"]:
                then = state["plans"][str(plan.start)]
                if self.options.order != "gaussian":  # only a moving target depends on how many steps there are
                    then = {**then, "options": {**then["options"], "steps": plan.planner.options.steps}}
                plan.planner.load_state_dict(then)


def _fingerprint(tasks: Sequence[LoadedTask]) -> dict[str, Any]:
    ids = "".join(f"{task.task_id}\n" for task in tasks)
    return {"n": len(tasks), "ids": hashlib.sha256(ids.encode()).hexdigest()[:16]}


def _places(profile: Profile, environment: str, tasks: Sequence[LoadedTask]) -> Any:
    """Index in the profile of each of an environment's tasks, [tasks]. Raises ConfigError where some are not in it."""
    found = profile.find(environment, np.array([task.task_id for task in tasks]))
    missing = [task.task_id for task, place in zip(tasks, found, strict=True) if place < 0]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(tasks)} tasks of environment '{environment}' are not in the profile, such as '{missing[0]}': "
            "profile the tasks of this run with `omnigym profile --config` and its configuration"
        )
    return found


def make_sampler(
    config: RunConfig,
    tasks: Mapping[str, Sequence[LoadedTask]],
    model: Path,
    replans: Mapping[int, Path] | None = None,
) -> Sampler:
    """The sampler of a configuration. replans: profiles that were made in the run, by the first step of their plan. Raises ConfigError,
    ProfileError or CurriculumError."""
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
    profile = None
    if wanted.profile is not None:
        profile = read_profile(wanted.profile)
        digest = checkpoint_digest(model)
        if profile.weights != digest:
            raise ConfigError(
                f"curriculum.profile '{wanted.profile}' is of weights {profile.weights[:16]}, model '{config.model}' has "
                f"{digest[:16]}: profile this model with `omnigym profile --config`"
            )
    sampler = Sampler(tasks, options, profile)
    for step, path in sorted((replans or {}).items()):
        sampler.replan(step, read_profile(path))
    return sampler

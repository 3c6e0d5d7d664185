"""Where a run's rollouts come from, and who watches: what is asked of a model server and environments, and what is checked of what they
gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.rollouts import rollout_seed
from rl_trainer.batch import rollout_key
from rl_trainer.tasks import LoadedTask, PlannedTask


class RunStopped(OmnigymError):
    """The run cannot go on honestly: says why, and what to do."""


@dataclass(frozen=True)
class RolloutPlan:
    """One rollout to sample: which task, in which group, with which seed."""

    task: LoadedTask
    rollout_id: str
    group: str
    attempt: int
    seed: int
    label: str


class Generation(Protocol):
    """Where rollouts come from: a model server and environments. It never runs while the policy trains."""

    def collect(self, plans: Iterable[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
        """All of `plans`, each once, read as there is room for them; `on_done` in the order in which they end. What failed for good is a failure."""
        ...

    def update_weights(self, path: Path, digest: str, version: int, rehearsal: bool = False, back: bool = False) -> str:
        """Load the weights in `path`; returns the digest of what the engine received. rehearsal: nothing is sampled with them. back:
        they are of an earlier version."""
        ...

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]: ...


class Observer(Protocol):
    """Who watches a run (rl_trainer/progress.py)."""

    def phase(self, step: int, name: str, total: int = 0) -> None: ...

    def rollout(self, rollout: Rollout) -> None: ...

    def step(self, record: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def plan_rollouts(
    seed: int, run: str, label: str, tasks: Sequence[PlannedTask], size: int, seed_label: str | None = None
) -> list[RolloutPlan]:
    """`size` attempts of each task. Seeds do not depend on the run's name: an equal run samples equally."""
    return [
        RolloutPlan(
            planned.task,
            f"{run}/{label}/{planned.group}-a{attempt:03d}",
            planned.group,
            attempt,
            rollout_seed(seed, seed_label or label, planned.task.task_id if seed_label else planned.group, attempt),
            label,
        )
        for planned in tasks
        for attempt in range(size)
    ]


def check_complete(plans: Sequence[RolloutPlan], rollouts: Sequence[Rollout], label: str) -> None:
    """Every planned rollout came back exactly once."""
    wanted = Counter(f"{plan.group}-a{plan.attempt:03d}" for plan in plans)
    found = Counter(rollout_key(rollout) for rollout in rollouts)
    if wanted != found:
        missing, extra = sorted((wanted - found).elements()), sorted((found - wanted).elements())
        raise RunStopped(f"'{label}': rollouts missing: {missing[:5]}, not asked for or twice: {extra[:5]}")


def check_failures(rollouts: Sequence[Rollout], limit: float, label: str) -> None:
    """Raises RunStopped past the limit. The rollouts are then not committed: a resumed run samples them again."""
    failed = [rollout for rollout in rollouts if rollout.failure is not None]
    if not failed or len(failed) <= limit * len(rollouts):
        return
    kinds = Counter((r.environment, r.failure.kind) for r in failed if r.failure is not None)
    first = {(r.environment, r.failure.kind): r.failure.message for r in reversed(failed) if r.failure is not None}
    counts = "; ".join(f"{env}: {n} x {kind} ({first[env, kind]})" for (env, kind), n in kinds.most_common(5))
    raise RunStopped(
        f"'{label}': {len(failed)} of {len(rollouts)} rollouts failed, more than failure_limit {limit:.0%}. {counts}. "
        "No reward was made up; mend the cause, then resume."
    )


def check_versions(rollouts: Sequence[Rollout], version: int) -> None:
    """No rollout of a step is sampled with weights other than the step's."""
    for rollout in rollouts:
        for segment in rollout.segments:
            if rollout.failure is None and segment.weight_version != version:
                raise RunStopped(
                    f"rollout {rollout_key(rollout)} was sampled with weights {segment.weight_version}, the step's are "
                    f"{version}: the engine was not in step with the trainer"
                )

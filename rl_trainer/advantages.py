"""Which rollouts count, and their advantages: algorithm.md section 1, float64, two passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rl_trainer.options import AlgorithmOptions

AdvantageClass = Literal["valid", "failed", "overlong", "dropped_group"]
STD_EPSILON = 1e-6


@dataclass(frozen=True)
class Outcome:
    """How a rollout ended. `group` is an explicit id: two tasks with equal prompts never merge."""

    rollout_id: str
    group: str
    reward: float | None
    truncated: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Advantage:
    """`value` is 0.0 unless `kind` is "valid"."""

    value: float
    kind: AdvantageClass


def group_advantages(
    rewards: Sequence[float], baseline: str = "leave_one_out", normalize_std: bool = True
) -> list[float]:
    """Advantages of one group, rewards [G] -> [G], float64 [recipe].

    b_i = mean(r without r_i) (leave_one_out) or mean(r) (mean); A_i = (r_i - b_i) / (std(r, ddof 1) + 1e-6).
    Equal rewards give exactly 0.
    """
    count = len(rewards)
    if count < 2:
        raise ValueError(f"a group needs at least 2 rollouts for a baseline, got {count}")
    if min(rewards) == max(rewards):
        return [0.0] * count
    mean = math.fsum(rewards) / count
    # The second pass runs over deviations: E[x^2] - E[x]^2 cancels.
    deviations = [reward - mean for reward in rewards]
    scale = math.sqrt(math.fsum(d * d for d in deviations) / (count - 1)) + STD_EPSILON if normalize_std else 1.0
    # r_i - mean(r without r_i) = (r_i - mean(r)) * G / (G - 1)
    factor = count / (count - 1) if baseline == "leave_one_out" else 1.0
    return [d * factor / scale for d in deviations]


def compute_advantages(outcomes: Iterable[Outcome], options: AlgorithmOptions) -> dict[str, Advantage]:
    """rollout id -> advantage and class.

    Valid = neither failed nor (with overlong filtering) truncated. What is not valid is in no baseline and no std,
    except truncated ones under `overlong_in_baseline`. A group with fewer than 2 valid rollouts is dropped whole.
    """
    groups: dict[str, list[Outcome]] = {}
    seen: set[str] = set()
    for outcome in outcomes:
        if outcome.rollout_id in seen:
            raise ValueError(f"rollout {outcome.rollout_id} stands twice in the batch")
        seen.add(outcome.rollout_id)
        if not outcome.failed and (outcome.reward is None or not math.isfinite(outcome.reward)):
            raise ValueError(f"rollout {outcome.rollout_id} did not fail but its reward is {outcome.reward}")
        groups.setdefault(outcome.group, []).append(outcome)
    result: dict[str, Advantage] = {}
    for members in groups.values():
        result.update(_one_group(members, options))
    return result


def _one_group(members: list[Outcome], options: AlgorithmOptions) -> dict[str, Advantage]:
    result: dict[str, Advantage] = {}
    valid: list[Outcome] = []
    overlong: list[Outcome] = []
    for outcome in members:
        if outcome.failed:
            result[outcome.rollout_id] = Advantage(0.0, "failed")
        elif outcome.truncated and options.overlong_filtering:
            overlong.append(outcome)
            result[outcome.rollout_id] = Advantage(0.0, "overlong")
        else:
            valid.append(outcome)
    if len(valid) < 2:
        result.update({outcome.rollout_id: Advantage(0.0, "dropped_group") for outcome in valid})
        return result
    compared = valid + overlong if options.overlong_in_baseline else valid
    rewards = [outcome.reward for outcome in compared if outcome.reward is not None]
    values = group_advantages(rewards, options.baseline, options.normalize_std)
    for outcome, value in zip(valid, values, strict=False):
        result[outcome.rollout_id] = Advantage(value, "valid")
    return result

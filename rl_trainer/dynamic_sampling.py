"""Dynamic sampling: a group whose rewards are all equal teaches nothing, so another task is sampled in its place (DAPO, arXiv 2503.14476).

Each place of the batch is filled by its planned group or, where that has no spread, by the first replacement that has one; where none
has within the budget the planned group stays. Replacements come from the sampler's second stream, of the same environment, so that
neither the plan nor the ratios move. Every rollout that was sampled is stored; those of groups that fill no place are marked
`dropped`, and neither advantages nor books see them. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from gym_servers.protocol import Rollout
from rl_trainer.advantages import compute_advantages
from rl_trainer.batch import outcome, rollout_key
from rl_trainer.metrics import sampled_tokens
from rl_trainer.options import AlgorithmOptions
from rl_trainer.store import is_dropped
from rl_trainer.tasks import PlannedTask


def groups_with_spread(rollouts: Sequence[Rollout], options: AlgorithmOptions) -> set[str]:
    """Groups in which some rollout has an advantage other than 0."""
    advantages = compute_advantages([outcome(rollout) for rollout in rollouts], options)
    return {rollout.group for rollout in rollouts if advantages[rollout_key(rollout)].value != 0}


class Places:
    """The groups that were sampled for each place of a batch, in order."""

    def __init__(self, batch: Sequence[PlannedTask], options: AlgorithmOptions) -> None:
        self.options = options
        self.groups = [[planned.group] for planned in batch]

    def replace(self, rollouts: Sequence[Rollout], replacements: Sequence[PlannedTask]) -> list[PlannedTask]:
        """Of `replacements`, place by place, those whose place has no group with spread yet: to be sampled now."""
        spread = groups_with_spread(rollouts, self.options)
        wanted = []
        for tried, replacement in zip(self.groups, replacements, strict=True):
            if spread.isdisjoint(tried):
                tried.append(replacement.group)
                wanted.append(replacement)
        return wanted

    def dropped(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Groups that fill no place, sorted."""
        spread = groups_with_spread(rollouts, self.options)
        kept = {next((group for group in tried if group in spread), tried[0]) for tried in self.groups}
        return sorted({group for tried in self.groups for group in tried} - kept)


def dropped_figures(sampled: Sequence[Rollout]) -> dict[str, float]:
    """Rollouts of a step that were sampled, kept and dropped, the tokens of the dropped (which are in no book), and their groups; nothing
    where none was dropped."""
    groups: dict[bool, set[str]] = defaultdict(set)
    for rollout in sampled:
        groups[is_dropped(rollout)].add(rollout.group)
    if not groups[True]:
        return {}
    dropped = sum(is_dropped(rollout) for rollout in sampled)
    return {
        "rollouts_sampled": float(len(sampled)),
        "rollouts_kept": float(len(sampled) - dropped),
        "rollouts_dropped": float(dropped),
        "tokens_dropped": float(sum(sampled_tokens(rollout) for rollout in sampled if is_dropped(rollout))),
        "groups_dropped": float(len(groups[True])),
    }

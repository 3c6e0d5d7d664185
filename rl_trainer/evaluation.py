"""Held-out tasks before and after: pass rates, standard errors from per-task means, differences paired by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gym_servers.passk import PASS, mean_and_stderr
from gym_servers.protocol import Rollout
from rl_trainer.metrics import by_environment, generation_entropy, rollout_figures


def task_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Share of passes per task. Failed rollouts are in none: a task with failures only is absent."""
    found: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.failure is None and rollout.reward is not None:
            found[f"{rollout.environment}/{rollout.task_id}"].append(float(rollout.reward >= PASS))
    return {task: float(np.mean(values)) for task, values in found.items()}


def evaluate(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """Per environment: pass_rate, stderr, n (rollouts that count), tasks, and the figures that show a collapse."""
    result = {}
    for name, members in sorted(by_environment(rollouts).items()):
        means = task_means(members)
        rate, error = mean_and_stderr(list(means.values()))
        done = [rollout for rollout in members if rollout.failure is None]
        figures = rollout_figures(members)
        result[name] = {
            "pass_rate": rate,
            "stderr": error,
            "n": len(done),
            "tasks": len(means),
            "reward_mean": figures["reward_mean"],
            "distinct": figures["distinct"],
            "length_mean": figures["length_mean"],
            "truncation": figures["truncation"],
            "entropy": generation_entropy(done),
            "failures": figures["failures"],
        }
    return result


def paired_difference(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float]:
    """Mean and standard error of after - before over the tasks that both have."""
    return mean_and_stderr([after[task] - before[task] for task in sorted(set(before) & set(after))])


def summarize(
    before: Sequence[Rollout], after: Sequence[Rollout], seconds: float, peak_rss_mb: float
) -> dict[str, Any]:
    """summary.json: `environments` {name: {before, after, difference, stderr}}, `all`, `seconds`, `peak_rss_mb`."""
    first, last = evaluate(before), evaluate(after)
    old, new = task_means(before), task_means(after)
    environments: dict[str, Any] = {}
    for name in sorted(set(first) & set(last)):
        difference, error = paired_difference(
            {task: value for task, value in old.items() if task.startswith(f"{name}/")},
            {task: value for task, value in new.items() if task.startswith(f"{name}/")},
        )
        environments[name] = {
            "before": first[name],
            "after": last[name],
            "difference": difference,
            "stderr": error,
        }
    both = sorted(set(old) & set(new))
    difference, error = paired_difference(old, new)
    return {
        "environments": environments,
        "all": {
            "before": mean_and_stderr([old[task] for task in both])[0],
            "after": mean_and_stderr([new[task] for task in both])[0],
            "difference": difference,
            "stderr": error,
        },
        "seconds": seconds,
        "peak_rss_mb": peak_rss_mb,
    }


def summary_table(summary: Mapping[str, Any]) -> Any:
    """The final table, a rich Table."""
    from rich.table import Table

    table = Table(title="held-out tasks, before and after", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("environment", "before %", "after %", "change", "distinct", "length", "cut", "entropy"):
        table.add_column(column, justify="left" if column == "environment" else "right", no_wrap=True)

    def with_error(value: float, error: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.1f}±{100 * error:.1f}"

    for name, entry in summary["environments"].items():
        first, last = entry["before"], entry["after"]
        table.add_row(
            name,
            with_error(first["pass_rate"], first["stderr"]),
            with_error(last["pass_rate"], last["stderr"]),
            with_error(entry["difference"], entry["stderr"], "+"),
            *(
                f"{scale * first[key]:{form}}→{scale * last[key]:{form}}"
                for key, scale, form in (
                    ("distinct", 100, ".0f"),
                    ("length_mean", 1, ".0f"),
                    ("truncation", 100, ".0f"),
                    ("entropy", 1, ".2f"),
                )
            ),
        )
    total = summary["all"]
    table.add_row(
        "all",
        f"{100 * total['before']:.1f}",
        f"{100 * total['after']:.1f}",
        with_error(total["difference"], total["stderr"], "+"),
        *[""] * 4,
    )
    return table

"""pass@k, majority@k and their spread over repeated samples of a task, in percent, under NeMo-Gym's metric names.

pass@k of a 0/1 score is the unbiased estimator 1 - C(n-c, k) / C(n, k) of n samples with c right (Chen et al. 2021, eq. 1); of any
other score it is the best of the first k. `pass@1[avg-of-k]` is the mean of the first k samples. `majority@k` is the mean score of
the most common answer among the first k, ties averaged, samples without an answer left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gym_servers.protocol import OmnigymError

PASS = 1.0 - 1e-9
"""A rollout passes with full reward."""

Sample = Mapping[str, Any]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that at least one of k samples drawn from n, `right` of them right, is right. Raises OmnigymError."""
    if not 0 <= right <= n or not 1 <= k <= n:
        raise OmnigymError(f"pass@{k} needs 1 <= k <= n and 0 <= right <= n, got n={n}, right={right}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error std(ddof 1) / sqrt(n); nan where there are too few values. Samples of one task are not independent: n is
    tasks, each with the mean of its samples."""
    if not values:
        return math.nan, math.nan
    return math.fsum(values) / len(values), (_std(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    middle = _mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _best_of(scores: Sequence[float], k: int) -> float:
    if all(score in (0.0, 1.0) for score in scores):
        return pass_at_k(len(scores), int(sum(scores)), k)
    return max(scores[:k])


def _majority(scores: Sequence[float], answers: Sequence[Any], k: int) -> float:
    counts = Counter(answer for answer in answers[:k] if answer is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    tied = {answer for answer, count in counts.items() if count == most}
    return _mean([score for score, answer in zip(scores[:k], answers[:k], strict=True) if answer in tied])


def sample_metrics(tasks: Sequence[Sequence[Sample]], answer_key: str | None = None) -> dict[str, Any]:
    """All metrics of `tasks`, each a list of samples with `reward` and, where answer_key is given, an answer (None: no answer).

    Tasks may have different numbers of samples: pass@k leaves out those with fewer than k, the averages take what there is.
    Adds `per_sample_aggregate` {score: [percent of sample i over tasks]} and, for k >= 2, `std_dev_across_runs`,
    `std_err_across_runs` (percent) and `avg_sample_std_dev` (in units of the score).
    """
    tasks = [task for task in tasks if task]
    if not tasks:
        return {}
    scores = {"accuracy": [[float(sample["reward"]) for sample in task] for task in tasks]}
    answers: list[list[Any]] = []
    if answer_key is not None:
        answers = [[sample.get(answer_key) for sample in task] for task in tasks]
        scores["no_answer"] = [[float(answer is None) for answer in task] for task in answers]
    longest = max(len(task) for task in tasks)
    result: dict[str, Any] = {}
    runs = {
        name: [100 * _mean([task[i] for task in rows if i < len(task)]) for i in range(longest)]
        for name, rows in scores.items()
    }
    for k in range(1, longest + 1):
        for name, rows in scores.items():
            result[f"pass@{k}/{name}"] = 100 * _mean([_best_of(task, k) for task in rows if len(task) >= k])
            average = f"pass@1[avg-of-{k}]/{name}"
            result[average] = 100 * _mean([_mean(task[:k]) for task in rows])
            if answer_key is not None:
                # The vote is among answers, so a majority never lacks one.
                votes = [_majority(task, found, k) for task, found in zip(rows, answers, strict=True)]
                result[f"majority@{k}/{name}"] = 100 * _mean(votes)
            if k >= 2:
                result[f"{average}/std_dev_across_runs"] = _std(runs[name][:k])
                result[f"{average}/std_err_across_runs"] = _std(runs[name][:k]) / math.sqrt(k)
                spreads = [_std(task[:k]) for task in rows if len(task) >= 2]
                result[f"{average}/avg_sample_std_dev"] = _mean(spreads)
    result["per_sample_aggregate"] = runs
    return result

"""Figures of a step or an evaluation per environment, where they are written, and the run's peak memory."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import psutil

from gym_servers.passk import PASS
from gym_servers.protocol import OmnigymError, Rollout
from rl_trainer.store import RunStore


def sampled_tokens(rollout: Rollout) -> int:
    """Tokens that the engine sampled for this rollout, abandoned attempts included: its own usage."""
    return int(rollout.usage.get("sampled_tokens", sum(segment.sampled for segment in rollout.segments)))


def answer_length(rollout: Rollout) -> int:
    """Sampled tokens that are in the rollout's segments."""
    return sum(segment.sampled for segment in rollout.segments)


def distinct_share(rollouts: Sequence[Rollout]) -> float:
    """Share of distinct final answers: a policy that always says one thing has 1/n."""
    return len({rollout.text for rollout in rollouts}) / len(rollouts) if rollouts else math.nan


def generation_entropy(rollouts: Iterable[Rollout]) -> float:
    """Mean -lp_gen per sampled token: the unbiased estimate of the policy's entropy at its own samples (nats)."""
    total, count = 0.0, 0
    for rollout in rollouts:
        for segment in rollout.segments:
            for value, sampled in zip(segment.lp_gen, segment.mask, strict=True):
                if sampled:
                    total -= value
                    count += 1
    return total / count if count else math.nan


def rollout_figures(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Figures of one environment's rollouts. Failed ones are counted and are in no other figure."""
    done = [rollout for rollout in rollouts if rollout.failure is None]
    rewards = [float(rollout.reward) for rollout in done if rollout.reward is not None]
    lengths = [answer_length(rollout) for rollout in done]
    groups: dict[str, list[float]] = defaultdict(list)
    for rollout in done:
        if rollout.reward is not None:
            groups[rollout.group].append(rollout.reward)
    compared = [members for members in groups.values() if len(members) > 1]
    kinds = Counter(rollout.failure.kind for rollout in rollouts if rollout.failure is not None)
    breaks = Counter(segment.break_reason for r in done for segment in r.segments if segment.break_reason)
    figures: dict[str, Any] = {
        "rollouts": len(rollouts),
        "reward_mean": float(np.mean(rewards)) if rewards else math.nan,
        "reward_std": float(np.std(rewards, ddof=1)) if len(rewards) > 1 else math.nan,
        "pass_rate": sum(reward >= PASS for reward in rewards) / len(rewards) if rewards else math.nan,
        "zero_spread": sum(min(m) == max(m) for m in compared) / len(compared) if compared else math.nan,
        "length_mean": float(np.mean(lengths)) if lengths else math.nan,
        "length_p95": float(np.percentile(lengths, 95)) if lengths else math.nan,
        "truncation": sum(rollout.truncated for rollout in done) / len(done) if done else math.nan,
        "distinct": distinct_share(done),
        "segments_per_rollout": sum(len(r.segments) for r in done) / len(done) if done else math.nan,
        "unverifiable": sum(bool(r.parts.get("unverifiable_output")) for r in done),
        "failures": sum(kinds.values()),
    }
    figures |= {f"failures_{kind}": count for kind, count in sorted(kinds.items())}
    figures |= {f"break_{reason.replace(' ', '_')}": count for reason, count in sorted(breaks.items())}
    return figures


def by_environment(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    """Rollouts per environment, in their order."""
    result: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        result[rollout.environment].append(rollout)
    return dict(result)


def step_record(
    step: int,
    rollouts: Sequence[Rollout],
    trained: Mapping[str, Any],
    books: Mapping[str, int],
    seconds: Mapping[str, float],
    extra: Mapping[str, float],
) -> dict[str, Any]:
    """One line of metrics.jsonl: the step's figures over all, per environment, the books, seconds of every phase."""
    environments: dict[str, dict[str, Any]] = {}
    for name, members in sorted(by_environment(rollouts).items()):
        environments[name] = {**rollout_figures(members), **trained.get("per_environment", {}).get(name, {})}
    flat = {key: value for key, value in trained.items() if isinstance(value, int | float)}
    return {
        "step": step,
        **flat,
        **extra,
        "books": dict(books),
        "phase_seconds": dict(seconds),
        "environments": environments,
    }


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a nested record as `a/b/c`; NaN is left out."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value)):
            yield f"{prefix}{key}", float(value)


def wandb_package() -> Any:
    """The optional package. Raises OmnigymError where it is absent."""
    try:
        import wandb
    except ModuleNotFoundError:
        raise OmnigymError("wandb: true needs the package: pip install wandb, or set wandb=false") from None
    return wandb


class MetricsLog:
    """metrics.jsonl and TensorBoard, and W&B (offline) where the configuration asks for it."""

    def __init__(self, store: RunStore, wandb: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.store = store
        self._board = SummaryWriter(str(store.folder / "tensorboard"))
        self._wandb: Any = None
        if wandb:
            package = wandb_package()
            os.environ.setdefault("WANDB_MODE", "offline")  # a run needs no network; `wandb sync` uploads it later
            name = store.folder.name
            self._wandb = package.init(project="omnigym", name=name, id=name, resume="allow", dir=str(store.folder))
            # Not W&B's own counter: an evaluation after step s is logged before the record of step s, and would silence it.
            self._wandb.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Any]) -> None:
        """One record, at its `step`."""
        self.store.log(dict(record))
        step = int(record["step"])
        prefix = f"evaluation/{record['evaluation']}/" if "evaluation" in record else ""
        numbers = dict(flatten({key: value for key, value in record.items() if key != "step"}, prefix))
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log({**numbers, "step": step})

    def close(self) -> None:
        """Flush and close all of them."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class PhaseClock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - started


class PeakMemory:
    """Largest sum of resident memory of this process and all it started, looked at every two seconds."""

    def __init__(self, interval: float = 2.0) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._interval = interval
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peak-memory")
        self._thread.start()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.bytes = max(self.bytes, total)
            if self._stop.wait(self._interval):
                return

    def close(self) -> float:
        """Stop looking; MiB at the peak."""
        self._stop.set()
        self._thread.join()
        return self.bytes / 2**20

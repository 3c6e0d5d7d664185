"""The step, readable top to bottom as the algorithm is (spec section 1): sample tasks, collect groups, write them ahead,
advantages, books, pack, train, sync weights, log, checkpoint, validate.

Step s (from 0) is sampled with weight version s and makes version s + 1. A checkpoint's number is the steps that are in it.
Resume: load the last checkpoint, train later completed steps again from their stored rollouts, then go on with the step in
flight, whose tasks and seeds are those it had.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gym_servers.passk import mean_and_stderr
from gym_servers.protocol import Rollout
from rl_trainer.actors import Policy
from rl_trainer.advantages import compute_advantages
from rl_trainer.batch import keep_books, make_batch, outcome, rollout_key
from rl_trainer.books import BooksError
from rl_trainer.checkpoint import best_checkpoint, list_checkpoints, mark_best, prune_checkpoints, remove_unfinished
from rl_trainer.config import ConfigError, RunConfig
from rl_trainer.dynamic_sampling import Places, dropped_figures
from rl_trainer.evaluation import evaluate, task_means
from rl_trainer.generation import (
    Generation,
    Observer,
    RolloutPlan,
    RunStopped,
    check_complete,
    check_failures,
    check_versions,
    plan_rollouts,
)
from rl_trainer.metrics import MetricsLog, PhaseClock, sampled_tokens, step_record
from rl_trainer.observed import Observed, difficulty
from rl_trainer.policy import GradientNotFinite
from rl_trainer.replan import new_profile, replan_due
from rl_trainer.sampler import Sampler
from rl_trainer.store import RunStore, is_dropped, mark_dropped, step_label, write_whole
from rl_trainer.tasks import LoadedTask, PlannedTask
from rl_trainer.weights import export_checkpoint_weights, mean_difference

CANARY_FLOOR = 1e-3
"""Mean |dlp| that is never an alarm: two float32 engines differ by rounding, and 1.5 times nothing is nothing."""

CANARY_FILE = "canary.json"

REHEARSAL_SHARE = 0.1
"""Of what a rehearsal changes: how much of it may be missing in the engine. In bfloat16 rounding alone is 0.01 of it with the demo's
model; a tied lm_head that stays as it was is 0.58."""


AFTER = "eval_after"


def go_on(config: RunConfig, sampler: Sampler, done: int, state: Mapping[str, Any]) -> None:
    """Put `sampler` where the checkpoint of `done` steps, whose state is `state`, was. Raises ConfigError or CurriculumError where
    the configuration is not one that it can go on with."""
    if done > config.steps:
        raise ConfigError(f"steps ({config.steps}): the last checkpoint already holds {done}; set it to {done} or more")
    sampler.load_state_dict(state["sampler"], done)


@dataclass(frozen=True)
class Learned:
    """A step that is trained and not yet finished. rollouts: those of `sampled` that were trained on."""

    sampled: list[Rollout]
    rollouts: list[Rollout]
    trained: dict[str, Any]
    books: dict[str, int]
    without_baseline: int
    """Groups with fewer than two valid rollouts."""

    def figures(self) -> dict[str, float]:
        """Figures of its sampling."""
        tokens = float(sum(map(sampled_tokens, self.rollouts)))
        lost = float(self.without_baseline)
        return {"sampled_tokens": tokens, "groups_without_baseline": lost, **dropped_figures(self.sampled)}


@dataclass
class Run:
    """What a run holds. generation None: rollouts come from disk."""

    config: RunConfig
    store: RunStore
    sampler: Sampler
    policy: Policy
    generation: Generation | None
    log: MetricsLog
    observer: Observer
    heldout: list[LoadedTask] = field(default_factory=list)
    weights_folder: Path = Path("/dev/shm")
    canary_start: float | None = None
    counters: dict[str, float] = field(default_factory=dict)
    """Figures of the whole run that stand in every record, such as prompts dropped."""

    # ---------------------------------------------------------------- the step

    def step(self, step: int) -> None:
        """One step of synchronous GRPO with fresh rollouts."""
        clock = PhaseClock()
        tasks = self.sampler.next(step)
        with clock("generate"):
            rollouts = self.collect(step, tasks)
        self.learn(step, rollouts, clock, on_policy=True)
        with clock("sync"):
            self.observer.phase(step, "sync")
            trained = self._learned.trained
            self.sync(step + 1, moved=trained["grad_norm"] > 0 and trained["lr"] > 0)
        self.finish(step, clock)

    def learn(self, step: int, rollouts: list[Rollout], clock: PhaseClock, on_policy: bool) -> None:
        """Rollouts of one step, in the plan's order, to an optimiser step. Those that were dropped are observed only."""
        self.observer.phase(step, "train")
        sampled = sorted(rollouts, key=lambda r: (r.group, r.attempt))
        rollouts = [rollout for rollout in sampled if not is_dropped(rollout)]
        try:
            if on_policy:
                check_versions(sampled, step)
            with clock("advantages"):
                advantages = compute_advantages([outcome(rollout) for rollout in rollouts], self.config.algorithm)
                batch = make_batch(rollouts, advantages)
            with clock("train"):
                trained = self.policy.train_step(batch, step)
            totals = keep_books(rollouts, advantages, trained)
        except (RunStopped, GradientNotFinite, BooksError) as error:
            stored = self.store.rollouts / f"{step_label(step)}.done"
            again = f" A resumed run trains on the same rollouts; delete '{stored}' to have the step sampled again."
            raise type(error)(f"step {step}: {error}{again if on_policy else ''}") from error
        self.observed.add(step, sampled)
        for line in trained["warnings"]:
            self.observer.note(f"step {step}: {line}")
        if trained["skipped"]:
            self.observer.note(f"step {step}: no token of a valid rollout is left (N = 0), weights are unchanged")
        compared = {r.group for r in rollouts if advantages[rollout_key(r)].kind == "valid"}
        lost = len({r.group for r in rollouts} - compared)
        self._learned = Learned(sampled, rollouts, trained, totals, lost)

    def finish(self, step: int, clock: PhaseClock) -> None:
        """Validate, checkpoint and log a step."""
        done = step + 1
        rollouts, trained = self._learned.rollouts, self._learned.trained
        best = None
        due = self.config.val.every and done % self.config.val.every == 0 and done < self.config.steps
        if due and self.heldout and self.generation is not None:
            with clock("validate"):
                found = self.evaluate(f"eval_{done:06d}", done, self.config.val.every_samples)
                best = mean_and_stderr(list(task_means(found).values()))[0]
        seconds = clock.seconds.get("generate", 0.0)
        extra = {**self.counters, **self._learned.figures(), **difficulty(self.sampler.plan(step), rollouts)}
        if seconds:
            extra["tokens_per_second"] = sum(map(sampled_tokens, self._learned.sampled)) / seconds
        record = step_record(step, rollouts, trained, self._learned.books, clock.seconds, extra)
        if best is not None or done % self.config.checkpoint.every == 0 or done == self.config.steps:
            with clock("checkpoint"):
                self.observer.phase(step, "checkpoint")
                self.checkpoint(done, best, record)
            record["phase_seconds"] = dict(clock.seconds)
        self.log.write(record)
        self.observer.step(record)

    # ---------------------------------------------------------------- its parts

    def collect(self, step: int, tasks: Sequence[PlannedTask]) -> list[Rollout]:
        """The groups of a step, written ahead: on disk and committed before any of them is trained on."""
        label, size = step_label(step), self.config.group_size
        places = Places(tasks, self.config.algorithm)

        def plans_of(tasks: Sequence[PlannedTask]) -> list[RolloutPlan]:
            self.observer.phase(step, "generate", len(tasks) * size)
            return plan_rollouts(self.config.seed, self.store.folder.name, label, tasks, size)

        def replacements(rollouts: Sequence[Rollout]) -> Iterator[list[RolloutPlan]]:
            for attempt in range(self.config.dynamic_sampling.max_attempts):
                if chosen := places.replace(rollouts, self.sampler.replacements(step, attempt)):
                    yield plans_of(chosen)

        rollouts = self._gather(label, plans_of(tasks), replacements, places.dropped)
        if figures := dropped_figures(rollouts):
            self.observer.note(f"step {step}: " + ", ".join(f"{name} {count:.0f}" for name, count in figures.items()))
        return rollouts

    def evaluate(self, label: str, done: int, samples: int) -> list[Rollout]:
        """`samples` rollouts of every held-out task under the present weights; those on disk are not sampled again."""
        started = time.monotonic()
        if self.store.committed(label):
            rollouts = self.store.read(label)
        else:
            tasks = [PlannedTask(task, f"{label}-t{k:04d}") for k, task in enumerate(self.heldout)]
            self.observer.phase(done, label, len(tasks) * samples)
            # Seeds of all evaluations are the same, so that before and after differ by the weights only.
            plans = plan_rollouts(self.config.seed, self.store.folder.name, label, tasks, samples, "heldout")
            rollouts = self._gather(label, plans)
        if not any(row.get("evaluation") == label for row in self.store.metrics()):
            record = {"step": done, "evaluation": label, "seconds": time.monotonic() - started}
            self.log.write({**record, "environments": evaluate(rollouts)})
        return rollouts

    def _gather(
        self,
        label: str,
        plans: list[RolloutPlan],
        more: Callable[[Sequence[Rollout]], Iterable[list[RolloutPlan]]] = lambda rollouts: (),
        dropped: Callable[[Sequence[Rollout]], Sequence[str]] = lambda rollouts: (),
    ) -> list[Rollout]:
        """The rollouts of `plans`, then those that `more` wants of what there is, committed with the groups that are `dropped`."""
        if self.generation is None:
            raise RunStopped(f"no stored rollouts for '{label}' and no model server to sample them")
        rollouts: list[Rollout] = []
        writer = self.store.writer(label)

        def done(rollout: Rollout) -> None:
            writer.add(rollout)
            rollouts.append(rollout)
            self.observer.rollout(rollout)

        try:
            self.generation.collect(plans, done)
            for added in more(rollouts):
                self.generation.collect(added, done)
                plans = plans + added
            check_complete(plans, rollouts, label)
            check_failures(rollouts, self.config.failure_limit, label)
            check_versions(rollouts, self._version)
            writer.commit(dropped(rollouts))
        except BaseException:
            writer.abandon()
            raise
        return mark_dropped(rollouts, dropped(rollouts))

    def replan(self, step: int) -> None:
        """Before `step`, where the validations so far have come to a plateau: a profile with the best checkpoint, and a new plan of it
        for the steps that are left."""
        if self.generation is None or not replan_due(self.config, self.store, self.sampler, step):
            return
        found = best_checkpoint(self.store.checkpoints)
        assert found is not None, "a checkpoint was written with the validation"
        best = found[0]
        self.observer.note(
            f"step {step}: validation has come to a plateau, profile with the checkpoint of {best} steps"
        )
        digest = self._sent if best == step else self._send(self.generation, best, back=True)
        profile = new_profile(self.config, self.store, self.sampler, step, digest, self.generation, self.observer)
        if best != step:
            self.sync(step)
        self.observer.note(self.sampler.replan(step, profile))

    def sync(self, version: int, moved: bool = False) -> None:
        """Give the engine the policy's weights; digest and canary prove that it has them (pitfalls 14, 35).

        moved: an optimiser step was taken since the last sync, so that the same bytes again are an update that is left out.
        """
        if self.generation is None:
            return
        digest = self._send(self.generation, version)
        if moved and digest == self._sent:
            raise RunStopped(
                f"weights {version} are those of the last sync, byte for byte, though a step was taken: what is sent is not "
                f"what was trained, or optimizer.lr is too small for engine.dtype {self.config.engine.dtype}"
            )
        self._sent, self._version = digest, version
        gap = self._canary_gap(self.generation)
        assert self.canary_start is not None, "the canary is measured before anything is sent"
        limit = max(self.config.canary_factor * self.canary_start, CANARY_FLOOR)
        self.counters["canary"] = gap
        if not gap <= limit:  # also where it is NaN
            raise RunStopped(
                f"weights {version}: trainer and engine differ by {gap:.4f} nats a token on the canary sequences, "
                f"at the start it was {self.canary_start:.4f} (limit {limit:.4f}): the engine does not hold the weights "
                "that were sent. Resume the run, which starts a new engine."
            )

    def _send(self, generation: Generation, version: int, rehearsal: bool = False, back: bool = False) -> str:
        """Export, update, compare what was received; the digest. back: what the checkpoint of `version` steps holds."""
        path = self.weights_folder / f"omnigym-{self.store.folder.name}-{version}.safetensors"
        try:
            if back:
                checkpoint = dict(list_checkpoints(self.store.checkpoints))[version]
                digest = export_checkpoint_weights(checkpoint, path, self.config.engine.dtype)
            else:
                digest = self.policy.export(path, self.config.engine.dtype)
            received = generation.update_weights(path, digest, version, rehearsal, back)
        finally:
            path.unlink(missing_ok=True)
        if received != digest:
            raise RunStopped(
                f"weights {version}: the engine received digest {received[:16]}, sent was {digest[:16]}. The engine's "
                "weights cannot be trusted: resume the run, which starts a new one."
            )
        return digest

    def _rehearse(self, generation: Generation, version: int) -> None:
        """A sync of weights with every sign changed, which the engine must follow; the policy's own come after it.

        In bfloat16 one step moves the canary by less than rounding does: a part of the engine that keeps old weights shows
        only where old and new are far apart.
        """
        sequences = self.policy.canary()
        before = self.policy.score(sequences)
        self.policy.negate()
        try:
            self._send(generation, version, rehearsal=True)
            mine = self.policy.score(sequences)
        finally:
            self.policy.negate()
        apart, gap = mean_difference(mine, before), mean_difference(mine, generation.score(sequences))
        if not gap <= REHEARSAL_SHARE * apart:
            raise RunStopped(
                f"rehearsal of the sync: with every weight's sign changed trainer and engine differ by {gap:.4f} nats a token "
                f"on the canary sequences, of {apart:.4f} that the change makes (limit {REHEARSAL_SHARE:g} of it): a part of the "
                "engine keeps old weights. Nothing was trained; this engine cannot be synced."
            )
        self.observer.note(f"sync rehearsed: {gap:.3g} nats a token are missing of {apart:.3g}")

    def _canary_gap(self, generation: Generation) -> float:
        """Mean |dlp| between trainer and engine on the fixed sequences."""
        sequences = self.policy.canary()
        return mean_difference(self.policy.score(sequences), generation.score(sequences))

    def start_sync(self, first: int) -> None:
        """The first sync of this process. What the canary is held against is measured at the very start of a run, on the
        weights that the engine loaded by itself: a sync that is broken from the first is then caught too."""
        if self.generation is None:
            return
        file = self.store.folder / CANARY_FILE
        if file.is_file():
            self.canary_start = float(json.loads(file.read_text())["start"])
        elif first == 0:
            self.canary_start = self._canary_gap(self.generation)
            write_whole(file, json.dumps({"start": self.canary_start}).encode())
        else:
            raise RunStopped(f"{file} is missing: without it nothing tells whether weights reach the engine")
        self._rehearse(self.generation, first)
        self.sync(first)

    def checkpoint(self, done: int, score: float | None = None, record: Mapping[str, Any] | None = None) -> None:
        """A checkpoint of `done` steps; the best and the last ones stay. record: the last step's, not yet in the log."""
        state = {
            "sampler": self.sampler.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "extra": {"score": score, "record": record},
        }
        self.policy.save(self.store.checkpoints, done, state)
        self._keep(done, score)

    def _keep(self, done: int, score: float | None) -> None:
        folder = self.store.checkpoints
        if score is not None and math.isfinite(score):  # where every rollout failed there is none
            mark_best(folder, done, score)
        if self.config.checkpoint.keep_last:
            prune_checkpoints(folder, self.config.checkpoint.keep_last)

    # ---------------------------------------------------------------- whole runs

    def restore(self) -> int:
        """Load the last checkpoint and train later completed steps again from disk; the first step that is not done.

        A kill may fall between any two writes: what a step still lacks is made up for, so that the run folder ends as
        that of an uninterrupted run.
        """
        self._sweep()
        first, rows = 0, list(self.store.metrics())
        place = {row["step"]: index for index, row in enumerate(rows) if "evaluation" not in row}
        found = list_checkpoints(self.store.checkpoints)
        if found:
            first, path = found[-1]
            state = self.policy.restore(path)
            go_on(self.config, self.sampler, first, state)
            extra = state["extra"]
            self._keep(first, extra.get("score"))
            self.observer.note(f"loaded the checkpoint of {first} steps")
            if first - 1 not in place and extra.get("record") is not None:
                rows.append(extra["record"])
        self.observed.rewind(first)
        for step in range(first, self.config.steps):
            if not self.store.committed(step_label(step)):
                break
            clock = PhaseClock()
            with clock("read"):
                rollouts = self.store.read(step_label(step))
            self.observer.note(f"training step {step} again from its stored rollouts")
            self.learn(step, rollouts, clock, on_policy=True)
            if step in place:
                old = rows[place[step]]
                learned = self._learned
                record = step_record(step, learned.rollouts, learned.trained, learned.books, clock.seconds, {})
                rows[place[step]] = {**old, **record, "phase_seconds": old["phase_seconds"]}
            else:
                self._unfinished = clock
        else:
            step = max(first, self.config.steps)
        if self.store.committed(AFTER) and any(
            segment.weight_version != self.config.steps for r in self.store.read(AFTER) for segment in r.segments
        ):
            self.store.void(AFTER)  # the run was shorter then
        self.store.rewrite_metrics(
            row
            for row in rows
            if (self.store.committed(row["evaluation"]) if "evaluation" in row else row["step"] < step)
        )
        return step

    def _sweep(self) -> None:
        """Remove what a kill left half-written: checkpoints, and weights in shared memory."""
        remove_unfinished(self.store.checkpoints)
        pattern = re.compile(rf"\.?omnigym-{re.escape(self.store.folder.name)}-\d+\.safetensors.*")
        for path in self.weights_folder.iterdir():
            if pattern.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def train(self, before: bool = True) -> tuple[list[Rollout], list[Rollout]] | None:
        """The whole run: evaluate, train, evaluate. Returns both evaluations' rollouts."""
        first = self.restore()
        self.start_sync(first)
        if self._unfinished is not None:
            self.finish(first - 1, self._unfinished)
        wanted = bool(self.heldout) and before and (first == 0 or self.store.committed("eval_before"))
        if wanted and first == 0:
            self.evaluate("eval_before", 0, self.config.val.samples)
        for step in range(first, self.config.steps):
            self.replan(step)
            self.step(step)
        if not list_checkpoints(self.store.checkpoints)[-1:] == [
            (self.config.steps, self.store.checkpoints / f"step_{self.config.steps:06d}")
        ]:
            self.checkpoint(self.config.steps)
        if not wanted:
            return None
        old = self.evaluate("eval_before", 0, self.config.val.samples)
        new = self.evaluate(AFTER, self.config.steps, self.config.val.samples)
        self._keep(self.config.steps, mean_and_stderr(list(task_means(new).values()))[0])
        return old, new

    def rollouts_only(self) -> None:
        """Collect every step's rollouts with the starting weights; nothing is trained."""
        self.start_sync(0)
        logged = {row["step"] for row in self.store.metrics()}
        for step in range(self.config.steps):
            clock = PhaseClock()
            if self.store.committed(step_label(step)):
                if step in logged:
                    continue
                rollouts = self.store.read(step_label(step))
            else:
                with clock("generate"):
                    rollouts = self.collect(step, self.sampler.next(step))
            kept = [rollout for rollout in rollouts if not is_dropped(rollout)]
            record = step_record(step, kept, {}, {}, clock.seconds, {**self.counters, **dropped_figures(rollouts)})
            self.log.write(record)
            self.observer.step(record)

    def from_rollouts(self, source: RunStore) -> int:
        """Train on another run's stored rollouts, step by step; how many steps there were."""
        step = 0
        while step < self.config.steps and source.committed(step_label(step)):
            clock = PhaseClock()
            with clock("read"):
                rollouts = source.read(step_label(step))
            self.learn(step, rollouts, clock, on_policy=False)
            self.finish(step, clock)
            step += 1
        if step == 0:
            raise RunStopped(f"no complete rollouts '{step_label(0)}' in {source.rollouts}")
        if step < self.config.steps:
            self.checkpoint(step)
        return step

    def __post_init__(self) -> None:
        self.observed = Observed(self.store.folder)

    _learned: Learned = field(init=False)
    _sent: str = field(init=False, default="")
    """Digest of the last sync."""
    _version: int = field(init=False, default=0)
    """Version of the last sync."""
    _unfinished: PhaseClock | None = field(init=False, default=None)
    """Of the last step trained again, where it has no row yet: it is finished once the engine has its weights."""

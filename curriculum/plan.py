"""The plan: which tasks each step trains on, a pure function of (profile, options, step) (spec section 2; report, section 3.2.2).

Domains get their counts from curriculum/mixture.py, tasks within a domain come from curriculum/gaussian.py, and the batch is shuffled.
The orders `random` (uniform among the same eligible tasks) and `sequential` share all but the bins: they have one for a domain. A plan is
made step by step from the first, quickly enough to be made again on a resume; nothing that happens in a run moves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.filter import Eligible, filter_tasks
from curriculum.gaussian import (
    Bins,
    DomainOrder,
    Indices,
    gaussian_shares,
    log_density,
    permutation,
    raw_stream,
)
from curriculum.mixture import MixtureError, batches
from curriculum.options import CurriculumError, CurriculumOptions
from curriculum.profile import Profile


class Planner:
    """Batches and their replacements.

    tasks: a profile of the run's tasks, whose indices the batches hold; or, for the orders that need no pass rates, the number of tasks
    of each domain: indices then count through the domains in the mapping's order. Raises CurriculumError.
    """

    def __init__(self, tasks: Profile | Mapping[str, int], options: CurriculumOptions) -> None:
        self.tasks, self.options = tasks, options
        try:
            mixture = list(islice(batches(options.ratios, options.batch_size), options.steps))
        except MixtureError as error:
            raise CurriculumError(str(error)) from None
        self.eligible: Eligible | None = None
        if isinstance(tasks, Profile):
            self.eligible = filter_tasks(tasks, options.hold_out_unsolved)
        elif options.order == "gaussian":
            raise CurriculumError("the order 'gaussian' needs a profile: make one with `omnigym profile`")
        self.bins = {name: self._bins(name) for name, ratio in options.ratios.items() if ratio > 0}
        self._orders: dict[str, DomainOrder] = {}
        for name, bins in self.bins.items():
            single = np.ones((options.steps, 1))
            self._orders[name] = DomainOrder(
                bins,
                gaussian_shares(bins.rates, options) if options.order == "gaussian" else single,
                np.array([counts[name] for counts in mixture], dtype=np.int64),
                None if options.order == "sequential" else f"order|{options.seed}|{name}",
            )
        self._drawn: list[dict[str, Indices]] = []

    def _bins(self, domain: str) -> Bins:
        """The domain's eligible tasks. Raises CurriculumError where there is none."""
        if not isinstance(self.tasks, Profile):
            sizes = dict(self.tasks)
            if sizes.get(domain, 0) < 1:
                raise CurriculumError(f"domain '{domain}' has a share in the mixture and no task")
            names = list(sizes)
            start = sum(sizes[name] for name in names[: names.index(domain)])
            return Bins(np.zeros(1), [np.arange(start, start + sizes[domain], dtype=np.int64)])
        assert self.eligible is not None
        rows, kept = self.tasks.rows(domain), self.eligible.kept
        indices = kept[(kept >= rows.start) & (kept < rows.stop)]
        total = rows.stop - rows.start
        if not total:
            raise CurriculumError(
                f"domain '{domain}' has a share in the mixture and no task in the profile, which has {self.tasks.domains}: "
                "profile its tasks, or leave it out of the mixture"
            )
        if not len(indices):
            solved = int((self.tasks.pass_rate[rows] >= 1.0).sum())
            raise CurriculumError(
                f"domain '{domain}' has no eligible task: of {total}, {solved} are always solved and {total - solved} never, "
                "which hold_out_unsolved leaves out: take harder tasks"
                + (", or hold none out" if solved < total else "")
            )
        if self.options.order != "gaussian":
            return Bins(np.zeros(1), [indices])
        return Bins.by_pass_rate(indices, self.tasks.pass_rate[indices], int(self.tasks.n[rows].max()))

    def drawn(self, step: int) -> dict[str, Indices]:
        """The tasks that `step` draws of each domain, in the order they are drawn. Raises CurriculumError for a step that the plan does not have."""
        if not 0 <= step < self.options.steps:
            raise CurriculumError(f"the plan has steps 0 to {self.options.steps - 1}, there is no step {step}")
        while len(self._drawn) <= step:
            self._drawn.append({name: order.draw() for name, order in self._orders.items()})
        return self._drawn[step]

    def batch(self, step: int) -> Indices:
        """The tasks of `step`, counted from 0: [batch_size], domains shuffled."""
        tasks = np.concatenate(list(self.drawn(step).values()))
        return tasks[permutation(f"batch|{self.options.seed}|{step}", len(tasks))]

    def domains_of(self, step: int) -> NDArray[np.str_]:
        """The domain of each place of the batch."""
        names: NDArray[np.str_] = np.concatenate(
            [np.full(len(drawn), name) for name, drawn in self.drawn(step).items()]
        )
        return names[permutation(f"batch|{self.options.seed}|{step}", len(names))]

    def replacements(self, step: int, attempt: int) -> Indices:
        """Tasks to take instead of those of the batch (dynamic sampling), place by place and of the same domain: a second stream,
        a function of (seed, step, attempt), that never moves the plan. attempt counts from 0.

        Drawn from the step's target among all eligible tasks, whatever the epoch. As long as a domain has enough of them, none is in
        the batch or was another place's or attempt's.
        """
        places, batch = self.domains_of(step), self.batch(step)
        found = np.empty_like(batch)
        for name, drawn in self.drawn(step).items():
            count = len(drawn)
            if count:
                stream = self._stream(name, step, batch)
                found[places == name] = stream[np.arange(attempt * count, (attempt + 1) * count) % len(stream)]
        return found

    def _stream(self, domain: str, step: int, batch: Indices) -> Indices:
        """The domain's tasks that are not in the batch (all where each is), drawn without replacement with the step's target: the
        largest of log weight + Gumbel noise first."""
        bins = self.bins[domain]
        tasks = np.concatenate(bins.members)
        log_weights = np.zeros(len(bins.rates))
        if self.options.order == "gaussian":
            log_weights = log_density(bins.rates, self.options.mean(step), self.options.sigma)
        sizes = np.array([len(members) for members in bins.members])
        raw = raw_stream(f"replacement|{self.options.seed}|{domain}|{step}", len(tasks))
        uniform = ((raw >> np.uint64(12)) + 0.5) / 2.0**52  # inside (0, 1)
        keys = np.repeat(log_weights - np.log(sizes), sizes) - np.log(-np.log(uniform))
        free = ~np.isin(tasks, batch)
        if free.any():
            tasks, keys = tasks[free], keys[free]
        return tasks[np.argsort(-keys, kind="stable")]

    def state_dict(self) -> dict[str, Any]:
        """What the plan depends on, to notice a resume with another one: the options, and of each domain its tasks' number and hash."""
        state: dict[str, Any] = {"options": self.options.model_dump(mode="json"), "tasks": {}}
        if isinstance(self.tasks, Profile):
            state["weights"] = self.tasks.weights
        for name, bins in self.bins.items():
            tasks = np.concatenate(bins.members)
            entry: dict[str, Any] = {"n": len(tasks)}
            if isinstance(self.tasks, Profile):
                digest = hashlib.sha256("\n".join(self.tasks.task_id[tasks]).encode())
                digest.update(self.tasks.pass_rate[tasks].tobytes())
                entry["hash"] = digest.hexdigest()[:16]
            state["tasks"][name] = entry
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CurriculumError where this plan is not the one that `state` is of."""
        mine, changed = self.state_dict(), []
        then, now = state["options"], mine["options"]
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                changed.append(f"{key} was {then.get(key)} and is {now.get(key)}")
        if state.get("weights") != mine.get("weights"):
            changed.append(f"the profile was of weights {state.get('weights')} and is of {mine.get('weights')}")
        for name in sorted(state["tasks"].keys() & mine["tasks"].keys()):
            before, after = state["tasks"][name], mine["tasks"][name]
            if before["n"] != after["n"]:
                changed.append(f"domain '{name}' had {before['n']} eligible tasks and has {after['n']}")
            elif before != after:
                changed.append(
                    f"domain '{name}' has {after['n']} eligible tasks as before, but other ones or other pass rates"
                )
        if changed:
            raise CurriculumError(
                f"{'; '.join(changed)}: the plan cannot go on where it stopped. Restore it, or start a new run."
            )

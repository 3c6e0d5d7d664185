"""What a plan looks like before any of it is run: difficulty of each batch, what each domain draws, what runs dry, what is never seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.gaussian import Indices, bin_of
from curriculum.mixture import shares
from curriculum.options import CurriculumError
from curriculum.plan import Planner
from curriculum.profile import Profile


@dataclass(frozen=True)
class BinSummary:
    """The eligible tasks of one pass rate."""

    rate: float
    tasks: int
    drawn: int
    """Draws of all epochs."""
    dry: list[int]
    """The steps in which its last task of an epoch is drawn."""
    left: list[int]
    """Tasks not yet drawn in the epoch, after each step."""


@dataclass(frozen=True)
class DomainSummary:
    """One domain of the mixture."""

    name: str
    share: float
    tasks: int
    """Of the profile."""
    solved: int
    """Dropped: always solved."""
    held_out: int
    eligible: int
    drawn: int
    epochs: float
    """Draws for each eligible task."""
    never_seen: int
    """Eligible tasks that no step draws."""
    counts: list[int]
    """Tasks in each step."""
    mean: list[float | None]
    """Mean pass rate of them; None in a step without one."""
    bins: list[BinSummary]


@dataclass(frozen=True)
class PlanSummary:
    """The whole plan. `mean` and `spread` (standard deviation) are of the pass rates of each step's tasks."""

    order: str
    steps: int
    batch_size: int
    seed: int
    sigma: float
    weights: str
    mean: list[float]
    spread: list[float]
    target: list[float]
    """The Gaussian's mean in each step."""
    domains: list[DomainSummary]
    unused: dict[str, int]
    """Profiled tasks of domains without a share in the mixture."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summarise(planner: Planner) -> PlanSummary:
    """Make the whole plan and look at it. The planner has a profile."""
    profile, options = planner.tasks, planner.options
    if not isinstance(profile, Profile):
        raise CurriculumError("a plan without a profile has no difficulty to show")
    rates = [profile.pass_rate[planner.batch(step)] for step in range(options.steps)]
    return PlanSummary(
        order=options.order,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        sigma=options.sigma,
        weights=profile.weights,
        mean=[float(r.mean()) for r in rates],
        spread=[float(r.std()) for r in rates],
        target=[options.mean(step) for step in range(options.steps)],
        domains=[
            _domain(planner, profile, name, float(share)) for name, share in shares(options.ratios).items() if share
        ],
        unused={
            name: profile.rows(name).stop - profile.rows(name).start
            for name in profile.domains
            if name not in planner.bins
        },
    )


def _domain(planner: Planner, profile: Profile, name: str, share: float) -> DomainSummary:
    rows, options = profile.rows(name), planner.options
    eligible = np.concatenate(planner.bins[name].members)
    drawn = [planner.drawn(step)[name] for step in range(options.steps)]
    sequence = np.concatenate(drawn)
    ends = np.cumsum([len(tasks) for tasks in drawn])
    solved = int((profile.pass_rate[rows] >= 1.0).sum())
    return DomainSummary(
        name=name,
        share=share,
        tasks=rows.stop - rows.start,
        solved=solved,
        held_out=rows.stop - rows.start - solved - len(eligible),
        eligible=len(eligible),
        drawn=len(sequence),
        epochs=len(sequence) / len(eligible),
        never_seen=len(eligible) - len(np.unique(sequence)),
        counts=[len(tasks) for tasks in drawn],
        mean=[float(profile.pass_rate[tasks].mean()) if len(tasks) else None for tasks in drawn],
        bins=_bins(profile, eligible, sequence, ends, int(profile.n[rows].max())),
    )


def _bins(profile: Profile, eligible: Indices, sequence: Indices, ends: Indices, n: int) -> list[BinSummary]:
    """Of each bin what is left after each step. An epoch is as many draws as the domain has eligible tasks."""
    place = bin_of(profile.pass_rate, n)
    epoch = np.maximum(ends - 1, 0) // len(eligible)
    found = []
    for kind in np.unique(place[eligible]):
        size = int((place[eligible] == kind).sum())
        before: NDArray[np.int64] = np.append(0, np.cumsum(place[sequence] == kind))
        left = size - (before[ends] - before[epoch * len(eligible)])
        draws = np.flatnonzero(place[sequence] == kind)  # every size-th of them is an epoch's last of this bin
        dry = np.searchsorted(ends, draws[size - 1 :: size], side="right")
        found.append(BinSummary(float(kind / n), size, len(draws), dry.tolist(), left.tolist()))
    return found

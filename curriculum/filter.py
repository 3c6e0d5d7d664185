"""Which tasks are worth training on (spec section 2, point 2): those that the starting checkpoint does not always solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curriculum.profile import Profile


@dataclass(frozen=True)
class Eligible:
    """Indices into the profile, ascending, disjoint and together all of it."""

    kept: NDArray[np.int64]
    solved: NDArray[np.int64]
    """Dropped: a pass rate of 100 % has nothing to teach (report, section 3.2.2)."""
    unsolved: NDArray[np.int64]
    """Held out until a re-profile: a pass rate of 0; empty unless that is asked for."""


def filter_tasks(profile: Profile, hold_out_unsolved: bool) -> Eligible:
    """Split the profile's tasks. A pass rate is a mean reward, so one of 1 is exactly 1."""
    solved = profile.pass_rate >= 1.0
    unsolved = (profile.pass_rate <= 0.0) & hold_out_unsolved
    return Eligible(np.flatnonzero(~solved & ~unsolved), np.flatnonzero(solved), np.flatnonzero(unsolved))

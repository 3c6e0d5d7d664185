"""Profiles for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from curriculum.profile import Profile


def profile_of(domains: Mapping[str, Sequence[float]], n: int = 8, weights: str = "w1") -> Profile:
    """The pass rates of each domain's tasks, named `<domain>-<k>`; all profiled with n rollouts."""
    rates = [rate for members in domains.values() for rate in members]
    return Profile(
        task_id=np.array([f"{name}-{k:03d}" for name, members in domains.items() for k in range(len(members))]),
        domain=np.array([name for name, members in domains.items() for _ in members]),
        pass_rate=np.array(rates, dtype=np.float64),
        n=np.full(len(rates), n),
        stderr=np.zeros(len(rates)),
        mean_tokens=np.full(len(rates), 40.0),
        truncated=np.zeros(len(rates)),
        weights=weights,
    )

"""Whole counts near fractional targets, in every batch and every prefix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curriculum.gaussian import target
from curriculum.rounding import UNIT, Rounding, in_units

Table = np.typing.NDArray[np.int64]


def rounded(targets: Table, lag: Table | None = None) -> Table:
    rounding = Rounding(targets, np.zeros(targets.shape[1], dtype=np.int64) if lag is None else lag)
    found = []
    for _ in targets:
        found.append(rounding.counts())
        rounding.settle(found[-1])
    return np.array(found)


def test_two_bins_of_unequal_share_by_hand() -> None:
    """Targets 0.25 and 0.75, one task a step; sums 0.25, 0.5, 0.75, 1 and 0.75, 1.5, 2.25, 3. The second bin's tasks may be drawn in
    steps 0-1, 1-2, 2-3, the first bin's in 0-3. So the second goes first twice; in step 2 both are due in step 3: the first bin."""
    targets = in_units(np.array([[0.25, 0.75]] * 4), np.ones(4, dtype=np.int64))
    assert rounded(targets).tolist() == [[0, 1], [0, 1], [1, 0], [0, 1]]


def test_whole_parts_are_always_drawn_by_hand() -> None:
    """Targets 1.5 and 2.5 of four tasks: 1 and 2 for certain, the fourth by turns, the first bin first (equal windows)."""
    targets = in_units(np.array([[0.375, 0.625]] * 4), np.full(4, 4, dtype=np.int64))
    assert rounded(targets).tolist() == [[2, 2], [1, 3], [2, 2], [1, 3]]


def test_a_tie_goes_to_the_bin_whose_next_task_is_due_sooner_by_hand() -> None:
    """Two places a step. Targets 0.5, 0.75, 0.75: sums after each step 0.5, 1, 1.5, 2 and 0.75, 1.5, 2.25, 3. First tasks are all due
    in step 1; the second and third bins' next windows open in that step too, so both are drawn in step 0, though they stand last. In step
    1 the first is due, and the others tie for the second place (both due in step 2): the lower of them takes it. In step 2 the third is
    due, and the first and second tie (due in step 3): the first. In step 3 the second and third are due."""
    targets = in_units(np.array([[0.25, 0.375, 0.375]] * 4), np.full(4, 2, dtype=np.int64))
    assert rounded(targets).tolist() == [[0, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]


def test_what_is_due_after_the_last_step_goes_by_what_is_missing_by_hand() -> None:
    """One step: no bin's sum reaches 1 in it; the third comes nearest."""
    assert rounded(in_units(np.array([[0.2, 0.3, 0.5]]), np.ones(1, dtype=np.int64))).tolist() == [[0, 0, 1]]


def test_a_lag_from_outside_is_made_good_by_hand() -> None:
    """Halves of one task a step; the second bin comes in half a task behind, so it is due in step 0 at once, and in step 2 again."""
    targets = in_units(np.array([[0.5, 0.5]] * 4), np.ones(4, dtype=np.int64))
    lag = np.array([-UNIT // 2, UNIT // 2])
    assert rounded(targets, lag).tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]


def test_units_sum_to_the_count_exactly() -> None:
    units = in_units(np.full((3, 7), 1 / 7), np.array([1, 5, 0]))
    assert units.sum(axis=1).tolist() == [UNIT, 5 * UNIT, 0]
    assert abs(units[0] - UNIT / 7).max() <= 4


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.05, 1),
)
@example(5, [0, 1, 1, 1], 0.0, 0.8125, 0.0625)  # bins that are owed half a task when their targets are below a unit
@example(7, [0, 1, 0, 1, 2, 1, 1, 0, 0, 0, 1, 1, 0, 0, 2, 2, 1, 0, 0, 1, 2], 0.0, 0.8125, 0.0625)
def test_a_moving_gaussian_is_followed_within_one_task(
    bins: int, counts: list[int], start: float, end: float, sigma: float
) -> None:
    rates = np.arange(bins) / bins
    shares = np.stack([target(rates, mean, sigma) for mean in np.linspace(start, end, len(counts))])
    targets = in_units(shares, np.array(counts))
    found = rounded(targets)
    assert found.sum(axis=1).tolist() == counts
    assert found.min() >= 0
    assert abs(found * UNIT - targets).max() < UNIT
    assert abs(np.cumsum(found, axis=0) * UNIT - np.cumsum(targets, axis=0)).max() < UNIT


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 60), st.sampled_from([0.3, 1.0, 20.0]))
def test_any_positive_targets_are_followed_within_one_task(seed: int, bins: int, steps: int, evenness: float) -> None:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(bins, evenness), size=steps) * 0.99 + 0.01 / bins
    counts = random.integers(0, 8, size=steps)
    targets = in_units(shares, counts)
    found = rounded(targets)
    assert found.sum(axis=1).tolist() == counts.tolist()
    assert abs(found * UNIT - targets).max() < UNIT
    assert abs(np.cumsum(found, axis=0) * UNIT - np.cumsum(targets, axis=0)).max() < UNIT


@pytest.mark.parametrize("gap", [1, 5])
def test_a_target_that_vanishes_for_a_while_still_gets_its_tasks(gap: int) -> None:
    """0.5, then nothing for `gap` steps, then 0.5: one task, in either of its two steps and never between."""
    shares = np.array([[0.5, 0.5]] + [[0.0, 1.0]] * gap + [[0.5, 0.5]])
    found = rounded(in_units(shares, np.ones(gap + 2, dtype=np.int64)))
    assert found[:, 0].sum() == 1 and not found[1:-1, 0].any()

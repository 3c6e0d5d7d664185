"""Bins, the target over them, and what happens when they run dry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.gaussian import Bins, DomainOrder, bin_of, permutation, target, to_nearest

QUARTER = math.sqrt(0.125 / math.log(3))
"""Sigma at which the density half a pass rate from the mean is a third of that at the mean: shares 1/4 and 3/4."""


def order(sizes: list[int], shares: list[float], counts: list[int], seed: str | None = "s") -> DomainOrder:
    """Bins at 0, 0.25, 0.5, ... with `sizes` tasks, numbered through; the same shares in every step."""
    starts = np.cumsum([0, *sizes])
    members = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    bins = Bins(np.arange(len(sizes)) * 0.25, members)
    return DomainOrder(bins, np.array([shares] * len(counts)), np.array(counts), seed)


def drawn_by_bin(order: DomainOrder, steps: int) -> list[list[int]]:
    """Tasks of each bin in each step."""
    found = []
    for _ in range(steps):
        chosen = order.draw()
        found.append([int(np.isin(chosen, members).sum()) for members in order.bins.members])
    return found


def test_the_target_by_hand() -> None:
    """Mean 0.5, sigma 0.25: the bins 0, 1/4, 1/2, 3/4 are 2, 1, 0, 1 standard deviations off."""
    weights = [math.exp(-2), math.exp(-0.5), 1.0, math.exp(-0.5)]
    wanted = np.array(weights) / sum(weights)
    assert target(np.array([0, 0.25, 0.5, 0.75]), 0.5, 0.25) == pytest.approx(wanted)
    assert target(np.array([0, 0.5]), 0.5, QUARTER) == pytest.approx([0.25, 0.75])


def test_a_target_far_from_every_bin_is_the_nearest_one() -> None:
    """The densities underflow: 75 and 62 standard deviations off."""
    assert target(np.array([0.0, 0.125]), 0.75, 0.01).tolist() == [0.0, 1.0]
    assert target(np.array([0.0]), 0.75, 1e-9).tolist() == [1.0]


def test_pass_rates_go_to_the_nearest_bin_by_hand() -> None:
    rates = np.array([0.0, 0.06, 0.0625, 0.125, 3 / 7, 0.9, 0.95, 1 / 3])
    assert bin_of(rates, 8).tolist() == [0, 0, 1, 1, 3, 7, 8, 3]
    assert bin_of(np.array([0.0, 0.49, 0.5]), 1).tolist() == [0, 0, 1]


def test_an_empty_bin_s_target_goes_to_the_nearest_by_hand() -> None:
    """Bins 0, 1/4, 1/2, 1; the second and the last are empty. The second is as far from the first as from the third."""
    moved = to_nearest(np.array([0, 0.25, 0.5, 1.0]), np.array([False, True, False, True]))
    assert moved.tolist() == [[1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 1, 0], [0, 0, 1, 0]]


def test_a_domain_by_hand_until_its_second_epoch() -> None:
    """Shares 1/4 and 3/4 of two tasks a step: targets 0.5 and 1.5. Four tasks in each bin.

    Step 0: 0 and 1 for certain, windows are equal, the first bin takes the second place: 1, 1. Step 1: the second bin's is due: 0, 2.
    Step 2 as step 0: 1, 1; the second bin is empty. Step 3: what is left are two tasks of the first bin. Step 4: the next epoch.
    """
    assert drawn_by_bin(order([4, 4], [0.25, 0.75], [2] * 5), 5) == [[1, 1], [0, 2], [1, 1], [2, 0], [1, 1]]


def test_a_batch_over_the_end_of_an_epoch_by_hand() -> None:
    """Three tasks a step of 2 + 2. Step 0: targets 0.75 and 2.25: 0 and 2 for certain, the third place to the first bin, whose
    window and the other's both end in step 1 or later: sums 0.75, 1.5 against 0.25, 0.5, so the first bin is due sooner: 1, 2. Step 1: one
    task is left (first bin), then two of the next epoch with targets 0.5 and 1.5: 1, 1. In all 2, 1."""
    assert drawn_by_bin(order([2, 2], [0.25, 0.75], [3, 3]), 2) == [[1, 2], [2, 1]]


def test_a_bin_that_ran_dry_is_replaced_in_equal_parts_by_hand() -> None:
    """Shares 1/4, 1/2, 1/4 of four tasks; the middle bin has two. From step 1 on its share goes to both neighbours alike, though one has
    more left."""
    assert drawn_by_bin(order([40, 2, 20], [0.25, 0.5, 0.25], [4] * 3), 3) == [[1, 2, 1], [2, 0, 2], [2, 0, 2]]


def test_a_bin_with_too_few_is_filled_up_from_the_nearest_by_hand() -> None:
    """All is wanted of the last bin, which has one of the four tasks: the three others come from the nearest bin with some left."""
    assert drawn_by_bin(order([9, 2, 1], [0, 0, 1], [4, 4]), 2) == [[1, 2, 1], [4, 0, 0]]
    # the middle bin is wanted: of its two neighbours, as near, the one with more left goes first, then the easier
    assert drawn_by_bin(order([5, 1, 4], [0, 1, 0], [4]), 1) == [[2, 1, 1]]


def test_more_tasks_than_the_domain_has_are_whole_epochs_and_a_rest() -> None:
    found = order([1, 1, 1], [0.2, 0.3, 0.5], [7])
    chosen = found.draw().tolist()
    assert sorted(chosen[:3]) == sorted(chosen[3:6]) == [0, 1, 2] and chosen[6] == 2
    assert found.epoch == 2


def test_a_step_without_a_task_moves_nothing() -> None:
    with_gaps = drawn_by_bin(order([4, 4], [0.25, 0.75], [2, 0, 2, 0, 2]), 5)
    assert [step for step in with_gaps if any(step)] == drawn_by_bin(order([4, 4], [0.25, 0.75], [2] * 3), 3)


def test_without_a_seed_the_order_is_that_of_the_tasks() -> None:
    sequential = order([5], [1.0], [3, 3, 2], seed=None)
    assert [sequential.draw().tolist() for _ in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2]]


def test_epochs_have_permutations_of_their_own() -> None:
    shuffled = order([40], [1.0], [40, 40])
    first, second = shuffled.draw().tolist(), shuffled.draw().tolist()
    assert sorted(first) == sorted(second) == list(range(40)) and first != second != list(range(40)) != first


def test_a_permutation_is_the_same_everywhere() -> None:
    """Raw PCG64 output of a hashed name: pinned, so that a resumed run on another machine or numpy goes on with the same plan."""
    assert permutation("pinned", 8).tolist() == [5, 6, 0, 3, 7, 1, 2, 4]
    assert sorted(permutation("other", 100).tolist()) == list(range(100))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_every_task_is_drawn_once_an_epoch(sizes: list[int], counts: list[int], seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.full(len(sizes), 0.5)).tolist()
    found = order(sizes, shares, counts)
    drawn = [found.draw() for _ in counts]
    assert [len(tasks) for tasks in drawn] == counts
    sequence, total = np.concatenate(drawn).tolist(), sum(sizes)
    for start in range(0, len(sequence), total):
        epoch = sequence[start : start + total]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(total))

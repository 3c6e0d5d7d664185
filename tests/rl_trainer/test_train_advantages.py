"""Advantages against hand-computed values, and what may not move them (pitfalls 5, 6, 7, 31)."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_servers.protocol import Rollout, Segment
from rl_trainer.advantages import Outcome, compute_advantages, group_advantages
from rl_trainer.batch import make_batch, outcome
from rl_trainer.books import Books, BooksError
from rl_trainer.options import AlgorithmOptions


def outcomes(rewards, group="g", **kwargs):
    return [Outcome(f"{group}{i}", group, r, **kwargs) for i, r in enumerate(rewards)]


def test_leave_one_out_by_hand():
    # r = 1,0,0,0: b = 0 for the first, 1/3 for the others; std = sqrt((.75^2 + 3*.25^2)/3) = 0.5
    assert group_advantages([1, 0, 0, 0]) == pytest.approx([1 / (0.5 + 1e-6)] + [-1 / 3 / (0.5 + 1e-6)] * 3, rel=1e-12)
    assert group_advantages([1, 0, 0, 0], normalize_std=False) == pytest.approx([1] + [-1 / 3] * 3)
    assert group_advantages([1, 0, 0, 0], "mean", False) == pytest.approx([0.75] + [-0.25] * 3)


def test_two_passes_keep_small_spreads():
    values = group_advantages([0] + [0.95] * 7)
    std = 0.95 / math.sqrt(8)
    assert values == pytest.approx([-0.95 / (std + 1e-6)] + [0.95 / 7 / (std + 1e-6)] * 7, rel=1e-9)
    shifted = group_advantages([1e8, 1e8 + 1, 1e8, 1e8])
    assert shifted == pytest.approx(group_advantages([0, 1, 0, 0]), rel=1e-6)


@given(st.floats(-5, 5), st.integers(2, 16))
def test_equal_rewards_are_exactly_zero(reward, count):
    assert group_advantages([reward] * count) == [0.0] * count


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(-100, 100))
def test_an_invalid_rollout_moves_nobody(rewards, other):
    base = outcomes(rewards)
    for bad in (Outcome("bad", "g", 0.0, truncated=True), Outcome("bad", "g", 0.0, failed=True)):
        first = compute_advantages([*base, bad], AlgorithmOptions())
        second = compute_advantages([replace(bad, reward=other), *base], AlgorithmOptions())
        assert first == second
        assert [first[o.rollout_id].value for o in base] == group_advantages(rewards)


def test_overlong_in_baseline_moves_siblings_but_is_not_trained():
    rows = [*outcomes([1, 0]), Outcome("long", "g", 0.0, truncated=True)]
    result = compute_advantages(rows, AlgorithmOptions(overlong_in_baseline=True))
    assert result["long"].kind == "overlong" and result["long"].value == 0
    assert [result["g0"].value, result["g1"].value] == pytest.approx(group_advantages([1, 0, 0])[:2])
    unfiltered = compute_advantages(rows, AlgorithmOptions(overlong_filtering=False))
    assert unfiltered["long"].kind == "valid"


def test_a_group_with_one_valid_rollout_is_dropped():
    rows = [Outcome("a", "g", 1.0), Outcome("b", "g", None, failed=True), Outcome("c", "g", 0.0, truncated=True)]
    kinds = {k: v.kind for k, v in compute_advantages(rows, AlgorithmOptions()).items()}
    assert kinds == {"a": "dropped_group", "b": "failed", "c": "overlong"}


def test_groups_are_explicit_ids_and_bad_input_is_named():
    two = compute_advantages(outcomes([1, 0], "a") + outcomes([1, 1], "b"), AlgorithmOptions())
    assert two["b0"].value == 0 and two["a0"].value > 0
    with pytest.raises(ValueError, match=r"rollout x .*nan"):
        compute_advantages([Outcome("x", "g", math.nan)], AlgorithmOptions())
    with pytest.raises(ValueError, match="g0 stands twice"):
        compute_advantages(outcomes([1]) * 2, AlgorithmOptions())


def test_equal_prompts_are_two_groups():
    """Two tasks with one prompt, one always solved and one never: merged by their tokens they would push on each other."""
    segment = Segment(token_ids=[5, 6, 7], mask=[0, 0, 1], lp_gen=[0.0, 0.0, -1.0])
    rollouts = [
        Rollout(task_id=task, environment="e", group=task, attempt=k, reward=reward, segments=[segment])
        for task, reward in (("a", 1.0), ("b", 0.0))
        for k in range(3)
    ]
    advantages = compute_advantages([outcome(r) for r in rollouts], AlgorithmOptions())
    assert [s.advantage for s in make_batch(rollouts, advantages)] == [0.0] * 6


def test_a_group_of_one_is_a_configuration_error():
    with pytest.raises(ValueError, match="set it to 2 or more"):
        AlgorithmOptions().check_group_size(1)
    with pytest.raises(ValueError, match="clip_hi"):
        AlgorithmOptions(clip_hi=0.3)


def test_books_balance_or_name_the_rollout():
    books = Books()
    books.add_all({"a": {"trained": 3, "token_mask": 1}, "b": {"sequence_mask": 2}})
    books.add("a", "cancelled", 2)
    books.check({"a": 6, "b": 2}, n=4)
    assert books.totals()["cancelled"] == 2
    with pytest.raises(BooksError, match="rollout a: the engine sampled 7 tokens, 6 are booked"):
        books.check({"a": 7, "b": 2})
    with pytest.raises(BooksError, match="rollout c: the engine sampled 5"):
        books.check({"a": 6, "b": 2, "c": 5})
    with pytest.raises(BooksError, match="divided by 6"):
        books.check({"a": 6, "b": 2}, n=6)
    with pytest.raises(ValueError, match="unknown class"):
        books.add("a", "lost", 1)

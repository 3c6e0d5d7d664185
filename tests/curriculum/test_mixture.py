"""Every batch and every prefix of a run is within one task of each domain's share."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.mixture import MixtureError, _urgency, batch_counts, batches, shares


def test_equal_thirds_of_six_by_hand() -> None:
    assert batch_counts({"a": 1, "b": 1, "c": 1}, 6, 0) == {"a": 2, "b": 2, "c": 2}


def test_two_domains_of_unequal_share_by_hand() -> None:
    """r B = 0.75 and 0.25: three batches in four are `a`, and no prefix is off by a whole task."""
    chosen = "".join(next(k for k, n in counts.items() if n) for counts in islice(batches({"a": 3, "b": 1}, 1), 8))
    assert chosen.count("a") == 6
    assert all(abs(chosen[: k + 1].count("a") - 0.75 * (k + 1)) < 1 for k in range(8))


weights = st.one_of(st.integers(0, 40), st.integers(0, 10**6), st.floats(0.001, 1.0))
ratios = st.dictionaries(st.sampled_from("abcdefgh"), weights, min_size=1).filter(lambda r: sum(r.values()) > 0)


@settings(max_examples=150, deadline=None)
@given(ratios, st.integers(1, 20))
def test_every_batch_and_every_prefix_is_within_one_task_of_its_share(ratios: dict[str, float], size: int) -> None:
    share = shares(ratios)
    total = dict.fromkeys(ratios, 0)
    for step, counts in enumerate(islice(batches(ratios, size), 60)):
        assert sum(counts.values()) == size
        for name, n in counts.items():
            assert n >= 0
            assert abs(n - share[name] * size) < 1
            total[name] += n
            assert abs(total[name] - share[name] * size * (step + 1)) < 1


def test_slots_are_ranked_by_deadline_then_overlap_then_group_deadline_by_hand() -> None:
    """Rate 3/4: windows end at 4/3, 8/3, 4. The first two overlap the next, and the chain of them ends in slot 4."""
    rate = Fraction(3, 4)
    assert [_urgency(rate, taken) for taken in range(3)] == [(2, -1, -4), (3, -1, -4), (4, 0, 0)]
    assert _urgency(Fraction(2, 5), 0) == (3, -1, 0)  # a light one has no chain
    assert _urgency(Fraction(1, 2), 0) == (2, 0, 0)


def test_ratios_of_any_digits_are_planned_at_once() -> None:
    """Sizes of whole datasets, and thirds as floats: the cost of a step does not grow with a ratio's denominator."""
    for ratios in ({"a": 26041, "b": 22013, "c": 135127, "d": 9001, "e": 46003}, {"a": 1 / 3, "b": 1 / 7, "c": 0.5238}):
        share, total = shares(ratios), dict.fromkeys(ratios, 0)
        for step, counts in enumerate(islice(batches(ratios, 128), 600)):
            for name, n in counts.items():
                total[name] += n
                assert abs(total[name] - share[name] * 128 * (step + 1)) < 1


def test_the_released_blend_keeps_its_shares() -> None:
    blend = {
        "code": 0.25,
        "stem": 0.20,
        "if": 0.17,
        "skywork": 0.12,
        "dapo": 0.10,
        "workplace": 0.10,
        "structured": 0.05,
    }
    total = dict.fromkeys(blend, 0)
    for counts in islice(batches(blend, 128), 99):
        for name, n in counts.items():
            total[name] += n
    assert total == {name: round(128 * 99 * ratio / 0.99) for name, ratio in blend.items()}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "at least one"),
        ({"a": -1}, "'a'.*negative"),
        ({"a": float("nan")}, "'a'.*finite"),
        ({"a": 0}, "all ratios are 0"),
    ],
)
def test_what_is_no_mixture_is_refused_by_name(bad: dict[str, float], message: str) -> None:
    with pytest.raises(MixtureError, match=message):
        shares(bad)

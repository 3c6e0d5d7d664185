"""Every batch and every prefix of a run is within one task of each domain's share."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.mixture import MixtureError, batch_counts, batches, shares


def test_equal_thirds_of_six_by_hand() -> None:
    assert batch_counts({"a": 1, "b": 1, "c": 1}, 6, 0) == {"a": 2, "b": 2, "c": 2}


def test_two_domains_of_unequal_share_by_hand() -> None:
    """r B = 0.75 and 0.25: three batches in four are `a`, and no prefix is off by a whole task."""
    chosen = "".join(next(k for k, n in counts.items() if n) for counts in islice(batches({"a": 3, "b": 1}, 1), 8))
    assert chosen.count("a") == 6
    assert all(abs(chosen[: k + 1].count("a") - 0.75 * (k + 1)) < 1 for k in range(8))


ratios = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 40), min_size=1).filter(
    lambda r: sum(r.values()) > 0
)


@settings(max_examples=150, deadline=None)
@given(ratios, st.integers(1, 20))
def test_every_batch_and_every_prefix_is_within_one_task_of_its_share(ratios: dict[str, int], size: int) -> None:
    share = shares(ratios)
    total = dict.fromkeys(ratios, 0)
    for step, counts in enumerate(islice(batches(ratios, size), 60)):
        assert sum(counts.values()) == size
        for name, n in counts.items():
            assert n >= 0
            assert abs(n - share[name] * size) < 1
            total[name] += n
            assert abs(total[name] - share[name] * size * (step + 1)) < 1


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

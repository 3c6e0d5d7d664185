"""The plan: by hand, by properties, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import profile_of

from curriculum.mixture import shares
from curriculum.options import CurriculumError, CurriculumOptions
from curriculum.plan import Planner
from curriculum.profile import Profile

THIRD = math.sqrt(0.125 / math.log(3))
"""Sigma at which a bin half a pass rate from the mean has a third of the density at the mean: shares 1/4 and 3/4."""


def options(ratios: dict[str, float], **values: Any) -> CurriculumOptions:
    return CurriculumOptions(**{"ratios": ratios, "batch_size": 4, "steps": 5, **values})


def ids(planner: Planner) -> list[list[str]]:
    assert isinstance(planner.tasks, Profile)
    return [planner.tasks.task_id[planner.batch(step)].tolist() for step in range(planner.options.steps)]


def test_one_domain_by_hand() -> None:
    """Eight tasks of pass rate 0 and 1/2, four each, two a step, mean 1/2 throughout: targets 0.5 and 1.5.

    As in test_gaussian.py: (1, 1), (0, 2), (1, 1), and the bin at 1/2 is empty; (2, 0) ends the epoch; (1, 1) begins the next.
    """
    profile = profile_of({"math": [0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 1.0]}, n=2)
    plan = Planner(profile, options({"math": 1}, batch_size=2, start_mean=0.5, end_mean=0.5, sigma=THIRD))
    assert [profile.pass_rate[plan.batch(k)].sum() for k in range(5)] == [0.5, 1.0, 0.5, 0.0, 0.5]


def test_the_mean_falls_linearly_from_the_first_to_the_last_step() -> None:
    plan = options({"a": 1}, steps=5, start_mean=0.75, end_mean=0.35)
    assert [plan.mean(k) for k in range(5)] == pytest.approx([0.75, 0.65, 0.55, 0.45, 0.35])
    assert options({"a": 1}, steps=1).mean(0) == 0.75


def test_two_domains_by_hand() -> None:
    """Ratios 3 to 1 of four tasks. A sharp target walks over the bins 3/4, 1/2, 1/4 of the first domain, which has three tasks in each;
    the second has one bin only."""
    profile = profile_of({"a": [0.25, 0.5, 0.75] * 3, "b": [0.5] * 3}, n=4)
    plan = Planner(profile, options({"a": 3, "b": 1}, steps=3, start_mean=0.75, end_mean=0.25, sigma=0.01))
    for step, rate in enumerate([0.75, 0.5, 0.25]):
        batch = plan.batch(step)
        assert sorted(zip(profile.domain[batch], profile.pass_rate[batch], strict=True)) == [
            *[("a", rate)] * 3,
            ("b", 0.5),
        ]
    assert {name for step in ids(plan) for name in step} == set(profile.task_id.tolist())


def test_domains_are_shuffled_within_the_batch() -> None:
    plan = Planner(profile_of({"a": [0.5] * 40, "b": [0.5] * 40}), options({"a": 1, "b": 1}, batch_size=40, steps=2))
    first, second = plan.domains_of(0).tolist(), plan.domains_of(1).tolist()
    assert first != second and first != sorted(first)
    assert first.count("a") == second.count("a") == 20
    profile = plan.tasks
    assert isinstance(profile, Profile) and profile.domain[plan.batch(1)].tolist() == second


RATES = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.lists(st.integers(0, n), min_size=1, max_size=40), min_size=1, max_size=3)
    )
)


def nearest(rate: float, others: list[float]) -> list[float]:
    least = min(abs(rate - other) for other in others)
    return [other for other in others if abs(rate - other) < least + 1e-9]


def wanted(rates: list[float], left: dict[float, int], mean: float, sigma: float) -> dict[float, float]:
    """The discretised target, worked out anew: of all bins of the domain, empty ones moved to the nearest that have some."""
    weights = {rate: math.exp(-((rate - mean) ** 2) / (2 * sigma**2)) for rate in rates}
    found = dict.fromkeys(rates, 0.0)
    for rate, weight in weights.items():
        targets = [rate] if left[rate] else nearest(rate, [r for r in rates if left[r]])
        for target in targets:
            found[target] += weight / sum(weights.values()) / len(targets)
    return found


@settings(max_examples=80, deadline=None)
@given(
    RATES,
    st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(lambda ratios: ratios[0] > 0),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.1, 0.5),
    st.booleans(),
)
def test_a_plan_keeps_its_promises(
    rates: tuple[int, list[list[int]]],
    weights: list[int],
    size: int,
    steps: int,
    seed: int,
    start: float,
    end: float,
    sigma: float,
    hold_out: bool,
) -> None:
    n, members = rates
    # a task at 1 / (2n + 1) .. keeps every domain alive: neither solved nor unsolved
    domains = {name: [k / n for k in found] + [0.5] for name, found in zip("abc", members, strict=False)}
    ratios = {name: float(weights[k]) for k, name in enumerate(domains)}
    profile = profile_of(domains, n=2 * n)
    chosen = options(
        ratios,
        batch_size=size,
        steps=steps,
        seed=seed,
        start_mean=start,
        end_mean=end,
        sigma=sigma,
        hold_out_unsolved=hold_out,
    )
    plan = Planner(profile, chosen)
    batches = [plan.batch(step) for step in range(steps)]

    share, total = shares(ratios), dict.fromkeys(domains, 0)
    for step, batch in enumerate(batches):
        assert len(batch) == size
        assert all(profile.pass_rate[batch] < 1) and (not hold_out or all(profile.pass_rate[batch] > 0))
        for name in domains:
            count = int((profile.domain[batch] == name).sum())
            total[name] += count
            assert abs(count - share[name] * size) < 1 and abs(total[name] - share[name] * size * (step + 1)) < 1

    for name in (name for name, ratio in ratios.items() if ratio):
        rows = profile.rows(name)
        rate = profile.pass_rate[rows]
        eligible = rate[(rate < 1) & ((rate > 0) | (not hold_out))].tolist()
        sizes = {value: eligible.count(value) for value in sorted(set(eligible))}
        left, sums = dict(sizes), dict.fromkeys(sizes, 0.0)
        dry, seen = False, set()
        for step in range(steps):
            tasks = plan.drawn(step)[name]
            aim = wanted(list(sizes), left, chosen.mean(step), sigma) if sum(left.values()) else dict.fromkeys(sizes, 0)
            inside = len(tasks) < sum(left.values())
            room = all(left[value] >= math.ceil(len(tasks) * aim[value]) for value in sizes)
            for task in tasks.tolist():
                if len(seen) == len(eligible):  # a new epoch only when the whole domain is used up
                    left, seen = dict(sizes), set()
                assert task not in seen
                seen.add(task)
                left[float(profile.pass_rate[task])] -= 1
            if not len(tasks) or not inside:
                dry = True
                continue
            counts = {value: int((profile.pass_rate[tasks] == value).sum()) for value in sizes}
            if room:
                assert all(abs(counts[value] - len(tasks) * aim[value]) < 1 + 1e-6 for value in sizes)
            dry = dry or not room
            for value in sizes:
                sums[value] += counts[value] - len(tasks) * aim[value]
                assert dry or abs(sums[value]) < 1 + 1e-6
            dry = dry or 0 in left.values()

    # any step by itself, whatever was asked before
    again = Planner(profile, chosen)
    again.load_state_dict(plan.state_dict())
    for step in (steps - 1, steps // 2):
        assert again.batch(step).tolist() == batches[step].tolist()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(30)), st.sampled_from(["gaussian", "random", "sequential"]))
def test_the_order_of_the_profile_s_rows_does_not_matter(shuffled: list[int], order: str) -> None:
    profile = profile_of({"a": [k / 8 for k in range(8)] * 2, "b": [0.125, 0.5] * 7})
    again = profile.take(np.array(shuffled))
    chosen = options({"a": 2, "b": 1}, batch_size=5, steps=8, order=order)
    assert ids(Planner(profile, chosen)) == ids(Planner(again, chosen))


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_the_other_orders_share_ratios_and_eligible_tasks(order: str) -> None:
    profile = profile_of({"a": [k / 8 for k in range(9)] * 3, "b": [0.5] * 6})
    plan = Planner(profile, options({"a": 2, "b": 1}, batch_size=6, steps=6, order=order))
    gaussian = Planner(profile, options({"a": 2, "b": 1}, batch_size=6, steps=6))
    for step in range(6):
        assert [len(tasks) for tasks in plan.drawn(step).values()] == [4, 2]
        assert [len(tasks) for tasks in gaussian.drawn(step).values()] == [4, 2]
    drawn = np.concatenate([plan.drawn(step)["a"] for step in range(6)])
    eligible = [k for k in range(27) if k % 9 != 8]
    assert sorted(drawn.tolist()) == eligible
    assert (drawn.tolist() == eligible) == (order == "sequential")


def test_orders_without_a_profile_count_through_the_domains() -> None:
    plan = Planner({"b": 3, "a": 4}, options({"a": 1, "b": 1}, batch_size=2, steps=6, order="sequential"))
    assert [sorted(plan.batch(k).tolist()) for k in range(6)] == [[0, 3], [1, 4], [2, 5], [0, 6], [1, 3], [2, 4]]
    with pytest.raises(CurriculumError, match="'gaussian' needs a profile"):
        Planner({"a": 4}, options({"a": 1}))
    with pytest.raises(CurriculumError, match="'b' has a share in the mixture and no task"):
        Planner({"a": 4}, options({"a": 1, "b": 1}, order="random"))


def test_replacements_are_a_second_stream() -> None:
    profile = profile_of({"a": [k / 8 for k in range(8)] * 10, "b": [0.5] * 3})
    chosen = options({"a": 3, "b": 1}, batch_size=8, steps=5)
    plan, other = Planner(profile, chosen), Planner(profile, chosen)
    found = [plan.replacements(2, attempt) for attempt in range(4)]
    assert [other.batch(step).tolist() for step in range(5)] == [plan.batch(step).tolist() for step in range(5)]
    assert other.replacements(2, 3).tolist() == found[3].tolist()
    assert (
        Planner(profile, options({"a": 3, "b": 1}, batch_size=8, seed=1)).replacements(2, 3).tolist()
        != found[3].tolist()
    )
    for replaced in found:  # place by place, of the same domain
        assert profile.domain[replaced].tolist() == plan.domains_of(2).tolist()
    of_a = [task for task in np.concatenate([plan.batch(2), *found]).tolist() if profile.domain[task] == "a"]
    assert len(set(of_a)) == len(of_a) == 6 * 5  # none comes twice
    of_b = np.concatenate(found)[profile.domain[np.concatenate(found)] == "b"]
    assert set(of_b.tolist()) == {80, 81, 82} - set(plan.batch(2).tolist())  # one is left, and taken again


def test_replacements_follow_the_step_s_target() -> None:
    """2,000 draws from 4,000 tasks: 1/4 of them at pass rate 0, whatever the bins' sizes (up to what the draws use up)."""
    profile = profile_of({"a": [0.0] * 20_000 + [0.5] * 10_000}, n=2)
    plan = Planner(profile, options({"a": 1}, batch_size=2_000, steps=1, start_mean=0.5, sigma=THIRD))
    assert np.mean(profile.pass_rate[plan.replacements(0, 0)] == 0) == pytest.approx(0.25, abs=0.05)


def test_a_resume_with_another_plan_is_refused_by_name() -> None:
    profile = profile_of({"a": [0.0, 0.25, 0.5], "b": [0.5, 0.75]}, n=4)
    chosen = options({"a": 1, "b": 1})
    state = Planner(profile, chosen).state_dict()
    Planner(profile, chosen).load_state_dict(state)
    for profile_now, options_now, message in [
        (profile, chosen.model_copy(update={"sigma": 0.2}), "sigma was 0.15 and is 0.2"),
        (profile, chosen.model_copy(update={"seed": 3}), "seed was 0 and is 3"),
        (replace(profile, weights="w2"), chosen, "of weights w1 and is of w2"),
        (profile_of({"a": [0.0, 0.25], "b": [0.5, 0.75]}, n=4), chosen, "'a' had 3 eligible tasks and has 2"),
        (profile_of({"a": [0.0, 0.25, 0.75], "b": [0.5, 0.75]}, n=4), chosen, "'a' has 3 .* other pass rates"),
    ]:
        with pytest.raises(CurriculumError, match=message):
            Planner(profile_now, options_now).load_state_dict(state)


@pytest.mark.parametrize(
    ("ratios", "hold_out", "message"),
    [
        ({"a": 1, "c": 1}, False, r"'c' has a share .* no task in the profile, which has \['a', 'b', 'z'\]"),
        ({"a": 1, "b": 1}, False, "'b' has no eligible task: of 2, 2 are always solved and 0 never"),
        ({"z": 1}, True, "'z' has no eligible task: of 3, 1 are always solved and 2 never.*or hold none out"),
        ({"a": 0, "b": 0}, False, "all ratios are 0"),
        ({"a": -1}, False, "must not be negative"),
        ({}, False, "at least one domain"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(ratios: dict[str, float], hold_out: bool, message: str) -> None:
    profile = profile_of({"a": [0.5], "b": [1.0, 1.0], "z": [0.0, 0.0, 1.0]})
    with pytest.raises(CurriculumError, match=message):
        Planner(profile, options(ratios, hold_out_unsolved=hold_out))


def test_a_ratio_of_0_leaves_a_domain_out() -> None:
    plan = Planner(profile_of({"a": [0.5], "b": [1.0]}), options({"a": 1, "b": 0, "c": 0}))
    assert {name for step in range(5) for name in plan.domains_of(step).tolist()} == {"a"}


def test_a_step_outside_the_plan_is_refused() -> None:
    plan = Planner(profile_of({"a": [0.5]}), options({"a": 1}))
    for step in (-1, 5):
        with pytest.raises(CurriculumError, match=f"steps 0 to 4, there is no step {step}"):
            plan.batch(step)

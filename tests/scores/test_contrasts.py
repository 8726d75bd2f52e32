"""What published pairs have over others: shares by task, groups, and intervals that hold the luck of few pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from arc_ray.scores.contrasts import by_task, contrasts, difference, in_group, share, task_difference
from arc_ray.scores.intervals import contrast_interval, difference_interval, two_shares_interval


def records(published: Sequence[int], fresh: Sequence[Sequence[int]], **about: Any) -> list[dict[str, Any]]:
    """An audit of some tasks: the number of the published pair's right answers and each fresh one's."""
    found = []
    for i, (one, others) in enumerate(zip(published, fresh, strict=True)):
        known = {"task": f"t{i}", "known": i < 2, **about}
        found += [{**known, "kind": "published", "right": bool(one)}]
        found += [{**known, "kind": "fresh", "right": bool(right)} for right in others]
    return found


def test_a_task_counts_once_however_many_fresh_pairs_it_has():
    """Would catch a difference that a task with many fresh examples, or with two test pairs, decides."""
    tasks = by_task(records([1, 0, 1, 1], [[0] * 9, [0] * 2, [1, 0], [1] * 30]))
    assert difference(list(tasks.values()), "fresh", 0.95).value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert share(list(tasks.values()), "fresh", 0.95).value == pytest.approx(1.5 / 4)


def test_groups_stand_beside_all_only_where_there_are_two():
    """Would catch one difference that is told twice, and a group of a single task."""
    tasks = by_task(records([1, 1, 0, 0], [[0, 0]] * 4))
    found = {key: (of, interval.value) for key, (of, interval) in contrasts(tasks, 0.95).items()}
    assert found == {("fresh", "all"): (4, 0.5), ("fresh", "known"): (2, 1.0), ("fresh", "others"): (2, 0.0)}
    clean = by_task([{**record, "known": False} for record in records([1, 1, 0, 0], [[0, 0]] * 4)])
    assert list(contrasts(clean, 0.95)) == [("fresh", "all")]
    assert len(in_group(tasks, "known")) == 2


def test_tasks_without_a_generator_do_not_count_where_fresh_pairs_are_compared():
    """Would catch a published share of other tasks than the fresh one is of."""
    found = [r for r in records([1, 1, 0], [[0], [0], [1]]) if (r["task"], r["kind"]) != ("t2", "fresh")]
    ((of, interval),) = (value for key, value in contrasts(by_task(found), 0.95).items() if key == ("fresh", "all"))
    assert (of, interval.value) == (2, 1.0)


def test_seeds_are_averaged_and_widen_the_interval_where_they_differ():
    """Would catch seeds that count as further tasks, which narrow an interval though they know the same tasks."""
    fresh = [[0, 1, 0, 0]] * 12
    alike = [r for seed in (1, 2, 3) for r in records([1, 0] * 6, fresh, seed=seed)]
    loud = [
        r for seed, solved in ((1, [1] * 12), (2, [1, 0] * 6), (3, [0] * 12)) for r in records(solved, fresh, seed=seed)
    ]
    one = difference(list(by_task(records([1, 0] * 6, fresh)).values()), "fresh", 0.95)
    several, differing = (difference(list(by_task(r).values()), "fresh", 0.95) for r in (alike, loud))
    assert several == one
    assert differing.value == pytest.approx(one.value)
    assert differing.high - differing.low > 1.5 * (one.high - one.low)


def test_rare_differences_are_not_taken_for_none():
    """Would catch an interval without width where nothing is solved, and the one from the tasks' own variance, which misses
    the truth in one of ten audits or more where little is solved; measured by tests/benchmarks/simulate_audit.py."""
    assert np.ptp(contrast_interval(np.zeros((1, 30)), 0.95)[1:]) > 0.1
    rng = np.random.default_rng(3)
    chance = rng.beta(0.5, 9.5, (1000, 1, 20))  # of 20 tasks, 5 % solved
    published, fresh = rng.random(chance.shape) < chance, rng.binomial(10, chance) / 10
    held = [
        np.mean((low <= 0) & (high >= 0))
        for _, low, high in (
            contrast_interval(published - fresh, 0.95),
            difference_interval(published - fresh, np.arange(20), 0.95),
        )
    ]
    assert held[1] < 0.8 < 0.93 < held[0]


@pytest.mark.parametrize(("of_fresh", "is_shown"), [(5, False), (10, True)])
def test_one_published_pair_takes_ten_fresh_ones_to_stand_out(of_fresh: int, is_shown: bool):
    """Would catch an interval of one task that leaves out the luck of its only published pair."""
    assert (two_shares_interval(1, 1, 0, of_fresh, 0.95).low > 0) == is_shown
    task = by_task(records([1], [[0] * of_fresh]))["t0"]
    found = task_difference(task, "fresh", 0.95)
    assert found.low <= found.value == 1.0 == found.high
    for chance in np.linspace(0.02, 0.98, 20):
        solved = np.random.default_rng(0).binomial(of_fresh, chance, 4000)
        lows = np.array([two_shares_interval(1, 1, k / of_fresh, of_fresh, 0.95).low for k in range(of_fresh + 1)])
        assert chance * np.mean(lows[solved] > 0) < 0.06, "false alarms"

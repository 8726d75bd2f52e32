"""ARC JSON in and out: what is accepted survives unchanged, what is not is refused with file, task, pair and reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_ray.errors import UserError
from arc_ray.tasks.task import (
    MAX_SIDE,
    Pair,
    Question,
    Task,
    TaskTable,
    largest_side,
    parse_grid,
    parse_pair,
    parse_task,
    same_grid,
    task_to_json,
)

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9))
known_pairs = st.builds(Pair, grids, grids)
pairs = st.builds(Pair, grids, st.none() | grids)
questions = st.builds(Question, st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
tasks = st.builds(
    Task,
    st.text(min_size=1, max_size=8),
    st.lists(known_pairs, max_size=3).map(tuple),
    st.lists(pairs, min_size=1, max_size=2).map(tuple),
    st.lists(questions, max_size=2).map(tuple),
    st.none() | st.text(max_size=5),
)

GOOD = {"input": [[1, 2]], "output": [[3]]}


def assert_same_grids(a: Task, b: Task) -> None:
    assert len(a.train) == len(b.train)
    assert len(a.test) == len(b.test)
    for pair, other in zip(a.pairs, b.pairs, strict=True):
        assert same_grid(pair.input, other.input)
        assert same_grid(pair.output, other.output) or pair.output is other.output is None


@given(tasks)
def test_json_gives_the_same_task_back(task: Task) -> None:
    """Would catch a transposed grid, a lost hidden output, a question under another key."""
    back = parse_task(task.id, task_to_json(task), "file")
    assert_same_grids(task, back)
    assert (back.id, back.questions, back.description) == (task.id, task.questions, task.description)


@given(st.lists(tasks, max_size=4))
def test_table_gives_every_grid_back(some: list[Task]) -> None:
    """Would catch an offset that is wrong after a hidden output, whose grid has no cells."""
    table = TaskTable.of(some)
    assert len(table) == len(some)
    for t, task in enumerate(some):
        assert table.num_pairs[t] == len(task.pairs)
        assert table.num_train[t] == len(task.train)
        for p, pair in enumerate(task.pairs, start=int(table.first_pair[t])):
            assert np.array_equal(table.grid(2 * p), pair.input)
            hidden = np.zeros((0, 0), np.uint8)
            assert np.array_equal(table.grid(2 * p + 1), hidden if pair.output is None else pair.output)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2], [3]], r"rows differ in length \(\[1, 2\]\)"),
        ([[0] * 31], "the grid is 1x31"),
        ([[0]] * 31, "the grid is 31x1"),
        ([[]], "the grid is 1x0"),
        ([], "non-empty list of rows"),
        ([1, 2], "non-empty list of rows"),
        ("123", "non-empty list of rows"),
        (None, "non-empty list of rows"),
        ([[0, 10]], "10 is no colour"),
        ([[-1]], "-1 is no colour"),
        ([[True, 0]], "True is no colour"),
        ([[1.5]], "1.5 is no colour"),
        ([["1"]], "'1' is no colour"),
        ([[[1]]], r"\[1\] is no colour"),
    ],
)
def test_bad_grid_is_refused_with_place_and_reason(value: object, reason: str) -> None:
    """Would catch a grid that numpy converts silently: True to 1, 1.5 to 1, -1 to 255."""
    with pytest.raises(UserError, match=f"^here: .*{reason}"):
        parse_grid(value, "here")


def test_whole_numbers_written_as_floats_are_colours() -> None:
    """Would catch data sets that are refused because their JSON has 1.0 where it means 1, as BARC's has."""
    assert np.array_equal(parse_grid([[1.0, 0.0]], "here"), np.array([[1, 0]], np.uint8))


def test_largest_grid_is_accepted() -> None:
    """Would catch an off-by-one at side 30 or colour 9."""
    grid = parse_grid([[9] * MAX_SIDE] * MAX_SIDE, "here")
    assert grid.shape == (30, 30)
    assert grid.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], 'lists "train" and "test"'),
        ({"train": []}, 'lists "train" and "test"'),
        ({"train": {}, "test": []}, 'lists "train" and "test"'),
        ({"train": [], "test": []}, "nothing to answer"),
        ({"train": [GOOD], "test": []}, "nothing to answer"),
        ({"train": [{"input": [[1]]}], "test": [GOOD]}, 'train pair 0: "output" is missing'),
        ({"train": [GOOD, {"input": [[1]], "output": None}], "test": [GOOD]}, 'train pair 1: "output" is missing'),
        ({"train": [GOOD, [[1]]], "test": [GOOD]}, 'train pair 1: a pair is an object with "input"'),
        ({"train": [], "test": [{"output": [[1]]}]}, 'test pair 0: a pair is an object with "input"'),
        ({"train": [], "test": [GOOD, {"input": [[1]], "output": [[11]]}]}, "test pair 1, output: 11 is no colour"),
        ({"train": [], "test": [{"input": [[1], [2, 3]]}]}, "test pair 0, input: rows differ in length"),
        ({"train": [], "test": [GOOD], "questions": "how many?"}, '"questions" is a list'),
        ({"train": [], "test": [GOOD], "questions": [{"kind": "a", "question": "b"}]}, "question 0: .* answer"),
        ({"train": [], "test": [GOOD], "questions": [{"kind": "a", "question": "b", "answer": 3}]}, "question 0"),
        ({"train": [], "test": [], "questions": [{"kind": "a", "question": "b", "answer": "3"}]}, "nothing to answer"),
        ({"train": [], "test": [GOOD], "description": ["a"]}, "a description is text"),
    ],
)
def test_bad_task_is_refused_with_file_task_and_pair(value: object, reason: str) -> None:
    """Would catch a KeyError or TypeError from a malformed file, or a message that does not say where."""
    with pytest.raises(UserError, match=f"^a/b.json: task t1.*{reason}"):
        parse_task("t1", value, "a/b.json")


def test_two_train_pairs_need_no_test_pair() -> None:
    """Would catch refusing a pool of examples, of which any pair can be asked."""
    assert len(parse_task("pool", {"train": [GOOD, GOOD], "test": []}, "file").train) == 2


def test_output_may_be_missing_only_where_it_can_be_hidden() -> None:
    """Would catch a generated example without its answer being trained on as if it were hidden."""
    assert parse_pair({"input": [[1]]}, "here", hidden=True).output is None
    with pytest.raises(UserError, match=r'^here: "output" is missing'):
        parse_pair({"input": [[1]]}, "here", hidden=False)


def test_missing_grid_equals_nothing() -> None:
    """Would catch two missing predictions being scored as agreement, or broadcasting between shapes."""
    one, two = np.ones((1, 1), np.uint8), np.ones((2, 2), np.uint8)
    assert same_grid(one, one.copy())
    assert not same_grid(one, two)
    assert not same_grid(None, None)
    assert not same_grid(one, None)


def test_largest_side_sees_outputs_and_skips_hidden_ones() -> None:
    """Would catch a selection by side that lets a large output through."""
    small, wide = np.zeros((2, 3), np.uint8), np.zeros((1, 7), np.uint8)
    assert largest_side([Pair(small, None), Pair(small, wide)]) == 7
    assert largest_side([Pair(small, None)]) == 3

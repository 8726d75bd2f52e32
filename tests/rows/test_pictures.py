"""The literal arrays in docstrings are what the code makes."""

import json
import re

import numpy as np

from arc_ray.rows.maker import ValidationSet, write_rows
from arc_ray.rows.plan import Plan, planned_views
from arc_ray.tasks.task import Pair, Question, Task, TaskTable


def said(documented: object, *lines: str) -> None:
    """Check that a docstring holds these lines, whatever spaces align them."""
    text = " ".join((documented.__doc__ or "").split())
    assert all(" ".join(line.split()) in text for line in lines), lines


def test_the_table_of_tasks():
    """Would catch a picture that shows another layout than workers read."""
    pair = Pair(np.array([[1, 2]], np.uint8), np.array([[3], [4]], np.uint8))
    asked, counted = Pair(np.array([[5]], np.uint8), None), Pair(np.array([[6, 7]], np.uint8), None)
    table = TaskTable.of([Task("a", (pair,), (asked,)), Task("b", (), (counted,), (Question("k", "?", "1"),))])
    for name in ("first_pair", "num_train", "height", "width", "start", "cells"):
        said(TaskTable, f"{name} = {getattr(table, name).tolist()}")


def test_the_plan():
    """Would catch numbers of a step that are those of another."""
    columns = {"task": [3, 0, 1, 0, 2], "tokens": [6, 4, 7, 5, 3], "learned": [2, 1, 2, 2, 1], "shown": [3, 1, 3, 2, 1]}
    task, tokens, learned, shown = (np.array(column) for column in columns.values())
    first_view = np.array([0, 2, 3, 5])
    plan = Plan(planned_views(0, task, 0, 0, 0, shown, tokens, learned), first_view, 10, 2, 2, ("a",), {})
    said(Plan, *(f'views["{name}"] {plan.views[name].tolist()}' for name in columns))
    said(Plan, f"first_view {first_view.tolist()}")
    said(Plan, *(f"rows_of_step({step}) == {plan.rows_of_step(step)}" for step in range(2)))
    said(Plan, f"learned_per_step() == {plan.learned_per_step().tolist()}")
    assert (plan.fill(), plan.num_rows) == (25 / 30, 3)


def test_packed_rows():
    """Would catch a picture of positions or labels that are not those of the model's inputs."""
    ids = [np.array(numbers, np.int32) for numbers in ([5, 6, 7], [8, 9])]
    batch = write_rows([[(ids[0], np.array([False, True, True])), (ids[1], np.array([True, True]))]], 7, 0)
    said(write_rows, *(f"{name} {' '.join(map(str, array[0].tolist()))}" for name, array in batch.items()))


def test_validation_rows():
    """Would catch owners and beginnings of rows that do not agree."""
    found = re.findall(r"(\w+)\s+(\[[\d, ]+\])", ValidationSet.__doc__ or "")
    owner, is_cell, first_learned = (json.loads(dict(found)[name]) for name in ("owner", "is_cell", "first_learned"))
    assert len(owner) == len(is_cell) == first_learned[-1]
    assert [owner[first_learned[0]], *(owner[at - 1] for at in first_learned[1:])] == [0, 1, 2]

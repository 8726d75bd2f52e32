"""Validation rows: every learned token has one owner, and only cells are cells."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from builders import (
    codec_of,
    counting,
    merging_tokenizer,
    phi_like_tokenizer,
    puzzle,
    puzzles,
    qwen_like_tokenizer,
    tiny_tokenizer,
)

from arc_ray.errors import UserError
from arc_ray.rows.maker import IGNORED, ValidationSet, make_validation
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import plain_views

PAD = 0
TABLES = {
    "known": TaskTable.of([puzzle(f"k{i}", 2, 1 + i % 2, most=4) for i in range(4)]),
    "unknown": TaskTable.of([puzzle(f"u{i}", 3, 1, most=4) for i in range(3)]),
}


def validation(row_tokens: int = 256, encoder: str = "compact") -> ValidationSet:
    return make_validation(codec_of(tiny_tokenizer(), encoder), TABLES, 3, row_tokens, PAD)


@pytest.mark.parametrize("encoder", ["shape_rows", "separated", "compact"])
def test_cells_are_cells_only(encoder: str):
    """Would catch row numbers and stated shapes, which are digits and easy, in the accuracy of cells."""
    made = validation(512, encoder)
    sizes = {}
    for source, table in TABLES.items():
        views = plain_views(table, 3)
        for i, asked in enumerate(views.asked):
            nth = int((views.task[:i] == views.task[i]).sum())
            sizes[f"{source}/{table.ids[views.task[i]]}/{nth}"] = table.grid(2 * asked + 1).size
    counts = np.bincount(made.owner, weights=made.is_cell, minlength=len(made.names))
    assert dict(zip(made.names, counts.astype(int).tolist(), strict=True)) == sizes
    labels = made.batch["labels"][made.batch["labels"] != IGNORED]
    cells = tiny_tokenizer()("0123456789", add_special_tokens=False)["input_ids"]
    assert np.isin(labels[made.is_cell], cells).all()


@pytest.mark.parametrize("encoder", ["shape_rows", "compact"])
@pytest.mark.parametrize("make_tokenizer", [merging_tokenizer, qwen_like_tokenizer, phi_like_tokenizer])
def test_cells_are_told_from_fences_with_every_tokenizer(make_tokenizer: Any, encoder: str):
    """Would catch fences and row numbers, which are easy, in the accuracy of cells of a model that merges digits."""
    tokenizer = make_tokenizer()
    made = make_validation(codec_of(tokenizer, encoder, quiet=True), TABLES, 3, 2048, PAD)
    labels = made.batch["labels"][made.batch["labels"] != IGNORED]
    for number, name in enumerate(made.names):
        source, task, nth = name.split("/")
        table = TABLES[source]
        pair = table.first_pair[table.ids.index(task)] + table.num_train[table.ids.index(task)] + int(nth)
        is_mine = made.owner == number
        inside = [tokenizer.decode([t]) for t in labels[is_mine & made.is_cell]]
        outside = [tokenizer.decode([t]) for t in labels[is_mine & ~made.is_cell]]
        assert sum(len(text.strip()) for text in inside) == table.grid(2 * pair + 1).size
        assert all(any(c.isdigit() for c in text) for text in inside)
        assert encoder == "shape_rows" or not any(c.isdigit() for text in outside for c in text)


def test_where_an_answer_is_words_every_token_counts():
    questions = make_validation(codec_of(tiny_tokenizer()), {"c": TaskTable.of([counting(1)])}, 1, 512, PAD)
    assert questions.is_cell.all()


def test_every_learned_token_has_one_owner_and_rows_know_theirs():
    made = validation(128)
    labels = made.batch["labels"]
    assert len(made.first_learned) == len(labels) + 1
    assert np.diff(made.first_learned).tolist() == (labels != IGNORED).sum(axis=1).tolist()
    assert len(made.owner) == len(made.is_cell) == made.first_learned[-1]
    assert set(made.owner.tolist()) == set(range(len(made.names)))


def test_only_the_asked_answer_counts_although_training_learns_all():
    """Would catch a codec that keeps the layouts of training: a task would be solved only with all its examples."""
    every = codec_of(tiny_tokenizer(), learn="all")
    asked = make_validation(dataclasses.replace(every, learn="asked"), TABLES, 3, 256, PAD)
    assert len(asked.owner) == len(validation().owner)


def test_hidden_outputs_are_the_users_mistake():
    """Would catch a competition's test file as validation set, which ended in an index error."""
    tables = {"kaggle": TaskTable.of([puzzle("a", 2, 1), puzzle("b", 2, 1, hidden=True)])}
    with pytest.raises(UserError, match="kaggle/b/0: the output of this test pair is hidden"):
        make_validation(codec_of(tiny_tokenizer()), tables, 3, 256, PAD)


def test_nothing_to_answer_is_the_users_mistake():
    """Would catch a metric that is the mean of nothing."""
    with pytest.raises(UserError, match="nothing to answer: no task of pool has a test pair"):
        make_validation(codec_of(tiny_tokenizer()), {"pool": puzzles(2, num_test=0)}, 3, 256, PAD)

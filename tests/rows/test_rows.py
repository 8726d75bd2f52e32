"""Rows are pure functions of (plan, number): what a worker makes does not depend on when, where, or with what else."""

import dataclasses
import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import codec_of, config_with, counting, merging_tokenizer, puzzle, puzzles, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ray.models.attention import lengths_of_views
from arc_ray.rows.maker import EMPTY_ROW_VIEW, IGNORED, Batch, Encoded, RowMaker, make_validation, write_rows
from arc_ray.rows.plan import load_plan, save_plan
from arc_ray.rows.prepare import plan_rows
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import draw_views

TABLES = {
    "a": puzzles(6, num_train=4),
    "b": TaskTable.of([puzzle("x", 3, 1, most=14), puzzle("y", 2, 1)]),
    "c": TaskTable.of([counting(i) for i in range(3)]),
}
PAD = 0


@cache
def maker(slow: bool = False, learn: str = "all") -> RowMaker:
    """A maker of the rows of three sources; like in a worker, without its tokenizer if ids are looked up."""
    config = config_with(
        data__sources={name: {"kind": "folder", "path": "."} for name in TABLES},
        data__mix={"a": 2, "b": 2, "c": 1},
        train__row_tokens=256,
        train__epochs=2,
        train__batch_rows=4,
        view__max_shown=3,
    )
    codec = codec_of(merging_tokenizer() if slow else tiny_tokenizer(), learn=learn, quiet=True)  # pyright: ignore
    plan = plan_rows(config, TABLES, codec)
    return RowMaker(plan, tuple(TABLES.values()), config.view, codec.without_tokenizer(), PAD)


def views_of(row: int) -> list[Encoded]:
    """The views of a row, each drawn and written by itself."""
    whole, plan, encoded = maker(), maker().plan, []
    for at in range(*plan.first_view[row : row + 2]):
        view = plan.views[at : at + 1]
        [source], task, key = (view[name] for name in ("source", "task", "key"))
        views = draw_views(whole.view, whole.tables[source], task, key).showing(view["shown"])
        encoded += whole.codec.encode(whole.tables[source], views)
    return encoded


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_rows_are_the_same_in_any_order_and_any_company(data: st.DataObject):
    """Would catch a cache, a generator or a buffer that a row shares with the one before it."""
    whole = maker().make(range(maker().plan.num_rows))
    some = data.draw(st.lists(st.integers(0, maker().plan.num_rows - 1), min_size=1, max_size=6))
    assert same(maker().make(some), {name: values[some] for name, values in whole.items()})


@pytest.mark.parametrize("slow", [False, True])
def test_a_worker_that_knows_the_plan_from_its_file_makes_the_same_rows(slow: bool):
    """Would catch rows that need something which planning left in memory: a resumed run has only the file."""
    first = maker(slow)
    resumed = dataclasses.replace(first, plan=load_plan(save_plan(first.plan)))
    copied: RowMaker = pickle.loads(pickle.dumps(resumed))
    rows = range(first.plan.num_rows + 1)
    assert same(copied.make(rows), first.make(rows))


@pytest.mark.parametrize("slow", [False, True])
def test_labels_are_as_many_as_the_plan_says(slow: bool):
    """Would catch a loss that is divided by another number than it is summed over."""
    plan = maker(slow).plan
    for step in range(plan.num_steps):
        batch = maker(slow).make(plan.rows_of_step(step))
        assert (batch["labels"][:, 1:] != IGNORED).sum() == plan.learned_per_step()[step]
        assert (batch["labels"][:, 0] == IGNORED).all(), "nothing can predict the first token of a row"


def test_views_stand_one_after_another_and_padding_stands_apart():
    """Would catch attention that crosses from one view into the next, and padding that is learned."""
    plan = maker().plan
    batch = maker().make(range(plan.num_rows))
    for row in range(plan.num_rows):
        at = 0
        for ids, learned in views_of(row):
            span = slice(at, at + len(ids))
            assert batch["input_ids"][row, span].tolist() == ids.tolist()
            assert batch["position_ids"][row, span].tolist() == list(range(len(ids)))
            assert batch["labels"][row, span].tolist() == np.where(learned, ids, IGNORED).tolist()
            assert not learned[0], "the first token of a view would be predicted from the view before it"
            at += len(ids)
        assert at == plan.views["tokens"][slice(*plan.first_view[row : row + 2])].sum()
        assert (batch["input_ids"][row, at:] == PAD).all()
        assert (batch["labels"][row, at:] == IGNORED).all()
        longest = max(len(ids) for ids, _ in views_of(row))
        assert batch["position_ids"][row, at:].tolist() == [i % longest for i in range(plan.row_tokens - at)]


def test_rows_beyond_the_plan_are_empty():
    """They fill the last batch, so that every worker has as many."""
    plan = maker().plan
    batch = maker().make([plan.num_rows, 0, plan.num_rows + 7])
    assert (batch["labels"][[0, 2]] == IGNORED).all()
    assert (batch["input_ids"][[0, 2]] == PAD).all()
    assert (batch["position_ids"][[0, 2]] == np.arange(plan.row_tokens) % EMPTY_ROW_VIEW).all()
    assert (batch["labels"][1] != IGNORED).any()


def test_arrays_are_of_the_shape_and_type_that_is_promised():
    batch = maker().make([0, 1, 2])
    assert {name: (values.shape, values.dtype) for name, values in batch.items()} == {
        name: ((3, 256), np.dtype(np.int32)) for name in ("input_ids", "position_ids", "labels")
    }
    assert maker().make([])["labels"].shape == (0, 256)


def test_every_view_of_an_epoch_is_another_one():
    """Would catch two copies of a task with one augmentation."""
    seen: dict[bytes, Any] = {}
    plan = maker().plan
    counts = 0
    for row in range(plan.num_rows):
        for name, (ids, _) in zip(maker().names_of(row), views_of(row), strict=True):
            if not name.startswith("c/"):
                counts += 1
                assert ids.tobytes() not in seen, (name, seen[ids.tobytes()])
                seen[ids.tobytes()] = name
    assert counts > 20


def test_names_say_where_each_view_of_a_row_comes_from():
    """Would catch an error message about a loss that is not finite which blames the wrong task."""
    plan = maker().plan
    names = [name for row in range(plan.num_rows) for name in maker().names_of(row)]
    assert len(names) == len(set(names)) == len(plan.views["tokens"])
    for view, name in zip(plan.views, names, strict=True):
        source, task, copy, epoch = name.split("/")
        assert plan.sources[view["source"]] == source
        assert TABLES[source].ids[view["task"]] == task
        assert (int(copy), int(epoch)) == (view["copy"], view["epoch"])


def test_learning_all_answers_learns_more_of_the_same_tokens():
    asked, every = maker(learn="asked"), maker(learn="all")
    assert asked.plan.views["learned"].sum() < every.plan.views["learned"].sum()
    assert asked.plan.views["tokens"].sum() == every.plan.views["tokens"].sum()


def test_writing_rows_by_hand():
    """The whole layout of a batch, written out."""
    views = [
        (np.array([5, 6, 7], np.int32), np.array([False, False, True])),
        (np.array([8, 9]), np.array([False, True])),
    ]
    batch = write_rows([views, []], width=7, pad_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 1], [1] * 7]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9, -100, -100], [-100] * 7]


def test_all_that_is_trained_on_or_answered_has_the_codecs_positions():
    """Would catch rows, or validation, that count tokens while answers are written at places of cells."""
    codec = codec_of(tiny_tokenizer(), positions="grid")
    whole = dataclasses.replace(maker(), codec=codec)
    validation = make_validation(dataclasses.replace(codec, learn="asked"), TABLES, 3, 256, PAD)
    for batch in (whole.make([0, 1]), validation.batch):
        lengths = lengths_of_views(batch["position_ids"])
        for ids, positions, own in zip(batch["input_ids"], batch["position_ids"], lengths, strict=True):
            ends = np.cumsum(own)[:-1]
            views = zip(np.split(ids, ends), np.split(positions, ends), strict=True)
            found = [(part.tolist(), at.tolist()) for part, at in views if part.any()]  # padding is 0
            assert found == [(part, codec.positions.of(np.array(part, np.int32)).tolist()) for part, _ in found]
            assert max(max(at) for _, at in found) > 1024

"""Views are values: uniform where they should be, and the same whoever draws them, with whatever else."""

import hashlib
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from builders import counting, puzzle, puzzles
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arc_ray.config.training import ViewConfig
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import Views, draw_views, keys_of, plain_views, question_order, redrawn

TABLE = TaskTable.of(
    [
        puzzle("one train pair, hidden", 1, 1, hidden=True),
        puzzle("few", 2, 1),
        counting(),
        puzzle("several tests", 3, 2),
        puzzle("hidden", 4, 1, hidden=True),
        puzzle("many", 40, 0),
    ]
)
FEW, MANY = 1, 5


def drawn(table: TaskTable, task: int | npt.NDArray[np.integer], number: int, **config: object) -> Views:
    """`number` views of a task, or of tasks."""
    tasks = np.broadcast_to(task, number)
    return draw_views(ViewConfig(**config), table, tasks, keys_of(0, "s", table, tasks, np.arange(number), 0))  # pyright: ignore


def rows_of(views: Views) -> list[tuple[object, ...]]:
    """Each view as a comparable value."""
    columns = (views.task, views.key, views.symmetry, views.colors, views.shown, views.asked, views.one_sided)
    there = [column for column in columns if column is not None]
    return [tuple(np.asarray(column[i]).tolist() for column in there) for i in range(len(views))]


def test_views_are_what_they_were():
    """Would catch other draws, after which no run goes on as it began and no prediction belongs to its view."""
    found = hashlib.blake2b(digest_size=8)
    task, config = np.arange(600) % len(TABLE), {"one_sided": 0.5, "min_shown": 1, "max_shown": 3}
    plain = plain_views(TABLE, 40, symmetry=3)
    for views in (
        drawn(TABLE, task, 600, **config),
        drawn(TABLE, task, 600, **config, one_sided_weights={"upscale": 1, "padding": 2}, background_probability=0.9),
        drawn(TABLE, task, 600, shuffle_pairs=False, symmetries=False, colors="keep"),
        plain,
        redrawn(ViewConfig(), TABLE, plain, 3, copy=1, seed=5),
    ):
        for column in (getattr(views, field.name) for field in fields(views)):
            if column is not None:
                found.update(f"{column.dtype} {column.shape}".encode() + np.ascontiguousarray(column).tobytes())
    assert found.hexdigest() == "6234e9ab5149b97a"


@pytest.mark.parametrize("task", [FEW, 3, MANY])
def test_the_asked_pair_is_uniform_among_all_known_ones(task: int):
    """Would catch Floyd's algorithm without its shuffle: the set is uniform, but its first element is not."""
    views = drawn(TABLE, task, 8000)
    pairs = np.arange(TABLE.first_pair[task], TABLE.first_pair[task + 1])
    counts = np.array([(views.asked == pair).sum() for pair in pairs])
    assert counts.sum() == 8000
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("task", [FEW, MANY])
def test_every_place_in_the_prompt_shows_every_pair_alike(task: int):
    """Would catch an order that follows the pairs' own, and pairs that are never shown beside each other."""
    views = drawn(TABLE, task, 8000, max_shown=3)
    pairs = np.arange(TABLE.first_pair[task], TABLE.first_pair[task + 1])
    for place in range(min(3, len(pairs) - 1)):
        counts = np.array([(views.shown[:, place] == pair).sum() for pair in pairs])
        assert stats.chisquare(counts).pvalue > 0.001
    beside = np.zeros((len(pairs), len(pairs)))
    np.add.at(beside, (views.asked - pairs[0], views.shown[:, 0] - pairs[0]), 1)
    off_diagonal = beside[~np.eye(len(pairs), dtype=bool)]
    assert stats.chisquare(off_diagonal).pvalue > 0.001


def test_no_view_shows_the_pair_it_asks_or_a_pair_twice_or_a_hidden_one():
    """Would catch an answer that stands in its own prompt."""
    for task in (0, FEW, 3, 4, MANY):
        for shuffle in (True, False):
            views = drawn(TABLE, task, 500, shuffle_pairs=shuffle)
            for shown, asked in zip(views.shown, views.asked, strict=True):
                used = [int(p) for p in shown if p >= 0] + [int(asked)]
                assert len(set(used)) == len(used)
                assert all(TABLE.first_pair[task] <= pair < TABLE.first_pair[task + 1] for pair in used)
                assert all(TABLE.height[2 * pair + 1] > 0 for pair in used)
                assert (np.diff((shown >= 0).astype(int)) <= 0).all(), "a gap among the shown pairs"


@pytest.mark.parametrize("max_shown", [1, 3, 10])
def test_as_many_pairs_are_shown_as_there_are_and_may_be(max_shown: int):
    known = {0: 1, FEW: 3, 3: 5, 4: 4, MANY: 40}
    for task, number in known.items():
        views = drawn(TABLE, task, 50, max_shown=max_shown)
        assert set(views.num_shown().tolist()) == {min(max_shown, number - 1)}


def test_without_shuffling_the_last_known_pair_is_asked_and_the_first_are_shown_in_order():
    views = drawn(TABLE, 3, 3, shuffle_pairs=False, max_shown=3)
    first = int(TABLE.first_pair[3])
    assert views.asked.tolist() == [first + 4] * 3
    assert views.shown.tolist() == [[first, first + 1, first + 2]] * 3
    hidden = drawn(TABLE, 4, 1, shuffle_pairs=False)
    assert hidden.asked.tolist() == [int(TABLE.first_pair[4]) + 3], "the hidden test pair cannot be asked"


def test_a_task_without_a_known_output_asks_for_nothing():
    """Its asked pair is -1, which `fit_views` leaves out; another number would be a pair of another task."""
    table = TaskTable.of([puzzle("a"), puzzle("all hidden", 0, 2, hidden=True)])
    views = drawn(table, 1, 5)
    assert views.asked.tolist() == [-1] * 5
    assert (views.shown == -1).all()


def test_symmetries_are_uniform_and_can_be_switched_off():
    views = drawn(TABLE, FEW, 8000)
    assert stats.chisquare(np.bincount(views.symmetry, minlength=8)).pvalue > 0.001
    assert (drawn(TABLE, FEW, 100, symmetries=False).symmetry == 0).all()


def test_colours_are_bijections_and_every_colour_goes_everywhere_alike():
    """Would catch two colours that merge, and a permutation that favours some colours."""
    views = drawn(TABLE, FEW, 9000, background_probability=0.0)
    assert (np.sort(views.colors, axis=1) == np.arange(10)).all()
    assert (views.colors[:, 0] == 0).all()
    for color in range(1, 10):
        assert stats.chisquare(np.bincount(views.colors[:, color], minlength=10)[1:]).pvalue > 0.001
    assert (drawn(TABLE, FEW, 100, colors="keep").colors == np.arange(10)).all()


@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_the_background_takes_part_as_often_as_asked(probability: float):
    """It then goes to each of the ten colours alike, so it moves nine times in ten."""
    views = drawn(TABLE, FEW, 10000, background_probability=probability)
    moved = int((views.colors[:, 0] != 0).sum())
    assert stats.binomtest(moved, 10000, 0.9 * probability).pvalue > 0.001
    counts = np.bincount(views.colors[:, 0], minlength=10)[1:]
    assert stats.chisquare(counts).pvalue > 0.001


def test_one_sided_changes_come_as_often_as_asked_and_leave_counting_alone():
    """Would catch questions about grids that are no longer there, and a share that is none."""
    views = drawn(TABLE, FEW, 8000, one_sided=0.3)
    assert views.one_sided is not None
    changed = int((views.one_sided[:, 0] > 0).sum())
    assert stats.binomtest(changed, 8000, 0.3).pvalue > 0.001
    assert drawn(TABLE, 2, 100, one_sided=1.0).one_sided.max() == 0  # pyright: ignore
    assert drawn(TABLE, FEW, 10).one_sided is None
    only = drawn(TABLE, FEW, 500, one_sided=1.0, one_sided_weights={"mirror": 1.0}).one_sided
    assert only is not None
    assert set(only[only[:, 0] > 0, 1].tolist()) == {3}
    names = {views.augmentation(i).name for i in range(300)}
    assert any(name.startswith("output-") for name in names)


def test_a_random_number_of_pairs_is_shown_if_asked():
    views = drawn(TABLE, MANY, 8000, min_shown=2, max_shown=5)
    counts = np.bincount(views.num_shown(), minlength=6)
    assert counts[:2].tolist() == [0, 0]
    assert stats.chisquare(counts[2:]).pvalue > 0.001
    assert set(drawn(TABLE, FEW, 200, min_shown=1).num_shown().tolist()) == {1, 2}


def test_symmetry_colours_and_pairs_are_independent():
    """Would catch two streams of one key that share bits."""
    views = drawn(TABLE, FEW, 9000, background_probability=1.0)
    for a, b in (
        (views.symmetry, views.asked),
        (views.symmetry, views.colors[:, 3]),
        (views.asked, views.colors[:, 3]),
    ):
        table = np.zeros((a.max() + 1, b.max() + 1))
        np.add.at(table, (a, b), 1)
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        assert stats.chi2_contingency(table)[1] > 0.001  # pyright: ignore


@settings(deadline=None)
@given(st.lists(st.integers(1, len(TABLE) - 1), min_size=1, max_size=12), st.booleans())
def test_views_drawn_one_by_one_equal_those_drawn_all_at_once(tasks: list[int], shuffle: bool):
    """Would catch randomness that depends on the batch: data workers batch as they like."""
    config = ViewConfig(shuffle_pairs=shuffle, one_sided=0.5, min_shown=1)
    task = np.array(tasks)
    key = keys_of(1, "s", TABLE, task, np.arange(len(task)), 2)
    together = rows_of(draw_views(config, TABLE, task, key))
    alone = [rows_of(draw_views(config, TABLE, task[i : i + 1], key[i : i + 1]))[0] for i in range(len(task))]
    assert together == alone
    backwards = rows_of(draw_views(config, TABLE, task[::-1], key[::-1]))
    assert together == backwards[::-1]


def test_adding_a_task_moves_no_other_view():
    """Would catch keys made of positions: one more task would give every view other randomness."""
    small = TaskTable.of([puzzle("a"), puzzle("b", 30, 1)])
    large = TaskTable.of([puzzle("new", 7, 2), puzzle("a"), puzzle("between"), puzzle("b", 30, 1)])
    copies = np.arange(20)
    for at_small, at_large in ((0, 1), (1, 3)):
        a = draw_views(
            ViewConfig(), small, np.full(20, at_small), keys_of(0, "s", small, np.full(20, at_small), copies, 0)
        )
        b = draw_views(
            ViewConfig(), large, np.full(20, at_large), keys_of(0, "s", large, np.full(20, at_large), copies, 0)
        )
        shift = int(large.first_pair[at_large] - small.first_pair[at_small])
        assert np.array_equal(a.key, b.key)
        assert np.array_equal(a.symmetry, b.symmetry)
        assert np.array_equal(a.colors, b.colors)
        assert np.array_equal(a.asked + shift, b.asked)
        assert np.array_equal(np.where(a.shown >= 0, a.shown + shift, -1), b.shown)


def test_showing_more_pairs_changes_neither_symmetry_nor_colours():
    """Would catch draws that take numbers from a common stream."""
    few, many = drawn(TABLE, MANY, 50, max_shown=2), drawn(TABLE, MANY, 50, max_shown=5)
    assert np.array_equal(few.symmetry, many.symmetry)
    assert np.array_equal(few.colors, many.colors)


def test_seed_source_copy_and_epoch_each_make_other_views():
    table, task = puzzles(3), np.zeros(1, int)
    keys = {
        int(keys_of(seed, source, table, task, np.array([copy]), epoch)[0])
        for seed in (0, 1)
        for source in ("s", "t")
        for copy in (0, 1)
        for epoch in (0, 1)
    }
    assert len(keys) == 16


def test_counting_views_are_neither_turned_nor_recoloured():
    """Their questions name colours and directions."""
    views = drawn(TABLE, 2, 100, background_probability=1.0)
    assert (views.symmetry == 0).all()
    assert (views.colors == np.arange(10)).all()
    assert (views.shown == -1).all()
    assert (views.asked == TABLE.first_pair[2]).all()


def test_question_order_is_a_uniform_permutation():
    """Would catch a fixed order, in which the next question gives the last answer away."""
    keys = drawn(TABLE, 2, 6000).key
    orders = np.array([question_order(key, 3) for key in keys])
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    counts = np.unique(orders @ np.array([9, 3, 1]), return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 0.001


def test_fewer_shown_pairs_are_the_first_ones():
    views = drawn(TABLE, MANY, 4, max_shown=4)
    fewer = views.showing(np.array([4, 2, 1, 0]))
    for i, number in enumerate((4, 2, 1, 0)):
        assert fewer.shown[i].tolist() == views.shown[i, :number].tolist() + [-1] * (4 - number)
    assert np.array_equal(fewer.asked, views.asked)


def test_plain_views_ask_every_test_pair_once_and_change_nothing():
    """Would catch an evaluation that forgets the second test input of a task, or shows a test pair."""
    views = plain_views(TABLE, max_shown=3)
    asked = [(TABLE.ids[t], int(a - TABLE.first_pair[t])) for t, a in zip(views.task, views.asked, strict=True)]
    assert asked == [
        ("one train pair, hidden", 1),
        ("few", 2),
        (TABLE.ids[2], 0),
        ("several tests", 3),
        ("several tests", 4),
        ("hidden", 4),
    ]
    assert (views.symmetry == 0).all()
    assert (views.colors == np.arange(10)).all()
    first = TABLE.first_pair[views.task]
    assert [(s[s >= 0] - f).tolist() for s, f in zip(views.shown, first, strict=True)] == [
        [0],
        [0, 1],
        [],
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2],
    ]
    turned = plain_views(TABLE, 3, symmetry=5)
    assert turned.symmetry.tolist() == [5, 5, 0, 5, 5, 5]
    assert np.array_equal(turned.asked, views.asked)


def test_there_may_be_no_view_at_all():
    assert len(plain_views(TaskTable.of([]), 3)) == 0
    assert len(drawn(TABLE, 1, 0)) == 0

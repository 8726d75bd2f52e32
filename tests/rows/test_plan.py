"""The plan: every view once an epoch, rows that are never too full, numbers that add up, and no dependence on chunks."""

from typing import Any

import numpy as np
import pytest
from builders import codec_of, config_with, counting, merging_tokenizer, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import TABLES, config, planned

from arc_ray.errors import UserError
from arc_ray.rows import prepare as rows
from arc_ray.rows.plan import SHUFFLE_WINDOW, Plan, load_plan, make_plan, pack, planned_views, save_plan
from arc_ray.rows.prepare import plan_rows
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import draw_views


def equal(a: Plan, b: Plan) -> bool:
    """Whether two plans agree in every array and number."""
    arrays = [(a.views, b.views), (a.first_view, b.first_view)]
    numbers = ("row_tokens", "batch_rows", "num_steps", "sources", "counts")
    same_types = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in arrays)
    return same_types and all(getattr(a, f) == getattr(b, f) for f in numbers)


def addresses(plan: Plan) -> list[tuple[int, int, int, int]]:
    """(source, task, copy, epoch) of every planned view, in row order."""
    return plan.views[["source", "task", "copy", "epoch"]].tolist()


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 120))
def test_packing_places_every_item_once_and_never_too_much(lengths: list[int], capacity: int):
    packed = pack(np.array(lengths, np.int64), capacity)
    assert sorted(item for row in packed for item in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in packed)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(60, 120))
def test_packing_is_best_fit_decreasing(lengths: list[int], capacity: int):
    """Against the plain quadratic algorithm; would catch a room that is forgotten or a fuller row that is passed over."""
    rooms: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= size
        else:
            rooms.append(capacity - size)
    packed = pack(np.array(lengths), capacity)
    assert sorted(capacity - sum(lengths[i] for i in row) for row in packed) == sorted(rooms)


def test_packing_wastes_little_on_lengths_like_ours():
    """Would catch one view a row, which trains five times slower and is right in every other way."""
    lengths = np.clip(np.random.default_rng(0).lognormal(6.3, 0.8, 4000), 60, 4096).astype(np.int64)
    assert lengths.sum() / (4096 * len(pack(lengths, 4096))) > 0.99


def test_every_view_is_planned_once_an_epoch_and_epochs_follow_each_other():
    """Would catch a task that is seen twice in the first epoch and not at all in the second."""
    plan = planned()
    copies, tasks = {0: 3, 1: 2, 2: 1}, {0: 7, 1: 3, 2: 3}
    dropped = {(1, 2, copy, epoch) for copy in range(2) for epoch in range(2)}
    whole = {(s, t, c, e) for s in copies for t in range(tasks[s]) for c in range(copies[s]) for e in range(2)}
    left = whole - set(addresses(plan))
    assert len(addresses(plan)) == len(set(addresses(plan)))
    assert dropped <= left
    assert all(task == 1 and source == 1 for source, task, _, _ in left - dropped), (
        "only the 30x30 task may be too long"
    )
    assert (np.diff(plan.views["epoch"]) >= 0).all()
    assert plan.counts["views"] == len(whole)
    assert plan.counts["dropped"] == len(left)
    assert plan.counts["epochs"] == 2
    assert sum(plan.counts["views_per_source"].values()) == len(plan.views["tokens"])
    for index, name in enumerate(plan.sources):
        tasks = [row[1] for row in whole if row[0] == index]
        kept = np.bincount(plan.views["task"][plan.views["source"] == index], minlength=max(tasks) + 1)
        said = plan.counts["views_per_task"][name]
        assert said == {"fewest": kept.min(), "most": kept.max(), "tasks_without": (kept == 0).sum()}


def test_as_many_epochs_as_the_config_allows_are_counted():
    """Would catch an epoch number that wraps at 32,767: epochs of one task, such as those of an overfitting run."""
    table = {"c": TaskTable.of([counting()])}
    plan = plan_rows(config(data__mix={"c": 1}, train__epochs=40_000), table, codec_of(tiny_tokenizer()))
    assert plan.counts["epochs"] == 40_000
    assert plan.views["epoch"].tolist() == list(range(40_000))
    assert equal(load_plan(save_plan(plan)), plan)


def test_another_epoch_has_other_views_in_another_order():
    """Would catch an epoch that repeats the one before, augmentations included."""
    plan = planned(data__mix={"a": 3})
    first, second = (plan.views[plan.views["epoch"] == e] for e in (0, 1))
    assert not set(first["key"].tolist()) & set(second["key"].tolist())
    assert first[["task", "copy"]].tolist() != second[["task", "copy"]].tolist()


def test_rows_hold_no_more_than_their_tokens_and_no_row_is_empty():
    plan = planned()
    sums = np.add.reduceat(plan.views["tokens"], plan.first_view[:-1])
    assert (np.diff(plan.first_view) > 0).all()
    assert sums.max() <= plan.row_tokens
    assert plan.fill() == pytest.approx(sums.sum() / (plan.num_rows * 256))
    assert plan.num_steps == -(-plan.num_rows // 4)


def test_sources_are_mixed_within_an_epoch():
    """Would catch training on one source after another."""
    plan = planned(data__mix={"a": 10, "c": 10})
    firsts = plan.views["source"][plan.first_view[:-1]]
    changes = (np.diff(firsts[: plan.num_rows // 2]) != 0).sum()
    assert changes > 3


def test_numbers_per_step_add_up():
    """Would catch a loss that is divided by the learned tokens of another step."""
    plan = planned()
    for per_step, values in (
        (plan.learned_per_step(), plan.views["learned"]),
        (plan.tokens_per_step(), plan.views["tokens"]),
    ):
        assert per_step.sum() == values.sum()
        assert len(per_step) == plan.num_steps
        for step in range(plan.num_steps):
            views = [
                v for r in plan.rows_of_step(step) if r < plan.num_rows for v in range(*plan.first_view[r : r + 2])
            ]
            assert per_step[step] == values[views].sum()


def test_max_steps_cuts_the_plan_and_changes_nothing_before_the_cut():
    """Would catch a cut that shuffles anew, and an epoch that seems to be over because the plan is."""
    whole, cut = planned(), planned(train__max_steps=2)
    assert cut.num_steps == 2
    assert cut.num_rows == 8
    assert addresses(cut) == addresses(whole)[: len(cut.views)]
    assert cut.epoch_of_step(2) == whole.epoch_of_step(2)
    assert 0 < cut.epoch_of_step(2) < 2
    assert sum(cut.counts["views_per_source"].values()) == len(cut.views)
    assert equal(planned(train__max_steps=10**6), whole)


def test_epochs_are_counted_in_views():
    plan = planned()
    done = [plan.epoch_of_step(step) for step in range(plan.num_steps + 1)]
    assert done[0] == 0
    assert done[-1] == 2.0
    assert (np.diff(done) > 0).all()


def test_a_plan_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch):
    """Would catch a plan that changes with the memory that planning may use."""
    whole = planned()
    monkeypatch.setattr(rows, "CHUNK", 5)
    assert equal(planned(), whole)


def test_a_plan_follows_from_its_seed():
    assert equal(planned(), planned())
    assert not set(planned(seed=1).views["key"].tolist()) & set(planned().views["key"].tolist())


def test_the_order_of_the_mix_does_not_matter_to_the_order_of_views():
    """Would catch a mix whose first source comes first in every row."""
    one, other = planned(data__mix={"a": 3, "c": 1}), planned(data__mix={"c": 1, "a": 3})
    assert one.views["key"].tolist() == other.views["key"].tolist()


def test_a_source_with_no_views_is_left_out():
    plan = planned(data__mix={"a": 0, "c": 1})
    assert plan.sources == ("c",)


def test_a_plan_comes_back_from_its_file():
    plan = planned()
    assert equal(load_plan(save_plan(plan)), plan)
    assert save_plan(plan) == save_plan(planned())
    assert equal(load_plan(save_plan(planned(train__max_steps=1))), planned(train__max_steps=1))


def test_planned_lengths_are_those_of_the_views_that_will_be_made():
    """On both paths; would catch views that are shortened otherwise in the plan than in the rows."""
    for tokenizer in (tiny_tokenizer(), merging_tokenizer()):
        codec = codec_of(tokenizer, quiet=True)
        plan = plan_rows(config(data__mix={"a": 2, "b": 1}, train__epochs=1), TABLES, codec)
        for i, (source, task, _, _) in enumerate(addresses(plan)):
            table = TABLES[plan.sources[source]]
            views = draw_views(config().view, table, np.array([task]), plan.views["key"][i : i + 1])
            ids, learned = codec.encode(table, views.showing(plan.views["shown"][i : i + 1]))[0]
            assert (plan.views["tokens"][i], plan.views["learned"][i]) == (len(ids), learned.sum())


def test_views_that_lose_pairs_are_counted():
    """Would catch a report that says nothing of half the examples being cut away."""
    long, short = (
        planned(train__row_tokens=2048, data__mix={"a": 3}),
        planned(train__row_tokens=128, data__mix={"a": 3}),
    )
    assert long.counts["shortened"] == long.counts["dropped"] == 0
    assert short.counts["shortened"] > 0
    assert short.counts["shortened"] == (short.views["shown"] < 3).sum()
    dropping = planned(train__row_tokens=128, data__mix={"a": 3}, train__too_long="drop")
    assert dropping.counts["shortened"] == 0
    assert dropping.counts["dropped"] > 0


@pytest.mark.parametrize(
    "overrides",
    [{"data__mix": {}}, {"data__mix": {"a": 0}}, {"train__row_tokens": 16}],
    ids=["no mix", "zero", "short"],
)
def test_nothing_to_train_on_is_the_users_mistake(overrides: dict[str, Any]):
    with pytest.raises(UserError, match="nothing to train on"):
        planned(**overrides)


def test_more_views_than_a_window_are_planned_once_each():
    """Would catch a window whose rows are lost or counted from another window's beginning."""
    number = SHUFFLE_WINDOW * 2 + 100
    task = np.arange(number)
    tokens = np.random.default_rng(0).integers(5, 60, number)
    shown = np.where(task % 10 == 0, -1, 1)
    config = config_with(train__row_tokens=64, train__batch_rows=8)
    plan = make_plan(config, ["s"], planned_views(0, task, 0, 0, task, shown, tokens, tokens // 2))
    assert sorted(plan.views["task"].tolist()) == np.flatnonzero(shown > 0).tolist()
    assert np.array_equal(plan.views["tokens"], tokens[plan.views["task"]])
    assert np.add.reduceat(plan.views["tokens"], plan.first_view[:-1]).max() <= 64

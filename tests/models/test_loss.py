"""Validation tells without generating what greedy generation would solve."""

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from builders import (
    Engine,
    codec_of,
    overfit,
    puzzle,
    tiny_model,
    tiny_tokenizer,
)

from arc_ray.decode.writer import Writer, generate_greedily
from arc_ray.models.loss import Outcome, validate
from arc_ray.rows.maker import ValidationSet, make_validation, write_rows
from arc_ray.tasks.task import Pair, Task, TaskTable
from arc_ray.views.view import plain_views

PAD, END = 0, 2
TABLES = {
    "known": TaskTable.of([puzzle(f"k{i}", 2, 1 + i % 2, most=4) for i in range(4)]),
    "unknown": TaskTable.of([puzzle(f"u{i}", 3, 1, most=4) for i in range(3)]),
}


@cache
def trained() -> Any:
    """A model that was shown the answers of `known` until it knows most of them by heart."""
    codec, table = codec_of(tiny_tokenizer()), TABLES["known"]
    encoded = codec.encode(table, plain_views(table, 3))
    model = tiny_model(hidden_size=48)
    overfit(model, write_rows([[view] for view in encoded[:5]], 120, PAD), steps=40)
    return model


def validation(row_tokens: int = 256, encoder: str = "compact") -> ValidationSet:
    return make_validation(codec_of(tiny_tokenizer(), encoder), TABLES, 3, row_tokens, PAD)


@cache
def outcome() -> Outcome:
    return validate(Engine(trained()), validation(), rows_at_once=2, rank=0, num_workers=1)


def test_a_task_is_solved_if_and_only_if_greedy_generation_solves_it():
    """Would catch the number that everything is ranked by being another than the one that is meant."""
    codec, solved = codec_of(tiny_tokenizer()), {}
    for source, table in TABLES.items():
        views = plain_views(table, 3)
        for i, (ids, learned) in enumerate(codec.encode(table, views)):
            nth = int((views.task[:i] == views.task[i]).sum())
            (answer,) = generate_greedily(Writer(trained(), [END], PAD), [codec.prompt_ids(table, views, i)], [40])
            name = f"{source}/{table.ids[views.task[i]]}/{nth}"
            solved[name] = answer.is_complete and [*answer.ids.tolist(), END] == ids[learned].tolist()
    assert dict(zip(outcome().names, outcome().solved.tolist(), strict=True)) == solved
    assert 0 < sum(solved.values()) < len(solved), "both kinds must occur"


def test_losses_and_cells_are_those_of_each_view_alone():
    """Would catch tokens that are counted for the neighbour in their row."""
    engine = Engine(trained())
    for name, loss, cells in zip(outcome().names, outcome().loss, outcome().cell_accuracy, strict=True):
        source, task, nth = name.split("/")
        table = TABLES[source]
        one = Task(task, *_split(table, table.ids.index(task), int(nth)))
        alone = make_validation(codec_of(tiny_tokenizer()), {source: TaskTable.of([one])}, 3, 256, PAD)
        found = validate(engine, alone, 1, 0, 1)
        assert found.loss[0] == pytest.approx(loss, abs=1e-4)
        assert found.cell_accuracy[0] == cells
    assert len(set(outcome().cell_accuracy.tolist())) > 2


def _split(table: TaskTable, task: int, nth: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    first, count = int(table.first_pair[task]), int(table.num_train[task])
    pairs = [Pair(table.grid(2 * p), table.grid(2 * p + 1)) for p in range(first, int(table.first_pair[task + 1]))]
    return tuple(pairs[:count]), (pairs[count + nth],)


def same(a: Outcome, b: Outcome) -> bool:
    close = np.allclose(a.loss, b.loss, atol=1e-5, equal_nan=True) and np.isclose(a.mean_loss, b.mean_loss)
    return a.names == b.names and np.array_equal(a.solved, b.solved) and bool(close)


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_the_size_of_a_pass_does_not_matter(rows_at_once: int):
    assert same(validate(Engine(trained()), validation(), rows_at_once, 0, 1), outcome())


@pytest.mark.parametrize("num_workers", [2, 3, 7])
def test_workers_share_the_rows_and_make_as_many_passes(num_workers: int, monkeypatch: pytest.MonkeyPatch):
    """Would catch a worker that gets an empty batch, on which no model runs, or rows that two workers count."""
    small, total = validation(row_tokens=128), []

    def add_up(part: torch.Tensor) -> None:
        total.append(part.clone())
        part.copy_(torch.stack(total).sum(0))

    monkeypatch.setattr(torch.distributed, "all_reduce", add_up)
    engines = [Engine(trained()) for _ in range(num_workers)]
    found = [validate(engine, small, 2, rank, num_workers) for rank, engine in enumerate(engines)]
    whole = validate(Engine(trained()), small, 2, 0, 1)
    assert len({engine.passes for engine in engines}) == 1
    assert same(found[-1], whole), "the last worker has seen what all of them add up to"


def test_a_view_that_is_too_long_is_wrong():
    """Would catch an accuracy that rises because the hard tasks no longer fit."""
    tables = {**TABLES, "long": TaskTable.of([puzzle("l", 2, 1, most=30)])}
    long = make_validation(codec_of(tiny_tokenizer()), tables, 3, 256, PAD)
    found = validate(Engine(trained()), long, 4, 0, 1)
    assert found.names[-1] == "long/l/0"
    assert long.too_long == ("long/l/0",)
    assert (bool(found.solved[-1]), found.cell_accuracy[-1]) == (False, 0.0)
    assert np.isnan(found.loss[-1])
    assert found.mean_loss == pytest.approx(outcome().mean_loss, abs=1e-5)
    assert found.to_json()["loss"][-1] is None
    assert found.metrics()["eval/solved"] == outcome().solved.sum() / (len(outcome().solved) + 1)
    assert found.metrics()["eval/solved/long"] == 0


def test_metrics_are_given_for_all_views_and_for_each_source():
    metrics = outcome().metrics()
    known = np.array([name.startswith("known/") for name in outcome().names])
    assert metrics["eval/solved/known"] == outcome().solved[known].mean() > metrics["eval/solved/unknown"]
    assert metrics["eval/solved"] == outcome().solved.mean()
    assert metrics["eval/cell_accuracy/unknown"] == outcome().cell_accuracy[~known].mean()
    assert metrics["eval/loss"] > 0
    assert set(metrics) == {
        *("eval/loss", "eval/solved", "eval/cell_accuracy", "eval/solved/known", "eval/solved/unknown"),
        *("eval/cell_accuracy/known", "eval/cell_accuracy/unknown"),
    }


def test_outcomes_are_json_with_six_digits():
    found = outcome().to_json()
    assert found["names"] == list(outcome().names)
    assert found["solved"] == [int(x) for x in outcome().solved]
    assert all(re.fullmatch(r"\d+(\.\d{1,6})?(e-0\d)?", str(x)) for x in found["loss"])

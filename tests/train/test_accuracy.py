"""Validation tells without generating what greedy generation would solve; evaluation's prompts know no answer."""

import dataclasses
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
    config_with,
    counting,
    merging_tokenizer,
    overfit,
    phi_like_tokenizer,
    puzzle,
    puzzles,
    qwen_like_tokenizer,
    tiny_model,
    tiny_tokenizer,
)

from arc_ray.decode.writer import Writer, generate_greedily
from arc_ray.errors import UserError
from arc_ray.evaluate.questions import Prompt, make_batches, make_prompts
from arc_ray.rows.maker import IGNORED, write_rows
from arc_ray.rows.validation import ValidationSet, make_validation
from arc_ray.tasks.task import Pair, Task, TaskTable
from arc_ray.train.accuracy import Outcome, validate
from arc_ray.views.augmentation import Augmentation
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


def make(table: TaskTable, slow: bool = False, **config: Any) -> list[Prompt]:
    codec = codec_of(merging_tokenizer() if slow else tiny_tokenizer(), quiet=True)
    return make_prompts(
        codec, table, config_with(view__max_shown=3, **{f"evaluate__{k}": v for k, v in config.items()})
    )


def test_every_test_output_is_asked_under_every_symmetry():
    table = TaskTable.of([puzzle("a", 3, 2), puzzle("b", 2, 1)])
    prompts = make(table)
    asked = sorted((p.task, p.output, p.augmentation.symmetry) for p in prompts)
    assert asked == [(t, o, s) for t, o in ((0, 0), (0, 1), (1, 0)) for s in range(8)]
    assert all(p.augmentation == Augmentation(p.augmentation.symmetry) for p in prompts)
    assert [p.augmentation.name for p in make(table, symmetries=1)] == ["same"] * 3


def test_prompts_and_their_answers_have_positions_in_the_model():
    """Would catch a prompt that fits max_prompt_tokens and whose answer is written beyond the model's last position, or
    where longrope turns to other angles, the prompt's own keys being cached already."""
    table, codec = puzzles(4, most=20), codec_of(tiny_tokenizer())
    config = config_with(view__max_shown=3, evaluate__symmetries=1)
    free = make_prompts(codec, table, config)
    assert max(len(prompt.ids) + prompt.limit for prompt in free) > 1800
    for most in (1800, 1500, 900):
        bound = make_prompts(codec, table, config, most)
        assert all(0 < prompt.limit <= most - len(prompt.ids) for prompt in bound)
        assert {prompt.task for prompt in bound} == set(range(4))
    assert [prompt.ids.tolist() for prompt in make_prompts(codec, table, config, 100_000)] == [
        prompt.ids.tolist() for prompt in free
    ]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("max_prompt_tokens", [60, 90, 120, 8192])
def test_prompts_do_not_depend_on_their_answers(max_prompt_tokens: int, slow: bool):
    """Would catch a known answer that decides how many examples are shown: scores would not hold for hidden ones."""
    tasks = [puzzle(f"t{i}", 3, 1 + i % 2) for i in range(12)]
    hidden = [Task(t.id, t.train, tuple(Pair(p.input, None) for p in t.test)) for t in tasks]
    a, b = (make(TaskTable.of(some), slow, max_prompt_tokens=max_prompt_tokens) for some in (tasks, hidden))
    assert [(p.task, p.output, p.limit, p.ids.tolist()) for p in a] == [
        (p.task, p.output, p.limit, p.ids.tolist()) for p in b
    ]
    assert all(len(p.ids) <= max_prompt_tokens for p in a)
    if max_prompt_tokens < 1000:
        assert len({len(p.ids) for p in a}) > 1


def test_a_prompt_that_is_too_long_is_left_out():
    table = TaskTable.of([puzzle("a", 2, 1, most=3), puzzle("b", 2, 1, most=30)])
    assert {p.task for p in make(table, max_prompt_tokens=100)} == {0}
    assert make(puzzles(2, most=30), max_prompt_tokens=16) == []


def test_answers_may_be_as_long_as_the_right_one():
    """Would catch a limit that cuts right answers; three times the largest grid of the prompt is allowed."""
    table = puzzles(20, most=10)
    codec = codec_of(tiny_tokenizer(), "shape_rows")
    for prompt in make_prompts(codec, table, config_with(view__max_shown=3, evaluate__symmetries=1)):
        largest = max(
            table.grid(g).size for g in range(2 * table.first_pair[prompt.task], 2 * table.first_pair[prompt.task + 1])
        )
        side = int(largest**0.5)
        assert len(codec.answer_ids(np.zeros((side, side), np.uint8))) <= prompt.limit
        assert prompt.limit <= codec.text_length_bound(30)


@pytest.mark.parametrize("batch_tokens", [64, 300, 1000, 100000])
def test_batches_hold_every_prompt_once_and_no_more_tokens_than_allowed(batch_tokens: int):
    """Would catch a batch that runs out of memory: padded to its longest prompt, then grown to its longest answer."""
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(0, i, Augmentation(), "same", np.zeros(int(length), np.int32), int(limit))
        for i, (length, limit) in enumerate(zip(rng.integers(5, 200, 60), rng.integers(5, 200, 60), strict=True))
    ]
    batches = make_batches(prompts, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    for batch in batches:
        width = max(len(prompts[i].ids) for i in batch) + max(prompts[i].limit for i in batch)
        assert len(batch) == 1 or width * len(batch) <= batch_tokens
    assert batch_tokens < 100000 or len(batches) == 1
    assert make_batches([], batch_tokens) == []


def test_outcomes_are_json_with_six_digits():
    found = outcome().to_json()
    assert found["names"] == list(outcome().names)
    assert found["solved"] == [int(x) for x in outcome().solved]
    assert all(re.fullmatch(r"\d+(\.\d{1,6})?(e-0\d)?", str(x)) for x in found["loss"])

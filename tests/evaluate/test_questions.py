"""Evaluation asks every output under every view, knows no answer, and leaves room for one."""

from typing import Any

import numpy as np
import pytest
from builders import (
    codec_of,
    config_with,
    merging_tokenizer,
    puzzle,
    puzzles,
    tiny_tokenizer,
)

from arc_ray.evaluate.questions import Prompt, make_batches, make_prompts
from arc_ray.tasks.task import Pair, Task, TaskTable
from arc_ray.views.augmentation import Augmentation


def make(table: TaskTable, slow: bool = False, **config: Any) -> list[Prompt]:
    codec = codec_of(merging_tokenizer() if slow else tiny_tokenizer(), quiet=True)
    return make_prompts(
        codec, table, config_with(view__max_shown=3, **{f"evaluate__{k}": v for k, v in config.items()})
    )


def test_every_test_output_is_asked_under_every_symmetry():
    table = TaskTable.of([puzzle("a", 3, 2), puzzle("b", 2, 1)])
    prompts = make(table)
    asked = sorted((p.task, p.output, p.augmentation.symmetry) for p in prompts)
    assert asked == [(t, o, s) for t, o in (("a", 0), ("a", 1), ("b", 0)) for s in range(8)]
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
        assert {prompt.task for prompt in bound} == set(table.ids)
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
    assert {p.task for p in make(table, max_prompt_tokens=100)} == {"a"}
    assert make(puzzles(2, most=30), max_prompt_tokens=16) == []


def test_answers_may_be_as_long_as_the_right_one():
    """Would catch a limit that cuts right answers; three times the largest grid of the prompt is allowed."""
    table = puzzles(20, most=10)
    codec = codec_of(tiny_tokenizer(), "shape_rows")
    for prompt in make_prompts(codec, table, config_with(view__max_shown=3, evaluate__symmetries=1)):
        task = table.ids.index(prompt.task)
        largest = max(table.grid(g).size for g in range(*(2 * table.first_pair[task : task + 2])))
        side = int(largest**0.5)
        assert len(codec.answer_ids(np.zeros((side, side), np.uint8))) <= prompt.limit
        assert prompt.limit <= codec.text_length_bound(30)


@pytest.mark.parametrize("batch_tokens", [64, 300, 1000, 100000])
def test_batches_hold_every_prompt_once_and_no_more_tokens_than_allowed(batch_tokens: int):
    """Would catch a batch that runs out of memory: padded to its longest prompt, then grown to its longest answer."""
    rng = np.random.default_rng(0)
    prompts = [
        Prompt("p", i, Augmentation(), "same", np.zeros(int(length), np.int32), int(limit))
        for i, (length, limit) in enumerate(zip(rng.integers(5, 200, 60), rng.integers(5, 200, 60), strict=True))
    ]
    batches = make_batches(prompts, batch_tokens)
    assert sorted(prompt.output for batch in batches for prompt in batch) == list(range(60))
    for batch in batches:
        width = max(len(prompt.ids) for prompt in batch) + max(prompt.limit for prompt in batch)
        assert len(batch) == 1 or width * len(batch) <= batch_tokens
    assert batch_tokens < 100000 or len(batches) == 1
    assert make_batches([], batch_tokens) == []

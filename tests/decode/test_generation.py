"""Greedy generation: what is written depends on the prompt alone, and is as probable as it claims."""

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from builders import codec_of, overfit, puzzles, tiny_model, tiny_tokenizer
from torch.profiler import ProfilerActivity, profile

from arc_ray.decode.kernels import use_onednn
from arc_ray.decode.writer import Answer, Writer, generate_greedily
from arc_ray.rows.maker import write_rows
from arc_ray.views.view import plain_views

END, PAD = 2, 0


@cache
def trained() -> tuple[Any, list[Any], list[Any]]:
    """A model that knows some answers, and the prompts and answers of views of different lengths."""
    table = puzzles(6, num_train=2, most=4)
    codec = codec_of(tiny_tokenizer())
    views = plain_views(table, 2)
    encoded = codec.encode(table, views)
    model = tiny_model(hidden_size=48)
    overfit(model, write_rows([[view] for view in encoded[:4]], 120, PAD), steps=40)
    prompts = [codec.prompt_ids(table, views, i) for i in range(len(views))]
    return model.eval(), prompts, [ids[learned] for ids, learned in encoded]


def generate(
    prompts: list[Any], limits: list[int] | None = None, ends: tuple[int, ...] = (END,), lookahead: int = 0
) -> list[Answer]:
    return generate_greedily(Writer(trained()[0], ends, PAD), prompts, limits or [24] * len(prompts), lookahead)


def greedy_by_hand(prompt: Any, limit: int) -> list[int]:
    """The same without cache, padding or batch: one whole forward pass for each token."""
    ids = prompt.tolist()
    for _ in range(limit):
        with torch.no_grad():
            token = int(trained()[0](input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_a_batch_writes_what_each_prompt_would_get_alone():
    """Would catch padding that is attended to, positions that count it, and a neighbour that ends an answer."""
    _, prompts, _ = trained()
    assert len({len(prompt) for prompt in prompts}) > 2
    together = generate(prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = generate([prompt])
        assert answer.ids.tolist() == alone.ids.tolist() == greedy_by_hand(prompt, 24)
        assert answer.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        assert answer.is_complete == alone.is_complete
    assert len({len(answer.ids) for answer in together}) > 1, "answers of one length would not show it"
    backwards = generate(prompts[::-1])[::-1]
    assert [a.ids.tolist() for a in backwards] == [a.ids.tolist() for a in together]


def test_the_model_of_these_tests_knows_its_answers():
    """Without it all the rest could hold for a model that writes nothing."""
    _, prompts, answers = trained()
    written = generate(prompts[:4])
    right = [a.is_complete and [*a.ids, END] == list(answer) for a, answer in zip(written, answers[:4], strict=True)]
    assert all(right)


def test_the_log_probability_is_that_of_the_answer_with_its_end():
    """Would catch the end token left out, or the tokens after it counted, in what votes are weighed by."""
    model, prompts, _ = trained()
    for prompt, answer in zip(prompts, generate(prompts), strict=True):
        ids = np.concatenate([prompt, answer.ids, [END] if answer.is_complete else []]).astype(np.int64)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].float().log_softmax(-1)
        at = np.arange(len(prompt), len(ids))
        assert answer.log_probability == pytest.approx(float(logits[at - 1, ids[at]].sum()), abs=1e-3)


def test_an_answer_ends_at_its_own_limit():
    """Would catch one limit for the whole batch, and a cut answer that passes for a complete one."""
    _, prompts, answers = trained()
    limits = [len(answer) for answer in answers[:4]]
    cut = generate(prompts[:4], [limits[0] - 1, limits[1], 1, limits[3]])
    whole = generate(prompts[:4], limits)
    assert [a.is_complete for a in cut] == [limits[0] - 1 > len(answers[0]) - 1, True, False, True]
    assert len(cut[2].ids) == 1
    for short, long in zip(cut, whole, strict=True):
        assert short.ids.tolist() == long.ids.tolist()[: len(short.ids)]
    assert cut[2].log_probability > whole[2].log_probability


def test_any_of_several_end_tokens_ends_an_answer():
    _, prompts, _ = trained()
    (plain,) = generate(prompts[:1])
    second = int(plain.ids[1])
    (ended,) = generate(prompts[:1], ends=(second, END))
    assert ended.is_complete
    assert ended.ids.tolist() == plain.ids.tolist()[: plain.ids.tolist().index(second)]


def test_an_answer_may_be_empty():
    _, prompts, _ = trained()
    first = int(generate(prompts[:1])[0].ids[0])
    (answer,) = generate(prompts[:1], ends=(first,))
    assert (answer.ids.tolist(), answer.is_complete) == ([], True)
    assert answer.log_probability < 0


def test_products_by_onednn_write_the_same():
    """Would catch a layer that is left out, a bias or a leading dimension that is lost, and weights that are not float32."""
    model, prompts, _ = trained()
    fast = use_onednn(deepcopy(model))
    layer = torch.nn.Linear(48, 7)
    inputs = torch.randn(2, 3, 48)
    assert torch.allclose(use_onednn(deepcopy(layer))(inputs), layer(inputs), atol=1e-5)
    names = [event.key for event in operators(lambda: fast(torch.from_numpy(prompts[0].astype(np.int64))[None]))]
    assert "mkldnn::_linear_pointwise" in names
    assert "aten::linear" not in names
    again = generate_greedily(Writer(fast, [END], PAD), prompts, [24] * len(prompts))
    for a, b in zip(again, generate(prompts), strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)
    half = use_onednn(deepcopy(model).bfloat16())
    assert "forward" not in vars(half.lm_head)


@torch.no_grad()
def operators(call: Any) -> Any:
    """What PyTorch does in a call, by operator."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return seen.key_averages()

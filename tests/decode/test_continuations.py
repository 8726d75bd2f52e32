"""Caches of rows that grow: what they hold and write is what transformers' own generation does, batch by batch."""

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from builders import codec_of, overfit, puzzles, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
)
from transformers.masking_utils import flash_attention_mask

from arc_ray.decode import continuations
from arc_ray.decode.cache import RowCache
from arc_ray.decode.continuations import CachedRows, PaddedRows, PlacedRows, read_prompts
from arc_ray.decode.likelihood import find_answers, score_answers
from arc_ray.decode.writer import Writer, generate_greedily
from arc_ray.errors import UserError
from arc_ray.models.attention import attends_to_all
from arc_ray.models.supported import attend_like_flash
from arc_ray.prompts.positions import Positions
from arc_ray.rows.maker import write_rows
from arc_ray.seeding import rng_for
from arc_ray.views.view import plain_views

END = 2

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = Qwen3_5TextConfig(
    **SHAPE,
    head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)
CONFIGS = {
    "llama": (LlamaConfig(**SHAPE), "sdpa", CachedRows),
    "qwen": (Qwen3Config(**SHAPE, head_dim=16), "sdpa", CachedRows),
    "eager": (LlamaConfig(**SHAPE), "eager", PaddedRows),
    "window": (MistralConfig(**SHAPE, sliding_window=6), "sdpa", PaddedRows),
    "hybrid": (HYBRID, "sdpa", PaddedRows),
}


@cache
def model_of(name: str) -> Any:
    config, attention, _ = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def prompts_of(seed: int, lengths: list[int]) -> list[Any]:
    return [rng_for(seed, i).integers(3, 40, length).astype(np.int32) for i, length in enumerate(lengths)]


def generated(model: Any, prompts: list[Any], limit: int) -> list[list[int]]:
    """What transformers writes, a prompt at a time, up to the end token."""
    found = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
        written = out[0, len(prompt) :].tolist()
        found.append(written[: written.index(2)] if 2 in written else written)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    limit=st.integers(1, 20),
    lookahead=st.sampled_from([0, 1, 5]),
)
def test_a_batch_writes_what_transformers_writes(name: str, seed: int, lengths: list[int], limit: int, lookahead: int):
    """Would catch keys in another row's memory, a window that gaps shift, heads that take a neighbour's keys."""
    model, prompts = model_of(name), prompts_of(seed, lengths)
    assert isinstance(read_prompts(model, prompts, 0, 1), CONFIGS[name][2])
    lookahead = lookahead if attends_to_all(model) else 0
    answers = generate_greedily(Writer(model, [2], 0), prompts, [limit] * len(prompts), lookahead)
    assert [answer.ids.tolist() for answer in answers] == generated(model, prompts, limit)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_caches_score_and_search_alike(name: str, monkeypatch: pytest.MonkeyPatch):
    """Would catch a doubled row that shares memory with its twin, and a step of many tokens that see each other."""
    model, prompts = model_of(name), prompts_of(1, [7, 3, 12])
    writer, answers = Writer(model, [2], 0), prompts_of(2, [5, 1, 9, 9])
    scores = [score_answers(writer, prompt, answers) for prompt in prompts]
    found = find_answers(writer, prompts, [4, 4, 4], 0.02)
    monkeypatch.setattr(continuations, "use_by_view", lambda model: False)
    assert np.allclose([score_answers(writer, prompt, answers) for prompt in prompts], scores, atol=1e-4)
    again = find_answers(writer, prompts, [4, 4, 4], 0.02)
    assert [[a.ids.tolist() for a in own] for own in again] == [[a.ids.tolist() for a in own] for own in found]


def test_a_state_that_is_no_cache_is_refused():
    """Would catch answers of a purely recurrent model that lose what it has read, and a traceback."""
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**SHAPE, state_size=8))
    with pytest.raises(UserError, match="MambaModel keeps what it has read in a state of its own"):
        read_prompts(mamba, prompts_of(0, [3]), 0, 1)


def test_flash_attention_reads_prompts_and_pytorch_the_rest():
    """Would catch a model of the package flash_attn that decodes with padding, a copy of its cache for each token."""
    prompts = prompts_of(6, [7, 3, 12])
    model = deepcopy(model_of("llama"))
    AttentionInterface.register("like_flash", attend_like_flash)
    AttentionMaskInterface.register("like_flash", flash_attention_mask)
    model.config._attn_implementation = "like_flash"
    assert isinstance(read_prompts(model, prompts, 0, 1), CachedRows)
    answers = generate_greedily(Writer(model, [2], 0), prompts, [12] * 3, 4)
    assert [answer.ids.tolist() for answer in answers] == generated(model_of("llama"), prompts, 12)


def test_prompts_that_are_read_in_parts_are_read_alike(monkeypatch: pytest.MonkeyPatch):
    """Would catch a part that is written into the rows of another."""
    model, prompts = model_of("llama"), prompts_of(4, [9, 30, 2, 14, 14])
    whole = CachedRows(model, prompts, 4)
    monkeypatch.setattr(continuations, "MOST_AT_ONCE", {"cpu": 20})
    parts = CachedRows(model, prompts, 4)
    with torch.no_grad():
        assert torch.allclose(parts.logits, whole.logits, atol=1e-5)
        token = np.arange(5)[:, None] + 3
        assert torch.allclose(parts.step(token), whole.step(token), atol=1e-5)


@torch.no_grad()
def test_a_step_writes_into_memory_that_was_taken_once():
    """Would catch a copy of the whole cache for each token, which takes most of a long prompt's time."""
    model, prompts = model_of("llama"), prompts_of(5, [9, 30])
    rows = CachedRows(model, prompts, 20)
    memory = [store.data_ptr() for stores in rows._cache._stores for store in stores]
    for size in (1, 3, 1):
        rows.step(np.full((2, size), 7))
        rows.keep([size, 1])
    rows.select([0, 1])
    assert [store.data_ptr() for stores in rows._cache._stores for store in stores] == memory
    rows.select([1])
    assert rows._cache._stores[0][0].shape[:2] == (1, rows._cache.num_columns)


def test_the_picture_of_the_cache():
    """Would catch a picture of another layout than the kernels read."""
    rows, states = RowCache(3, 8), []
    for places, tokens in (
        ([0, 1, 2, 8, 9, 10, 11, 12, 16, 17], [11, 12, 13, 21, 22, 23, 24, 25, 31, 32]),
        ([3, 4, 13, 14, 18, 19], [14, 15, 26, 27, 33, 34]),
        ([4, 5, 15, 18], [16, 17, 28, 35]),
    ):
        rows.write_to(torch.tensor(places), None)
        new = torch.tensor(tokens, dtype=torch.float32)[None, None, :, None]
        rows.update(new, new, 0)
        states.append(rows._stores[0][0][:, :, 0, 0].int().tolist())
    for line in zip(*states, strict=True):
        told = " ".join(str(row).replace(",", "") for row in line)
        assert told in " ".join((RowCache.__doc__ or "").split())


# Positions by pair, row and column


@cache
def learned_in_grids() -> tuple[Any, Positions, list[Any]]:
    """A model that knows some answers and was trained at positions in grids, and prompts of several lengths."""
    table, codec = puzzles(6, num_train=2, most=4), codec_of(tiny_tokenizer(), positions="grid")
    views, model = plain_views(table, 2), tiny_model(hidden_size=48)
    rows = write_rows([[view] for view in codec.encode(table, views)[:4]], 120, 0, codec.positions)
    overfit(model, rows, steps=60)
    return model.eval(), codec.positions, [codec.prompt_ids(table, views, i) for i in range(len(views))]


def logits_of(model: Any, positions: Positions, ids: Any) -> torch.Tensor:
    """The plain way: one forward pass over the whole, no cache, no batch."""
    at = torch.from_numpy(positions.of(np.array(ids, np.int32)).astype(np.int64))[None]
    with torch.no_grad():
        whole = torch.tensor(np.array(ids)[None], dtype=torch.int64)
        return model(input_ids=whole, position_ids=at, attention_mask=torch.ones_like(whole), use_cache=False).logits[0]


def written(model: Any, positions: Positions, prompt: Any, limit: int) -> list[int]:
    ids = prompt.tolist()
    while len(ids) < len(prompt) + limit and ids[-1] != END:
        ids.append(int(logits_of(model, positions, ids)[-1].argmax()))
    return [token for token in ids[len(prompt) :] if token != END]


def answers_above(
    model: Any, positions: Positions, ids: list[int], log: float, least: float, room: int
) -> dict[Any, float]:
    """Every answer above a probability after `ids`, found depth first, with its log-probability."""
    found = {}
    logs = logits_of(model, positions, ids)[-1].double().log_softmax(-1) + log
    for token in (logs > least).nonzero().flatten().tolist():
        if token == END:
            found[()] = float(logs[token])
        elif room > 1:
            after = answers_above(model, positions, [*ids, token], float(logs[token]), least, room - 1)
            found |= {(token, *rest): total for rest, total in after.items()}
    return found


@pytest.mark.parametrize("cache_kind", [CachedRows, PaddedRows])
def test_answers_at_positions_in_grids_are_those_of_full_passes(cache_kind: Any, monkeypatch: pytest.MonkeyPatch):
    """Would catch a decoder that goes on counting where the model learned rows and columns: after a prompt, after guesses
    that were wrong, in a row that was doubled or chosen, and after a candidate that is scored."""
    model, positions, prompts = learned_in_grids()
    if cache_kind is PaddedRows:
        monkeypatch.setattr(continuations, "use_by_view", lambda model: False)
    writer, limits = Writer(model, [END], 0, positions=positions), [24, 9, 24, 24, 17, 24]
    expected = [written(model, positions, *both) for both in zip(prompts, limits, strict=True)]
    rows = writer.read(prompts, 1)
    assert isinstance(rows, PlacedRows)
    assert isinstance(rows._rows, cache_kind)
    for lookahead in (0, 6):
        answers = generate_greedily(writer, prompts, limits, lookahead)
        assert [answer.ids.tolist() for answer in answers] == expected
        assert lookahead == 0 or sum(a.passes for a in answers) < sum(len(a.ids) + 1 for a in answers), (
            "no guess was right"
        )
    least = 0.02
    found, guessed = (find_answers(writer, prompts, [20] * len(prompts), least, lookahead) for lookahead in (0, 6))
    for prompt, own in zip([*prompts, *prompts], [*found, *guessed], strict=True):
        known = answers_above(model, positions, prompt.tolist(), 0.0, np.log(least), 20)
        assert {tuple(a.ids.tolist()): a.log_probability for a in own} == pytest.approx(known, abs=1e-3)
        candidates = [np.array([*ids, END], np.int32) for ids in known]
        if candidates:
            assert score_answers(writer, prompt, candidates) == pytest.approx(list(known.values()), abs=1e-3)
    assert max(map(len, found)) > 1, "nothing was doubled"
    counted = generate_greedily(Writer(model, [END], 0), prompts, limits)
    assert [answer.ids.tolist() for answer in counted] != expected, "positions must matter"

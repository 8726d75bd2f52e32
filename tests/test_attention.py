"""Attention view by view against transformers' own block mask, on rows that hold several views."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from arc_ray.attention import NAME, use_by_view, view_lengths
from arc_ray.loss import LearnedLoss

LENGTHS = [[9, 1, 14, 8], [32], [1, 31]]
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def toy() -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    ids = torch.randint(0, 50, (3, 32))
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    labels = torch.where((torch.rand(3, 32) < 0.5) & (positions > 0), ids, -100)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def losses_and_gradients(loss: LearnedLoss) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss.zero_grad()
    losses, _ = loss(**batch())
    losses.sum().backward()
    return losses.detach(), [p.grad.clone() for p in loss.parameters() if p.grad is not None]


def test_positions_tell_the_lengths_of_views():
    assert view_lengths(batch()["position_ids"]) == LENGTHS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_view_by_view_equals_the_block_mask(checkpointing: bool):
    """Would catch a view that sees its neighbour, rows that are mixed up, a key head given to the wrong query heads, and a
    backward pass that computes activations again without knowing where views end."""
    masked = LearnedLoss(toy())
    masked.model.config._attn_implementation = "sdpa"
    masked._by_view = False
    by_view = LearnedLoss(toy())
    assert by_view.model.config._attn_implementation == NAME
    if checkpointing:
        by_view.model.gradient_checkpointing_enable({"use_reentrant": False})
        by_view.train()
    expected, gradients = losses_and_gradients(masked)
    found, by_view_gradients = losses_and_gradients(by_view)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(by_view_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_a_model_still_generates_as_before():
    """Would catch padding of a batch that is attended to once training's attention is in place."""
    plain, trained = toy().eval(), toy().eval()
    assert use_by_view(trained)
    ids, mask = batch()["input_ids"], torch.ones(3, 32, dtype=torch.long)
    mask[1, :20] = 0
    with torch.no_grad():
        expected, found = (model(ids, attention_mask=mask).logits for model in (plain, trained))
    assert torch.equal(found, expected)


def test_windowed_attention_keeps_its_own_mask():
    """Would catch a model that suddenly sees further back than it was trained to."""
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))
    assert not use_by_view(model)
    assert model.config._attn_implementation == "sdpa"

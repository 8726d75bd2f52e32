"""Attention view by view against transformers' own block mask, on rows that hold several views."""

import ast
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    Qwen3_5TextConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from arc_ray.errors import UserError
from arc_ray.models import attention
from arc_ray.models.attention import flash_lengths, place, use_by_view, view_lengths
from arc_ray.models.loss import LearnedLoss
from arc_ray.models.supported import check_supported

LENGTHS = [[9, 1, 14, 8], [32], [1, 31]]
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def toy(implementation: str = "sdpa") -> Any:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    model.config._attn_implementation = implementation  # set at loading, "flash" would ask for flash-attn's kernels
    return model


def flash_stand_in(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """What transformers makes of flash attention, on the CPU: views are apart by cumulative lengths over the flattened
    rows, or by positions if there is one row; else every token of a row sees all tokens before it."""
    assert mask is None
    ends, positions = kwargs.pop("cu_seq_lens_q", None), kwargs.pop("position_ids", None)
    if ends is not None:
        assert kwargs["max_length_q"] == kwargs["max_length_k"] == int(ends.diff().max())
        assert torch.equal(ends, kwargs["cu_seq_lens_k"])
        assert ends.dtype == torch.int32
    elif len(query) == 1 and positions is not None:
        ends = torch.cat([(positions[0] == 0).nonzero().ravel(), torch.tensor([positions.shape[1]])])
    if ends is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    flat = [x.transpose(0, 1).reshape(1, x.shape[1], -1, x.shape[3]) for x in (query, key, value)]
    views = zip(*(x.split(ends.diff().tolist(), dim=2) for x in flat), strict=True)
    parts = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in views]
    return torch.cat(parts, 1).reshape(query.shape[0], query.shape[2], query.shape[1], -1), None


@pytest.fixture
def flash() -> str:
    """The name of an attention function that stands for flash attention."""
    AttentionInterface.register("flash_stand_in", flash_stand_in)
    AttentionMaskInterface.register("flash_stand_in", flash_attention_mask)
    return "flash_stand_in"


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
    masked, by_view = toy("eager"), toy()
    if checkpointing:
        by_view.gradient_checkpointing_enable({"use_reentrant": False})
        by_view.train()
    expected, gradients = losses_and_gradients(LearnedLoss(masked))
    found, by_view_gradients = losses_and_gradients(LearnedLoss(by_view).train(checkpointing))
    assert masked.config._attn_implementation == "eager"
    assert by_view.config._attn_implementation == attention.NAME
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(by_view_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [[0, 1, 2], [0]])
def test_flash_attention_keeps_views_apart_for_any_number_of_rows(rows: list[int], flash: str):
    """Would catch flash attention that sees across views: transformers takes rows as packed only if there is one."""
    packed = {name: values[rows] for name, values in batch().items()}
    expected, _ = LearnedLoss(toy("eager"))(**packed)
    model = toy(flash)
    found, _ = LearnedLoss(model)(**packed)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    inputs = {name: values for name, values in batch().items() if name != "labels"}
    leaking, apart = model(**inputs), model(**inputs, **flash_lengths(model, inputs["position_ids"]))
    assert (leaking.logits - apart.logits).abs().max() > 0.01, "the stand-in does not leak"
    assert not flash_lengths(toy("eager"), batch()["position_ids"])


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
    model = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=8))
    assert not use_by_view(model)
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_does_not_know_of_views_fails_with_their_mask(monkeypatch: pytest.MonkeyPatch):
    """Would catch a mask that stands for none and is taken for one by attention of another kind: all would see all."""
    model, packed = toy(), batch()
    assert use_by_view(model)
    model.config._attn_implementation = "sdpa"
    monkeypatch.setattr(attention, "use_by_view", lambda model: True)
    with pytest.raises(RuntimeError):
        attention.hidden_states(model, packed["input_ids"], packed["position_ids"])


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (FalconForCausalLM, FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)),
        (MambaForCausalLM, MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8)),
    ],
)
def test_models_whose_packed_views_see_each_other_are_refused(model_class: Any, config: Any):
    """Would catch training on the pairs of the task that lies before in the row: the loss falls, nothing warns."""
    torch.manual_seed(5)
    with pytest.raises(UserError, match="lets a view see the views before it"):
        check_supported(model_class(config).eval())


HYBRID = Qwen3_5TextConfig(
    **{**SHAPE, "num_hidden_layers": 4, "num_key_value_heads": 4},
    head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention"] * 3 + ["full_attention"],
)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_stand_in", "flash_attention_2"])
def test_hybrid_models_are_refused_under_every_attention(implementation: str, flash: str):
    """Would catch a check that trusts an attention by its name: layers without attention carry state across views."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(deepcopy(HYBRID)).eval()
    model.config._attn_implementation = implementation
    with pytest.raises(UserError, match="lets a view see the views before it"):
        check_supported(model)
    assert model.config._attn_implementation == implementation


def test_attention_that_takes_no_lengths_is_refused_whatever_its_name(flash: str):
    """Would catch a check that tries one row only, or that takes "flash" for a proof."""

    def forgetful(*args: Any, cu_seq_lens_q: Any = None, **kwargs: Any) -> Any:
        return flash_stand_in(*args, **kwargs)

    AttentionInterface.register("flash_forgetful", forgetful)
    AttentionMaskInterface.register("flash_forgetful", flash_attention_mask)
    check_supported(toy(flash).eval())
    with pytest.raises(UserError, match="lets a view see the views before it"):
        check_supported(toy("flash_forgetful").eval())


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SHAPE), MistralConfig(**SHAPE, sliding_window=8), Gemma3TextConfig(**SHAPE)]
)
def test_models_that_keep_packed_views_apart_are_taken(config: Any, implementation: str):
    """Would catch a check so strict that rounding, in half precision too, refuses what may be trained."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(deepcopy(config)).eval()
    model.config._attn_implementation = implementation
    check_supported(model)
    check_supported(model.to(torch.bfloat16))


MOVES = re.compile(r"""\.to\(["']cuda|\.cuda\(|deepspeed\.initialize\(|PlannedTrainer\(\n""")


def test_every_process_that_moves_a_model_to_a_gpu_keeps_cudnn_off(monkeypatch: pytest.MonkeyPatch):
    """Would catch a new place where a model gets to a GPU, and cuDNN's plans, up to a second for each new length, with it."""
    moving = {}
    for path in Path(attention.__file__).parents[1].rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and MOVES.search(body := ast.get_source_segment(text, node) or ""):
                moving[node.name] = "avoid_cudnn()" in body
    assert moving.keys() >= {"place", "make_engine", "fit_with_trl"}
    assert all(moving.values()), moving
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", (asked := []).append)
    place(model := toy(), on_gpu=False)
    assert asked == [False]
    assert model.device.type == "cpu"

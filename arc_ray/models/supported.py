"""What a model must be like for rows of packed views and for a loss that computes logits at learned positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from arc_ray.errors import UserError
from arc_ray.models.attention import attend_within_views, hidden_states
from arc_ray.prompts.tokenizer import frame_of, tiny_corpus

VIEW_TOKENS = 8
FLASH_ON_CPU = "flash_on_cpu"
LEAK = 0.01
"""Share of a view's own change from which a change of its neighbour is a leak; bfloat16 rounds to 0.004."""


def longest_view(about: Any) -> int | None:
    """Return the most tokens of a view that a model can read beside others, by its config; None if any number.

    That is how many positions it has, or fewer where the rotations of all tokens in a batch change beyond a position.
    """
    about = about.get_text_config()
    most = getattr(about, "max_position_embeddings", None)
    found = getattr(about, "rope_parameters", None) or {}
    switches = []
    for rope in found.values() if any(isinstance(value, dict) for value in found.values()) else [found]:
        kind, original = rope.get("rope_type"), rope.get("original_max_position_embeddings") or most
        if kind in ("longrope", "dynamic") and original:
            switches.append(int(original))
        elif kind in ("linear", "yarn") and most:
            most = max(most, int(original * rope.get("factor", 1)))
    return min(switches, default=most)


def check_row_tokens(about: Any, row_tokens: int) -> None:
    """Refuse rows in which a view could be longer than a model's positions, by its config. Raises UserError."""
    most = longest_view(about)
    if most is not None and row_tokens > most:
        raise UserError(
            f"train.row_tokens is {row_tokens}, but the model has {most} positions, or reads all views of a batch otherwise"
            f" once one is longer (RoPE of kind longrope or dynamic): set train.row_tokens to at most {most}"
        )


def check_tokens(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that writes our prompts, or pads them, with ids that the model has no embedding for."""
    frame = frame_of(tokenizer)
    texts = [*tiny_corpus(), "0123456789", frame.begin, frame.answer, frame.end, frame.between]
    used = {token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids}
    used |= {token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None}
    rows = model.get_input_embeddings().weight.shape[0]
    if beyond := sorted(token for token in used if token >= rows):
        names = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" for token in beyond[:3])
        raise UserError(
            f"the tokenizer writes ids beyond the model's {rows} embeddings: {names}; take the tokenizer that belongs to the"
            f" model, or resize the embeddings and save the model anew"
        )


def check_supported(model: Any, row_tokens: int | None = None) -> None:
    """Refuse models that would learn something else than their loss says. `row_tokens` bounds views. Raises UserError."""
    if row_tokens is not None:
        check_row_tokens(model.config, row_tokens)
    scaled = [k for k in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(model.config, k, None)]
    if scaled:
        raise UserError(f"this model changes its logits after the output layer ({scaled[0]}), which is not supported")
    try:
        is_apart, reason = keeps_views_apart(model, row_tokens or VIEW_TOKENS), ""
    except (ImportError, IndexError, RuntimeError, TypeError, ValueError) as error:
        is_apart, reason = False, f" ({' '.join(str(error).split())[:200]})"
    if not is_apart:
        raise UserError(
            f"{type(model).__name__} lets a view see the views before it in a packed row{reason}, so it would train on other"
            f" tasks' pairs: take a model whose attention goes through transformers' attention interface (Llama, Qwen3,"
            f" Mistral, ...) and that has no recurrent layers (unlike Mamba or Qwen3.5)"
        )


@torch.no_grad()
def keeps_views_apart(model: Any, longest: int = VIEW_TOKENS) -> bool:
    """Tell whether the second view of each of two rows is the same whatever the first one is; `model` is in eval mode.

    The first one may reach to position `longest` - 1. Attention that transformers does not mask (Falcon's), recurrent
    states (Mamba's) and rotations that follow the longest view let the second differ.
    """
    second = torch.arange(VIEW_TOKENS)
    ids = torch.stack([torch.cat([first, second]) for first in (second, second.flip(0))]).to(model.device)
    far = torch.linspace(0, longest - 1, VIEW_TOKENS).long()
    places = [torch.cat([first, second]).repeat(2, 1).to(model.device) for first in (second, far)]
    with kernels_of_cpus(model):
        near, reaching = (hidden_states(model, ids, positions).float() for positions in places)
    change = near.diff(dim=0).abs()
    leak, turned = change[:, VIEW_TOKENS:].max(), (reaching - near)[:, VIEW_TOKENS:].abs().max()
    # Rotations differ little at so few positions, so what they give must be the same but for rounding.
    is_turned = turned > 4 * torch.finfo(model.dtype).eps * near.abs().max()
    return bool(leak < LEAK * change[:, :VIEW_TOKENS].max() and not is_turned)


@contextmanager
def kernels_of_cpus(model: Any) -> Iterator[None]:
    """Put attention that any CPU computes in the place of a GPU's kernels, for trying a model where it was loaded.

    Flash attention runs on GPUs only. Flex attention would be compiled for minutes; "eager" has the same mask.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.masking_utils import flash_attention_mask

    name = model.config._attn_implementation
    stand_ins = {flash_attention_forward: FLASH_ON_CPU, flex_attention_forward: "eager"}
    stand_in = stand_ins.get(AttentionInterface().get(name))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if stand_in is None or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(FLASH_ON_CPU, attend_like_flash)
    AttentionMaskInterface.register(FLASH_ON_CPU, flash_attention_mask)
    model.config._attn_implementation = stand_in
    try:
        yield
    finally:
        model.config._attn_implementation = name


def attend_like_flash(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as flash attention does: within the cumulative lengths over all rows, or without them over whole rows."""
    if cu_seq_lens_q is None:
        return attend_within_views(module, query, key, value, attention_mask, **kwargs)
    in_one_row = (tensor.transpose(0, 1).flatten(1, 2)[None] for tensor in (query, key, value))
    lengths = [cu_seq_lens_q.diff().tolist()]
    attended, _ = attend_within_views(module, *in_one_row, attention_mask=None, view_lengths=lengths, **kwargs)
    return attended.view(query.shape[0], query.shape[2], *attended.shape[2:]), None

"""Attention inside each view of a packed row, by PyTorch's causal kernel on one view after another.

transformers keeps packed views apart by a mask, under which the kernel computes every pair of a row's tokens only to throw
most away: at rows of 4,096 tokens that is half of a small model's work. View by view, neither pairs of two views nor the upper
triangle are computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn

NAME = "sdpa_by_view"
FLASH_ON_CPU = "flash_on_cpu"


def attend_by_view(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    view_lengths: list[list[int]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each view, whatever the mask; without `view_lengths`, do as transformers' "sdpa" does.

    Query, key and value are (rows, heads, tokens, head size), the result is (rows, tokens, heads, head size).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if view_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows = []
    for row, lengths in enumerate(view_lengths):
        queries, keys, values = (whole[row : row + 1].split(lengths, dim=2) for whole in (query, key, value))
        attended = [
            sdpa_attention_forward(module, *of_view, attention_mask=None, **kwargs)[0]
            for of_view in zip(queries, keys, values, strict=True)
        ]
        rows.append(torch.cat(attended, dim=1))
    return torch.cat(rows), None


def use_by_view(model: Any) -> bool:
    """Let a model that uses PyTorch's attention take `view_lengths` in its forward pass; tell whether it does now.

    Without them it computes what it did, so it can still generate. Other implementations stay as they are, and so do
    models that compute attention in classes of their own, which would not see `view_lengths`, and models with windowed
    attention, whose masks say more than where a view ends.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config
    if config._attn_implementation == "sdpa" and model._supports_attention_backend and attends_to_all(model):
        AttentionInterface.register(NAME, attend_by_view)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation = NAME
    return config._attn_implementation == NAME


def attends_to_all(model: Any) -> bool:
    """Tell whether every layer attends to all tokens before: no window, no recurrent state."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(model.config, "sliding_window", None)


def view_lengths(position_ids: torch.Tensor) -> list[list[int]]:
    """Return how many tokens each view of each row has, from position ids that start again at 0: int64 (rows, tokens)."""
    width = position_ids.shape[1]
    starts = [torch.nonzero(row == 0).flatten().tolist() for row in position_ids.cpu()]
    return [[end - start for start, end in pairwise([*of_row, width])] for of_row in starts]


def flash_lengths(model: Any, position_ids: torch.Tensor) -> dict[str, Any]:
    """Return the arguments that tell flash attention where views end, for any number of rows; none for a model without it.

    Left to itself, transformers looks for packed views only where there is one row, and layer by layer.
    """
    if "flash" not in (model.config._attn_implementation or ""):
        return {}
    lengths = torch.tensor([0, *chain.from_iterable(view_lengths(position_ids))], dtype=torch.int32)
    ends, longest = lengths.cumsum(0, dtype=torch.int32).to(position_ids.device), int(lengths.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def place(model: nn.Module, on_gpu: bool) -> Any:
    """Move a model to this process's GPU if it has one to use, for attention by other kernels than cuDNN's."""
    avoid_cudnn()
    return model.to("cuda") if on_gpu else model


def avoid_cudnn() -> None:
    """Keep this process from attending by cuDNN, which PyTorch prefers on Hopper and newer GPUs.

    cuDNN makes a plan for each new length, up to a second; in training lengths are new all the time, in decoding always.
    Its backward pass under a mask also gives NaN at some lengths.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def flash_on_cpu(model: Any) -> Iterator[None]:
    """Put attention that takes flash attention's arguments in the place of its kernels, which run on GPUs only.

    For trying a model with a few tokens where it was loaded. Attention that was registered by others stays.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.masking_utils import flash_attention_mask

    name = model.config._attn_implementation
    if AttentionInterface().get(name) is not flash_attention_forward or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(FLASH_ON_CPU, attend_like_flash)
    AttentionMaskInterface.register(FLASH_ON_CPU, flash_attention_mask)
    model.config._attn_implementation = FLASH_ON_CPU
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
        return attend_by_view(module, query, key, value, attention_mask, **kwargs)
    in_one_row = (tensor.transpose(0, 1).flatten(1, 2)[None] for tensor in (query, key, value))
    lengths = [cu_seq_lens_q.diff().tolist()]
    attended, _ = attend_by_view(module, *in_one_row, attention_mask=None, view_lengths=lengths, **kwargs)
    return attended.view(query.shape[0], query.shape[2], *attended.shape[2:]), None


def hidden_states(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: list[list[int]] | None = None
) -> torch.Tensor:
    """Return what the last layer of a causal language model makes of rows of packed views: (rows, tokens, hidden size).

    Views are kept apart by position ids that start again at 0 (int64, like the tokens): attention goes view by view where
    `use_by_view` can have it so, flash attention is given their lengths, and elsewhere transformers makes a block mask, as
    there is neither a mask nor a cache. `lengths` are what `view_lengths` returns, for positions without values.
    """
    if use_by_view(model):
        apart = _told_apart(lengths or view_lengths(position_ids), input_ids.device)
    else:
        apart = flash_lengths(model, position_ids)
    decoder = model.get_decoder()
    return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **apart).last_hidden_state


def _told_apart(lengths: list[list[int]], device: torch.device) -> dict[str, Any]:
    """Return the arguments of a forward pass that make it attend within views of these lengths."""
    # A mask of four dimensions is taken as it is, so none of row_tokens x row_tokens is built. An empty one fits no tokens:
    # attention that does not know of view_lengths fails with it, where a mask of ones would let all views see each other.
    return {"view_lengths": lengths, "attention_mask": torch.ones(1, 1, 0, 0, dtype=torch.bool, device=device)}

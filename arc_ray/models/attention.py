"""Attention inside each view of packed rows, by kernels that never compute what two views have to do with each other.

Under transformers' mask the kernel computes every pair of a row's tokens: at 4,096 tokens half of a small model's work. On a
GPU in half precision PyTorch's flash attention takes all views in one call; elsewhere its causal kernel takes one by one.
A model whose layers carry more than attention from token to token reads each view in a pass of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn

VIEW_ATTENTION = "sdpa_by_view"

MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers, as transformers names them, that see no more of the tokens before than a mask lets them."""

LONGEST_STEP = 512
"""The longest view is told to kernels as a multiple of this: else torch.compile would meet a new number in most batches."""

CACHE_ARGUMENTS = "cache", "past_key_values"
"""What a forward pass calls the cache that it goes on from: since transformers 5.24, and before."""

FEWER_KEY_HEADS = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
"""PyTorch 2.11's kernel takes fewer key heads than query heads as they are, later ones want to be told."""


@dataclass(frozen=True)
class Spans:
    """Where the views of packed rows lie, known to the host without asking a device.

    position_ids [[0 1 2 0 1]    lengths [[3, 2]    ends [0 3 5 6 10]
                  [0 0 1 2 3]]            [1, 4]]
    """

    lengths: list[list[int]]
    """Tokens of each view, row by row."""
    ends: torch.Tensor
    """Where each view ends in the rows laid end to end, after a 0: int32 (views + 1,), on the model's device."""

    @property
    def longest(self) -> int:
        """Tokens of the longest view, or a few more."""
        return -(-max(chain.from_iterable(self.lengths)) // LONGEST_STEP) * LONGEST_STEP

    @property
    def for_flash(self) -> dict[str, Any]:
        """The arguments by which transformers tells flash attention where views end."""
        ends, longest = self.ends, self.longest
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def lengths_of_views(position_ids: npt.NDArray[np.integer]) -> list[list[int]]:
    """Return how many tokens each view of each row has, from position ids that are 0 at its first only: (rows, tokens)."""
    width = position_ids.shape[1]
    return [np.diff(np.flatnonzero(row == 0), append=width).tolist() for row in position_ids]


def view_ends(lengths: list[list[int]]) -> npt.NDArray[np.int32]:
    """Return where each view ends in rows that are laid end to end, after a 0: int32 (views + 1,)."""
    return np.cumsum([0, *chain.from_iterable(lengths)], dtype=np.int32)


def spans_of(position_ids: torch.Tensor) -> Spans:
    """Read where views lie from position ids that are 0 where a view begins, on any device: int64 (rows, tokens)."""
    lengths = lengths_of_views(position_ids.numpy(force=True))
    return Spans(lengths, torch.from_numpy(view_ends(lengths)).to(position_ids.device))


def attend_within_views(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    view_lengths: list[list[int]] | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each view, whatever the mask; told of no views, do as transformers' "sdpa" does.

    `cu_seq_lens_q` (what `Spans.ends` is) has all done in one call, `view_lengths` view by view. Query, key and value are
    (rows, heads, tokens, head size), the result is (rows, tokens, heads, head size).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if cu_seq_lens_q is not None:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        ends, longest = cu_seq_lens_q, max_length_q
        causal: Any = {"window_size": (-1, 0), **FEWER_KEY_HEADS}
        found: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, **causal)
        return found.unflatten(0, (query.shape[0], query.shape[2])), None
    kwargs["scaling"] = scaling
    if view_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows = []
    for row, lengths in enumerate(view_lengths):
        views = zip(*(whole[row : row + 1].split(lengths, dim=2) for whole in (query, key, value)), strict=True)
        attended = [sdpa_attention_forward(module, *view, attention_mask=None, **kwargs)[0] for view in views]
        rows.append(torch.cat(attended, dim=1))
    return torch.cat(rows), None


def attends_at_once(model: Any, device: torch.device) -> bool:
    """Tell whether PyTorch's flash attention can serve a model: half precision, an Ampere GPU or newer, plain heads."""
    about = model.config
    head_size = getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads
    is_plain = head_size % 8 == 0 and head_size <= 128 and not getattr(about, "v_head_dim", None)
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and model.dtype in (torch.bfloat16, torch.float16)
        and is_plain
        and not getattr(about, "attention_dropout", 0)
    )


def use_by_view(model: Any) -> bool:
    """Let a model that uses PyTorch's attention be told where views end in its forward pass; tell whether it can be now.

    Untold it computes what it did. Other implementations stay, and models whose own classes compute attention, which would
    not see what they are told, or whose attention is windowed, so that masks say more than where a view ends.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config
    if config._attn_implementation == "sdpa" and model._supports_attention_backend and attends_to_all(model):
        AttentionInterface.register(VIEW_ATTENTION, attend_within_views)
        AttentionMaskInterface.register(VIEW_ATTENTION, sdpa_mask)
        config._attn_implementation = VIEW_ATTENTION
    return config._attn_implementation == VIEW_ATTENTION


def takes_flash_lengths(model: Any) -> bool:
    """Tell whether packed rows are read by the package flash_attn, a kernel like it from a hub, or a stand-in."""
    from transformers import AttentionInterface
    from transformers.integrations.flash_attention import flash_attention_forward

    name = model.config._attn_implementation or ""
    is_flash = "flash" in name or AttentionInterface().get(name) is flash_attention_forward
    return is_flash and not reads_one_by_one(model)


def attends_to_all(model: Any) -> bool:
    """Tell whether every layer attends to all tokens before: no window, no recurrent state."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    has_window = getattr(model.config, "sliding_window", None)
    return kinds == {"full_attention"} and not has_window and bool(model._supports_attention_backend)


def packs(model: Any) -> bool:
    """Tell by its class and config whether a model keeps packed views apart; `supported.check_supported` tries it."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    return bool(model._supports_attention_backend) and kinds <= MASKED_LAYERS


def read_one_by_one(model: Any) -> None:
    """Let a model read each view of packed rows by itself: recurrent states, and attention without masks, know no views."""
    decoder = model.get_decoder()
    if not reads_one_by_one(model):
        decoder.forward = partial(_read_views, decoder, decoder.forward)


def reads_one_by_one(model: Any) -> bool:
    """Tell whether `read_one_by_one` was called with a model."""
    return getattr(model.get_decoder().forward, "func", None) is _read_views


def _read_views(
    decoder: nn.Module,
    read: Callable[..., Any],
    input_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool | None = None,
    view_lengths: list[list[int]] | None = None,
    **kwargs: Any,
) -> Any:
    """Do a decoder's forward pass; over packed rows in one pass for each length that views have, so nothing is padded.

    Rows are packed where there is neither a mask nor a cache.
    """
    is_packed = not (use_cache or any(kwargs.get(name) is not None for name in ("attention_mask", *CACHE_ARGUMENTS)))
    if not is_packed or input_ids is None or position_ids is None:
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return read(input_ids=input_ids, use_cache=use_cache, **kwargs)
    lengths = torch.tensor([*chain.from_iterable(view_lengths or lengths_of_views(position_ids.numpy(force=True)))])
    views, hidden, out = input_ids.flatten().split(lengths.tolist()), {}, None
    for length in _all_workers(decoder, lengths.unique().tolist()):
        numbers = (lengths == length).nonzero().flatten().tolist()
        # A length that only other workers have: one token is read, for nothing.
        batch = torch.stack([views[i] for i in numbers]) if numbers else input_ids[:1, :1]
        out = read(input_ids=batch, use_cache=False, **kwargs)
        hidden |= dict(zip(numbers or [len(views) + length], out.last_hidden_state, strict=True))
    assert out is not None
    in_order = torch.cat([hidden[i] for i in sorted(hidden)])[: input_ids.numel()]
    out.last_hidden_state = in_order.unflatten(0, input_ids.shape)
    return out


def _all_workers(decoder: nn.Module, lengths: list[int]) -> list[int]:
    """Return the lengths of passes: where ZeRO 3 shards weights, of all workers, since each pass gathers them from all."""
    distributed = torch.distributed
    if not hasattr(next(decoder.parameters()), "ds_id") or distributed.get_world_size() == 1:
        return lengths
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, lengths)
    return sorted(set(chain.from_iterable(found)))


def hidden_states(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, spans: Spans | None = None
) -> torch.Tensor:
    """Return what the last layer of a causal language model makes of rows of packed views: (rows, tokens, hidden size).

    Position ids are 0 where a view begins (int64, like the tokens); `spans` say where, or are read from the device.
    """
    apart = kept_apart(model, spans or spans_of(position_ids))
    decoder = model.get_decoder()
    return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **apart).last_hidden_state


def kept_apart(model: Any, spans: Spans) -> dict[str, Any]:
    """Return the arguments of a forward pass that keep views apart; none where transformers makes a block mask itself.

    Flash attention is told for any number of rows: left to itself, transformers looks for packed views in a single row.
    """
    if reads_one_by_one(model):
        return {"view_lengths": spans.lengths}
    if takes_flash_lengths(model):
        return spans.for_flash
    if not use_by_view(model):
        return {}
    told = spans.for_flash if attends_at_once(model, spans.ends.device) else {"view_lengths": spans.lengths}
    # A mask of four dimensions is taken as it is, so none of row_tokens x row_tokens is built. An empty one fits no tokens:
    # attention that does not know of views fails with it, where a mask of ones would let all views see each other.
    return {**told, "attention_mask": torch.ones(1, 1, 0, 0, dtype=torch.bool, device=spans.ends.device)}


def place(model: nn.Module, on_gpu: bool) -> Any:
    """Move a model to this process's GPU if it has one to use, for attention by other kernels than cuDNN's."""
    avoid_cudnn()
    return model.to("cuda") if on_gpu else model


def avoid_cudnn() -> None:
    """Keep this process from attending by cuDNN, which PyTorch prefers on Hopper and newer GPUs.

    It makes a plan for each new length, up to a second, and its backward pass under a mask gives NaN at some lengths.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)

"""The keys and values of rows that grow, in memory that is taken once, and attention to them as they lie there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

CACHE_ATTENTION = "arc_ray_cached"


class RowCache(Cache):
    """Keys and values of every layer, (rows, columns, heads, head size); a token's column is its position in its row.

    Prompts of 3, 5 and 2 tokens in 8 columns, then a step of two tokens, of which the rows keep 1, 2 and 0, and another:

        [11 12 13 0 0 0 0 0]     [11 12 13 14 15 0 0 0]     [11 12 13 14 16 17 0 0]
        [21 22 23 24 25 0 0 0]   [21 22 23 24 25 26 27 0]   [21 22 23 24 25 26 27 28]
        [31 32 0 0 0 0 0 0]      [31 32 33 34 0 0 0 0]      [31 32 35 34 0 0 0 0]
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__(layers=[])
        self.num_rows, self.num_columns = num_rows, num_columns
        self._stores: list[list[torch.Tensor]] = []

    def write_to(self, places: torch.Tensor, width: int | None) -> None:
        """Say where the next pass writes its tokens, row * columns + column, int64 (tokens,), and that it attends to the
        first `width` columns; None attends to its own tokens only."""
        self._places, self._width = places, width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values, (rows, heads, tokens, head size); return those to attend to."""
        new = key_states, value_states
        if layer_idx == len(self._stores):
            # Zeros, since 0 * nan would pass a mask.
            shape = self.num_rows, self.num_columns
            self._stores.append([x.new_zeros(*shape, x.shape[1], x.shape[3]) for x in new])
        stores = self._stores[layer_idx]
        for store, x in zip(stores, new, strict=True):
            store.flatten(0, 1).index_copy_(0, self._places, x.transpose(1, 2).flatten(0, 1))
        if self._width is None:
            return new
        keys, values = (store[:, : self._width].transpose(1, 2) for store in stores)
        return keys, values

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, in this order: int64 (rows,)."""
        self.num_rows = len(rows)
        self._stores = [[store.index_select(0, rows) for store in stores] for stores in self._stores]


def attend_to_cache(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to keys that several query heads share without repeating them; `attention_mask` is added to the scores.

    Query, key and value are (rows, heads, tokens, head size), the mask (rows, 1, query tokens, key tokens), the result
    (rows, tokens, heads, head size).
    """
    rows, heads, tokens, size = query.shape
    sharing = heads // key.shape[1]
    mask = attention_mask.to(query.dtype)
    if sharing > 1 and tokens > 1:
        mask = mask.repeat(1, 1, sharing, 1)
    together = query.reshape(rows, key.shape[1], sharing * tokens, size)
    found = nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


@contextmanager
def attending_to_cache(model: Any) -> Iterator[None]:
    """Let a model attend by `attend_to_cache` for a while."""
    AttentionInterface.register(CACHE_ATTENTION, attend_to_cache)
    name, model.config._attn_implementation = model.config._attn_implementation, CACHE_ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = name

"""`Continuations`: a batch of token rows that a model continues, with the cache of all it has read.

Rows are of different lengths and grow by different numbers of tokens, so each column of the cache counts for some rows
only: attention is masked where it does not, and positions count a row's own tokens. What a row gets is therefore what
it would get alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int32]

MOST_GAPS = 0.25
"""Share of the cache's columns that may be in nobody's use before they are squeezed out, which copies the cache."""


class Continuations:
    """Rows, the cache of their keys and values, and which of its columns each row may see."""

    def __init__(self, model: Any, prompts: Sequence[Ids], pad_id: int) -> None:
        """Read the prompts in one forward pass; `logits` are those of the token after each, (rows, vocabulary)."""
        self._model, self._cache = model, None
        self.device = next(model.parameters()).device
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
        is_used = torch.zeros((len(prompts), width), dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            is_used[i, width - len(prompt) :] = True
        self._is_used = is_used.to(self.device)
        self._length = self._is_used.sum(1)
        positions = (self._is_used.long().cumsum(1) - 1).clamp(min=0)
        self.logits: torch.Tensor = self._forward(ids.to(self.device), positions, self._is_used, 1)[:, -1]

    def __len__(self) -> int:
        return len(self._length)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read n more tokens a row, int64 (rows, n); return the logits after each, (rows, n, vocabulary).

        They count from then on, until `keep` says how many of them do.
        """
        tokens = tokens.to(self.device)
        size = tokens.shape[1]
        positions = self._length[:, None] + torch.arange(size, device=self.device)
        self._is_used = torch.cat([self._is_used, self._is_used.new_ones(len(self), size)], 1)
        self._length = self._length + size
        return self._forward(tokens, positions, self._is_used, size)

    def keep(self, counts: Sequence[int], size: int) -> None:
        """Forget all but the first `counts[i]` of the `size` tokens that the last step read."""
        kept = torch.tensor(counts, device=self.device)
        self._is_used[:, -size:] = torch.arange(size, device=self.device) < kept[:, None]
        self._length = self._length - size + kept
        width = self._is_used.shape[1]
        if width - int(self._length.max()) > MOST_GAPS * width:
            self._squeeze()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one that is named twice is doubled."""
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        self._cache.batch_select_indices(index)
        self._is_used, self._length = self._is_used[index], self._length[index]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        out = self._model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self._cache: Any = out.past_key_values
        return out.logits

    def _squeeze(self) -> None:
        """Move every row's columns to the right end, in their order, and drop the columns that no row then needs."""
        width = int(self._length.max())
        order = torch.argsort(self._is_used.int(), dim=1, stable=True)[:, -width:]
        for layer in self._cache.layers:
            layer.keys, layer.values = (
                x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
                for x in (layer.keys, layer.values)
            )
        self._is_used = self._is_used.gather(1, order)

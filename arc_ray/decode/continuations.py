"""`Continuations`: a batch of token rows that a model continues, with the cache of all it has read.

Rows are of different lengths and grow by different numbers of tokens; what a row gets is what it would get alone. Once
the prompts are read, `logits` are those after each: (rows, vocabulary).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.cache import RowCache, attending_to_cache
from arc_ray.decode.kernels import Forward, can_replay, recorded
from arc_ray.errors import UserError
from arc_ray.models.attention import (
    Spans,
    attends_to_all,
    kept_apart,
    reads_one_by_one,
    takes_flash_lengths,
    use_by_view,
)
from arc_ray.prompts.encoders import Ids

BLOCK = 128
"""Columns are attended to and taken from memory in multiples of this, so that kernels and allocator meet few sizes."""

GUESSES = 8
"""On a GPU a step reads one token or this many more, or twice as many more: few shapes to make a graph of."""

MOST_AT_ONCE = {"cpu": 2048, "cuda": 32768}
"""Tokens of prompts that are read in one pass, whose activations then fit into a CPU's cache, a GPU's memory."""


class CachedRows:
    """Rows in memory that is taken once: prompts are read without padding, and a guess that was wrong is written over.

    On a GPU a step of a shape that came before is replayed as a graph, because starting its kernels one by one from Python
    takes longer than they do.
    """

    def __init__(self, model: Any, prompts: Sequence[Ids], room: int) -> None:
        self._model = model
        self.device = next(model.parameters()).device
        self._length = np.array([len(prompt) for prompt in prompts])
        columns = _whole_blocks(int(self._length.max()) + room + GUESSES)
        self._cache = RowCache(len(prompts), columns)
        self._steps: dict[tuple[int, int], Forward | None] = {}
        self._is_replayed = can_replay(model)
        most = MOST_AT_ONCE.get(self.device.type, MOST_AT_ONCE["cpu"])
        self.logits = torch.cat([self._read(prompts, part) for part in _parts(self._length, most)])

    def step(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """Read n more tokens a row, (rows, n); return the logits after each, (rows, n, vocabulary).

        They count from then on, until `keep` says how many of them do.
        """
        self._read_last = tokens.shape[1]
        if self._is_replayed:
            tokens = np.pad(tokens, ((0, 0), (0, -(self._read_last - 1) % GUESSES)))
        positions = self._length[:, None] + np.arange(tokens.shape[1])
        self._length = self._length + self._read_last
        width = _whole_blocks(int(positions.max()) + 1)
        inputs = torch.from_numpy(np.stack([tokens, positions])).to(self.device)
        shape, run = (tokens.shape[1], width), partial(self._step, width=width)
        if self._is_replayed:
            # Recorded when a shape comes for the second time: a search changes its rows in most steps.
            self._steps[shape] = self._steps.get(shape) or (recorded(run, inputs) if shape in self._steps else None)
            run = self._steps[shape] or run
        logits = run(inputs)
        return logits[:, : self._read_last]

    def keep(self, counts: Sequence[int]) -> None:
        """Forget all but the first `counts[i]` of the tokens that the last step read."""
        self._length = self._length - self._read_last + counts

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one that is named twice is doubled."""
        if list(rows) != list(range(len(self._length))):
            self._steps.clear()  # they read the memory that is given up here
            self._cache.select(torch.tensor(rows, device=self.device))
            self._length = self._length[rows]

    def _step(self, inputs: torch.Tensor, width: int) -> torch.Tensor:
        """Read tokens at their positions, int64 (2, rows, n), without waiting for the device."""
        ids, at = inputs
        rows = torch.arange(len(ids), device=self.device)[:, None]
        self._cache.write_to((rows * self._cache.num_columns + at).flatten(), width)
        is_hidden = torch.arange(width, device=self.device) > at[..., None]
        mask = torch.zeros(is_hidden.shape, dtype=self.logits.dtype, device=self.device)
        with attending_to_cache(self._model):
            seen = mask.masked_fill_(is_hidden, -torch.inf)[:, None]
            return _read_on(self._model, self._cache, ids, at, 0, attention_mask=seen).logits

    def _read(self, prompts: Sequence[Ids], part: slice) -> torch.Tensor:
        """Read some of the prompts, packed into one row; return the logits after each: (prompts, vocabulary)."""
        lengths = self._length[part]
        positions = np.concatenate([np.arange(length) for length in lengths])
        places = np.repeat(np.arange(len(prompts))[part], lengths) * self._cache.num_columns + positions
        packed = torch.from_numpy(np.stack([np.concatenate(prompts[part]), positions, places]))
        ids, at, written_to = packed.to(self.device)
        ends = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(self.device)
        self._cache.write_to(written_to, None)
        apart = kept_apart(self._model, Spans([lengths.tolist()], ends))
        return _read_on(self._model, self._cache, ids[None], at[None], ends[1:] - 1, **apart).logits[0]


class PaddedRows:
    """Rows padded on the left in transformers' own cache, which knows of windows and recurrent states.

    Each column counts for some rows only: attention is masked where it does not, and positions count a row's own tokens.
    """

    def __init__(self, model: Any, prompts: Sequence[Ids], pad_id: int) -> None:
        self._model, self._cache = model, None
        self.device = next(model.parameters()).device
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), pad_id, np.int64)
        is_used = np.zeros(ids.shape, bool)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = prompt
            is_used[i, width - len(prompt) :] = True
        self._is_used = torch.from_numpy(is_used).to(self.device)
        self._length = self._is_used.sum(1)
        positions = (self._is_used.long().cumsum(1) - 1).clamp(min=0)
        self.logits = self._forward(torch.from_numpy(ids), positions, 1)[:, -1]

    def step(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        self._read_last = tokens.shape[1]
        positions = self._length[:, None] + torch.arange(self._read_last, device=self.device)
        self._is_used = torch.cat([self._is_used, self._is_used.new_ones(tokens.shape)], 1)
        self._length = self._length + self._read_last
        return self._forward(torch.from_numpy(tokens), positions, self._read_last)

    def keep(self, counts: Sequence[int]) -> None:
        kept = torch.tensor(counts, device=self.device)
        self._is_used[:, -self._read_last :] = torch.arange(self._read_last, device=self.device) < kept[:, None]
        self._length = self._length - self._read_last + kept

    def select(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.device)
        self._cache.reorder_cache(index)  # unlike batch_select_indices, recurrent states know it
        self._is_used, self._length = self._is_used[index], self._length[index]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, keep: int) -> torch.Tensor:
        mask = self._is_used.long()
        out = _read_on(self._model, self._cache, ids.to(self.device), positions, keep, attention_mask=mask)
        self._cache: Any = out.past_key_values
        return out.logits


Continuations = CachedRows | PaddedRows


def read_prompts(model: Any, prompts: Sequence[Ids], pad_id: int, room: int) -> Continuations:
    """Read prompts, each of which may grow by `room` tokens; a model that attends otherwise has transformers' own cache.

    Raises UserError for a model that cannot have it.
    """
    if "past_key_values" not in signature(type(model.get_decoder()).forward).parameters:
        raise UserError(
            f"{type(model).__name__} keeps what it has read in a state of its own, from which answers of a batch cannot go on:"
            f" take a model with attention, or one of both (Qwen3.5)"
        )
    is_packed = use_by_view(model) or (takes_flash_lengths(model) and attends_to_all(model))
    if is_packed and not reads_one_by_one(model):
        return CachedRows(model, prompts, room)
    return PaddedRows(model, prompts, pad_id)


def _read_on(model: Any, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: Any, **attention: Any) -> Any:
    """Let a model read tokens after those in its cache; `keep` says for which logits are computed."""
    where = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
    return model(input_ids=ids, logits_to_keep=keep, **where, **attention)


def _whole_blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK


def _parts(lengths: npt.NDArray[np.int64], most: int) -> Iterator[slice]:
    """Cut rows into runs of at most `most` tokens, or of one row."""
    first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or lengths[first : i + 1].sum() > most:
            yield slice(first, i)
            first = i

"""`Continuations`: a batch of token rows that a model continues, with the cache of all it has read.

Rows are of different lengths and grow by different numbers of tokens; what a row gets is what it would get alone. Once
the prompts are read, `logits` are those after each: (rows, vocabulary).
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.cache import RowCache, attending_to_cache
from arc_ray.decode.kernels import Forward, can_replay, recorded
from arc_ray.errors import UserError
from arc_ray.models.attention import (
    CACHE_ARGUMENTS,
    Spans,
    attends_to_all,
    kept_apart,
    reads_one_by_one,
    takes_flash_lengths,
    use_by_view,
)
from arc_ray.prompts.encoders import Ids
from arc_ray.prompts.positions import SEQUENCE, Positions

Numbers = npt.NDArray[np.int64]

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

    def __init__(self, model: Any, prompts: Sequence[Ids], room: int, positions: Positions = SEQUENCE) -> None:
        self._model = model
        self.device = next(model.parameters()).device
        self._length = np.array([len(prompt) for prompt in prompts])
        columns = _whole_blocks(int(self._length.max()) + room + GUESSES)
        self._cache = RowCache(len(prompts), columns)
        self._steps: dict[tuple[int, int], Forward | None] = {}
        self._is_replayed = can_replay(model)
        most = MOST_AT_ONCE.get(self.device.type, MOST_AT_ONCE["cpu"])
        parts = _parts(self._length, most)
        self.logits = torch.cat([self._read(prompts[part], part, positions) for part in parts])

    def step(self, tokens: Numbers, positions: Numbers | None = None) -> torch.Tensor:
        """Read n more tokens a row, (rows, n), at these positions, or counting on; return the logits after each,
        (rows, n, vocabulary).

        They count from then on, until `keep` says how many of them do.
        """
        self._read_last = tokens.shape[1]
        if self._is_replayed:
            padding = (0, 0), (0, -(self._read_last - 1) % GUESSES)
            tokens, positions = np.pad(tokens, padding), None if positions is None else np.pad(positions, padding)
        columns = self._length[:, None] + np.arange(tokens.shape[1])
        self._length = self._length + self._read_last
        width = _whole_blocks(int(columns.max()) + 1)
        inputs = np.stack([tokens, columns, columns if positions is None else positions])
        inputs = torch.from_numpy(inputs).to(self.device)
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
        """Read tokens into columns and at positions, int64 (3, rows, n), without waiting for the device."""
        ids, columns, at = inputs
        rows = torch.arange(len(ids), device=self.device)[:, None]
        self._cache.write_to((rows * self._cache.num_columns + columns).flatten(), width)
        is_hidden = torch.arange(width, device=self.device) > columns[..., None]
        mask = torch.zeros(is_hidden.shape, dtype=self.logits.dtype, device=self.device)
        with attending_to_cache(self._model):
            seen = mask.masked_fill_(is_hidden, -torch.inf)[:, None]
            return _read_on(self._model, self._cache, ids, at, 0, attention_mask=seen).logits

    def _read(self, prompts: Sequence[Ids], rows: slice, positions: Positions) -> torch.Tensor:
        """Read prompts into these rows, packed into one; return the logits after each: (prompts, vocabulary)."""
        lengths = self._length[rows]
        columns = np.concatenate([np.arange(length) for length in lengths])
        places = np.repeat(np.arange(len(self._length))[rows], lengths) * self._cache.num_columns + columns
        at = np.concatenate([positions.of(prompt) for prompt in prompts])
        packed = torch.from_numpy(np.stack([np.concatenate(prompts), at, places]))
        ids, at, written_to = packed.to(self.device)
        ends = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(self.device)
        self._cache.write_to(written_to, None)
        apart = kept_apart(self._model, Spans([lengths.tolist()], ends))
        return _read_on(self._model, self._cache, ids[None], at[None], ends[1:] - 1, **apart).logits[0]


class PaddedRows:
    """Rows padded on the left in transformers' own cache, which knows of windows and recurrent states.

    Each column counts for some rows only: attention is masked where it does not, and positions count a row's own tokens.
    """

    def __init__(self, model: Any, prompts: Sequence[Ids], pad_id: int, positions: Positions) -> None:
        self._model, self._cache = model, None
        self.device = next(model.parameters()).device
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), pad_id, np.int64)
        at, is_used = np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
        for i, prompt in enumerate(prompts):
            here = slice(width - len(prompt), None)
            ids[i, here], at[i, here], is_used[i, here] = prompt, positions.of(prompt), True
        self._is_used = torch.from_numpy(is_used).to(self.device)
        self._length = self._is_used.sum(1)
        self.logits = self._forward(torch.from_numpy(ids), torch.from_numpy(at), 1)[:, -1]

    def step(self, tokens: Numbers, positions: Numbers | None = None) -> torch.Tensor:
        self._read_last = tokens.shape[1]
        counted = self._length[:, None] + torch.arange(self._read_last, device=self.device)
        at = counted if positions is None else torch.from_numpy(positions)
        self._is_used = torch.cat([self._is_used, self._is_used.new_ones(tokens.shape)], 1)
        self._length = self._length + self._read_last
        return self._forward(torch.from_numpy(tokens), at, self._read_last)

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
        ids, positions = ids.to(self.device), positions.to(self.device)
        out = _read_on(self._model, self._cache, ids, positions, keep, attention_mask=mask)
        self._cache: Any = out[_cache_argument(type(self._model.get_decoder()))]
        return out.logits


class PlacedRows:
    """Rows of tokens whose positions follow from their places in grids."""

    def __init__(self, rows: CachedRows | PaddedRows, positions: Positions, prompts: Sequence[Ids]) -> None:
        self._rows, self._positions = rows, positions
        self._places = self._before = [positions.after(prompt.tolist())[1] for prompt in prompts]
        self._last: list[list[int]] = [[] for _ in prompts]
        self.device, self.logits = rows.device, rows.logits

    def step(self, tokens: Numbers) -> torch.Tensor:
        self._before, self._last = self._places, tokens.tolist()
        at, self._places = zip(*map(self._positions.after, self._last, self._places), strict=True)
        return self._rows.step(tokens, np.array(at))

    def keep(self, counts: Sequence[int]) -> None:
        self._rows.keep(counts)
        kept = zip(self._last, self._before, counts, strict=True)
        self._places = [self._positions.after(tokens[:count], place)[1] for tokens, place, count in kept]

    def select(self, rows: Sequence[int]) -> None:
        self._rows.select(rows)
        self._places, self._before = ([kept[row] for row in rows] for kept in (self._places, self._before))
        self._last = [self._last[row] for row in rows]


Continuations = CachedRows | PaddedRows | PlacedRows


def read_prompts(
    model: Any, prompts: Sequence[Ids], pad_id: int, room: int, positions: Positions = SEQUENCE
) -> Continuations:
    """Read prompts, each of which may grow by `room` tokens; a model that attends otherwise has transformers' own cache.

    Raises UserError for a model that cannot have it.
    """
    _cache_argument(type(model.get_decoder()))
    is_packed = use_by_view(model) or (takes_flash_lengths(model) and attends_to_all(model))
    if is_packed and not reads_one_by_one(model):
        rows = CachedRows(model, prompts, room, positions)
    else:
        rows = PaddedRows(model, prompts, pad_id, positions)
    return rows if positions == SEQUENCE else PlacedRows(rows, positions, prompts)


def _read_on(model: Any, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: Any, **attention: Any) -> Any:
    """Let a model read tokens after those in its cache; `keep` says for which logits are computed."""
    where = {"position_ids": positions, _cache_argument(type(model.get_decoder())): cache, "use_cache": True}
    return model(input_ids=ids, logits_to_keep=keep, **where, **attention)


@cache
def _cache_argument(decoder: type[torch.nn.Module]) -> str:
    """Return what a decoder calls its cache. Raises UserError for one without, or without positions, as recurrent ones are."""
    arguments = signature(decoder.forward).parameters
    found = next((name for name in CACHE_ARGUMENTS if name in arguments), None)
    if found is None or "position_ids" not in arguments:
        raise UserError(
            f"{decoder.__name__} keeps what it has read in a state of its own, from which answers of a batch cannot go on:"
            f" take a model with attention, or one of both (Qwen3.5)"
        )
    return found


def padded(rows: Sequence[Sequence[int] | Ids], fill: int) -> Numbers:
    """Put rows of tokens one below another, filled up on the right to the longest: int64 (rows, longest)."""
    found = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def _whole_blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK


def _parts(lengths: npt.NDArray[np.int64], most: int) -> Iterator[slice]:
    """Cut rows into runs of at most `most` tokens, or of one row."""
    first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or lengths[first : i + 1].sum() > most:
            yield slice(first, i)
            first = i

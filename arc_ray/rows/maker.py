"""(Plan, row number) becomes the arrays that are trained on. `RowMaker` is everything a worker needs to make any row, at any
time, in any order: the same bytes each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.config.training import ViewConfig
from arc_ray.datasets.garbage import collector_paused
from arc_ray.prompts.codec import Codec
from arc_ray.rows.plan import Plan
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import draw_views

IGNORED = -100
"""Label of a token that is not learned (the convention of Hugging Face and PyTorch)."""

EMPTY_ROW_VIEW = 16
"""Tokens of each view that the padding of a row without views is cut into: the least that `train.row_tokens` may be."""

Batch = dict[str, npt.NDArray[Any]]
"""input_ids, position_ids, labels: int32 (rows, row_tokens); labels[t] is the token at t itself, or IGNORED."""

Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""One view: its token ids and which of them are learned, both (length,)."""


@dataclass(frozen=True, eq=False)
class RowMaker:
    """Makes rows of a plan."""

    plan: Plan
    tables: tuple[TaskTable, ...]
    """One per source of the plan."""
    view: ViewConfig
    codec: Codec
    pad_id: int

    def make(self, rows: npt.NDArray[np.integer] | Sequence[int]) -> Batch:
        """Make rows by number; numbers beyond the plan give empty rows that learn nothing."""
        spans = [self.plan.first_view[row : row + 2].tolist() if row < self.plan.num_rows else (0, 0) for row in rows]
        with collector_paused():
            encoded = iter(self.encode(np.concatenate([np.zeros(0, np.int64), *(np.arange(*span) for span in spans)])))
            views = [list(islice(encoded, end - begin)) for begin, end in spans]
            return write_rows(views, self.plan.row_tokens, self.pad_id)

    def encode(self, places: npt.NDArray[np.int64]) -> list[Encoded]:
        """Draw and write the planned views at these places, source by source: numpy's calls cost more than their work."""
        addresses, shown = self.plan.views.take(places), self.plan.shown[places]
        encoded: list[Any] = [None] * len(shown)
        for source in np.unique(addresses.source):
            here = np.flatnonzero(addresses.source == source)
            table = self.tables[source]
            views = draw_views(self.view, table, addresses.task[here], addresses.key[here]).showing(shown[here])
            for i, pair in zip(here.tolist(), self.codec.encode(table, views), strict=True):
                encoded[i] = pair
        return encoded

    def names_of(self, row: int) -> list[str]:
        """Name the views of a row as source/task/copy/epoch, for error messages."""
        a = self.plan.views.take(slice(*self.plan.first_view[row : row + 2]))
        columns = zip(a.source, a.task, a.copy, a.epoch, strict=True)
        return [f"{self.plan.sources[s]}/{self.tables[s].ids[t]}/{c}/{e}" for s, t, c, e in columns]


def write_rows(rows: Sequence[Sequence[Encoded]], width: int, pad_id: int) -> Batch:
    """Write views one after another into rows of `width` tokens; a row without views is padding throughout.

    The views [5, 6, 7], of which the last two are learned, and [8, 9], both learned, make in a row of 7 with padding 0:

        input_ids     5     6  7  8  9  0  0
        position_ids  0     1  2  0  1  0  1
        labels       -100   6  7  8  9 -100 -100
    """
    batch: Batch = {
        "input_ids": np.empty((len(rows), width), np.int32),
        "position_ids": np.empty((len(rows), width), np.int32),
        "labels": np.full((len(rows), width), IGNORED, np.int32),
    }
    positions = np.arange(width, dtype=np.int32)
    for i, views in enumerate(rows):
        at = 0
        for ids, learned in views:
            end = at + len(ids)
            batch["input_ids"][i, at:end] = ids
            batch["position_ids"][i, at:end] = positions[: len(ids)]
            np.copyto(batch["labels"][i, at:end], ids, where=learned)
            at = end
        batch["input_ids"][i, at:] = pad_id
        # Padding counts up from 0 like views of its own, so attention never crosses into it; none is longer than the
        # row's own views, because some models have no further positions, or read all of a batch otherwise.
        longest = max((len(ids) for ids, _ in views), default=EMPTY_ROW_VIEW)
        batch["position_ids"][i, at:] = positions[: width - at] % longest
    return batch

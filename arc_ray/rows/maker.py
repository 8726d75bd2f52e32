"""Planned rows: a config and its task tables become a plan, and (plan, row number) becomes the arrays that are trained on.

`RowMaker` is everything a worker needs to make any row, at any time, in any order: the same bytes each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.config import Config
from arc_ray.config.training import ViewConfig
from arc_ray.datasets.garbage import collector_paused
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.plan import Addresses, Plan, make_plan
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import Views, draw_views, keys_of

IGNORED = -100
"""Label of a token that is not learned (the convention of Hugging Face and PyTorch)."""

EMPTY_ROW_VIEW = 16
"""Tokens of each view that the padding of a row without views is cut into: the least that `train.row_tokens` may be."""

Batch = dict[str, npt.NDArray[Any]]
"""input_ids, position_ids, labels: int32 (rows, row_tokens); labels[t] is the token at t itself, or IGNORED."""

Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""One view: its token ids and which of them are learned, both (length,)."""

_CHUNK = 200_000
"""Views drawn at once while planning: bounds memory, changes nothing else."""


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
        rows = np.asarray(rows, np.int64)
        known = rows[rows < self.plan.num_rows]
        begin, end = self.plan.first_view[known], self.plan.first_view[known + 1]
        bounds = np.cumsum([0, *(end - begin)]).tolist()
        with collector_paused():
            encoded = self._encode(np.concatenate([np.zeros(0, np.int64), *map(np.arange, begin, end)]))
            of_known = iter([encoded[a:b] for a, b in pairwise(bounds)])
            views = [next(of_known) if row < self.plan.num_rows else [] for row in rows]
            return write_rows(views, self.plan.row_tokens, self.pad_id)

    def views_of(self, row: int) -> list[Encoded]:
        """Return (ids, learned) of each view of a row, in order."""
        return self._encode(np.arange(self.plan.first_view[row], self.plan.first_view[row + 1]))

    def _encode(self, places: npt.NDArray[np.int64]) -> list[Encoded]:
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
        span = slice(int(self.plan.first_view[row]), int(self.plan.first_view[row + 1]))
        a = self.plan.views.take(span)
        names, ids = self.plan.sources, [table.ids for table in self.tables]
        columns = zip(a.source, a.task, a.copy, a.epoch, strict=True)
        return [f"{names[s]}/{ids[s][t]}/{c}/{e}" for s, t, c, e in columns]


def write_rows(rows: Sequence[Sequence[Encoded]], width: int, pad_id: int) -> Batch:
    """Write views one after another into rows of `width` tokens; a row without views is padding throughout."""
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


def plan_rows(config: Config, tables: Mapping[str, TaskTable], codec: Codec) -> Plan:
    """Plan a training run: every source of `data.mix`, every task, every copy, every epoch.

    Raises UserError if nothing is left to train on.
    """
    sources = [name for name, copies in config.data.mix.items() if copies > 0]
    parts, shown, tokens, learned, shortened = [], [], [], [], 0
    for index, name in enumerate(sources):
        for addresses in _addresses(config, index, name, tables[name]):
            views = draw_views(config.view, tables[name], addresses.task, addresses.key)
            fitting, lengths = fit_views(
                codec, tables[name], views, config.train.row_tokens, drop=config.train.too_long == "drop"
            )
            parts.append(addresses)
            shown.append(fitting)
            tokens.append(lengths[0])
            learned.append(lengths[1])
            shortened += int(((fitting >= 0) & (fitting < views.num_shown())).sum())
    if not parts or not any((s >= 0).any() for s in shown):
        raise UserError(
            "nothing to train on: data.mix names no source with tasks that fit into train.row_tokens"
            f" = {config.train.row_tokens}; give a source at least one view per task, or longer rows"
        )
    return make_plan(
        Addresses.join(parts),
        np.concatenate(shown),
        np.concatenate(tokens),
        np.concatenate(learned),
        sources=sources,
        row_tokens=config.train.row_tokens,
        batch_rows=config.train.batch_rows,
        max_steps=config.train.max_steps,
        seed=config.seed,
        shortened=shortened,
    )


def first_views(config: Config, name: str, table: TaskTable) -> Views:
    """Draw the first view of every task of a source, as training begins with it: for people to look at."""
    task = np.arange(len(table))
    return draw_views(config.view, table, task, keys_of(config.seed, name, table, task, np.zeros_like(task), 0))


def _addresses(config: Config, index: int, name: str, table: TaskTable) -> list[Addresses]:
    """Address the views of one source, in chunks; copy is the slowest index within an epoch."""
    copies = config.data.mix[name]
    per_epoch = copies * len(table)
    total = per_epoch * config.train.epochs
    chunks = []
    for begin in range(0, total, _CHUNK):
        number = np.arange(begin, min(begin + _CHUNK, total))
        epoch, within = number // per_epoch, number % per_epoch
        copy, task = within // len(table), within % len(table)
        key = keys_of(config.seed, name, table, task, copy, epoch)
        chunks.append(
            Addresses(
                source=np.full(len(number), index, np.int16),
                task=task.astype(np.int32),
                copy=copy.astype(np.int32),
                epoch=epoch.astype(np.int32),
                key=key,
            )
        )
    return chunks

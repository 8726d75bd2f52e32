"""The plan: which views make up which packed row, and the order of rows; made from lengths alone, before any token.

Step `s` uses rows [s*B, (s+1)*B) whatever the number of workers, so resuming is one integer and every cluster trains on
the same batches. A plan is small: about 30 bytes a view, in `plan.parquet`.
"""

import io
import json
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arc_ray.config import Config
from arc_ray.contents import parse_json, parse_parquet
from arc_ray.runs.shapes import PlanShape
from arc_ray.seeding import counter_bits, rng_for

SHUFFLE_WINDOW = 8192
"""Views packed together: enough for a tight fit, few enough that a row's views come from all over the epoch."""

KEPT_FIELDS = ("row_tokens", "batch_rows", "num_steps", "sources", "counts")
"""Fields of a plan that its file keeps beside the columns, with `data`."""

_ORDER_STREAM = 64


VIEW_COLUMNS = {
    "source": np.int16,
    "task": np.int32,
    "copy": np.int32,
    "epoch": np.int32,
    "key": np.uint64,
    "shown": np.int8,
    "tokens": np.int32,
    "learned": np.int32,
}
"""What is known of a planned view: where it comes from (`source` is an index into the plan's sources, `task` into the
source's table), what its randomness is, the most pairs it may show (-1 where it fits into no row), and its length then."""

PlannedViews = npt.NDArray[np.void]
"""Planned views with the fields of `VIEW_COLUMNS`: (n,)."""


def planned_views(*columns: Any) -> PlannedViews:
    """Put the columns of views together, in the order of `VIEW_COLUMNS`; a number is that of all views."""
    views = np.empty(np.broadcast(*columns).shape, np.dtype(list(VIEW_COLUMNS.items()), align=True))
    for name, column in zip(VIEW_COLUMNS, columns, strict=True):
        views[name] = column
    return views


@dataclass(frozen=True, eq=False)
class Plan:
    """Views in row order, and what the rows add up to. Two steps of two rows of up to 10 tokens; the last row is empty:

    views["tokens"]  [6, 4,  7,  5, 3]      views["learned"]  [2, 1, 2, 2, 1]
    row               0  0   1   2  2       first_view        [0, 2, 3, 5]
    views["task"]    [3, 0,  1,  0, 2]      views["shown"]    [3, 1, 3, 2, 1]
    rows_of_step(0) == range(0, 2)     rows_of_step(1) == range(2, 4), of which 3 is no row
    learned_per_step() == [5, 3]       fill() == 25 / 30
    """

    views: PlannedViews
    """All views that fit; those of a row stand together, rows in training order."""
    first_view: npt.NDArray[np.int64]
    """Row r holds views first_view[r] to first_view[r+1]: (num_rows + 1,)."""
    row_tokens: int
    batch_rows: int
    num_steps: int
    sources: tuple[str, ...]
    counts: dict[str, Any]
    """For the report: views over all epochs, how many of them were dropped or shortened, views in the rows per source and
    per task."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Source, also of validation, -> fingerprints of its tasks; empty in older plans."""

    @property
    def num_rows(self) -> int:
        """Number of rows, without the empty ones that fill the last batch."""
        return len(self.first_view) - 1

    def rows_of_step(self, step: int) -> range:
        """Return the row numbers of an optimizer step; numbers from `num_rows` on are empty rows."""
        return range(step * self.batch_rows, (step + 1) * self.batch_rows)

    def learned_per_row(self) -> npt.NDArray[np.int64]:
        """Return the learned tokens of each row: (num_rows,)."""
        return np.diff(_totals(self.views["learned"])[self.first_view])

    def learned_per_step(self) -> npt.NDArray[np.int64]:
        """Return the learned tokens of each step's global batch, which the loss is divided by: (num_steps,)."""
        return self._per_step(self.views["learned"])

    def tokens_per_step(self) -> npt.NDArray[np.int64]:
        """Return the non-padding tokens of each step: (num_steps,)."""
        return self._per_step(self.views["tokens"])

    def squared_lengths_per_step(self) -> npt.NDArray[np.int64]:
        """Return the sum over each step's views of their squared length, which attention costs: (num_steps,)."""
        return self._per_step(self.views["tokens"].astype(np.int64) ** 2)

    def _per_step(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        edges = np.minimum(np.arange(self.num_steps + 1) * self.batch_rows, self.num_rows)
        return np.diff(_totals(values)[self.first_view[edges]])

    def epoch_of_step(self, step: int) -> float:
        """Return how many epochs are done after `step` steps."""
        row = min(step * self.batch_rows, self.num_rows)
        # Not first_view[-1]: where max_steps cuts the plan, its end is not the end of the last epoch.
        whole = self.counts["views"] - self.counts["dropped"]
        return float(self.first_view[row] / max(whole, 1) * self.counts["epochs"])

    def fill(self) -> float:
        """Return the share of the rows' places that hold a token."""
        return float(self.views["tokens"].sum() / max(self.num_rows * self.row_tokens, 1))


def make_plan(config: Config, sources: Sequence[str], views: PlannedViews, shortened: int = 0) -> Plan:
    """Pack the views that fit into rows, epoch by epoch, in an order that follows from the config's seed.

    `shortened` is only counted.
    """
    train = config.train
    fits = np.flatnonzero(views["shown"] >= 0)
    index, first_view = _in_rows(views, fits, train.row_tokens, config.seed)
    num_steps = -(-(len(first_view) - 1) // train.batch_rows)
    if train.max_steps is not None and train.max_steps < num_steps:
        num_steps = train.max_steps
        first_view = first_view[: num_steps * train.batch_rows + 1]
        index = index[: first_view[-1]]
    planned = views[index]
    counts: dict[str, Any] = {
        "views": len(views),
        "dropped": len(views) - len(fits),
        "shortened": shortened,
        "epochs": int(views["epoch"].max(initial=-1)) + 1,
        "views_per_source": {name: int((planned["source"] == i).sum()) for i, name in enumerate(sources)},
        "views_per_task": {name: _views_per_task(views, planned, i) for i, name in enumerate(sources)},
    }
    return Plan(planned, first_view, train.row_tokens, train.batch_rows, num_steps, tuple(sources), counts)


def _in_rows(
    views: PlannedViews, fits: npt.NDArray[np.int64], row_tokens: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shuffle and pack the views that fit: their positions in row order, and where rows begin among them."""
    order: list[int] = []
    sizes: list[int] = []
    epochs = views["epoch"][fits]
    for epoch in np.unique(epochs):
        here = fits[epochs == epoch]
        here = here[np.argsort(counter_bits(views["key"][here], _ORDER_STREAM, 1)[:, 0], kind="stable")]
        for begin in range(0, len(here), SHUFFLE_WINDOW):
            window = here[begin : begin + SHUFFLE_WINDOW]
            rows = pack(views["tokens"][window], row_tokens)
            rows = [rows[i] for i in rng_for(seed, "rows", int(epoch), begin).permutation(len(rows))]
            order += window[list(chain(*rows))].tolist()
            sizes += map(len, rows)
    return np.array(order, np.int64), _totals(np.array(sizes, np.int64))


def _totals(values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Sum up from the beginning to before each value, and all: (n + 1,)."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])


def _views_per_task(views: PlannedViews, planned: PlannedViews, source: int) -> dict[str, int]:
    """Return the fewest and the most planned views of a task of a source, and how many of its tasks have none."""
    num_tasks = int(views["task"][views["source"] == source].max(initial=-1)) + 1
    counts = np.bincount(planned["task"][planned["source"] == source], minlength=num_tasks)
    return {
        "fewest": int(counts.min(initial=len(planned))),
        "most": int(counts.max(initial=0)),
        "tasks_without": int((counts == 0).sum()),
    }


def pack(lengths: npt.NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Pack items into rows by best fit, longest first: each goes to the fullest row that still has room.

    Returns the items of each row, as positions in `lengths`. Best-fit decreasing is within 11/9 of the optimum
    (Johnson, 1973) and within 1 % of it on lengths like ours.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    sizes = lengths.tolist()
    for item in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[item]
        at = bisect_left(rooms, (size, -1))
        if at == len(rooms):
            rows.append([item])
            insort(rooms, (capacity - size, len(rows) - 1))
        else:
            room, row = rooms.pop(at)
            rows[row].append(item)
            if room > size:
                insort(rooms, (room - size, row))
    return rows


def save_plan(plan: Plan) -> bytes:
    """Write a plan as the bytes of a Parquet file."""
    columns = {name: plan.views[name] for name in VIEW_COLUMNS}
    columns["row"] = np.repeat(np.arange(plan.num_rows, dtype=np.int32), np.diff(plan.first_view))
    about = {name: getattr(plan, name) for name in KEPT_FIELDS} | {"data": dict(plan.data)}
    table = pa.table(columns).replace_schema_metadata({"arc_ray.plan": json.dumps(about)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def load_plan(content: bytes) -> Plan:
    """Read a plan back. Raises ValueError, or what pyarrow raises, for what is no plan."""
    written = pq.read_schema(io.BytesIO(content)).metadata or {}
    about = parse_json(written[b"arc_ray.plan"], PlanShape)
    about["sources"] = tuple(about["sources"])
    columns = {name: pa.from_numpy_dtype(kind) for name, kind in VIEW_COLUMNS.items()} | {"row": pa.int32()}
    table = parse_parquet(content, pa.schema(columns))
    if any(column.null_count for column in table.columns):
        raise ValueError("views have no empty values")
    row, views = table["row"].to_numpy(), planned_views(*(table[name].to_numpy() for name in VIEW_COLUMNS))
    first_view = np.searchsorted(row, np.arange(int(row.max(initial=-1)) + 2)).astype(np.int64)
    plan = Plan(views, first_view, **about)
    in_order = len(views) and (np.diff(row, prepend=0) >= 0).all() and (np.diff(first_view) > 0).all()
    is_known = np.isin(views["source"], np.arange(len(plan.sources))).all() and (views["task"] >= 0).all()
    fits = (views["tokens"] > 0).all() and (np.diff(_totals(views["tokens"])[first_view]) <= plan.row_tokens).all()
    if not (in_order and is_known and fits):
        raise ValueError("its views, rows and sources do not belong together")
    return plan

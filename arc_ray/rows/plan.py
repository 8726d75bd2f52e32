"""The plan: which views make up which packed row, and the order of rows; made from lengths alone, before any token.

Step `s` uses rows [s*B, (s+1)*B) whatever the number of workers, so resuming is one integer and every cluster trains on
the same batches. A plan is small: about 30 bytes a view, in `plan.parquet`.
"""

import io
import json
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arc_ray.seeding import counter_bits, rng_for

SHUFFLE_WINDOW = 8192
"""Views packed together: enough for a tight fit, few enough that a row's views come from all over the epoch."""

_ORDER_STREAM = 64


@dataclass(frozen=True, eq=False)
class Addresses:
    """Addresses of n views: where each comes from, and what its randomness is."""

    source: npt.NDArray[np.int16]
    """Index into the plan's sources: (n,)."""
    task: npt.NDArray[np.int32]
    """Index into the source's task table: (n,)."""
    copy: npt.NDArray[np.int32]
    epoch: npt.NDArray[np.int32]
    key: npt.NDArray[np.uint64]

    def take(self, index: npt.NDArray[np.integer] | slice) -> "Addresses":
        """Return the addresses at these positions."""
        return Addresses(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, parts: Sequence["Addresses"]) -> "Addresses":
        """Concatenate addresses."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Plan:
    """Views in row order, and what the rows add up to."""

    views: Addresses
    """All planned views; those of a row stand together, rows in training order."""
    shown: npt.NDArray[np.int8]
    """Most pairs each view may show: (n,)."""
    tokens: npt.NDArray[np.int32]
    learned: npt.NDArray[np.int32]
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

    def _per_step(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        edges = np.minimum(np.arange(self.num_steps + 1) * self.batch_rows, self.num_rows)
        return np.diff(totals[self.first_view[edges]])

    def learned_per_step(self) -> npt.NDArray[np.int64]:
        """Return the learned tokens of each step's global batch, which the loss is divided by: (num_steps,)."""
        return self._per_step(self.learned)

    def tokens_per_step(self) -> npt.NDArray[np.int64]:
        """Return the non-padding tokens of each step: (num_steps,)."""
        return self._per_step(self.tokens)

    def squared_lengths_per_step(self) -> npt.NDArray[np.int64]:
        """Return the sum over each step's views of their squared length, which attention costs: (num_steps,)."""
        return self._per_step(self.tokens.astype(np.int64) ** 2)

    def learned_per_row(self) -> npt.NDArray[np.int64]:
        """Return the learned tokens of each row: (num_rows,)."""
        totals = np.concatenate([[0], np.cumsum(self.learned, dtype=np.int64)])
        return np.diff(totals[self.first_view])

    def epoch_of_step(self, step: int) -> float:
        """Return how many epochs are done after `step` steps."""
        row = min(step * self.batch_rows, self.num_rows)
        # Not first_view[-1]: where max_steps cuts the plan, its end is not the end of the last epoch.
        whole = self.counts["views"] - self.counts["dropped"]
        return float(self.first_view[row] / max(whole, 1) * self.counts["epochs"])

    def fill(self) -> float:
        """Return the share of the rows' places that hold a token."""
        return float(self.tokens.sum() / max(self.num_rows * self.row_tokens, 1))


def make_plan(
    views: Addresses,
    shown: npt.NDArray[np.integer],
    tokens: npt.NDArray[np.integer],
    learned: npt.NDArray[np.integer],
    *,
    sources: Sequence[str],
    row_tokens: int,
    batch_rows: int,
    max_steps: int | None,
    seed: int,
    shortened: int = 0,
) -> Plan:
    """Pack views into rows of at most `row_tokens`, epoch by epoch, in an order that follows from `seed`.

    `shown` is -1 where a view does not fit and is left out; the other arrays are (n,) alike. `shortened` is only counted.
    """
    fits = np.flatnonzero(shown >= 0)
    order, row_sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for epoch in np.unique(views.epoch[fits]):
        here = fits[views.epoch[fits] == epoch]
        here = here[np.argsort(counter_bits(views.key[here], _ORDER_STREAM, 1)[:, 0], kind="stable")]
        for begin in range(0, len(here), SHUFFLE_WINDOW):
            window = here[begin : begin + SHUFFLE_WINDOW]
            rows = pack(tokens[window], row_tokens)
            rows = [rows[i] for i in rng_for(seed, "rows", int(epoch), begin).permutation(len(rows))]
            order.append(window[np.concatenate([np.array(row) for row in rows])])
            row_sizes.append(np.array([len(row) for row in rows]))
    index = np.concatenate(order)
    first_view = np.concatenate([[0], np.cumsum(np.concatenate(row_sizes))]).astype(np.int64)
    num_steps = -(-(len(first_view) - 1) // batch_rows)
    if max_steps is not None and max_steps < num_steps:
        num_steps = max_steps
        first_view = first_view[: num_steps * batch_rows + 1]
        index = index[: first_view[-1]]
    counts: dict[str, Any] = {
        "views": len(shown),
        "dropped": len(shown) - len(fits),
        "shortened": shortened,
        "epochs": int(views.epoch.max()) + 1 if len(shown) else 0,
        "views_per_source": {name: int((views.source[index] == i).sum()) for i, name in enumerate(sources)},
        "views_per_task": {name: _views_per_task(views, index, i) for i, name in enumerate(sources)},
    }
    return Plan(
        views=views.take(index),
        shown=shown[index].astype(np.int8),
        tokens=tokens[index].astype(np.int32),
        learned=learned[index].astype(np.int32),
        first_view=first_view,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        num_steps=num_steps,
        sources=tuple(sources),
        counts=counts,
    )


def _views_per_task(views: Addresses, planned: npt.NDArray[np.int64], source: int) -> dict[str, int]:
    """Return the fewest and the most planned views of a task of a source, and how many of its tasks have none."""
    num_tasks = int(views.task[views.source == source].max(initial=-1)) + 1
    counts = np.bincount(views.task[planned][views.source[planned] == source], minlength=num_tasks)
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
    columns = {name: getattr(plan.views, name) for name in Addresses.__dataclass_fields__}
    rows = np.repeat(np.arange(plan.num_rows, dtype=np.int32), np.diff(plan.first_view))
    columns |= {"shown": plan.shown, "tokens": plan.tokens, "learned": plan.learned, "row": rows}
    about = {
        "row_tokens": plan.row_tokens,
        "batch_rows": plan.batch_rows,
        "num_steps": plan.num_steps,
        "sources": plan.sources,
        "counts": plan.counts,
        "data": dict(plan.data),
    }
    table = pa.table(columns).replace_schema_metadata({"arc_ray.plan": json.dumps(about)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def load_plan(content: bytes) -> Plan:
    """Read a plan back."""
    table = pq.read_table(io.BytesIO(content))
    about = json.loads(table.schema.metadata[b"arc_ray.plan"])
    column = {name: table[name].to_numpy() for name in table.column_names}
    num_rows = int(column["row"][-1]) + 1 if len(column["row"]) else 0
    return Plan(
        views=Addresses(*(column[name] for name in Addresses.__dataclass_fields__)),
        shown=column["shown"],
        tokens=column["tokens"],
        learned=column["learned"],
        first_view=np.searchsorted(column["row"], np.arange(num_rows + 1)).astype(np.int64),
        row_tokens=about["row_tokens"],
        batch_rows=about["batch_rows"],
        num_steps=about["num_steps"],
        sources=tuple(about["sources"]),
        counts=about["counts"],
        data=about.get("data", {}),
    )

"""Rows as arrays: of a plan, by their numbers, and of the views that validation answers.

`RowMaker` is everything a worker needs to make any row, at any time, in any order: the same bytes each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.config.training import ViewConfig
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import GridSlot
from arc_ray.prompts.lengths import fit_views
from arc_ray.prompts.positions import SEQUENCE, Positions
from arc_ray.rows.plan import Plan, pack
from arc_ray.runs.machine import collector_paused
from arc_ray.tasks.task import Grid, TaskTable
from arc_ray.views.view import Views, draw_views, plain_views

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
            return write_rows(views, self.plan.row_tokens, self.pad_id, self.codec.positions)

    def encode(self, places: npt.NDArray[np.int64]) -> list[Encoded]:
        """Draw and write the planned views at these places, source by source: numpy's calls cost more than their work."""
        planned = self.plan.views[places]
        encoded: list[Any] = [None] * len(planned)
        for source in np.unique(planned["source"]):
            here = np.flatnonzero(planned["source"] == source)
            table, part = self.tables[source], planned[here]
            views = draw_views(self.view, table, part["task"], part["key"]).showing(part["shown"])
            for i, pair in zip(here.tolist(), self.codec.encode(table, views), strict=True):
                encoded[i] = pair
        return encoded

    def names_of(self, row: int) -> list[str]:
        """Name the views of a row as source/task/copy/epoch, for error messages."""
        views = self.plan.views[slice(*self.plan.first_view[row : row + 2])]
        addresses = views[["source", "task", "copy", "epoch"]].tolist()
        return [f"{self.plan.sources[s]}/{self.tables[s].ids[t]}/{c}/{e}" for s, t, c, e in addresses]


def write_rows(rows: Sequence[Sequence[Encoded]], width: int, pad_id: int, positions: Positions = SEQUENCE) -> Batch:
    """Write views one after another into rows of `width` tokens; a row without views is padding throughout.

    The first token of a view is at position 0, and no other: that is how a batch says where views begin.

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
    counted = np.arange(width, dtype=np.int32)
    for i, views in enumerate(rows):
        at = 0
        for ids, learned in views:
            end = at + len(ids)
            batch["input_ids"][i, at:end] = ids
            batch["position_ids"][i, at:end] = positions.of(ids)
            np.copyto(batch["labels"][i, at:end], ids, where=learned)
            at = end
        batch["input_ids"][i, at:] = pad_id
        # Padding counts up from 0 like views of its own, so attention never crosses into it; none is longer than the
        # row's own views, because some models have no further positions, or read all of a batch otherwise.
        longest = max((len(ids) for ids, _ in views), default=EMPTY_ROW_VIEW)
        batch["position_ids"][i, at:] = counted[: width - at] % longest
    return batch


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """The views to answer, packed into rows once. View 0 with 2 learned tokens and view 1 with 3, of which the last ends
    the answer, both in row 0, and view 2 in row 1 are

        owner          [0, 0,  1, 1, 1,  2, 2]
        is_cell        [1, 0,  1, 1, 0,  1, 0]
        first_learned  [0,               5,   7]
    """

    names: tuple[str, ...]
    """Each view as source/task/number of its test pair: (num_views,)."""
    batch: Batch
    """All rows, as for training: int32 (num_rows, row_tokens)."""
    owner: npt.NDArray[np.int32]
    """Which view each learned token belongs to, in row-major order: (learned tokens,)."""
    is_cell: npt.NDArray[np.bool_]
    """Whether each learned token is a cell's: (learned tokens,). Where an answer is words, every token counts."""
    first_learned: npt.NDArray[np.int64]
    """Where each row's learned tokens begin: (num_rows + 1,)."""
    too_long: tuple[str, ...]
    """Views that fit into no row even with one pair shown; they count as wrong."""


def make_validation(
    codec: Codec, tables: Mapping[str, TaskTable], max_shown: int, row_tokens: int, pad_id: int
) -> ValidationSet:
    """Write all validation views as packed rows; `codec` must learn the asked answer only.

    Raises UserError where there is no answer to compare with.
    """
    names, too_long = [], []
    encoded: list[Encoded] = []
    is_cell: list[npt.NDArray[np.bool_]] = []
    for source, table in tables.items():
        views = plain_views(table, max_shown)
        asked = [f"{source}/{table.ids[task]}/{n}" for task, n in zip(views.task, views.nth(), strict=True)]
        answers = _answers(codec, table, views, asked)
        shown, _ = fit_views(codec, table, views, row_tokens, drop=False)
        fits = np.flatnonzero(shown >= 0)
        names += [asked[i] for i in fits]
        too_long += [asked[i] for i in np.flatnonzero(shown < 0)]
        written = codec.encode(table, views.showing(np.maximum(shown, 0)).take(fits))
        encoded += written
        for answer, (_, learned) in zip((answers[i] for i in fits), written, strict=True):
            # Row numbers and a stated shape are digits too, but no cells.
            is_cell.append(np.ones(int(learned.sum()), bool) if answer is None else codec.answer_cells(answer))
    if not names and not too_long:
        raise UserError(f"nothing to answer: no task of {', '.join(tables)} has a test pair")
    rows = pack(np.array([len(ids) for ids, _ in encoded], np.int64), row_tokens)
    batch = write_rows([[encoded[i] for i in row] for row in rows], row_tokens, pad_id, codec.positions)
    order = [i for row in rows for i in row]
    return ValidationSet(
        names=tuple(names),
        batch=batch,
        owner=np.repeat(np.array(order, np.int32), [len(is_cell[i]) for i in order]),
        is_cell=np.concatenate([np.zeros(0, bool), *(is_cell[i] for i in order)]),
        first_learned=np.cumsum([0, *(batch["labels"] != IGNORED).sum(axis=1)]).astype(np.int64),
        too_long=tuple(too_long),
    )


def _answers(codec: Codec, table: TaskTable, views: Views, names: Sequence[str]) -> list[Grid | None]:
    """Return the grid that answers each view, None where words do. Raises UserError where neither is known."""
    answers: list[Grid | None] = []
    can_write, layouts = codec.can_write(table, views), codec.layouts_of(table, views)
    for i, (name, layout) in enumerate(zip(names, layouts, strict=True)):
        if not can_write[i]:
            raise UserError(f"{name}: the task has no description, which the prompt format needs")
        slot = layout[-2]
        grid = table.grid(2 * views.asked[i] + (slot.side == "output")) if isinstance(slot, GridSlot) else None
        if grid is not None and not grid.size:
            raise UserError(f"{name}: the output of this test pair is hidden, so no answer can be checked against it")
        answers.append(grid)
    return answers

"""Validation rows: the views that validation answers, packed once, with what each learned token belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import GridSlot
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.maker import IGNORED, Batch, Encoded, write_rows
from arc_ray.rows.plan import pack
from arc_ray.tasks.task import Grid, TaskTable
from arc_ray.views.view import Views, plain_views


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
        answers = [_answer(codec, table, views, i, name) for i, name in enumerate(asked)]
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
    batch = write_rows([[encoded[i] for i in row] for row in rows], row_tokens, pad_id)
    order = [i for row in rows for i in row]
    return ValidationSet(
        names=tuple(names),
        batch=batch,
        owner=np.repeat(np.array(order, np.int32), [len(is_cell[i]) for i in order]),
        is_cell=np.concatenate([np.zeros(0, bool), *(is_cell[i] for i in order)]),
        first_learned=np.cumsum([0, *(batch["labels"] != IGNORED).sum(axis=1)]).astype(np.int64),
        too_long=tuple(too_long),
    )


def _answer(codec: Codec, table: TaskTable, views: Views, i: int, name: str) -> Grid | None:
    """Return the grid that answers view `i`, None where words do. Raises UserError where neither is known."""
    if not codec.can_write(table, views.take(slice(i, i + 1)))[0]:
        raise UserError(f"{name}: the task has no description, which the prompt format needs")
    slot = codec.view_layout(table, views, i)[-2]
    if not isinstance(slot, GridSlot):
        return None
    grid = table.grid(2 * views.asked[i] + (slot.side == "output"))
    if not grid.size:
        raise UserError(f"{name}: the output of this test pair is hidden, so no answer can be checked against it")
    return grid

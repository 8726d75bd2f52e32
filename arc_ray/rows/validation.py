"""Validation rows: the views that validation answers, packed once, with what each learned token belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import GridSlot
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.maker import IGNORED, Batch, Encoded, write_rows
from arc_ray.rows.plan import pack
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import Views, plain_views


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """The views to answer, packed into rows once."""

    names: tuple[str, ...]
    """Each view as source/task/number of its test pair: (num_views,)."""
    batch: Batch
    """All rows, as for training: int32 (num_rows, row_tokens)."""
    owner: npt.NDArray[np.int32]
    """Which view each learned token belongs to, in row-major order: (learned tokens,)."""
    is_cell: npt.NDArray[np.bool_]
    """Whether each learned token is a cell's: (learned tokens,)."""
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
        named = [f"{source}/{table.ids[task]}/{n}" for task, n in zip(views.task, views.nth(), strict=True)]
        _check_answers_are_known(codec, table, views, named)
        shown, _ = fit_views(codec, table, views, row_tokens, drop=False)
        fits = np.flatnonzero(shown >= 0)
        names += [named[i] for i in fits]
        too_long += [named[i] for i in np.flatnonzero(shown < 0)]
        views = views.showing(np.maximum(shown, 0)).take(fits)
        written = codec.encode(table, views)
        encoded += written
        is_cell += [_is_cell(codec, table, views, i, int(mask.sum())) for i, (_, mask) in enumerate(written)]
    if not names and not too_long:
        raise UserError(f"nothing to answer: no task of {', '.join(tables)} has a test pair")
    rows = pack(np.array([len(ids) for ids, _ in encoded], np.int64), row_tokens)
    batch = write_rows([[encoded[i] for i in row] for row in rows], row_tokens, pad_id)
    order = [i for row in rows for i in row]
    learned_per_row = (batch["labels"] != IGNORED).sum(axis=1)
    return ValidationSet(
        names=tuple(names),
        batch=batch,
        owner=np.repeat(np.array(order, np.int32), [len(is_cell[i]) for i in order]),
        is_cell=np.concatenate([np.zeros(0, bool), *(is_cell[i] for i in order)]),
        first_learned=np.concatenate([[0], np.cumsum(learned_per_row)]).astype(np.int64),
        too_long=tuple(too_long),
    )


def _check_answers_are_known(codec: Codec, table: TaskTable, views: Views, names: Sequence[str]) -> None:
    can_write = codec.can_write(table, views)
    for i, name in enumerate(names):
        if not can_write[i]:
            raise UserError(f"{name}: the task has no description, which the prompt format needs")
        slot = codec.view_layout(table, views, i)[-2]
        if isinstance(slot, GridSlot) and not table.height[2 * views.asked[i] + (slot.side == "output")]:
            raise UserError(f"{name}: the output of this test pair is hidden, so no answer can be checked against it")


def _is_cell(codec: Codec, table: TaskTable, views: Views, i: int, num_learned: int) -> npt.NDArray[np.bool_]:
    """Tell which learned tokens of a plain view are cells: row numbers and a stated shape are digits too, but no cells.

    Where an answer is words, every token counts.
    """
    slot = codec.view_layout(table, views, i)[-2]
    if not isinstance(slot, GridSlot):
        return np.ones(num_learned, bool)
    return codec.answer_cells(table.grid(2 * views.asked[i] + (slot.side == "output")))

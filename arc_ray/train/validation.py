"""Validation during training: exact greedy accuracy from one forward pass, without generating.

Greedy decoding gives the right grid if and only if, given the right prefix, every answer token is the argmax.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

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


@dataclass(frozen=True, eq=False)
class Outcome:
    """What validation found, view by view; a view that is too long is wrong in every cell."""

    names: tuple[str, ...]
    solved: npt.NDArray[np.bool_]
    cell_accuracy: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    """Mean loss per learned token of each view; NaN where it was too long."""
    mean_loss: float

    def metrics(self) -> dict[str, float]:
        """Return flat metrics over all views, and for each source."""
        found = {"eval/loss": self.mean_loss, "eval/solved": float(self.solved.mean())}
        found["eval/cell_accuracy"] = float(self.cell_accuracy.mean())
        sources = np.array([name.split("/", 1)[0] for name in self.names])
        for source in np.unique(sources):
            found[f"eval/solved/{source}"] = float(self.solved[sources == source].mean())
            found[f"eval/cell_accuracy/{source}"] = float(self.cell_accuracy[sources == source].mean())
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the outcome of each view, for the study's analysis."""
        return {
            "names": list(self.names),
            "solved": self.solved.astype(int).tolist(),
            "cell_accuracy": [round(float(x), 6) for x in self.cell_accuracy],
            "loss": [None if np.isnan(x) else round(float(x), 6) for x in self.loss],
        }


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
        nth = np.arange(len(views)) - np.searchsorted(views.task, views.task)
        named = [f"{source}/{table.ids[task]}/{n}" for task, n in zip(views.task, nth, strict=True)]
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


def validate(engine: Any, validation: ValidationSet, rows_at_once: int, rank: int, num_workers: int) -> Outcome:
    """Answer all validation views; rows are shared among the workers and every worker returns the whole outcome."""
    num_views, num_tokens = len(validation.names), len(validation.owner)
    found = torch.zeros(2, max(num_tokens, 1), dtype=torch.float64)
    engine.eval()
    with torch.no_grad():
        for rows, is_mine in _shares(len(validation.first_learned) - 1, rows_at_once, rank, num_workers):
            inputs = {k: torch.from_numpy(v[rows]).long().to(engine.device) for k, v in validation.batch.items()}
            losses, is_right = engine(**inputs)
            if is_mine:
                span = slice(int(validation.first_learned[rows.start]), int(validation.first_learned[rows.stop]))
                found[0, span] = losses.double().cpu()
                found[1, span] = is_right.double().cpu()
    engine.train()
    if num_workers > 1:
        moved = found.to(engine.device)
        torch.distributed.all_reduce(moved)
        found = moved.cpu()
    losses, is_right = found.numpy()[:, :num_tokens]
    sums = _per_view(validation.owner, num_views)
    cells = sums(validation.is_cell.astype(float))
    missing = len(validation.too_long)
    pad = lambda values, value: np.concatenate([values, np.full(missing, value)])  # noqa: E731
    return Outcome(
        names=validation.names + validation.too_long,
        solved=pad(sums(is_right) == sums(np.ones(num_tokens)), False).astype(bool),
        cell_accuracy=pad(sums(is_right * validation.is_cell) / np.maximum(cells, 1), 0.0),
        loss=pad(sums(losses) / np.maximum(sums(np.ones(num_tokens)), 1), np.nan),
        mean_loss=float(losses.sum() / max(num_tokens, 1)),
    )


def _shares(num_rows: int, rows_at_once: int, rank: int, num_workers: int) -> Iterator[tuple[slice, bool]]:
    """Yield this worker's slices of rows, and whether they count.

    At ZeRO 3 every worker must make as many passes: one that has run out repeats the last rows, which are another's.
    """
    slices = [slice(start, min(start + rows_at_once, num_rows)) for start in range(0, num_rows, rows_at_once)]
    for first in range(0, len(slices), num_workers):
        mine = first + rank
        yield slices[min(mine, len(slices) - 1)], mine < len(slices)


def _per_view(owner: npt.NDArray[np.int32], num_views: int) -> Any:
    return lambda values: np.bincount(owner, weights=values, minlength=num_views)

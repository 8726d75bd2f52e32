"""Validation during training: exact greedy accuracy from one forward pass, without generating.

Greedy decoding gives the right grid if and only if, given the right prefix, every answer token is the argmax.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from arc_ray.plan import pack
from arc_ray.rows import IGNORED, Batch
from arc_ray.tasks import TaskTable
from arc_ray.tokens import Codec, fit_views
from arc_ray.views import plain_views


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
    """Write all validation views as packed rows; `codec` must learn the asked answer only."""
    names, encoded, too_long = [], [], []
    for source, table in tables.items():
        views = plain_views(table, max_shown)
        shown, _ = fit_views(codec, table, views, row_tokens, drop=False)
        fits = shown >= 0
        nth = np.arange(len(views)) - np.searchsorted(views.task, views.task)
        for i in range(len(views)):
            name = f"{source}/{table.ids[views.task[i]]}/{nth[i]}"
            (names if fits[i] else too_long).append(name)
        encoded += codec.encode(table, views.showing(np.maximum(shown, 0)).take(np.flatnonzero(fits)))
    rows = pack(np.array([len(ids) for ids, _ in encoded], np.int64), row_tokens)
    batch: Batch = {
        "input_ids": np.full((len(rows), row_tokens), pad_id, np.int32),
        "position_ids": np.tile(np.arange(row_tokens, dtype=np.int32), (len(rows), 1)),
        "labels": np.full((len(rows), row_tokens), IGNORED, np.int32),
    }
    owners, learned_per_row = [], []
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            ids, learned = encoded[i]
            span = slice(at, at + len(ids))
            batch["input_ids"][r, span] = ids
            batch["position_ids"][r, span] = np.arange(len(ids))
            batch["labels"][r, span] = np.where(learned, ids, IGNORED)
            owners.append(np.full(learned.sum(), i, np.int32))
            at += len(ids)
        batch["position_ids"][r, at:] = np.arange(row_tokens - at)
        learned_per_row.append((batch["labels"][r] != IGNORED).sum())
    labels = batch["labels"][batch["labels"] != IGNORED]
    return ValidationSet(
        names=tuple(names),
        batch=batch,
        owner=np.concatenate(owners) if owners else np.zeros(0, np.int32),
        is_cell=np.isin(labels, codec.cell_ids),
        first_learned=np.concatenate([[0], np.cumsum(learned_per_row)]).astype(np.int64),
        too_long=tuple(too_long),
    )


def validate(engine: Any, validation: ValidationSet, rows_at_once: int, rank: int, num_workers: int) -> Outcome:
    """Answer all validation views; rows are shared among the workers and every worker returns the whole outcome."""
    num_views, num_tokens = len(validation.names), len(validation.owner)
    found = torch.zeros(2, max(num_tokens, 1), dtype=torch.float64)
    engine.eval()
    with torch.no_grad():
        for rows in _shares(len(validation.first_learned) - 1, rows_at_once, rank, num_workers):
            inputs = {k: torch.from_numpy(v[rows]).long().to(engine.device) for k, v in validation.batch.items()}
            losses, is_right = engine(**inputs)
            span = slice(int(validation.first_learned[rows.start]), int(validation.first_learned[rows.stop]))
            count = span.stop - span.start
            found[0, span] = losses[:count].double().cpu()
            found[1, span] = is_right[:count].double().cpu()
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


def _shares(num_rows: int, rows_at_once: int, rank: int, num_workers: int) -> Iterator[slice]:
    """Yield this worker's slices of rows; at ZeRO 3 every worker must make as many passes, so short ones repeat the last."""
    starts = list(range(0, num_rows, rows_at_once))
    for i in range(-(-len(starts) // num_workers)):
        mine = i * num_workers + rank
        if mine < len(starts):
            yield slice(starts[mine], min(starts[mine] + rows_at_once, num_rows))
        elif starts:
            yield slice(num_rows, num_rows)


def _per_view(owner: npt.NDArray[np.int32], num_views: int) -> Any:
    return lambda values: np.bincount(owner, weights=values, minlength=num_views)

"""Validation during training: exact greedy accuracy from one forward pass, without generating.

Greedy decoding gives the right grid if and only if, given the right prefix, every answer token is the argmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from arc_ray.models.loss import inputs_of
from arc_ray.rows.maker import ValidationSet


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
        sources, found = np.array([name.split("/", 1)[0] for name in self.names]), {"eval/loss": self.mean_loss}
        for suffix, here in [("", sources != ""), *((f"/{name}", sources == name) for name in np.unique(sources))]:
            found[f"eval/solved{suffix}"] = float(self.solved[here].mean())
            found[f"eval/cell_accuracy{suffix}"] = float(self.cell_accuracy[here].mean())
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the outcome of each view, for the study's analysis."""
        return {
            "names": list(self.names),
            "solved": self.solved.astype(int).tolist(),
            "cell_accuracy": [round(float(x), 6) for x in self.cell_accuracy],
            "loss": [None if np.isnan(x) else round(float(x), 6) for x in self.loss],
        }


def validate(engine: Any, validation: ValidationSet, rows_at_once: int, rank: int, num_workers: int) -> Outcome:
    """Answer all validation views; rows are shared among the workers and every worker returns the whole outcome."""
    num_tokens = len(validation.owner)
    found = torch.zeros(2, max(num_tokens, 1), dtype=torch.float64)
    engine.eval()
    with torch.no_grad():
        for rows, is_mine in _shares(len(validation.first_learned) - 1, rows_at_once, rank, num_workers):
            inputs = inputs_of({name: array[rows] for name, array in validation.batch.items()}, engine.device)
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
    per_view = partial(np.bincount, validation.owner, minlength=len(validation.names))
    tokens, cells = per_view(), per_view(validation.is_cell)
    missing = np.zeros(len(validation.too_long))
    return Outcome(
        names=validation.names + validation.too_long,
        solved=np.append(per_view(is_right) == tokens, missing).astype(bool),
        cell_accuracy=np.append(per_view(is_right * validation.is_cell) / np.maximum(cells, 1), missing),
        loss=np.append(per_view(losses) / np.maximum(tokens, 1), missing + np.nan),
        mean_loss=float(losses.sum() / max(num_tokens, 1)),
    )


def _shares(num_rows: int, rows_at_once: int, rank: int, num_workers: int) -> Iterator[tuple[slice, bool]]:
    """Yield this worker's slices of rows, and whether they count: at ZeRO 3 all must make as many passes."""
    slices = [slice(start, min(start + rows_at_once, num_rows)) for start in range(0, num_rows, rows_at_once)]
    for first in range(0, len(slices), num_workers):
        mine = first + rank
        yield slices[min(mine, len(slices) - 1)], mine < len(slices)

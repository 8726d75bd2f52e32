"""The loss on learned tokens, without logits for any other, and what it takes of a batch; and validation by it.

Validation is exact greedy accuracy from one forward pass, without generating: greedy decoding gives the right grid if and
only if, given the right prefix, every answer token is the argmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import nn

from arc_ray.models.attention import Spans, hidden_states, lengths_of_views, view_ends
from arc_ray.rows.maker import IGNORED, Batch, ValidationSet


class LearnedLoss(nn.Module):
    """A causal language model that computes logits, 5 GB in float32 at 150k words and 8k tokens, where it learns only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        return next(self.parameters()).device

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        places: torch.Tensor,
        targets: torch.Tensor,
        spans: Spans,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the loss of each learned token (float32), and in eval mode whether it is the argmax (bool).

        Both are in row-major order; the arguments are what `inputs_of` makes.
        """
        model: Any = self.model
        hidden = hidden_states(model, input_ids, position_ids, spans).flatten(0, 1)
        logits = model.get_output_embeddings()(hidden.index_select(0, places)).float()
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses, None if self.training else logits.argmax(-1) == targets


def inputs_of(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Copy rows to a device as `LearnedLoss` takes them, without waiting for what the device computes meanwhile.

    All is one copy, and lengths are counted here, because a device tells a number only when it has computed everything before.

        labels [[-100 -100 7 -100 9]]    places [1 3], before the learned tokens in the rows laid end to end
                                         targets [7 9]
    """
    labels, width = batch["labels"].ravel(), batch["labels"].shape[1]
    learned = np.flatnonzero(labels != IGNORED)
    learned = learned[learned % width > 0]  # nothing predicts the first token of a row
    lengths = lengths_of_views(batch["position_ids"])
    parts = (
        batch["input_ids"].ravel(),
        batch["position_ids"].ravel(),
        learned - 1,
        labels[learned],
        view_ends(lengths),
    )
    packed = torch.from_numpy(np.concatenate(parts, dtype=np.int32, casting="same_kind"))
    if device.type == "cuda":
        packed = packed.pin_memory()  # from other memory the copy would wait
    packed = packed.to(device, non_blocking=True)
    sizes, shape = [part.size for part in parts], batch["labels"].shape
    input_ids, position_ids, places, targets, _ = packed.long().split(sizes)
    return {
        "input_ids": input_ids.view(shape),
        "position_ids": position_ids.view(shape),
        "places": places,
        "targets": targets,
        "spans": Spans(lengths, packed[-sizes[-1] :]),
    }


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

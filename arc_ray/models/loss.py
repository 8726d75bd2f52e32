"""The loss on learned tokens, without logits for any other, and what it takes of a batch."""

from typing import Any

import numpy as np
import torch
from torch import nn

from arc_ray.models.attention import Spans, hidden_states, lengths_of_views, view_ends
from arc_ray.rows.maker import IGNORED, Batch


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

"""The loss on learned tokens, without logits for any other."""

import torch
from torch import nn

from arc_ray.models.attention import hidden_states
from arc_ray.models.build import without_adapter
from arc_ray.rows.maker import IGNORED


class LearnedLoss(nn.Module):
    """A causal language model that computes logits, and loss, at learned positions only.

    With a vocabulary of 150k and rows of 8k tokens the logits of all positions are 5 GB in float32; the answers are
    a fifth of the tokens or less.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each learned token (float32) and whether it is the argmax (bool), in row-major order.

        All arguments are int64 (rows, row_tokens). Views packed into a row are kept apart by position ids that start
        again at 0.
        """
        causal = without_adapter(self.model)
        hidden = hidden_states(causal, input_ids, position_ids)
        targets = labels[:, 1:]
        is_learned = targets != IGNORED
        logits = causal.get_output_embeddings()(hidden[:, :-1][is_learned]).float()
        targets = targets[is_learned]
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses, logits.detach().argmax(-1) == targets

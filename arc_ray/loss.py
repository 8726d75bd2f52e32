"""The loss on learned tokens, without logits for any other."""

from typing import Any

import torch
from torch import nn

from arc_ray.attention import told_apart, use_by_view, view_lengths
from arc_ray.rows import IGNORED


class LearnedLoss(nn.Module):
    """A causal language model that computes logits, and loss, at learned positions only.

    With a vocabulary of 150k and rows of 8k tokens the logits of all positions are 5 GB in float32; the answers are
    a fifth of the tokens or less.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._by_view = use_by_view(self._causal)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each learned token (float32) and whether it is the argmax (bool), in row-major order.

        All arguments are int64 (rows, row_tokens). Views packed into a row are kept apart by position ids that start
        again at 0: attention goes view by view, or transformers makes a block mask of them if there is neither an attention
        mask nor a cache.
        """
        causal = self._causal
        decoder = causal.get_decoder()
        apart = told_apart(view_lengths(position_ids), input_ids.device) if self._by_view else {}
        hidden = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **apart).last_hidden_state
        targets = labels[:, 1:]
        is_learned = targets != IGNORED
        logits = causal.get_output_embeddings()(hidden[:, :-1][is_learned]).float()
        targets = targets[is_learned]
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses, logits.detach().argmax(-1) == targets

    @property
    def _causal(self) -> Any:
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

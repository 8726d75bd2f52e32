"""What a model must be like for rows of packed views and for a loss that computes logits at learned positions only."""

from typing import Any

import torch

from arc_ray.attention import hidden_states
from arc_ray.errors import UserError

VIEW_TOKENS = 8
LEAK = 0.01
"""Share of a view's own change from which a change of its neighbour is a leak; bfloat16 rounds to 0.004."""


def check_supported(model: Any) -> None:
    """Refuse models that would learn something else than their loss says, without a sign of it. Raises UserError."""
    scaled = [k for k in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(model.config, k, None)]
    if scaled:
        raise UserError(f"this model changes its logits after the output layer ({scaled[0]}), which is not supported")
    if not keeps_views_apart(model):
        raise UserError(
            f"{type(model).__name__} lets a view see the views before it in a packed row, so it would train on other tasks'"
            f" pairs: take a model whose attention goes through transformers' attention interface (Llama, Qwen, Mistral, ...)"
        )


@torch.no_grad()
def keeps_views_apart(model: Any) -> bool:
    """Tell whether the second view of a row is the same whatever the first one is; `model` is on the CPU, in eval mode.

    Attention that transformers does not mask (Falcon's) and recurrent states let it differ. Flash attention does not run on
    the CPU and keeps views apart by their positions.
    """
    if "flash" in (model.config._attn_implementation or ""):
        return True
    second = torch.arange(VIEW_TOKENS)
    ids = torch.stack([torch.cat([first, second]) for first in (second, second.flip(0))])
    positions = torch.arange(VIEW_TOKENS).repeat(2, 2)
    change = hidden_states(model, ids, positions).float().diff(dim=0).abs()
    return bool(change[:, VIEW_TOKENS:].max() < LEAK * change[:, :VIEW_TOKENS].max())

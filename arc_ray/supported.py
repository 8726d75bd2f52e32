"""What a model must be like for rows of packed views and for a loss that computes logits at learned positions only."""

from typing import Any

import torch

from arc_ray.attention import flash_on_cpu, hidden_states
from arc_ray.errors import UserError

VIEW_TOKENS = 8
LEAK = 0.01
"""Share of a view's own change from which a change of its neighbour is a leak; bfloat16 rounds to 0.004."""


def check_supported(model: Any) -> None:
    """Refuse models that would learn something else than their loss says, without a sign of it. Raises UserError."""
    scaled = [k for k in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(model.config, k, None)]
    if scaled:
        raise UserError(f"this model changes its logits after the output layer ({scaled[0]}), which is not supported")
    try:
        is_apart, reason = keeps_views_apart(model), ""
    except (ImportError, IndexError, RuntimeError, TypeError, ValueError) as error:
        is_apart, reason = False, f" ({' '.join(str(error).split())[:200]})"
    if not is_apart:
        raise UserError(
            f"{type(model).__name__} lets a view see the views before it in a packed row{reason}, so it would train on other"
            f" tasks' pairs: take a model whose attention goes through transformers' attention interface (Llama, Qwen3,"
            f" Mistral, ...) and that has no recurrent layers (unlike Mamba or Qwen3.5)"
        )


@torch.no_grad()
def keeps_views_apart(model: Any) -> bool:
    """Tell whether the second view of each of two rows is the same whatever the first one is; `model` is in eval mode.

    Attention that transformers does not mask (Falcon's) and recurrent states (Mamba's) let it differ. A model on the CPU
    is tried with flash attention, too, if it is to train with that.
    """
    second = torch.arange(VIEW_TOKENS)
    ids = torch.stack([torch.cat([first, second]) for first in (second, second.flip(0))])
    positions = torch.arange(VIEW_TOKENS).repeat(2, 2)
    with flash_on_cpu(model):
        change = hidden_states(model, ids.to(model.device), positions.to(model.device)).float().diff(dim=0).abs()
    return bool(change[:, VIEW_TOKENS:].max() < LEAK * change[:, :VIEW_TOKENS].max())

"""Greedy generation in batches: prompts of token ids in, answers with their log-probability out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model wrote after one prompt."""

    ids: Ids
    """Tokens without the end token: (length,)."""
    log_probability: float
    """Natural logarithm of the answer's probability, its end token included; of what was written, where it was cut."""
    is_complete: bool
    """Whether the model ended its answer; false if it ran into the limit."""


@torch.no_grad()
def generate_greedily(
    model: Any, prompts: Sequence[Ids], limits: Sequence[int], end_ids: Sequence[int], pad_id: int
) -> list[Answer]:
    """Continue every prompt with the most probable token until one of `end_ids`, at most `limits[i]` tokens.

    Prompts of about one length cost least, because shorter ones are padded on the left; padding is masked and positions
    count from each prompt's first token, so an answer does not depend on its neighbours in the batch.
    """
    device = next(model.parameters()).device
    batch, width = len(prompts), max(map(len, prompts))
    ids = torch.full((batch, width), pad_id, dtype=torch.long, device=device)
    mask = torch.zeros((batch, width), dtype=torch.long, device=device)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[i, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends = torch.tensor(list(end_ids), device=device)
    most = torch.tensor(list(limits), device=device)
    written: list[torch.Tensor] = []
    log_probability = torch.zeros(batch, dtype=torch.float64, device=device)
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    is_complete = torch.zeros(batch, dtype=torch.bool, device=device)
    is_open = torch.ones(batch, dtype=torch.bool, device=device)
    cache: Any = None
    for _ in range(int(most.max())):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        best, token = torch.log_softmax(out.logits[:, -1].float(), -1).max(-1)
        log_probability += torch.where(is_open, best.double(), 0.0)
        is_end = torch.isin(token, ends)
        is_complete |= is_open & is_end
        lengths += (is_open & ~is_end).long()
        written.append(token)
        is_open &= ~is_end & (lengths < most)
        if not is_open.any():
            break
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(batch, 1)], 1)
        positions = positions[:, -1:] + 1
    tokens = torch.stack(written, 1).cpu().numpy().astype(np.int32)
    return [Answer(tokens[i, : int(lengths[i])], float(log_probability[i]), bool(is_complete[i])) for i in range(batch)]

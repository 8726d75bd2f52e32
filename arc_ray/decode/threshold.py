"""Search: every completion that is more probable than a threshold, and no other.

The tree of completions is walked level by level, all prompts of a batch at once. A prefix is never less probable than
what follows from it, so a branch is dropped as soon as it falls below the threshold; and because the prefixes of one
length exclude each other, at most 1 / threshold of them are alive for any prompt: that bounds the memory, where a
depth-first walk (Franzen, Disselhoff and Hartmann, "The LLM ARChitect", 2024) would find the same set one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arc_ray.decode.continuations import read_prompts
from arc_ray.decode.grammar import GrammarState
from arc_ray.decode.writer import Answer, Writer
from arc_ray.prompts.template import Ids


@dataclass(frozen=True, eq=False)
class _Prefix:
    """A beginning of an answer that is still more probable than the threshold."""

    prompt: int
    ids: tuple[int, ...]
    log_probability: float
    state: GrammarState | None
    """Of the grammar; None without one."""


@torch.no_grad()
def find_answers(
    writer: Writer, prompts: Sequence[Ids], limits: Sequence[int], min_probability: float
) -> list[list[Answer]]:
    """Find for each prompt all complete answers shorter than `limits[i]` tokens whose probability exceeds the threshold.

    The probability is that of the unrestricted model, the end token included. The most probable answer is first.
    """
    found: list[list[Answer]] = [[] for _ in prompts]
    threshold = math.log(min_probability)
    rows = read_prompts(writer.model, prompts, writer.pad_id, max(limits))
    start = writer.grammar.start if writer.grammar else None
    alive = [_Prefix(i, (), 0.0, start) for i in range(len(prompts))]
    logits = rows.logits
    depth = 0
    while True:
        depth += 1
        parents, grown = [], []
        for row, child, ended in _children(writer, alive, logits, threshold):
            if ended:
                answer = Answer(np.array(child.ids[:-1], np.int32), child.log_probability, True, depth)
                found[child.prompt].append(answer)
            elif len(child.ids) < limits[child.prompt]:
                parents.append(row)
                grown.append(child)
        if not grown:
            break
        alive = grown
        rows.select(parents)
        logits = rows.step(np.array([[prefix.ids[-1]] for prefix in alive]))[:, -1]
    return [sorted(own, key=lambda answer: (-answer.log_probability, answer.ids.tolist())) for own in found]


def _children(
    writer: Writer, alive: Sequence[_Prefix], logits: torch.Tensor, threshold: float
) -> list[tuple[int, _Prefix, bool]]:
    """Return (row of the parent, child, whether it has ended) for every child above the threshold."""
    logs = torch.log_softmax(logits.float(), -1).double()
    totals = logs + torch.tensor([[p.log_probability] for p in alive], dtype=torch.float64, device=logs.device)
    hits = (totals > threshold).nonzero()
    children = []
    for place, token, total in torch.cat([hits.double(), totals[hits[:, :1], hits[:, 1:]]], 1).tolist():
        row, token = int(place), int(token)
        parent, state = alive[row], None
        if writer.grammar and parent.state:
            state = writer.grammar.next(parent.state).get(token)
            if state is None:
                continue
        child = _Prefix(parent.prompt, (*parent.ids, token), total, state)
        children.append((row, child, token in writer.end_ids))
    return children

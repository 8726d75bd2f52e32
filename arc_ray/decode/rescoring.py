"""How probable given answers are after a prompt: what a product of experts adds up."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.continuations import Continuations, Ids
from arc_ray.decode.writer import Writer

MOST_LOGITS = 2**27
"""Logits held at once, half a GiB in float32."""


@torch.no_grad()
def score_answers(writer: Writer, prompt: Ids, answers: Sequence[Ids]) -> npt.NDArray[np.float64]:
    """Return the natural logarithm of each answer's probability after the prompt: (num_answers,).

    Answers are scored as they are, so they should end with the end token. The prompt is read once for as many answers
    as fit into memory together.
    """
    scores = np.zeros(len(answers))
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]))
    done = 0
    while done < len(order):
        rows = Continuations(writer.model, [prompt], writer.pad_id)
        size = _how_many([len(answers[i]) for i in order[done:]], rows.logits.shape[-1])
        chunk = order[done : done + size]
        scores[chunk] = _score(rows, [answers[i] for i in chunk], writer.pad_id)
        done += size
    return scores


def _how_many(lengths: Sequence[int], vocabulary: int) -> int:
    """Return how many answers, of ascending lengths, are scored together."""
    fitting = [n for n, length in enumerate(lengths, 1) if n * length * vocabulary <= MOST_LOGITS]
    return max(fitting, default=1)


def _score(rows: Continuations, answers: Sequence[Ids], pad_id: int) -> npt.NDArray[np.float64]:
    longest = max(map(len, answers))
    ids = torch.full((len(answers), longest), pad_id, dtype=torch.long)
    is_answer = torch.zeros((len(answers), longest), dtype=torch.bool)
    for i, answer in enumerate(answers):
        ids[i, : len(answer)] = torch.from_numpy(answer.astype(np.int64))
        is_answer[i, : len(answer)] = True
    ids, is_answer = ids.to(rows.device), is_answer.to(rows.device)
    first = rows.logits.expand(len(answers), -1)[:, None]
    logits = first
    if longest > 1:
        rows.select([0] * len(answers))
        logits = torch.cat([first, rows.step(ids[:, :-1])], 1)
    log = logits.float().gather(-1, ids[..., None])[..., 0] - logits.float().logsumexp(-1)
    return (log.double() * is_answer).sum(1).cpu().numpy()

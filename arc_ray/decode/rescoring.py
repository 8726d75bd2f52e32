"""How probable given answers are after a prompt: what a product of experts adds up."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.continuations import Continuations, read_prompts
from arc_ray.decode.writer import Writer
from arc_ray.prompts.template import Ids

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
        rows = read_prompts(writer.model, [prompt], writer.pad_id, max(map(len, answers)))
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
    padded, is_answer = np.full((len(answers), longest), pad_id, np.int64), np.zeros((len(answers), longest), bool)
    for i, answer in enumerate(answers):
        padded[i, : len(answer)], is_answer[i, : len(answer)] = answer, True
    logits = rows.logits.expand(len(answers), -1)[:, None]
    if longest > 1:
        rows.select([0] * len(answers))
        logits = torch.cat([logits, rows.step(padded[:, :-1])], 1)
    ids = torch.from_numpy(padded).to(rows.device)
    logs = logits.gather(-1, ids[..., None])[..., 0].float() - logits.float().logsumexp(-1)
    return (logs.double().cpu().numpy() * is_answer).sum(1)

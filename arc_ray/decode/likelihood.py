"""Answers by their probability: every one that is more probable than a threshold, and how probable given ones are.

Search walks the tree of completions level by level, all prompts of a batch at once. A prefix is never less probable than
what follows from it, so a branch is dropped as soon as it falls below the threshold; and because the prefixes of one
length exclude each other, at most 1 / threshold of them are alive for any prompt: that bounds the memory, where a
depth-first walk (Franzen, Disselhoff and Hartmann, "The LLM ARChitect", 2024) would find the same set one by one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.continuations import Continuations
from arc_ray.decode.grammar import GrammarState
from arc_ray.decode.writer import Answer, Writer
from arc_ray.prompts.encoders import Ids

MOST_LOGITS = 2**27
"""Logits held at once while answers are scored, half a GiB in float32."""


class _Prefix(NamedTuple):
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
    rows = writer.read(prompts, max(limits))
    start = writer.grammar.start if writer.grammar else None
    alive = [_Prefix(i, (), 0.0, start) for i in range(len(prompts))]
    logits, passes = rows.logits, 1
    while True:
        parents, grown = [], []
        for row, child in _children(writer, alive, logits, math.log(min_probability)):
            if child.ids[-1] in writer.end_ids:
                answer = Answer(np.array(child.ids[:-1], np.int32), child.log_probability, True, passes)
                found[child.prompt].append(answer)
            elif len(child.ids) < limits[child.prompt]:
                parents.append(row)
                grown.append(child)
        if not grown:
            return [sorted(own, key=lambda answer: (-answer.log_probability, answer.ids.tolist())) for own in found]
        alive = grown
        rows.select(parents)
        logits, passes = rows.step(np.array([[prefix.ids[-1]] for prefix in alive]))[:, -1], passes + 1


def _children(
    writer: Writer, alive: Sequence[_Prefix], logits: torch.Tensor, threshold: float
) -> list[tuple[int, _Prefix]]:
    """Return every child above the threshold, the natural logarithm of a probability, with the row of its parent."""
    logs = torch.log_softmax(logits.float(), -1).double()
    totals = logs + torch.tensor([[p.log_probability] for p in alive], dtype=torch.float64, device=logs.device)
    hits = (totals > threshold).nonzero()
    children = []
    for place, number, total in torch.cat([hits.double(), totals[hits[:, :1], hits[:, 1:]]], 1).tolist():
        row, token = int(place), int(number)
        parent, state = alive[row], None
        if writer.grammar and parent.state:
            state = writer.grammar.next(parent.state).get(token)
            if state is None:
                continue
        children.append((row, _Prefix(parent.prompt, (*parent.ids, token), total, state)))
    return children


@torch.no_grad()
def score_answers(writer: Writer, prompt: Ids, answers: Sequence[Ids]) -> npt.NDArray[np.float64]:
    """Return the natural logarithm of each answer's probability after the prompt, as a product of experts adds them up:
    (num_answers,).

    Answers are scored as they are, so they should end with the end token. The prompt is read once for as many answers
    as fit into memory together.
    """
    scores, done = np.zeros(len(answers)), 0
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]))
    while done < len(order):
        rows = writer.read([prompt], max(map(len, answers)))
        lengths, vocabulary = [len(answers[i]) for i in order[done:]], rows.logits.shape[-1]
        fitting = [n for n, longest in enumerate(lengths, 1) if n * longest * vocabulary <= MOST_LOGITS]
        chunk = order[done : done + max(fitting, default=1)]
        scores[chunk] = _score(rows, [answers[i] for i in chunk], writer.pad_id)
        done += len(chunk)
    return scores


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

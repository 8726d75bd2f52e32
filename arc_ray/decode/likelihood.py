"""Answers by their probability: every one that is more probable than a threshold, and how probable given ones are.

Search walks the tree of completions, all prompts of a batch and all their branches at once, a token a pass or several where
they can be guessed. A prefix is never less probable than what follows from it, so a branch is dropped as soon as it falls
below the threshold; and because the branches exclude each other, at most 1 / threshold of them are alive for any prompt:
that bounds the memory, where a depth-first walk (Franzen, Disselhoff and Hartmann, "The LLM ARChitect", 2024) would find
the same set one by one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.continuations import Continuations, padded
from arc_ray.decode.grammar import GrammarState
from arc_ray.decode.writer import MOST_READ, Answer, Writer
from arc_ray.prompts.encoders import Ids

MOST_LOGITS = 2**27
"""Logits held at once while answers are scored, half a GiB in float32."""


class _Prefix(NamedTuple):
    """A beginning of an answer that is still more probable than the threshold."""

    prompt: int
    ids: tuple[int, ...]
    log_probability: float
    states: tuple[GrammarState, ...]
    """Of the grammar, now and after each guessed token; empty without one."""
    draft: tuple[int, ...] = ()
    """Tokens that are guessed to follow."""


@torch.no_grad()
def find_answers(
    writer: Writer, prompts: Sequence[Ids], limits: Sequence[int], min_probability: float, lookahead: int = 0
) -> list[list[Answer]]:
    """Find for each prompt all complete answers shorter than `limits[i]` tokens whose probability exceeds the threshold.

    The probability is that of the unrestricted model, the end token included. The most probable answer is first. With
    `lookahead` up to so many tokens of each prefix are guessed before a pass, which then gives the branches at each of them;
    the model must attend to all that it has read.
    """
    found: list[list[Answer]] = [[] for _ in prompts]
    rows = writer.read(prompts, max(limits) + lookahead)
    start = (writer.grammar.start,) if writer.grammar else ()
    alive = [_Prefix(i, (), 0.0, start) for i in range(len(prompts))]
    logits, passes = rows.logits[:, None], 1
    while True:
        parents, counts, grown = [], [], []
        for row, place, child in _children(writer, alive, logits, math.log(min_probability)):
            if child.ids[-1] in writer.end_ids:
                answer = Answer(np.array(child.ids[:-1], np.int32), child.log_probability, True, passes)
                found[child.prompt].append(answer)
            elif len(child.ids) < limits[child.prompt]:
                parents.append(row)
                counts.append(1 + place)
                grown.append(child)
        if not grown:
            return [sorted(own, key=lambda answer: (-answer.log_probability, answer.ids.tolist())) for own in found]
        rows.select(parents)
        if passes > 1:
            rows.keep(counts)
        size = min(lookahead, MOST_READ.get(rows.device.type, MOST_READ["cpu"]) // len(grown) - 1)
        alive = [_guessing(writer, p, prompts[p.prompt], min(size, limits[p.prompt] - len(p.ids) - 1)) for p in grown]
        ids = padded([[prefix.ids[-1], *prefix.draft] for prefix in alive], writer.pad_id)
        logits, passes = rows.step(ids), passes + 1


def _guessing(writer: Writer, prefix: _Prefix, prompt: Ids, size: int) -> _Prefix:
    draft, states = writer.draft(np.concatenate([prompt, np.array(prefix.ids, np.int32)]), size, prefix.states)
    return prefix._replace(draft=tuple(draft), states=tuple(states))


def _children(
    writer: Writer, alive: Sequence[_Prefix], logits: torch.Tensor, threshold: float
) -> list[tuple[int, int, _Prefix]]:
    """Return every child above the threshold, the natural logarithm of a probability, that leaves what was guessed: with the
    row of its parent and the number of guessed tokens before it. `logits` are (rows, 1 + most guesses, vocabulary)."""
    logs = torch.log_softmax(logits.float(), -1).double()
    # Nothing is as probable as the threshold behind the last guess of a row.
    guessed = torch.from_numpy(padded([[*prefix.draft, -1] for prefix in alive], -1)).to(logs.device)
    steps = logs.gather(-1, guessed.clamp(min=0)[..., None])[..., 0].masked_fill(guessed < 0, -torch.inf)
    before = torch.tensor([[p.log_probability] for p in alive], dtype=torch.float64, device=logs.device)
    totals = logs + torch.cat([before, steps[:, :-1]], 1).cumsum(1)[..., None]
    hits = (totals > threshold).nonzero()
    children = []
    for *where, total in torch.cat([hits.double(), totals[tuple(hits.T)][:, None]], 1).tolist():
        row, place, token = map(int, where)
        parent = alive[row]
        if place < len(parent.draft) and token == parent.draft[place]:
            continue
        states: tuple[GrammarState, ...] = ()
        if writer.grammar:
            state = writer.grammar.next(parent.states[place]).get(token)
            if state is None:
                continue
            states = (state,)
        ids = (*parent.ids, *parent.draft[:place], token)
        children.append((row, place, _Prefix(parent.prompt, ids, total, states)))
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
    ids = padded(answers, pad_id)
    logits = rows.logits.expand(len(answers), -1)[:, None]
    if ids.shape[1] > 1:
        rows.select([0] * len(answers))
        logits = torch.cat([logits, rows.step(ids[:, :-1])], 1)
    chosen = torch.from_numpy(ids).to(rows.device)[..., None]
    logs = logits.gather(-1, chosen)[..., 0].float() - logits.float().logsumexp(-1)
    is_answer = np.arange(ids.shape[1]) < np.array([[len(answer)] for answer in answers])
    return (logs.double().cpu().numpy() * is_answer).sum(1)

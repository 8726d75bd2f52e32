"""Greedy and sampled answers, written in batches; several tokens a forward pass where they can be guessed.

A token is a function of the logits before it and, in sampling, of a number drawn for its place beforehand. So a guess
is verified, not trusted: one pass reads the guessed tokens, and those that the model would have written itself stay.
What is written is the same with and without guesses, up to the rounding of sums in another order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.continuations import Continuations, padded, read_prompts
from arc_ray.decode.grammar import GrammarState, GridGrammar
from arc_ray.prompts.encoders import Ids
from arc_ray.prompts.positions import SEQUENCE, Positions

Choose = Callable[[torch.Tensor, npt.NDArray[np.float64]], torch.Tensor]
"""(logits (rows, n, choices), numbers in [0, 1) of (rows, n)) -> which of the choices, int64 (rows, n)."""

LONGEST_MATCH = 32
"""Tokens compared at most for a guess. On ARC's evaluation tasks with right answers, 8 give 3.5 tokens a forward pass, 32
give 4.2 and 64 no more (8 guesses a pass; encoder compact)."""

MOST_READ = {"cpu": 64, "cuda": 512}
"""Tokens that a pass with guesses reads at most, over all rows. So many cost little more than one a row, because the
time goes into reading the weights: on an H100 up to 990 TFLOP/s / (3.35 TB/s / 2 bytes) / 2 = 300 (a computed figure)."""


@dataclass(frozen=True, eq=False)
class Writer:
    """A model and what it needs to write answers."""

    model: Any
    """A transformers model for inference."""
    end_ids: Sequence[int]
    """Tokens that end an answer."""
    pad_id: int
    grammar: GridGrammar | None = None
    """Restricts answers to grids; log-probabilities stay those of the unrestricted model."""
    positions: Positions = SEQUENCE
    """The positions at which the model learned its views."""

    def read(self, prompts: Sequence[Ids], room: int) -> Continuations:
        """Let the model read prompts, each of which may grow by `room` tokens."""
        return read_prompts(self.model, prompts, self.pad_id, room, self.positions)

    def draft(
        self, context: Ids, size: int, states: Sequence[GrammarState]
    ) -> tuple[list[int], Sequence[GrammarState]]:
        """Guess at most `size` tokens that follow, as far as they may; return them, and the states of the grammar, of which
        the last is that now, with one for each."""
        tokens = list[int]()
        for token in copied_draft(context, size).tolist() if size > 0 else ():
            if token in self.end_ids:
                break
            if self.grammar:
                after = self.grammar.next(states[-1]).get(token)
                if after is None:
                    break
                states = [*states, after]
            tokens.append(token)
        return tokens, states


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model wrote after one prompt."""

    ids: Ids
    """Tokens without the end token: (length,)."""
    log_probability: float
    """Natural logarithm of the answer's probability, its end token included; of what was written, where it was cut."""
    is_complete: bool
    """Whether the model ended its answer; false if it ran into the limit."""
    passes: int = 0
    """Forward passes that it took part in, that over the prompt included."""


def generate_greedily(
    writer: Writer, prompts: Sequence[Ids], limits: Sequence[int], lookahead: int = 0
) -> list[Answer]:
    """Continue every prompt with the most probable token until an end token, at most `limits[i]` tokens.

    Every prompt takes the memory of the longest. With `lookahead` up to so many tokens are guessed before each pass,
    fewer in large batches; the model must then attend to all that it has read (`attention.attends_to_all`).
    """
    texts = [_Text(prompt, limit, writer) for prompt, limit in zip(prompts, limits, strict=True)]
    return _write(writer, texts, lambda logits, _: logits.argmax(-1), lookahead, copies=1)


def generate_samples(
    writer: Writer,
    prompts: Sequence[Ids],
    limits: Sequence[int],
    draws: Sequence[npt.NDArray[np.float64]],
    temperature: float,
    lookahead: int = 0,
) -> list[list[Answer]]:
    """Draw answers: `draws[i]` is (samples, limits[i]), uniform in [0, 1), one number for each token to be drawn.

    Every prompt gets as many samples, and is read once. The same numbers give the same answers in any batch.
    """
    copies = len(draws[0])
    texts = [
        _Text(prompt, limit, writer, row)
        for prompt, limit, own in zip(prompts, limits, draws, strict=True)
        for row in own
    ]

    def choose(logits: torch.Tensor, numbers: npt.NDArray[np.float64]) -> torch.Tensor:
        sums = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
        drawn = torch.from_numpy(numbers).to(logits.device)[..., None] * sums[..., -1:]
        return torch.searchsorted(sums, drawn, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)

    answers = _write(writer, texts, choose, lookahead, copies)
    return [answers[i : i + copies] for i in range(0, len(answers), copies)]


class _Text:
    """One answer while it is written."""

    def __init__(self, prompt: Ids, limit: int, writer: Writer, draws: npt.NDArray[np.float64] | None = None) -> None:
        self.prompt, self.limit, self.writer, self.last = prompt, limit, writer, int(prompt[-1])
        self.draws = np.zeros(limit) if draws is None else draws
        """The numbers drawn for each token."""
        self._ids = np.concatenate([prompt, np.zeros(limit, np.int32)])
        self.length, self.log_probability, self.passes = 0, 0.0, 0
        self.is_open, self.is_complete = True, False
        self.draft: list[int] = []
        self.most = limit
        """Guesses worth making: twice as many as were right last time, since wrong ones are read in vain."""
        self.states: Sequence[GrammarState] = [writer.grammar.start] if writer.grammar else []
        """States of the grammar now and after each guessed token."""

    def guess(self, size: int) -> None:
        """Draft at most `size` next tokens."""
        size, written = min(size, self.limit - self.length - 1, self.most), len(self.prompt) + self.length
        self.draft, self.states = self.writer.draft(self._ids[:written], size, self.states)

    def take(self, tokens: Sequence[tuple[float, float]]) -> int:
        """Write tokens, each with its log-probability, up to the first that was not guessed right, the end or the limit;
        return how many."""
        written, guesses = 0, [*self.draft, None]
        while self.is_open:
            number, log = tokens[written]
            token, guess = int(number), guesses[written]
            written += 1
            self.log_probability += log
            if token in self.writer.end_ids:
                self.is_open, self.is_complete = False, True
            else:
                self._ids[len(self.prompt) + self.length] = self.last = token
                self.length += 1
                self.is_open = self.length < self.limit
            if token != guess:
                break
        if self.writer.grammar and self.is_open:
            self.states = [self.writer.grammar.next(self.states[written - 1])[token]]
        self.passes += 1
        if self.draft:
            self.most = max(1, 2 * (written - 1))
        return written

    def answer(self) -> Answer:
        ids = self._ids[len(self.prompt) : len(self.prompt) + self.length]
        return Answer(ids, self.log_probability, self.is_complete, self.passes)


@torch.no_grad()
def _write(writer: Writer, texts: list[_Text], choose: Choose, lookahead: int, copies: int) -> list[Answer]:
    """Write all texts; each prompt stands `copies` times in a row and is read once."""
    prompts, room = [text.prompt for text in texts[::copies]], max(text.limit for text in texts) + lookahead
    rows = writer.read(prompts, room)
    logits, active = rows.logits.repeat_interleave(copies, 0)[:, None], texts
    if copies > 1:
        rows.select([i for i in range(len(prompts)) for _ in range(copies)])
    for text, tokens in zip(texts, _chosen(writer, texts, logits, choose), strict=True):
        text.take(tokens)
    while is_open := [i for i, text in enumerate(active) if text.is_open]:
        if len(is_open) <= len(active) / 2:
            rows.select(is_open)
            active = [active[i] for i in is_open]
        most = MOST_READ.get(rows.device.type, MOST_READ["cpu"]) // len(active) - 1
        for text in active:
            text.guess(max(0, min(lookahead, most)) if text.is_open else 0)
        logits = rows.step(padded([[text.last, *text.draft] for text in active], writer.pad_id))
        written = zip(active, _chosen(writer, active, logits, choose), strict=True)
        rows.keep([text.take(tokens) if text.is_open else 0 for text, tokens in written])
    return [text.answer() for text in texts]


def _chosen(
    writer: Writer, active: Sequence[_Text], logits: torch.Tensor, choose: Choose
) -> list[list[tuple[float, float]]]:
    """Choose a token after every token read: (token, its log-probability under the unrestricted model) of each place."""
    width, choices, allowed = logits.shape[1], logits, None
    if writer.grammar:
        states = [text.states if text.is_open else [] for text in active]
        allowed = torch.from_numpy(writer.grammar.allowed(states, width)).to(logits.device)
        choices = logits.gather(-1, allowed.clamp(min=0)).masked_fill(allowed < 0, -torch.inf)
    numbers = np.zeros((len(active), width))
    for i, text in enumerate(active):
        drawn = text.draws[text.length : text.length + width]
        numbers[i, : len(drawn)] = drawn
    tokens = choose(choices, numbers)[..., None]
    if allowed is not None:
        tokens = allowed.gather(-1, tokens).clamp(min=0)
    logs = logits.gather(-1, tokens).float() - logits.float().logsumexp(-1, keepdim=True)
    return torch.cat([tokens.double(), logs.double()], -1).tolist()  # the one wait for the device in a pass


def copied_draft(context: Ids, size: int) -> Ids:
    """Guess at most `size` next tokens: those that followed the place most like the end of the context, because grids
    repeat rows, inputs and earlier outputs.

    That is the latest among the places that share the longest run of tokens with the end; empty if there is none.
    Called prompt lookup where only a fixed run is compared (Saxena, "Prompt Lookup Decoding", 2023).
    """
    places = np.flatnonzero(context[:-1] == context[-1])
    if not len(places):
        return context[:0]
    for back in range(1, min(LONGEST_MATCH, len(context))):
        longer = places[places >= back]
        longer = longer[context[longer - back] == context[-1 - back]]
        if not len(longer):
            break
        places = longer
    return context[places[-1] + 1 : places[-1] + 1 + size]

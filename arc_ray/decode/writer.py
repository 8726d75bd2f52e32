"""Greedy and sampled answers, written in batches; several tokens a forward pass where they can be guessed.

A token is a function of the logits before it and, in sampling, of a number drawn for its place beforehand. So a guess
is verified, not trusted: one pass reads the guessed tokens, and those that the model would have written itself stay.
What is written is the same with and without guesses, up to the rounding of sums in another order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arc_ray.decode.continuations import Continuations, Ids
from arc_ray.decode.drafts import copied_draft
from arc_ray.decode.grammar import GridGrammar, State

Choose = Callable[[torch.Tensor, npt.NDArray[np.float64]], torch.Tensor]
"""(log-probabilities (rows, n, vocabulary), numbers in [0, 1) of (rows, n)) -> tokens (rows, n)."""


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
    _masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def allowed(self, states: Sequence[Sequence[State]], like: torch.Tensor) -> torch.Tensor:
        """Return which tokens may follow each state: bool of the shape of `like`, (rows, n, vocabulary).

        A row with fewer than n states may be followed by anything there: nobody looks.
        """
        assert self.grammar is not None
        every = torch.ones(like.shape[-1], dtype=torch.bool, device=like.device)
        rows = []
        for of_row in states:
            masks = [self._mask(tuple(sorted(self.grammar.next(state))), every) for state in of_row]
            rows.append(torch.stack([*masks, *[every] * (like.shape[1] - len(masks))]))
        return torch.stack(rows)

    def _mask(self, tokens: tuple[int, ...], every: torch.Tensor) -> torch.Tensor:
        if tokens not in self._masks:
            self._masks[tokens] = torch.zeros_like(every).index_fill_(
                0, torch.tensor(tokens, dtype=torch.long, device=every.device), True
            )
        return self._masks[tokens]


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

    Prompts of about one length cost least, because shorter ones are padded. With `lookahead` up to so many tokens are
    guessed before each pass, fewer in large batches; the model must then attend to all that it has read
    (`attention.attends_to_all`).
    """
    texts = [_Text(prompt, limit, writer) for prompt, limit in zip(prompts, limits, strict=True)]
    return _write(writer, texts, lambda log, _: log.argmax(-1), lookahead, copies=1)


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
        for prompt, limit, of_prompt in zip(prompts, limits, draws, strict=True)
        for row in of_prompt
    ]

    def choose(log: torch.Tensor, numbers: npt.NDArray[np.float64]) -> torch.Tensor:
        sums = torch.softmax(log.double() / temperature, -1).cumsum(-1)
        drawn = torch.from_numpy(numbers).to(log.device)[..., None] * sums[..., -1:]
        return torch.searchsorted(sums, drawn, right=True)[..., 0].clamp(max=log.shape[-1] - 1)

    answers = _write(writer, texts, choose, lookahead, copies)
    return [answers[i : i + copies] for i in range(0, len(answers), copies)]


class _Text:
    """One answer while it is written."""

    def __init__(self, prompt: Ids, limit: int, writer: Writer, draws: npt.NDArray[np.float64] | None = None) -> None:
        self.prompt, self.limit, self.writer = prompt, limit, writer
        self.draws = np.zeros(limit) if draws is None else draws
        self._ids = np.concatenate([prompt, np.zeros(limit, np.int32)])
        self.length, self.log_probability, self.passes = 0, 0.0, 0
        self.is_open, self.is_complete = True, False
        self.draft: list[int] = []
        self.most = limit
        """Guesses worth making: twice as many as were right last time, since wrong ones are read in vain."""
        self.states: list[State] = [writer.grammar.start] if writer.grammar else []
        """States of the grammar now and after each guessed token."""

    @property
    def last(self) -> int:
        return int(self._ids[len(self.prompt) + self.length - 1])

    def guess(self, size: int) -> None:
        """Draft the next tokens, as far as they are allowed."""
        room = self.limit - self.length - 1
        context = self._ids[: len(self.prompt) + self.length]
        self.draft = copied_draft(context, min(size, room, self.most)).tolist() if size and room > 0 else []
        if self.writer.grammar:
            for i, token in enumerate(self.draft):
                after = self.writer.grammar.next(self.states[-1]).get(token)
                if after is None:
                    self.draft = self.draft[:i]
                    break
                self.states.append(after)

    def numbers(self, size: int) -> npt.NDArray[np.float64]:
        """Return the numbers drawn for the next `size` tokens, (size,); zeros beyond the limit."""
        drawn = self.draws[self.length : self.length + size]
        return np.concatenate([drawn, np.zeros(size - len(drawn))])

    def take(self, tokens: Sequence[int], logs: Sequence[float]) -> int:
        """Write tokens up to the first that was not guessed right, the end or the limit; return how many."""
        written = self._append(tokens, logs)
        self.passes += 1
        if self.draft:
            self.most = max(1, 2 * (written - 1))
        return written

    def _append(self, tokens: Sequence[int], logs: Sequence[float]) -> int:
        for i, (token, log) in enumerate(zip(tokens, logs, strict=True)):
            self.log_probability += log
            if token in self.writer.end_ids:
                self.is_open, self.is_complete = False, True
                return i + 1
            self._ids[len(self.prompt) + self.length] = token
            self.length += 1
            if self.length == self.limit:
                self.is_open = False
                return i + 1
            if i == len(self.draft) or self.draft[i] != token:
                if self.writer.grammar:
                    self.states = [self.writer.grammar.next(self.states[i])[token]]
                return i + 1
        raise AssertionError("a pass yields one token more than were guessed")

    def answer(self) -> Answer:
        ids = self._ids[len(self.prompt) : len(self.prompt) + self.length]
        return Answer(ids, self.log_probability, self.is_complete, self.passes)


@torch.no_grad()
def _write(writer: Writer, texts: list[_Text], choose: Choose, lookahead: int, copies: int) -> list[Answer]:
    """Write all texts; each prompt stands `copies` times in a row and is read once."""
    rows = Continuations(writer.model, [text.prompt for text in texts[::copies]], writer.pad_id)
    logits = rows.logits[:, None]
    if copies > 1:
        every = [i for i in range(len(texts) // copies) for _ in range(copies)]
        rows.select(every)
        logits = logits[every]
    active = texts
    while True:
        tokens, logs = _chosen(writer, active, logits, choose)
        counts = [text.take(tokens[i], logs[i]) if text.is_open else 1 for i, text in enumerate(active)]
        if logits.shape[1] > 1:
            rows.keep(counts, logits.shape[1])
        is_open = [i for i, text in enumerate(active) if text.is_open]
        if not is_open:
            return [text.answer() for text in texts]
        if len(is_open) <= len(active) / 2:
            rows.select(is_open)
            active = [active[i] for i in is_open]
        room = MOST_READ.get(rows.device.type, MOST_READ["cpu"]) // len(active) - 1
        logits = rows.step(_inputs(active, max(0, min(lookahead, room)), writer.pad_id))


def _chosen(
    writer: Writer, active: Sequence[_Text], logits: torch.Tensor, choose: Choose
) -> tuple[list[list[int]], list[list[float]]]:
    """Choose a token after every token read, with its log-probability under the unrestricted model."""
    log = torch.log_softmax(logits.float(), -1)
    size = log.shape[1]
    numbers = np.stack([text.numbers(size) for text in active])
    allowed = log
    if writer.grammar:
        states = [text.states if text.is_open else [] for text in active]
        allowed = log.masked_fill(~writer.allowed(states, log), -torch.inf)
    tokens = choose(allowed, numbers)
    logs = log.gather(-1, tokens[..., None])[..., 0]
    return tokens.tolist(), logs.double().tolist()


def _inputs(active: Sequence[_Text], lookahead: int, pad_id: int) -> torch.Tensor:
    """Return what each text reads next: its last token and its guesses, padded: int64 (rows, 1 + longest guess)."""
    for text in active:
        if text.is_open:
            text.guess(lookahead)
        else:
            text.draft = []
    size = 1 + max(len(text.draft) for text in active)
    ids = torch.full((len(active), size), pad_id, dtype=torch.long)
    for i, text in enumerate(active):
        ids[i, : 1 + len(text.draft)] = torch.tensor([text.last if text.is_open else pad_id, *text.draft])
    return ids

"""What evaluation asks: a prompt per test output and view, in works of about one length."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import numpy as np
import numpy.typing as npt

from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.maker import ValidationSet
from arc_ray.tasks.task import MAX_SIDE, Grid, Task, TaskTable
from arc_ray.views.augmentation import Augmentation
from arc_ray.views.view import Views, plain_views, redrawn

Candidates = Mapping[tuple[str, int], tuple[Grid, ...]]
"""(task id, number of the test pair) -> the grids that are scored under its views."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One view to answer, as token ids."""

    task: str
    output: int
    """Number of the test pair within its task."""
    augmentation: Augmentation
    view: str
    """Its name, another one for each view of an output."""
    ids: npt.NDArray[np.int32]
    limit: int
    """Most tokens of the answer."""

    @property
    def key(self) -> tuple[str, int]:
        """Which output is asked for."""
        return self.task, self.output


@dataclass(frozen=True, eq=False)
class Work:
    """A file to make: answers to prompts, scores of candidates after them, or answers to counting questions."""

    name: str
    prompts: tuple[Prompt, ...] = ()
    candidates: tuple[tuple[Grid, ...], ...] | None = None
    """Grids (not turned) to score after each prompt; None has the prompts answered."""
    questions: ValidationSet | None = None
    """Counting questions, one a view: exact greedy answers take one forward pass."""
    task: Task | None = None
    """What the model is tuned on before it answers, without the test pairs, which are in the prompts only."""
    set_name: str = ""
    """The set that the task is of."""

    @property
    def size(self) -> int:
        """Tokens of prompts and answers, to which both tuning and answering are about proportional."""
        return sum(len(prompt.ids) + prompt.limit for prompt in self.prompts)


def make_prompts(
    codec: Codec, table: TaskTable, config: Config, most_tokens: int | None = None, answer_tokens: int | None = None
) -> list[Prompt]:
    """Write the prompts of all test outputs under the first n symmetries, each in so many copies; a view that is too
    long even with one shown pair is left out, so that its output may stay unanswered. With its answer, of at most
    `answer_tokens` if it is no grid, a prompt has at most as many tokens as the model reads alike (`most_tokens`).

    Raises UserError for symmetries or copies of described tasks.
    """
    evaluate, max_shown = config.evaluate, config.view.max_shown
    if codec.needs_description and evaluate.symmetries * evaluate.copies > 1:
        raise UserError(
            "a description names directions and colours, which views change: set evaluate.symmetries=1 and evaluate.copies=1"
        )
    prompts = []
    most, longest = most_tokens or sys.maxsize, answer_tokens or codec.text_length_bound(MAX_SIDE)
    room = min(evaluate.max_prompt_tokens, max(most - longest, most // 2))
    table = _without_answers(table)
    for symmetry, copy in product(range(evaluate.symmetries), range(evaluate.copies)):
        views = plain_views(table, int(table.num_train.max(initial=1)) if copy else max_shown, symmetry)
        if copy:
            views = redrawn(config.view, table, views, max_shown, copy, config.seed)
        nth = views.nth()
        fitting, _ = fit_views(codec, table, views, room, drop=False)
        views = views.showing(np.maximum(fitting, 0))
        for i in np.flatnonzero(fitting >= 0).tolist():
            augmentation = Augmentation(symmetry, tuple(views.colors[i].tolist()))
            view = f"{augmentation.name}#{copy}" if copy else augmentation.name
            ids = codec.prompt_ids(table, views, i)
            limit = min(answer_tokens or _limit(codec, table, views, i), most - len(ids))
            prompts.append(Prompt(table.ids[views.task[i]], int(nth[i]), augmentation, view, ids, limit))
    return prompts


def rows_of(config: EvaluateConfig) -> int:
    """Return the most answers that are written to one prompt at a time."""
    return {"greedy": 1, "sample": config.samples, "search": ceil(1 / config.min_probability)}[config.decode]


def make_batches(prompts: Sequence[Prompt], batch_tokens: int, rows: int = 1) -> list[list[Prompt]]:
    """Cut prompts into batches of at most `batch_tokens` tokens including padding and answers, longest prompts first.

    Each prompt takes `rows` times its length; one that is too long by itself is a batch of its own.
    """
    batches: list[list[Prompt]] = []
    longest = most = 0
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids) - prompt.limit):
        longest, most = max(longest, len(prompt.ids)), max(most, prompt.limit)
        if not batches or (longest + most) * rows * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest, most = len(prompt.ids), prompt.limit
        batches[-1].append(prompt)
    return batches


def _without_answers(table: TaskTable) -> TaskTable:
    """Hide the asked outputs: neither what a prompt shows nor whether it fits may depend on the answer."""
    answers = 2 * plain_views(table, max_shown=1).asked + 1
    height, width = table.height.copy(), table.width.copy()
    height[answers] = width[answers] = 0
    return replace(table, height=height, width=width)


def _limit(codec: Codec, table: TaskTable, views: Views, i: int) -> int:
    """Allow three times the largest grid in the prompt, and never more than the largest grid there is.

    A model that does not end its answers would else cost a thousand steps on every tiny task.
    """
    pairs = views.shown[i][views.shown[i] >= 0]
    grids = np.concatenate([2 * pairs, 2 * pairs + 1, [2 * views.asked[i]]])
    cells = int((table.height[grids].astype(int) * table.width[grids]).max())
    side = min(MAX_SIDE, int(np.ceil(np.sqrt(3 * cells))) + 1)
    return codec.text_length_bound(side)


def works_of(
    name: str, prompts: Sequence[Prompt], evaluate: EvaluateConfig, candidates: Candidates | None = None
) -> list[Work]:
    """Cut prompts into works, each a batch of at most `batch_tokens` tokens with all answers that are written at a time.

    `candidates` are scored instead, every one of an output under every view of it; without any there is nothing to score.
    """
    if candidates is None:
        batches = make_batches(prompts, evaluate.batch_tokens, rows_of(evaluate))
        return [Work(f"{name}-{i:05d}.parquet", tuple(batch)) for i, batch in enumerate(batches)]
    batches = make_batches([prompt for prompt in prompts if candidates.get(prompt.key)], evaluate.batch_tokens)
    grids = [tuple(candidates[prompt.key] for prompt in batch) for batch in batches]
    return [Work(f"{name}-{i:05d}.parquet", tuple(batch), grids[i]) for i, batch in enumerate(batches)]

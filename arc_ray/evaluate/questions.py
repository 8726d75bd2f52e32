"""What evaluation asks: one prompt per test output and view, cut into batches of about one length."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import numpy.typing as npt

from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.lengths import fit_views
from arc_ray.tasks.task import MAX_SIDE, TaskTable
from arc_ray.views.augmentation import Augmentation
from arc_ray.views.view import Views, plain_views, redrawn


@dataclass(frozen=True, eq=False)
class Prompt:
    """One view to answer, as token ids."""

    task: str
    """Id of the task."""
    output: int
    """Number of the test pair within its task."""
    augmentation: Augmentation
    view: str
    """Name of the view among those of its output."""
    ids: npt.NDArray[np.int32]
    limit: int
    """Most tokens of the answer."""

    @property
    def key(self) -> tuple[str, int]:
        """Which output is asked for."""
        return self.task, self.output


def make_prompts(codec: Codec, table: TaskTable, config: Config, most_tokens: int | None = None) -> list[Prompt]:
    """Write the prompts of all test outputs under the first n symmetries, each in so many copies; a view that is too
    long even with one shown pair is left out, so that its output may stay unanswered. With its answer, a prompt has at
    most as many tokens as the model reads alike. Raises UserError for symmetries or copies of described tasks."""
    if codec.needs_description and config.evaluate.symmetries * config.evaluate.copies > 1:
        raise UserError(
            "a description names directions and colours, which views change: set evaluate.symmetries=1 and evaluate.copies=1"
        )
    prompts = []
    room, most = config.evaluate.max_prompt_tokens, most_tokens or sys.maxsize
    room = min(room, max(most - codec.text_length_bound(MAX_SIDE), most // 2))
    table = _without_answers(table)
    for symmetry in range(config.evaluate.symmetries):
        for copy in range(config.evaluate.copies):
            views = _views(config, table, symmetry, copy)
            nth = views.nth()
            fitting, _ = fit_views(codec, table, views, room, drop=False)
            views = views.showing(np.maximum(fitting, 0))
            for i in np.flatnonzero(fitting >= 0).tolist():
                augmentation = Augmentation(symmetry, tuple(views.colors[i].tolist()))
                ids = codec.prompt_ids(table, views, i)
                prompts.append(
                    Prompt(
                        task=table.ids[views.task[i]],
                        output=int(nth[i]),
                        augmentation=augmentation,
                        view=f"{augmentation.name}#{copy}" if copy else augmentation.name,
                        ids=ids,
                        limit=min(_limit(codec, table, views, i), most - len(ids)),
                    )
                )
    return prompts


def rows_of(config: EvaluateConfig) -> int:
    """Return the most answers that are written to one prompt at a time."""
    return {"greedy": 1, "sample": config.samples, "search": ceil(1 / config.min_probability)}[config.decode]


def make_batches(prompts: Sequence[Prompt], batch_tokens: int, rows: int = 1) -> list[list[int]]:
    """Cut prompts into batches of at most `batch_tokens` tokens including padding and answers, longest prompts first.

    Each prompt takes `rows` times its length; one that is too long by itself is a batch of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids) - prompts[i].limit, i))
    batches: list[list[int]] = []
    longest = most = 0
    for i in order:
        longest, most = max(longest, len(prompts[i].ids)), max(most, prompts[i].limit)
        if not batches or (longest + most) * rows * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest, most = len(prompts[i].ids), prompts[i].limit
        batches[-1].append(i)
    return batches


def _views(config: Config, table: TaskTable, symmetry: int, copy: int) -> Views:
    if copy == 0:
        return plain_views(table, config.view.max_shown, symmetry)
    views = plain_views(table, int(table.num_train.max(initial=1)), symmetry)
    return redrawn(config.view, table, views, config.view.max_shown, copy, config.seed)


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
    pairs = [int(p) for p in views.shown[i] if p >= 0]
    grids = [2 * p + side for p in pairs for side in (0, 1)] + [2 * int(views.asked[i])]
    cells = max(int(table.height[g]) * int(table.width[g]) for g in grids)
    side = min(MAX_SIDE, int(np.ceil(np.sqrt(3 * cells))) + 1)
    return codec.text_length_bound(side)

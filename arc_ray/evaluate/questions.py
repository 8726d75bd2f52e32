"""What evaluation asks: one prompt per test output and symmetry, cut into batches of about one length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from arc_ray.augment import Augmentation
from arc_ray.config.searching import EvaluateConfig
from arc_ray.errors import UserError
from arc_ray.tasks import TaskTable
from arc_ray.tokens import Codec, fit_views
from arc_ray.views import Views, plain_views


@dataclass(frozen=True, eq=False)
class Prompt:
    """One view to answer, as token ids."""

    task: int
    """Index into the table."""
    output: int
    """Number of the test pair within its task."""
    augmentation: Augmentation
    ids: npt.NDArray[np.int32]
    limit: int
    """Most tokens of the answer."""


def make_prompts(codec: Codec, table: TaskTable, config: EvaluateConfig, max_shown: int) -> list[Prompt]:
    """Write the prompts of all test outputs under the first n symmetries; a view that is too long even with one shown
    pair is left out, so that its output may stay unanswered. Raises UserError for symmetries of described tasks."""
    if codec.needs_description and config.symmetries > 1:
        raise UserError("a description names directions, which symmetries change: set evaluate.symmetries=1")
    prompts = []
    table = _without_answers(table)
    for symmetry in range(config.symmetries):
        views = plain_views(table, max_shown, symmetry)
        nth = np.arange(len(views)) - np.searchsorted(views.task, views.task)
        fitting, _ = fit_views(codec, table, views, config.max_prompt_tokens, drop=False)
        views = views.showing(np.maximum(fitting, 0))
        prompts += [
            Prompt(
                task=int(views.task[i]),
                output=int(nth[i]),
                augmentation=Augmentation(symmetry),
                ids=codec.prompt_ids(table, views, int(i)),
                limit=_limit(codec, table, views, int(i)),
            )
            for i in np.flatnonzero(fitting >= 0)
        ]
    return prompts


def make_batches(prompts: Sequence[Prompt], batch_tokens: int) -> list[list[int]]:
    """Cut prompts into batches of at most `batch_tokens` tokens including padding and answers, longest prompts first."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids) - prompts[i].limit, i))
    batches: list[list[int]] = []
    longest = most = 0
    for i in order:
        longest, most = max(longest, len(prompts[i].ids)), max(most, prompts[i].limit)
        if not batches or (longest + most) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest, most = len(prompts[i].ids), prompts[i].limit
        batches[-1].append(i)
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
    pairs = [int(p) for p in views.shown[i] if p >= 0]
    grids = [2 * p + side for p in pairs for side in (0, 1)] + [2 * int(views.asked[i])]
    cells = max(int(table.height[g]) * int(table.width[g]) for g in grids)
    side = min(30, int(np.ceil(np.sqrt(3 * cells))) + 1)
    return codec.text_length_bound(side)

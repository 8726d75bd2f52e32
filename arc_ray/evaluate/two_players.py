"""Two players: the first describes each task in words from its shown pairs, the second draws outputs from the words alone.

The second player answers twice, from the descriptions that came with the tasks and from those of the first player; what
it loses from one to the other is the first player's share of the mistakes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.evaluate.answering import answer_all
from arc_ray.evaluate.questions import Prompt
from arc_ray.evaluate.work import Work, answering_works
from arc_ray.models.weights import most_tokens
from arc_ray.prompts.encoders import encoder_named
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.prepare import codec_of
from arc_ray.storage import Folder
from arc_ray.tasks.task import Task, TaskTable
from arc_ray.views.augmentation import Augmentation
from arc_ray.views.view import plain_views

FIRST, SECOND = "describe", "implement"
"""Prompt formats of the two players."""


def first_player(config: Config) -> Config:
    """Return the config by which the first player answers. Raises UserError if the second is no second player."""
    if config.prompt.format != SECOND:
        raise UserError(
            f"evaluate.describer writes descriptions for a second player: set prompt.format={SECOND},"
            f" not {config.prompt.format}"
        )
    return config.model_copy(
        update={
            "prompt": config.prompt.model_copy(update={"format": FIRST}),
            "evaluate": config.evaluate.model_copy(
                update={"checkpoint": config.evaluate.describer, "decode": "greedy", "constrain": False}
            ),
        }
    )


def describe_sets(
    config: Config,
    folder: Folder,
    sets: Mapping[str, Sequence[Task]],
    tokenizer: Any,
    progress: Callable[[int, int], None],
) -> dict[str, list[Task]]:
    """Let the first player describe every task; return the sets with its descriptions in place of the given ones.

    What it wrote is kept in describe/, and beside what was given in descriptions.json. A task that it says nothing
    about, or whose pairs do not fit into a prompt, has None. Raises UserError.
    """
    first = first_player(config)
    works = {name: _works(first, name, tasks, tokenizer) for name, tasks in sets.items()}
    place = folder / FIRST
    answer_all(
        first,
        place,
        encoder_named(config.prompt.encoder),
        [work for own in works.values() for work in own],
        progress,
    )
    described: dict[str, list[Task]] = {}
    for name, tasks in sets.items():
        rows = [row for work in works[name] for row in place.read_parquet(work.name).to_pylist()]
        texts = {row["task"]: row["text"].strip() or None for row in rows}
        described[name] = [dataclasses.replace(task, description=texts.get(task.id)) for task in tasks]
    folder.write_json("descriptions.json", _side_by_side(sets, described))
    return described


def _works(config: Config, name: str, tasks: Sequence[Task], tokenizer: Any) -> list[Work]:
    """Ask for one description a task; a test pair is only its place in the format, and never shown."""
    codec = codec_of(config, tokenizer)
    # The format has a place for a description, which prompts end before.
    table = TaskTable.of(dataclasses.replace(task, description="", test=task.test[:1]) for task in tasks)
    views = plain_views(table, config.view.max_shown)
    limit, room = config.evaluate.max_description_tokens, config.evaluate.max_prompt_tokens
    if most := most_tokens(config.model, config.storage):
        room = min(room, most - limit)
    shown, _ = fit_views(codec, table, views, room, drop=False)
    views = views.showing(np.maximum(shown, 0))
    prompts = [
        Prompt(table.ids[views.task[i]], 0, Augmentation(), "same", codec.prompt_ids(table, views, int(i)), limit)
        for i in np.flatnonzero(shown >= 0)
    ]
    return answering_works(name, prompts, config.evaluate.batch_tokens)


def _side_by_side(
    given: Mapping[str, Sequence[Task]], generated: Mapping[str, Sequence[Task]]
) -> list[dict[str, str | None]]:
    return [
        {"set": name, "task": task.id, "given": task.description, "generated": again.description}
        for name, tasks in given.items()
        for task, again in zip(tasks, generated[name], strict=True)
    ]

"""Two players: the first describes each task in words from its shown pairs, the second draws outputs from the words alone.

The second player answers twice, from the descriptions that came with the tasks and from those of the first player; what
it loses from one to the other is the first player's share of the mistakes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.evaluate.pool import Hosts, answer_all
from arc_ray.evaluate.questions import Work, make_prompts, works_of
from arc_ray.prompts.codec import Codec
from arc_ray.rows.prepare import codec_of
from arc_ray.storage import Folder
from arc_ray.tasks.task import Task, TaskTable

FIRST, SECOND = "describe", "implement"
"""Prompt formats of the two players."""


def first_player(config: Config) -> Config:
    """Return the config by which the first player answers. Raises UserError if the second is no second player."""
    if config.prompt.format != SECOND:
        raise UserError(
            f"evaluate.describer writes descriptions for a second player: set prompt.format={SECOND},"
            f" not {config.prompt.format}"
        )
    answering = {"checkpoint": config.evaluate.describer, "decode": "greedy", "constrain": False}
    prompt, evaluate = config.prompt.model_copy(update={"format": FIRST}), config.evaluate.model_copy(update=answering)
    return config.model_copy(update={"prompt": prompt, "evaluate": evaluate})


def describe_sets(
    hosts: Hosts,
    first: Config,
    folder: Folder,
    sets: Mapping[str, Sequence[Task]],
    codec: Codec,
    most_tokens: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, list[Task]]:
    """Let the first player describe every task; return the sets with its descriptions in place of the given ones.

    `codec` is the second player's, `most_tokens` what their model reads alike. What the first player wrote is kept in
    describe/, and beside what was given in descriptions.json. A task that it says nothing about, or whose pairs do not
    fit into a prompt, has None. Raises UserError.
    """
    codec, place, evaluate = codec_of(first, codec.tokenizer), folder / FIRST, first.evaluate
    works: dict[str, list[Work]] = {}
    for name, tasks in sets.items():
        # The format has a place for a description, which prompts end before, and one for a test pair, never shown.
        table = TaskTable.of(replace(task, description="", test=task.test[:1]) for task in tasks)
        prompts = make_prompts(codec, table, first, most_tokens, evaluate.max_description_tokens)
        works[name] = works_of(name, prompts, evaluate)
    answer_all(hosts, first, place, codec, [work for own in works.values() for work in own], progress)
    described: dict[str, list[Task]] = {}
    told = []
    for name, tasks in sets.items():
        rows = [row for work in works[name] for row in place.read_parquet(work.name).to_pylist()]
        texts = {row["task"]: row["text"].strip() or None for row in rows}
        described[name] = [replace(task, description=texts.get(task.id)) for task in tasks]
        told += [
            {"set": name, "task": task.id, "given": task.description, "generated": texts.get(task.id)} for task in tasks
        ]
    folder.write_json("descriptions.json", told)
    return described

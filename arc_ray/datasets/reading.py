"""Tasks of a source, wherever they come from: the one door through which training and evaluation get their puzzles."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arc_ray.config.sources import (
    AnySource,
    ArcGenSource,
    CountingSource,
    PluginSource,
    PoolSource,
    RearcSource,
    Selection,
)
from arc_ray.contents import damaged
from arc_ray.datasets.blocks import Block, read_examples, read_stats, tasks_in, usable_rows
from arc_ray.datasets.makers import (
    GeneratedSource,
    Request,
    check_identity,
    dataset_folder,
    requests_of,
    task_ids_of,
    wanted_of,
)
from arc_ray.datasets.manifest import blocks_by_task, open_wishes
from arc_ray.errors import NotMadeYetError, UserError, first_few, located
from arc_ray.runs.shapes import ManifestShape
from arc_ray.storage import Folder
from arc_ray.tasks.generators import code_files
from arc_ray.tasks.selection import cut_examples, given_tasks, place_of, select, with_descriptions
from arc_ray.tasks.task import Task, without_tests

READ_THREADS = 16
"""Threads that read blocks: enough to hide a bucket's latency; decoding releases the interpreter's lock."""

logger = logging.getLogger(__name__)


def load_source(source: AnySource, storage: Folder) -> list[Task]:
    """Load the tasks that a source selects, with their descriptions; generated ones from their dataset below `storage`.

    Raises UserError for whatever is wrong with files or the selection, and if `arc-ray generate` has yet to run.
    """
    if isinstance(source, GeneratedSource):
        tasks = _generated_tasks(source, dataset_folder(storage, source.dataset))
    else:
        tasks = select(given_tasks(source, storage.uri), source)
    if isinstance(source, PoolSource):
        tasks = [t for task in tasks for t in ([task] if task.test else _cut(task, source))]
    if isinstance(source, Selection):
        tasks = [without_tests(task) for task in tasks] if source.shown_only else tasks
        tasks = with_descriptions(tasks, source.descriptions) if source.descriptions else tasks
    return tasks


def _cut(task: Task, source: PoolSource) -> list[Task]:
    with located(place_of(source)):
        cut = cut_examples(task.id, task.train, source.first, source.examples, source.shown)
    return [replace(some, description=task.description) for some in cut]


def is_generated(source: GeneratedSource, storage: Folder) -> bool:
    """Tell whether all that a source takes is in its dataset, so that it can be loaded. Raises UserError."""
    manifest = dataset_folder(storage, source.dataset).read_json("manifest.json", ManifestShape)
    return manifest is not None and not open_wishes(manifest, wanted_of(source))


def checked_requests(sources: Mapping[str, AnySource], storage: Folder) -> list[Request]:
    """Return what must be generated for sources. Raises UserError for a dataset that another config made, and for a
    plugin that is not here though examples are missing."""
    requests = requests_of(sources)
    for request in requests:
        folder = dataset_folder(storage, request.source.dataset)
        if folder.exists("dataset.json"):
            check_identity(folder, request.source)
    for source in sources.values():
        if isinstance(source, PluginSource) and not is_generated(source, storage):
            code_files(source)
    return requests


def _generated_tasks(source: GeneratedSource, folder: Folder) -> list[Task]:
    """Read what a source takes of each of its tasks: usable examples `first` to `first + examples`, or what there is.

    Examples are counted after duplicates and failures are left out, which later ones cannot change: sources whose ranges
    do not overlap share no example. Raises UserError if the dataset is not there or smaller than asked.
    """
    check_identity(folder, source)
    manifest = folder.read_json("manifest.json", ManifestShape)
    for task_id, want in open_wishes(manifest, wanted_of(source)).items():
        have = manifest["tasks"].get(task_id, {"examples": 0})["examples"] if manifest else 0
        raise NotMadeYetError(
            f"dataset {folder.uri} has {have} of {want} examples of task {task_id}; run `arc-ray generate` first"
        )
    check_supply(source, manifest, folder)
    blocks, task_ids = blocks_by_task(manifest, folder.names()), task_ids_of(source)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = list(pool.map(lambda task_id: _read_task(source, folder, blocks[task_id]), task_ids))
    check_examples(source, max(map(len, tables)))
    taken = [(i, rows) for i, rows in zip(task_ids, tables, strict=True) if len(rows) >= _fewest(source)]
    shown = None if isinstance(source, CountingSource) else source.shown
    with damaged(folder.uri):
        return [task for task_id, rows in taken for task in tasks_in(rows, task_id, shown)]


def _read_task(source: GeneratedSource, folder: Folder, blocks: list[Block]) -> pa.Table:
    stats = read_stats(folder, blocks)
    rows = usable_rows(stats)[source.first : source.first + source.examples]
    if isinstance(source, RearcSource):
        rows = rows[within_quantiles(stats["pso_difficulty"].to_numpy()[rows], *source.pso_quantiles)]
    return read_examples(folder, blocks, rows)


def _fewest(source: GeneratedSource) -> int:
    """Return how many examples make a task: shown ones and one to answer; a pool needs two."""
    return 1 if isinstance(source, CountingSource) else (source.shown or 1) + 1


def check_examples(source: GeneratedSource, most: int | None = None) -> None:
    """Check that `most` examples of a task, by default all that are asked for, are enough. Raises UserError."""
    if most is None:
        positions = np.arange(source.examples, dtype=np.float64)
        most = len(within_quantiles(positions, *source.pso_quantiles) if isinstance(source, RearcSource) else positions)
    if most < _fewest(source):
        raise UserError(
            f"a source of dataset {source.dataset} takes at most {most} examples of a task, but a task is made of"
            f" {_fewest(source)}; raise `examples`, lower `shown`, or widen `pso_quantiles`"
        )


def within_quantiles(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.int64]:
    """Return the positions, ascending, of values between two quantiles; of equal values the earlier counts as lower."""
    order = np.argsort(values, kind="stable")
    return np.sort(order[round(low * len(order)) : round(high * len(order))])


def check_supply(source: GeneratedSource, manifest: Mapping[str, Any], folder: Folder) -> None:
    """Check that tasks have the examples for at least one task of this source's making: all that it names must; of "all"
    tasks, those that cannot be made (too large ones for `max_side`) are left out with a warning.

    Raises UserError saying what became of the attempts.
    """
    need, task_ids = source.first + _fewest(source), task_ids_of(source)
    short = [task_id for task_id in task_ids if manifest["tasks"][task_id]["examples"] < need]
    if not short:
        return
    if isinstance(source, RearcSource | ArcGenSource) and source.tasks == "all" and len(short) < len(task_ids):
        logger.warning(
            "dataset %s: %d tasks have too few examples: %s; manifest.json says why",
            *(source.dataset, len(short), first_few(short, 10, " ")),
        )
        return
    entry = manifest["tasks"][short[0]]
    first_block = blocks_by_task(manifest, folder.names())[short[0]][0]
    errors = (folder / "timings").read_parquet(first_block.name)["error"].drop_null().to_pylist()
    others = f" (too few have {first_few(short[1:], 10, ' ')} as well)" if len(short) > 1 else ""
    keys = [key for key in ("max_side", "difficulty", "time_limit_seconds") if hasattr(source, key)]
    reasons = ", ".join(f"{reason} {count}" for reason, count in entry["rejected"].items())
    raise UserError(
        f"dataset {folder.uri}: task {short[0]} has {entry['examples']} usable examples, {need} are needed:"
        f" of {entry['attempts']} attempts {sum(entry['rejected'].values())} were rejected{f' ({reasons})' if reasons else ''},"
        f" {len(entry['timed_out'])} timed out, {entry['duplicates']} were duplicates"
        f"{f' (an error was: {errors[-1]})' if errors else ''};"
        f" change {', '.join(keys)} or first, or leave the task out{others}"
    )

"""The quality of training data, in numbers that show the faults of this field: leaks, repeats, waste, merged colours.

`arc-ray check` prints it, and a study keeps it as quality.json for its report.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.datasets.makers import GeneratedSource, dataset_folder
from arc_ray.datasets.reading import load_source
from arc_ray.errors import first_few
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.guard import NAMED, find_overlaps, mixed
from arc_ray.rows.plan import Plan
from arc_ray.rows.prepare import codec_of, first_views, plan_rows
from arc_ray.runs.shapes import ManifestShape
from arc_ray.storage import Folder
from arc_ray.tasks.fingerprints import count_duplicates, count_met, count_views
from arc_ray.tasks.selection import name_set
from arc_ray.tasks.task import Task, TaskTable, same_grid
from arc_ray.views.view import Views

QUANTILES = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "longest": 1.0}
"""Name -> quantile of the tokens of a source's planned views."""


def describe_data(
    config: Config, ancestors: Mapping[str, Config], has_model: bool = True, plan: Plan | None = None
) -> dict[str, Any]:
    """Describe the data of a config's mix, validation and evaluation, whatever overlaps. Raises UserError.

    `ancestors` are the runs that its weights come from. Returns {"sources": {name: counts}, "lengths": {name:
    {"shortest": tokens...}}, "waste": shares of places without a token, "met": {evaluated name: {"asked": pairs, "met":
    pairs}}, "overlap": sentences}, for JSON. Without a model there is no tokenizer yet: lengths and waste are empty.
    `plan` is the config's, where it is known.
    """
    storage = Folder.at(config.storage)
    names = dict.fromkeys([*mixed(config), *config.data.validation, *config.evaluate.sets])
    tasks = {name: load_source(config.data.sources[name], storage) for name in names}
    tables = {name: TaskTable.of(tasks[name]) for name in names}
    if has_model and plan is None:
        plan = plan_rows(config, tables, codec_of(config, load_tokenizer(config.model, config.storage)))
    return {
        "sources": {name: _source_counts(config, name, tasks[name], tables[name]) for name in names},
        "lengths": dict(_lengths(plan)) if plan else {},
        "waste": _waste(plan) if plan else {},
        "met": dict(_met(config, tasks)),
        "overlap": find_overlaps(config, ancestors, tasks),
    }


def quality_lines(quality: Mapping[str, Any]) -> Iterator[str]:
    """Say it in lines for a terminal."""
    for name, counts in quality["sources"].items():
        rejected = ", ".join(f"{reason} {number}" for reason, number in counts["rejected"].items())
        yield (
            f"{name} ({counts['set']}): {counts['tasks']} tasks, {counts['pairs']} pairs; {counts['duplicate_pairs']} pairs and"
            f" {counts['duplicate_tasks']} tasks equal an earlier one up to symmetry and colours,"
            f" {counts['degenerate']} outputs equal their input, {counts['merged_colors']} views merge colours"
            + (f"; of {counts['attempts']} attempts rejected: {rejected or 'none'}" if counts["attempts"] else "")
        )
        if counts["views"]:
            yield (
                f"{name}: symmetries x asked pair give {counts['views']} views, {counts['distinct_views']} of them"
                f" distinct ({counts['distinct_views'] / counts['tasks']:.1f} a task)"
            )
    for name, lengths in quality["lengths"].items():
        yield f"{name}: tokens a view: " + ", ".join(f"{key} {value}" for key, value in lengths.items())
    waste = quality["waste"]
    if waste:
        yield (
            f"padding: {waste['packed']:.1%} of the planned rows; one view a row would waste {waste['one_view_a_row']:.1%},"
            f" views padded to the longest {waste['padded_to_longest']:.1%}"
        )
    for name, counts in quality["met"].items():
        yield f"{name}: {counts['met']} of {counts['asked']} asked pairs equal a training pair up to symmetry and colours"
    overlap = first_few(quality["overlap"], NAMED, "; ") or "none"
    yield f"overlap of training with validation and evaluation: {overlap}"


def _source_counts(config: Config, name: str, tasks: Sequence[Task], table: TaskTable) -> dict[str, Any]:
    puzzles = [task for task in tasks if not task.is_counting]
    pairs = [pair for task in puzzles for pair in task.pairs]
    source, generated = config.data.sources[name], {}
    if isinstance(source, GeneratedSource):
        generated = dataset_folder(Folder.at(config.storage), source.dataset).read_json("manifest.json", ManifestShape)
    return {
        "set": name_set(source, table, config.storage),
        "tasks": len(tasks),
        "pairs": len(pairs),
        **count_duplicates(puzzles),
        "degenerate": sum(same_grid(pair.input, pair.output) for pair in pairs),
        "merged_colors": _count_merged_colors(tasks, first_views(config, name, table)),
        **count_views(puzzles),
        "attempts": generated.get("attempts", 0),
        "rejected": generated.get("rejected", {}),
    }


def _met(config: Config, tasks: Mapping[str, Sequence[Task]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Count, for each evaluated set that asks for grids, the asked pairs that the training mix holds."""
    trained = [task for name in mixed(config) for task in tasks[name]]
    for name in dict.fromkeys([*config.data.validation, *config.evaluate.sets]):
        counts = count_met(trained, tasks[name])
        if counts["asked"]:
            yield name, counts


def _count_merged_colors(tasks: Sequence[Task], views: Views) -> int:
    """Count, among a view of each task, those with fewer colours than their task: each is another puzzle."""
    merged = 0
    for task, colors in zip(tasks, views.colors, strict=True):
        used = np.unique(np.concatenate([grid.ravel() for pair in task.pairs for grid in pair.grids]))
        merged += len(np.unique(colors[used])) < len(used)
    return merged


def _lengths(plan: Plan) -> Iterator[tuple[str, dict[str, int]]]:
    for index, name in enumerate(plan.sources):
        tokens = plan.views["tokens"][plan.views["source"] == index]
        if len(tokens):
            yield name, {key: int(np.quantile(tokens, share)) for key, share in QUANTILES.items()}


def _waste(plan: Plan) -> dict[str, float]:
    tokens = plan.views["tokens"]
    mean = float(tokens.mean())
    return {
        "packed": round(1 - plan.fill(), 6),
        "one_view_a_row": round(1 - mean / plan.row_tokens, 6),
        "padded_to_longest": round(1 - mean / float(tokens.max()), 6),
    }

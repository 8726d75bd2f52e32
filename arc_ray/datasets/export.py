"""Generated datasets in the formats of others: ARC JSON, and RE-ARC's own layout."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arc_ray.datasets.blocks import read_block, read_rows, read_stats
from arc_ray.datasets.columns import COUNTING, PAIRS, counting_tasks_of, pairs_of, usable_rows
from arc_ray.datasets.manifest import blocks_by_task
from arc_ray.datasets.requests import dataset_folder
from arc_ray.errors import UserError
from arc_ray.storage import Folder
from arc_ray.tasks.selection import cut_examples
from arc_ray.tasks.task import Task, pair_to_json, task_to_json


def exporter_named(name: str) -> "Exporter":
    """Return the function that writes a dataset in a format of others. Raises UserError naming the formats."""
    if name not in EXPORTERS:
        raise UserError(f"--export {name}: choose one of {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


def export_datasets(
    storage: Folder, manifests: Mapping[str, Mapping[str, Any]], name: str, write: "Exporter"
) -> Iterator[str]:
    """Write datasets to <storage>/export/<dataset>/<name>; yield a line on each. Counting has no place in RE-ARC's layout."""
    for dataset, manifest in manifests.items():
        if name == "rearc" and manifest["kind"] == "counting":
            yield f"{dataset}: counting tasks have no place in RE-ARC's layout; --export arc_json writes them"
            continue
        target = storage / "export" / dataset / name
        yield f"{target.uri}: {write(dataset_folder(storage, dataset), target)} tasks"


def export_arc_json(dataset: Folder, target: Folder, shown: int = 3) -> int:
    """Write a finished dataset as ARC JSON, one task a file; return the number of files.

    Examples are cut into tasks of `shown` train pairs and one test pair, `<id>-<k>.json`; counting tasks are written as
    they are, with their questions. Raises UserError if the dataset is not finished.
    """
    count = 0
    for task in _arc_tasks(dataset, _manifest(dataset), shown):
        target.write_bytes(f"{task.id.replace('#', '-')}.json", json.dumps(task_to_json(task)).encode())
        count += 1
    return count


def export_rearc(dataset: Folder, target: Folder) -> int:
    """Write a finished dataset in RE-ARC's layout, `tasks/<id>.json` and `metadata.json`; return the number of tasks.

    Counts are cumulative as there: grids generated, of them verified, of them not degenerate. `runtime` is in seconds
    of one core. Raises UserError if the dataset is not finished.
    """
    manifest = _manifest(dataset)
    metadata = {}
    for task_id, blocks in blocks_by_task(manifest, dataset.names()).items():
        stats = read_stats(dataset, blocks)
        rows = usable_rows(stats)
        pairs = pairs_of(read_rows(dataset, blocks, rows, PAIRS))
        timings = (read_block(dataset / "timings", block, ["milliseconds"]) for block in blocks)
        metadata[task_id] = {
            **_rearc_counts(manifest["tasks"][task_id]),
            "rng_difficulties": stats["rng_difficulty"].take(rows).to_pylist(),
            "pso_difficulties": stats["pso_difficulty"].take(rows).to_pylist(),
            "runtime": sum(sum(table["milliseconds"].to_pylist()) for table in timings) / 1000,
        }
        target.write_bytes(f"tasks/{task_id}.json", json.dumps([pair_to_json(pair) for pair in pairs]).encode())
    target.write_bytes("metadata.json", json.dumps(metadata).encode())
    return len(metadata)


Exporter = Callable[[Folder, Folder], int]
"""Writes a finished dataset into a folder; returns the number of tasks."""

EXPORTERS: dict[str, Exporter] = {"arc_json": export_arc_json, "rearc": export_rearc}


def _arc_tasks(dataset: Folder, manifest: Mapping[str, Any], shown: int) -> Iterator[Task]:
    for task_id, blocks in blocks_by_task(manifest, dataset.names()).items():
        rows = usable_rows(read_stats(dataset, blocks))
        if manifest["kind"] == "counting":
            yield from counting_tasks_of(read_rows(dataset, blocks, rows, COUNTING))
        elif len(rows) > shown:
            yield from cut_examples(task_id, pairs_of(read_rows(dataset, blocks, rows, PAIRS)), 0, None, shown)


def _rearc_counts(entry: Mapping[str, Any]) -> dict[str, int]:
    rejected = entry["rejected"]
    no_grids = ("generator_error", "invalid_grid", "too_large")
    generated = entry["attempts"] - len(entry["timed_out"]) - sum(rejected.get(reason, 0) for reason in no_grids)
    verified = generated - rejected.get("verifier_error", 0) - rejected.get("unverified", 0)
    nondegenerate = verified - rejected.get("degenerate", 0)
    return {"n_generations": generated, "n_verified": verified, "n_nondegenerate": nondegenerate}


def _manifest(dataset: Folder) -> dict[str, Any]:
    manifest = dataset.read_json("manifest.json")
    if manifest is None:
        raise UserError(f"{dataset.uri} has no manifest.json; name a folder that `arc-ray generate` has finished")
    return manifest

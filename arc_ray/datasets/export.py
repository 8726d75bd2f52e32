"""Generated datasets in the formats of others: ARC JSON, and RE-ARC's own layout."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from arc_ray.contents import damaged
from arc_ray.datasets.blocks import pairs_in, read_examples, read_stats, tasks_in, usable_rows
from arc_ray.datasets.makers import dataset_folder
from arc_ray.datasets.manifest import blocks_by_task
from arc_ray.errors import UserError
from arc_ray.storage import Folder
from arc_ray.tasks.task import pair_to_json, task_to_json

SHOWN = 3
"""Train pairs of a task in ARC JSON, beside one test pair."""


def check_format(name: str) -> None:
    """Refuse a format that no exporter writes. Raises UserError naming the formats."""
    if name not in EXPORTERS:
        raise UserError(f"--export {name}: choose one of {', '.join(EXPORTERS)}")


def export_datasets(storage: Folder, manifests: Mapping[str, Mapping[str, Any]], name: str) -> Iterator[str]:
    """Write finished datasets to <storage>/export/<dataset>/<name>; yield a line on each."""
    for dataset, manifest in manifests.items():
        if name == "rearc" and manifest["kind"] == "counting":
            yield f"{dataset}: counting tasks have no place in RE-ARC's layout; --export arc_json writes them"
            continue
        target, place = storage / "export" / dataset / name, dataset_folder(storage, dataset)
        with damaged(place.uri):
            number = EXPORTERS[name](place, manifest, target)
        yield f"{target.uri}: {number} tasks"


def export_arc_json(dataset: Folder, manifest: Mapping[str, Any], target: Folder) -> int:
    """Write a dataset as ARC JSON, one task a file; return the number of files. Examples are cut into tasks of SHOWN train
    pairs and one test pair, `<id>-<k>.json`; counting tasks are written as they are, with their questions."""
    count, fewest = 0, 1 if manifest["kind"] == "counting" else SHOWN + 1
    for task_id, blocks in blocks_by_task(manifest, dataset.names()).items():
        rows = usable_rows(read_stats(dataset, blocks))
        for task in tasks_in(read_examples(dataset, blocks, rows), task_id, SHOWN) if len(rows) >= fewest else ():
            target.write_bytes(f"{task.id.replace('#', '-')}.json", json.dumps(task_to_json(task)).encode())
            count += 1
    return count


def export_rearc(dataset: Folder, manifest: Mapping[str, Any], target: Folder) -> int:
    """Write a dataset in RE-ARC's layout, `tasks/<id>.json` and `metadata.json`; return the number of tasks. Counts are
    cumulative: grids generated, of them verified, of them not degenerate. `runtime` is in seconds of one core."""
    metadata = {}
    for task_id, blocks in blocks_by_task(manifest, dataset.names()).items():
        stats = read_stats(dataset, blocks)
        rows = usable_rows(stats)
        pairs = pairs_in(read_examples(dataset, blocks, rows)) if len(rows) else []
        timings = ((dataset / "timings").read_parquet(block.name)["milliseconds"] for block in blocks)
        metadata[task_id] = {
            **_rearc_counts(manifest["tasks"][task_id]),
            "rng_difficulties": stats["rng_difficulty"].take(rows).to_pylist(),
            "pso_difficulties": stats["pso_difficulty"].take(rows).to_pylist(),
            "runtime": sum(sum(column.to_pylist()) for column in timings) / 1000,
        }
        target.write_bytes(f"tasks/{task_id}.json", json.dumps([pair_to_json(pair) for pair in pairs]).encode())
    target.write_bytes("metadata.json", json.dumps(metadata).encode())
    return len(metadata)


EXPORTERS = {"arc_json": export_arc_json, "rearc": export_rearc}
"""Name -> what writes a dataset, given with its manifest, into a folder, and returns the number of tasks."""


def _rearc_counts(entry: Mapping[str, Any]) -> dict[str, int]:
    rejected = entry["rejected"]
    no_grids = ("generator_error", "invalid_grid", "too_large")
    generated = entry["attempts"] - len(entry["timed_out"]) - sum(rejected.get(reason, 0) for reason in no_grids)
    verified = generated - rejected.get("verifier_error", 0) - rejected.get("unverified", 0)
    nondegenerate = verified - rejected.get("degenerate", 0)
    return {"n_generations": generated, "n_verified": verified, "n_nondegenerate": nondegenerate}

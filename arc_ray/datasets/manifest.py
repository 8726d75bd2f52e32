"""What is in a generated dataset, counted task by task; and what is still to be made.

The manifest is written last and says how many indices of each task belong to the dataset, so a reader never sees a
half-made extension. It is a pure function of the blocks.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa

from arc_ray.datasets.blocks import Block, blocks_from
from arc_ray.datasets.columns import STATS, usable_rows
from arc_ray.tasks.examples import REASONS

PROBE_EXAMPLES = 10
"""Indices of a task tried before the rest: where none is usable (grids always above max_side), none will be."""
PATIENCE = 4
"""Indices tried for each usable example that is asked before a task is left short."""


class Tally:
    """The blocks of one task from index 0 on that are there, by their statistics."""

    def __init__(self, task_id: str, seconds_each: float, probe: bool) -> None:
        self.task_id = task_id
        self.probe = probe
        """Whether the task may yield nothing, so that a few examples are tried first."""
        self.seconds_each = seconds_each
        """Estimated cost of an example, which decides the size of blocks."""
        self.stats = pa.schema(STATS).empty_table()
        self.usable = usable_rows(self.stats)

    def blocks_to(self, goal: int) -> list[Block]:
        """List the blocks that follow, until `goal` indices are covered."""
        blocks = blocks_from(self.task_id, len(self.stats), self.seconds_each)
        return list(takewhile(lambda block: block.start < goal, blocks))

    def next_blocks(self, want: int) -> list[Block]:
        """List the blocks to make next for `want` usable examples: a probe, then all, then one at a time.

        Depends on earlier blocks alone, so an interrupted making ends like an unbroken one. Empty when settled.
        """
        covered = len(self.stats)
        if is_settled(covered, len(self.usable), want):
            return []
        is_probe = self.probe and covered == 0
        return self.blocks_to(min(want, PROBE_EXAMPLES) if is_probe else max(want, covered + 1))

    def add(self, stats: pa.Table) -> None:
        """Take in the statistics of the blocks that follow."""
        self.stats = pa.concat_tables([self.stats, stats]).combine_chunks()
        self.usable = usable_rows(self.stats)

    def entry(self) -> dict[str, Any]:
        """Describe the task for the manifest; difficulties are means over usable examples."""
        outcomes, usable = Counter(self.stats["outcome"].to_pylist()), self.stats.take(self.usable)
        rejected = {reason: sum(self.stats[f"rejected_{reason}"].to_pylist()) for reason in REASONS}
        return {
            "examples": len(usable),
            "indices": len(self.stats),
            "duplicates": outcomes["accepted"] - len(usable),
            "gave_up": outcomes["gave_up"],
            "timed_out": np.flatnonzero(self.stats["outcome"].to_numpy() == "timed_out").tolist(),
            "attempts": sum(self.stats["attempts"].to_pylist()),
            "rejected": {reason: count for reason, count in rejected.items() if count},
            "rng_difficulty": _mean(usable["rng_difficulty"]),
            "pso_difficulty": _mean(usable["pso_difficulty"]),
            "fingerprint": _fingerprint(self.stats),
        }


def is_settled(indices: int, examples: int, want: int) -> bool:
    """Tell whether a task needs no more blocks: it has enough usable examples, or more would hardly help."""
    return examples >= want or (examples == 0 and indices >= PROBE_EXAMPLES) or indices >= PATIENCE * want


def open_wishes(manifest: Mapping[str, Any] | None, wanted: Mapping[str, int]) -> dict[str, int]:
    """Return the wishes (task id -> usable examples) that a manifest does not settle; all of them if there is none."""
    entries = manifest["tasks"] if manifest else {}
    return {
        task_id: want
        for task_id, want in wanted.items()
        if task_id not in entries or not is_settled(entries[task_id]["indices"], entries[task_id]["examples"], want)
    }


def blocks_by_task(manifest: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[Block]]:
    """Choose the blocks that belong to a dataset among the names in its folder, in order, for each task."""
    blocks: dict[str, list[Block]] = {task_id: [] for task_id in manifest["tasks"]}
    for block in (Block.named(name) for name in sorted(names) if name.startswith("part-")):
        if block.task_id in blocks and block.stop <= manifest["tasks"][block.task_id]["indices"]:
            blocks[block.task_id].append(block)
    return blocks


def make_manifest(record: Mapping[str, Any], entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum up tasks; `record` is what dataset.json says. `timed_out` lists [task, index] where the time limit struck."""
    tasks = dict(sorted(entries.items()))
    totals = {
        key: sum(entry[key] for entry in tasks.values())
        for key in ("examples", "indices", "duplicates", "gave_up", "attempts")
    }
    rejected = sum((Counter(entry["rejected"]) for entry in tasks.values()), Counter())
    fingerprints = "".join(f"{task_id} {entry['fingerprint']}\n" for task_id, entry in tasks.items())
    return {
        **record,
        "num_tasks": len(tasks),
        **totals,
        "rejected": dict(sorted(rejected.items())),
        "timed_out": [[task_id, index] for task_id, entry in tasks.items() for index in entry["timed_out"]],
        "fingerprint": hashlib.blake2b(fingerprints.encode(), digest_size=16).hexdigest(),
        "tasks": tasks,
    }


def _mean(column: pa.ChunkedArray) -> float | None:
    """Average exactly, so that the manifest does not depend on the order in which a processor adds; None of nothing."""
    values = column.drop_null().to_pylist()
    return fmean(values) if values else None


def _fingerprint(stats: pa.Table) -> str:
    """Digest outcome and content of every example, in order; block boundaries and the file format do not enter."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("outcome", "input_digest", "output_digest"):
        digest.update(repr(stats[name].to_pylist()).encode())
    return digest.hexdigest()

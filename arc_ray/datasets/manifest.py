"""Which blocks a dataset has and which are still to be made; what is in it, counted task by task.

Where blocks begin and end depends on the task alone, never on how many examples are asked or on who makes them. So
asking for more adds files, and a file that exists is right. The manifest is written last and says how many indices of
each task belong to the dataset, so a reader never sees a half-made extension. It is a pure function of the blocks.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from statistics import fmean
from typing import Any

import pyarrow as pa

from arc_ray.datasets.blocks import STATS, Block, usable_rows
from arc_ray.datasets.makers import GeneratedSource, maker_of
from arc_ray.tasks.examples import REASONS

BLOCK_SECONDS = 4.0
"""A block is estimated to take at most this long: what a crash costs a worker, and far less than a large job takes."""
FIRST_SECONDS, FIRST_EXAMPLES = 0.2, 50
"""A task's first blocks are small (the smaller of the two), so that few examples are soon made."""
PROBE_EXAMPLES = 10
"""Indices of a task tried before the rest: where none is usable (grids always above max_side), none will be."""
PATIENCE = 4
"""Indices tried for each usable example that is asked before a task is left short."""


def blocks_from(task_id: str, start: int, seconds_each: float) -> Iterator[Block]:
    """Yield a task's blocks from the boundary `start` on, without end. Sizes are 1, 2 or 5 times a power of ten and divide
    their start, so 100 and 1000 are boundaries of every task; later blocks are at most half as long as all before them, so
    rounding up costs little."""
    first = min(FIRST_EXAMPLES, FIRST_SECONDS / seconds_each)
    while True:
        limit = min(max(first, start // 2), BLOCK_SECONDS / seconds_each)
        sizes = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
        size = max((size for size in sizes if size <= limit and start % size == 0), default=1)
        yield Block(task_id, start, start + size)
        start += size


class Tally:
    """The blocks of one task from index 0 on that are there, by their statistics."""

    def __init__(self, task_id: str, seconds_each: float, probe: bool) -> None:
        """`seconds_each` is what an example may cost; with `probe` a few are tried first, since there may be none."""
        self.task_id, self.seconds_each, self.probe = task_id, seconds_each, probe
        self.stats = STATS.empty_table()
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
        outcomes, usable = self.stats["outcome"].to_pylist(), self.stats.take(self.usable)
        rejected = {reason: sum(self.stats[f"rejected_{reason}"].to_pylist()) for reason in REASONS}
        content = [self.stats[name].to_pylist() for name in ("outcome", "input_digest", "output_digest")]
        return {
            "examples": len(usable),
            "indices": len(self.stats),
            "duplicates": outcomes.count("accepted") - len(usable),
            "gave_up": outcomes.count("gave_up"),
            "timed_out": [index for index, outcome in enumerate(outcomes) if outcome == "timed_out"],
            "attempts": sum(self.stats["attempts"].to_pylist()),
            "rejected": {reason: count for reason, count in rejected.items() if count},
            "rng_difficulty": _mean(usable["rng_difficulty"]),
            "pso_difficulty": _mean(usable["pso_difficulty"]),
            "fingerprint": _digest("".join(map(repr, content))),
        }


def empty_tallies(source: GeneratedSource, wanted: Iterable[str]) -> list[Tally]:
    """Begin a tally of each task that is wanted of a source."""
    maker = maker_of(source)
    return [Tally(task_id, maker.seconds(task_id), maker.may_yield_nothing) for task_id in wanted]


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
    rejected = sum((Counter(entry["rejected"]) for entry in tasks.values()), Counter())
    totals = ("examples", "indices", "duplicates", "gave_up", "attempts")
    return {
        **record,
        "num_tasks": len(tasks),
        **{key: sum(entry[key] for entry in tasks.values()) for key in totals},
        "rejected": dict(sorted(rejected.items())),
        "timed_out": [[task_id, index] for task_id, entry in tasks.items() for index in entry["timed_out"]],
        "fingerprint": _digest("".join(f"{task_id} {entry['fingerprint']}\n" for task_id, entry in tasks.items())),
        "tasks": tasks,
    }


def _mean(column: pa.ChunkedArray) -> float | None:
    """Average exactly, so that the manifest does not depend on the order in which a processor adds; None of nothing."""
    values = column.drop_null().to_pylist()
    return fmean(values) if values else None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

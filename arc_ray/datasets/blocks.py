"""A block: a range of examples of one task, made in one go and stored as one file, written whole.

Where blocks begin and end depends on the task alone, never on how many examples are asked or on who makes them. So
asking for more adds files, and a file that exists is right. What cannot be reproduced (milliseconds, texts of
exceptions) goes to a second file of the same name under `timings/`; everything else is byte for byte the same.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arc_ray.config.sources import CountingSource, PluginSource, RearcSource
from arc_ray.datasets.columns import STATS, counting_table, examples_table, timings_table
from arc_ray.datasets.garbage import collector_paused
from arc_ray.storage import Folder
from arc_ray.tasks import generators
from arc_ray.tasks.counting import counting_task
from arc_ray.tasks.task import MAX_SIDE

GeneratedSource = RearcSource | CountingSource | PluginSource

LAYOUT = 2
"""Raise it when boundaries, columns or what counts as a duplicate change: datasets of another layout are refused."""

BLOCK_SECONDS = 4.0
"""A block is estimated to take at most this long: what a crash costs a worker, and far less than a large job takes."""
FIRST_SECONDS = 0.2
FIRST_EXAMPLES = 50
"""A task's first blocks are small (the smaller of the two), so that few examples are soon made."""

COUNTING_SECONDS = 0.0007
PLUGIN_SECONDS = 0.01
"""Nothing is known about a user's generator; where it is slower, blocks take longer."""


class Block(NamedTuple):
    """Examples `start` to `stop` of a task."""

    task_id: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of its file; sorted names are in the order of examples."""
        return f"part-{self.task_id}-{self.start:07d}-{self.stop:07d}.parquet"

    @classmethod
    def named(cls, name: str) -> "Block":
        """Read a file's name back."""
        task_id, start, stop = name.removeprefix("part-").removesuffix(".parquet").rsplit("-", 2)
        return cls(task_id, int(start), int(stop))


def seconds_per_example(source: GeneratedSource, task_id: str) -> float:
    """Estimate what one example of a task costs on one core."""
    if isinstance(source, RearcSource):
        return generators.SLOW_SECONDS.get(task_id, generators.USUAL_SECONDS)
    return COUNTING_SECONDS if isinstance(source, CountingSource) else PLUGIN_SECONDS


def may_yield_nothing(source: GeneratedSource) -> bool:
    """Tell whether some task may have no usable example; RE-ARC's all have, unless its grids are held small."""
    if isinstance(source, RearcSource):
        return source.max_side < MAX_SIDE or source.difficulty != (0.0, 1.0)
    return isinstance(source, PluginSource)


def blocks_from(task_id: str, start: int, seconds_each: float) -> Iterator[Block]:
    """Yield a task's blocks from the boundary `start` on, without end.

    Sizes are 1, 2 or 5 times a power of ten and divide their start, so 100 and 1000 are boundaries of every task. Later
    blocks are at most half as long as all before them, so rounding up costs little.
    """
    first = min(FIRST_EXAMPLES, FIRST_SECONDS / seconds_each)
    while True:
        limit = min(max(first, start // 2), BLOCK_SECONDS / seconds_each)
        sizes = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
        size = max((size for size in sizes if size <= limit and start % size == 0), default=1)
        yield Block(task_id, start, start + size)
        start += size


def make_block(source: GeneratedSource, block: Block) -> tuple[pa.Table, pa.Table]:
    """Make a block's examples and their timings. Raises UserError for a plugin's mistakes."""
    indices = range(block.start, block.stop)
    if isinstance(source, CountingSource):
        started = time.perf_counter()
        tasks = [counting_task(source, index) for index in indices]
        mean = (time.perf_counter() - started) * 1000 / len(tasks)
        return counting_table(block.start, tasks), timings_table(block.start, [mean] * len(tasks), [None] * len(tasks))
    with collector_paused():
        if isinstance(source, PluginSource):
            examples = [generators.plugin_example(source, index) for index in indices]
        else:
            examples = [generators.rearc_example(source, block.task_id, index) for index in indices]
    timings = timings_table(block.start, [e.milliseconds for e in examples], [e.error for e in examples])
    return examples_table(block.start, examples), timings


def write_block(source: GeneratedSource, block: Block, folder: Folder) -> None:
    """Make a block and write its two files; the one whose existence says "done" comes last. Raises UserError."""
    examples, timings = make_block(source, block)
    (folder / "timings").write_bytes(block.name, _to_parquet(timings))
    folder.write_bytes(block.name, _to_parquet(examples))


def read_block(folder: Folder, block: Block, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a block, in this order."""
    return pq.read_table(pa.BufferReader(folder.read_bytes(block.name)), columns=list(columns), use_threads=False)


def read_stats(folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """Read the statistics of blocks: all columns but the grids."""
    empty = pa.schema(STATS).empty_table()
    return pa.concat_tables([empty, *(read_block(folder, block, empty.column_names) for block in blocks)])


def read_rows(folder: Folder, blocks: Iterable[Block], rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Read columns of examples whose indices are `rows`, ascending, opening only the blocks that hold some."""
    wanted = ((block, rows[(rows >= block.start) & (rows < block.stop)] - block.start) for block in blocks)
    tables = [read_block(folder, block, columns).take(inside) for block, inside in wanted if len(inside)]
    return pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})


def _to_parquet(table: pa.Table) -> bytes:
    """Encode a table; every setting that decides bytes is named here, but they also depend on pyarrow's version."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, version="2.6", compression="zstd", compression_level=3, row_group_size=1 << 20)
    return sink.getvalue().to_pybytes()

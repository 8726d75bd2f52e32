"""A block: a range of examples of one task, made in one go and stored as one Parquet file, written whole.

What cannot be reproduced (milliseconds, texts of exceptions) goes to a second file of the same name under `timings/`;
everything else is byte for byte the same, whoever makes it.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from functools import partial, reduce
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arc_ray.datasets.makers import GeneratedSource, maker_of
from arc_ray.runs.machine import collector_paused
from arc_ray.storage import Folder
from arc_ray.tasks.examples import REASONS, Example, pso_difficulties
from arc_ray.tasks.fingerprints import canonical_pair
from arc_ray.tasks.selection import cut_examples
from arc_ray.tasks.task import Grid, Pair, Question, Task

STATS = pa.schema(
    [
        ("index", pa.int32()),
        ("outcome", pa.string()),
        ("attempts", pa.int16()),
        *((f"rejected_{reason}", pa.int16()) for reason in REASONS),
        ("rng_difficulty", pa.float64()),
        ("pso_difficulty", pa.float64()),
        ("input_digest", pa.uint64()),
        ("output_digest", pa.uint64()),
        ("pair_digest", pa.uint64()),
    ]
)
"""Columns of every block, which tell what became of each index; None where that has no meaning. `pair_digest` is the same
for pairs that are equal up to symmetry and colours. The other columns hold the examples themselves."""

TOLD_APART_BY = ("input_digest", "pair_digest")
"""Examples of a task that agree in one of these are duplicates."""


class Block(NamedTuple):
    """Examples `start` to `stop` of a task."""

    task_id: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of its examples."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Name of its file; sorted names are in the order of examples."""
        return f"part-{self.task_id}-{self.start:07d}-{self.stop:07d}.parquet"

    @classmethod
    def named(cls, name: str) -> "Block":
        """Read a file's name back."""
        task_id, start, stop = name.removeprefix("part-").removesuffix(".parquet").rsplit("-", 2)
        return cls(task_id, int(start), int(stop))


def make_block(source: GeneratedSource, block: Block) -> tuple[pa.Table, pa.Table]:
    """Make a block's examples and their timings. Raises UserError for a plugin's mistakes."""
    make, milliseconds, examples = maker_of(source).make, [], []
    with collector_paused():
        for index in range(block.start, block.stop):
            started = time.perf_counter()
            examples.append(make(block.task_id, index))
            milliseconds.append((time.perf_counter() - started) * 1000)
    timings = {
        "index": pa.array(range(block.start, block.stop), pa.int32()),
        "milliseconds": pa.array(milliseconds, pa.float64()),
        "error": pa.array([example.error for example in examples], pa.string()),
    }
    return examples_table(block.start, examples), pa.table(timings)


def write_block(source: GeneratedSource, block: Block, folder: Folder) -> None:
    """Make a block and write its two files; the one whose existence says "done" comes last. Raises UserError."""
    examples, timings = make_block(source, block)
    # Every setting that decides bytes is named here, but they also depend on pyarrow's version.
    settings = {"version": "2.6", "compression": "zstd", "compression_level": 3, "row_group_size": 1 << 20}
    for place, table in ((folder / "timings", timings), (folder, examples)):
        place.write_parquet(block.name, table, **settings)


def read_stats(folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """Read the columns STATS of blocks."""
    return pa.concat_tables([STATS.empty_table(), *(_read(folder, block, STATS.names) for block in blocks)])


def read_examples(folder: Folder, blocks: Iterable[Block], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Read the examples whose indices are `rows`, ascending, opening only the blocks that hold some."""
    wanted = ((block, rows[(rows >= block.start) & (rows < block.stop)] - block.start) for block in blocks)
    tables = [_read(folder, block).take(inside) for block, inside in wanted if len(inside)]
    return pa.concat_tables(tables) if tables else pa.table({})


def _read(folder: Folder, block: Block, columns: Sequence[str] = ()) -> pa.Table:
    """Read these columns of a block, or, with none named, the examples themselves."""
    return folder.read(block.name, partial(_rows_in, columns=columns, size=block.size))


def _rows_in(content: bytes, columns: Sequence[str], size: int) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(content))
    named = columns or [name for name in file.schema_arrow.names if name not in STATS.names]
    table = file.read(list(named), use_threads=False)
    if len(table) != size or (columns and table.schema != STATS):
        raise ValueError(f"it must hold {size} examples in the columns of a dataset")
    return table


def usable_rows(stats: pa.Table) -> npt.NDArray[np.int64]:
    """Return the rows that count, ascending: accepted, and no earlier one of the task has the same input or is the same
    pair up to symmetry and colours, which augmentation would turn into it.

    `stats` holds a task's examples from index 0 on. Whether a row counts depends on earlier rows alone, never on how
    far the dataset has grown or in which order its blocks were made.
    """
    accepted = np.flatnonzero(stats["outcome"].to_numpy() == "accepted")
    firsts = (np.unique(stats[name].to_numpy()[accepted], return_index=True)[1] for name in TOLD_APART_BY)
    return accepted[reduce(np.intersect1d, firsts)]


def examples_table(start: int, examples: Sequence[Example]) -> pa.Table:
    """Store examples from index `start` on, all with pairs or all with counting tasks: the columns STATS and, of pairs,
    `input` and `output`, each a list of rows of colours, null where an example was given up; of counting tasks `id`,
    `grids`, a list of such lists, and `questions`, as JSON text a list of [kind, question, answer].
    """
    tasks = [example.task for example in examples if example.task]
    stats, content = _counting_columns(tasks) if tasks else _pair_columns([example.pair for example in examples])
    stats |= {
        "index": range(start, start + len(examples)),
        "outcome": [example.outcome for example in examples],
        "attempts": [example.attempts for example in examples],
        **{f"rejected_{reason}": [example.rejects[reason] for example in examples] for reason in REASONS},
        "rng_difficulty": [example.rng_difficulty for example in examples],
    }
    missing = [None] * len(examples)
    return pa.table({f.name: pa.array(stats.get(f.name, missing), f.type) for f in STATS} | content)


def tasks_in(rows: pa.Table, task_id: str, shown: int | None) -> list[Task]:
    """Make tasks of the examples of a puzzle, cut as by `cut_examples`, or the counting tasks that they are."""
    if "questions" not in rows.column_names:
        return cut_examples(task_id, pairs_in(rows), 0, None, shown)
    column = rows["grids"].combine_chunks()
    grids, counts = iter(_grids_in(pa.chunked_array([column.flatten()]))), column.value_lengths().to_pylist()
    return [
        Task(
            id=task_id,
            train=(),
            test=tuple(Pair(next(grids), None) for _ in range(count)),
            questions=tuple(Question(*question) for question in json.loads(text)),
        )
        for task_id, text, count in zip(rows["id"].to_pylist(), rows["questions"].to_pylist(), counts, strict=True)
    ]


def pairs_in(rows: pa.Table) -> list[Pair]:
    """Read rows of a block, none of them given up, as pairs."""
    return [Pair(*grids) for grids in zip(_grids_in(rows["input"]), _grids_in(rows["output"]), strict=True)]


_Columns = tuple[dict[str, Any], dict[str, pa.Array]]
"""Some of the columns STATS, and those that hold the examples themselves."""


def _pair_columns(pairs: Sequence[Pair | None]) -> _Columns:
    inputs, outputs = ([getattr(pair, side) if pair else None for pair in pairs] for side in ("input", "output"))
    rated = iter(pso_difficulties([pair for pair in pairs if pair]).tolist())
    stats = {
        "pso_difficulty": [next(rated) if pair else None for pair in pairs],
        "input_digest": [None if grid is None else _digest([grid]) for grid in inputs],
        "output_digest": [None if grid is None else _digest([grid]) for grid in outputs],
        "pair_digest": [_short(canonical_pair(pair)) if pair else None for pair in pairs],
    }
    return stats, {"input": _grid_column(inputs), "output": _grid_column(outputs)}


def _counting_columns(tasks: Sequence[Task]) -> _Columns:
    grids = [[pair.input for pair in task.test] for task in tasks]
    questions = [json.dumps([[q.kind, q.text, q.answer] for q in task.questions]) for task in tasks]
    digests = [_digest(row, text) for row, text in zip(grids, questions, strict=True)]
    column = pa.ListArray.from_arrays(_offsets([len(row) for row in grids]), _grid_column(list(chain(*grids))))
    content = {"id": pa.array([task.id for task in tasks]), "grids": column, "questions": pa.array(questions)}
    return {"input_digest": digests, "pair_digest": digests}, content


def _digest(grids: Sequence[Grid], text: str = "") -> int:
    """Digest shapes, cells and a text to 64 bits; two of a task's 10^5 examples collide with probability 10^-10."""
    content = b"".join(bytes(grid.shape) + grid.tobytes() for grid in grids)
    return _short(hashlib.blake2b(text.encode() + content, digest_size=8).digest())


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


def _grid_column(grids: Sequence[Grid | None]) -> pa.Array:
    """Build the nested lists from flat arrays, a hundred times faster than from Python lists; None becomes null."""
    shapes = np.array([(0, 0) if grid is None else grid.shape for grid in grids], np.int64).reshape(-1, 2)
    cells = np.concatenate([np.zeros(0, np.uint8), *(grid.ravel() for grid in grids if grid is not None)])
    rows = pa.ListArray.from_arrays(_offsets(np.repeat(shapes[:, 1], shapes[:, 0])), pa.array(cells))
    return pa.ListArray.from_arrays(_offsets(shapes[:, 0]), rows, mask=pa.array([grid is None for grid in grids]))


def _grids_in(column: pa.ChunkedArray) -> list[Grid]:
    """Read a column of grids without nulls, as views into its buffers: read-only uint8 (height, width)."""
    grids: list[Grid] = []
    for chunk in column.chunks:
        cells, bounds = chunk.values.values.to_numpy(), chunk.values.offsets.to_numpy()
        for top, bottom in pairwise(chunk.offsets.to_numpy()):
            grids.append(cells[bounds[top] : bounds[bottom]].reshape(bottom - top, -1))
    return grids


def _offsets(lengths: Sequence[int] | npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())

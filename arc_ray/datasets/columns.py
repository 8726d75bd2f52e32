"""Generated examples as Arrow tables and back: the columns of a block's file."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arc_ray.tasks.examples import REASONS, Example, pso_difficulties
from arc_ray.tasks.fingerprints import canonical_pair
from arc_ray.tasks.task import Grid, Pair, Question, Task

STATS = (
    pa.field("index", pa.int32()),
    pa.field("outcome", pa.string()),
    pa.field("attempts", pa.int16()),
    *(pa.field(f"rejected_{reason}", pa.int16()) for reason in REASONS),
    pa.field("rng_difficulty", pa.float64()),
    pa.field("pso_difficulty", pa.float64()),
    pa.field("input_digest", pa.uint64()),
    pa.field("output_digest", pa.uint64()),
    pa.field("pair_digest", pa.uint64()),
)
"""Columns of every block, which tell what became of each index; None where that has no meaning. `pair_digest` is the same
for pairs that are equal up to symmetry and colours."""

TOLD_APART_BY = ("input_digest", "pair_digest")
"""Examples of a task that agree in one of these are duplicates."""

PAIRS = ("input", "output")
COUNTING = ("id", "grids", "questions")
"""Columns that hold the examples themselves."""


def examples_table(start: int, examples: Sequence[Example]) -> pa.Table:
    """Store examples from index `start` on; grids are lists of rows of colours, null where an example was given up."""
    inputs = [example.pair.input if example.pair else None for example in examples]
    outputs = [example.pair.output if example.pair else None for example in examples]
    rated = iter(pso_difficulties([example.pair for example in examples if example.pair]).tolist())
    stats = _stats(
        start,
        examples,
        pso_difficulty=[next(rated) if example.pair else None for example in examples],
        input_digest=[_digest([grid]) for grid in inputs],
        output_digest=[_digest([grid]) for grid in outputs],
        pair_digest=[_short(canonical_pair(example.pair)) if example.pair else None for example in examples],
    )
    return _with_columns(stats, PAIRS, [_grid_column(inputs), _grid_column(outputs)])


def pairs_of(table: pa.Table) -> list[Pair]:
    """Convert rows of a block, none of them given up, to pairs."""
    return [Pair(*grids) for grids in zip(_grids_of(table["input"]), _grids_of(table["output"]), strict=True)]


def counting_table(start: int, tasks: Sequence[Task]) -> pa.Table:
    """Store counting tasks: lists of grids, and questions as JSON text, a list of [kind, question, answer]."""
    grids = [[pair.input for pair in task.test] for task in tasks]
    questions = [json.dumps([[q.kind, q.text, q.answer] for q in task.questions]) for task in tasks]
    digests = [_digest(row, text) for row, text in zip(grids, questions, strict=True)]
    column = pa.ListArray.from_arrays(_offsets([len(row) for row in grids]), _grid_column(list(chain(*grids))))
    made = [Example("accepted", 1, Counter())] * len(tasks)
    stats = _stats(start, made, input_digest=digests, pair_digest=digests)
    return _with_columns(stats, COUNTING, [pa.array([task.id for task in tasks]), column, pa.array(questions)])


def counting_tasks_of(table: pa.Table) -> list[Task]:
    """Convert rows of a counting block to tasks."""
    column = table["grids"].combine_chunks()
    grids, counts = iter(_grids_of(pa.chunked_array([column.flatten()]))), column.value_lengths().to_pylist()
    return [
        Task(
            id=task_id,
            train=(),
            test=tuple(Pair(next(grids), None) for _ in range(count)),
            questions=tuple(Question(*question) for question in json.loads(text)),
        )
        for task_id, text, count in zip(table["id"].to_pylist(), table["questions"].to_pylist(), counts, strict=True)
    ]


def timings_table(start: int, milliseconds: Sequence[float], errors: Sequence[str | None]) -> pa.Table:
    """Store what is not reproducible: the wall time of each example, and the text of the last exception in it."""
    index = pa.array(range(start, start + len(milliseconds)), pa.int32())
    columns = [index, pa.array(milliseconds, pa.float64()), pa.array(errors, pa.string())]
    return pa.table(columns, names=["index", "milliseconds", "error"])


def usable_rows(stats: pa.Table) -> npt.NDArray[np.int64]:
    """Return the rows that count, ascending: accepted, and no earlier one of the task has the same input or is the same
    pair up to symmetry and colours, which augmentation would turn into it.

    `stats` must hold a task's examples from index 0 on. Whether a row counts depends on earlier rows alone: it does not
    change when the dataset grows, and not with the order in which blocks were made.
    """
    accepted = np.flatnonzero(stats["outcome"].to_numpy() == "accepted")
    firsts = (np.unique(stats[name].to_numpy()[accepted], return_index=True)[1] for name in TOLD_APART_BY)
    return accepted[reduce(np.intersect1d, firsts)]


def _stats(start: int, examples: Sequence[Example], **given: Sequence[float | None]) -> pa.Table:
    """Make the columns STATS from examples and those `given`; the others are null."""
    columns = {
        "index": range(start, start + len(examples)),
        "outcome": [example.outcome for example in examples],
        "attempts": [example.attempts for example in examples],
        **{f"rejected_{reason}": [example.rejects[reason] for example in examples] for reason in REASONS},
        "rng_difficulty": [example.rng_difficulty for example in examples],
        **given,
    }
    missing = [None] * len(examples)
    return pa.table([pa.array(columns.get(f.name, missing), f.type) for f in STATS], schema=pa.schema(STATS))


def _with_columns(table: pa.Table, names: Sequence[str], columns: Sequence[pa.Array]) -> pa.Table:
    return pa.table([*table.columns, *columns], names=[*table.column_names, *names])


def _digest(grids: Sequence[Grid | None], text: str = "") -> int | None:
    """Digest shapes, cells and a text to 64 bits; two of a task's 10^5 examples collide with probability 10^-10."""
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    for grid in grids:
        if grid is None:
            return None
        digest.update(bytes(grid.shape) + grid.tobytes())
    return _short(digest.digest())


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


def _grid_column(grids: Sequence[Grid | None]) -> pa.Array:
    """Build the nested lists from flat arrays, a hundred times faster than from Python lists; None becomes null."""
    shapes = np.array([(0, 0) if grid is None else grid.shape for grid in grids], np.int64).reshape(-1, 2)
    cells = np.concatenate([np.zeros(0, np.uint8), *(grid.ravel() for grid in grids if grid is not None)])
    rows = pa.ListArray.from_arrays(_offsets(np.repeat(shapes[:, 1], shapes[:, 0])), pa.array(cells))
    return pa.ListArray.from_arrays(_offsets(shapes[:, 0]), rows, mask=pa.array([grid is None for grid in grids]))


def _grids_of(column: pa.ChunkedArray) -> list[Grid]:
    """Read a column of grids without nulls, as views into its buffers: read-only uint8 (height, width)."""
    grids: list[Grid] = []
    for chunk in column.chunks:
        cells, bounds = chunk.values.values.to_numpy(), chunk.values.offsets.to_numpy()
        for top, bottom in pairwise(chunk.offsets.to_numpy()):
            grids.append(cells[bounds[top] : bounds[bottom]].reshape(bottom - top, -1))
    return grids


def _offsets(lengths: Sequence[int] | npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())

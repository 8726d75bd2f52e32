"""Plans, rows, validation rows and generated examples, held against digests of what they were: a contract."""

import hashlib
import io
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import codec_of, config_with, counting, merging_tokenizer, puzzle, puzzles, tiny_tokenizer

from arc_ray.config.sources import CountingSource, RearcSource
from arc_ray.datasets.blocks import Block, make_block
from arc_ray.datasets.makers import maker_of
from arc_ray.datasets.manifest import blocks_from
from arc_ray.rows.maker import RowMaker, make_validation
from arc_ray.rows.plan import Plan, save_plan
from arc_ray.rows.prepare import plan_rows
from arc_ray.tasks.task import TaskTable

TABLES = {
    "a": puzzles(6, num_train=4),
    "b": TaskTable.of([puzzle("x", 3, 1, most=14), puzzle("y", 2, 1), puzzle("h", 3, 1, hidden=True)]),
    "c": TaskTable.of([counting(i) for i in range(6)]),
}
GOLDEN = {
    (False, 0.0): ("4cce238d8c5fef99", "56da15dc7cdc5037", "fd2506eb2e92bfe4"),
    (True, 0.0): ("23913b2c2aacd380", "a10ed5d7ac139c93", "4bd4a8a32858688b"),
    (False, 0.5): ("b9e4b005b4e32249", "7dbff62664885370", "fd2506eb2e92bfe4"),
    (True, 0.5): ("de11aa199612371b", "b2b360b2a2ddef9b", "4bd4a8a32858688b"),
    "counting": ("c3127feaaa615ff3", "b77c3d1251ba6f6b"),
    "rearc": ("0e4d18373b6e3942", "5853f478780b5068"),
}
"""(slow path, share of one-sided changes) -> plan, rows, validation rows; kind of source -> examples, blocks."""


def digest(*arrays: Any) -> str:
    """Digest arrays with their types and shapes."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def digest_of(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def plan_digest(plan: Plan) -> str:
    """Digest what the file of a plan says, not how Parquet writes it."""
    table = pq.read_table(io.BytesIO(save_plan(plan)))
    about = json.loads(table.schema.metadata[b"arc_ray.plan"])
    return digest_of([[str(table.schema.field(n)), table[n].to_pylist()] for n in table.column_names] + [about])


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("one_sided", [0.0, 0.5])
def test_plan_rows_and_validation_rows_are_what_they_were(slow: bool, one_sided: float):
    """Would catch a change of draws, lengths, packing, ids or order, after which no run goes on as it began."""
    folder = {"kind": "folder", "path": "."}
    sizes = {"train__row_tokens": 400, "train__epochs": 2, "train__batch_rows": 4, "view__max_shown": 3}
    mix = {"data__sources": dict.fromkeys(TABLES, folder), "data__mix": {"a": 3, "b": 4, "c": 2}}
    config = config_with(**mix, **sizes, view__one_sided=one_sided)
    codec = codec_of(merging_tokenizer() if slow else tiny_tokenizer(), "shape_rows", "compact", "all", quiet=True)
    plan = plan_rows(config, TABLES, codec)
    rows = RowMaker(plan, tuple(TABLES.values()), config.view, codec, 0).make(range(plan.num_rows + 1))
    held = make_validation(codec_of(codec.tokenizer, quiet=True), {"a": TABLES["a"], "c": TABLES["c"]}, 3, 300, 0)
    validation = digest(*held.batch.values(), held.owner, held.is_cell, held.first_learned)
    assert (plan_digest(plan), digest(*rows.values()), validation) == GOLDEN[slow, one_sided]


@pytest.mark.parametrize("kind", ["rearc", "counting"])
def test_generated_examples_and_their_blocks_are_what_they_were(kind: str):
    """Would catch examples, statistics or boundaries of blocks that change: a dataset would be of two makings."""
    source = RearcSource(kind="rearc") if kind == "rearc" else CountingSource(kind="counting")
    task_id = "1c786137" if kind == "rearc" else "counting"
    table, _ = make_block(source, Block(task_id, 0, 20))
    blocks = blocks_from(task_id, 0, maker_of(source).seconds(task_id))
    assert (digest_of(table.to_pydict()), digest_of([next(blocks) for _ in range(20)])) == GOLDEN[kind]

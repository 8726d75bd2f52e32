"""A small config of three sources, and its plan."""

from typing import Any

from builders import codec_of, config_with, counting, puzzle, puzzles, tiny_tokenizer

from arc_ray.config import Config
from arc_ray.rows.plan import Plan
from arc_ray.rows.prepare import plan_rows
from arc_ray.tasks.task import TaskTable

TABLES = {
    "a": puzzles(7, num_train=5),
    "b": TaskTable.of([puzzle("x", 3, 1), puzzle("y", 2, 1, most=30), puzzle("z", 0, 1, hidden=True)]),
    "c": TaskTable.of([counting(i) for i in range(3)]),
}


def config(**overrides: Any) -> Config:
    """Three sources, rows of 256 tokens, batches of four."""
    sources = {name: {"kind": "folder", "path": "."} for name in TABLES}
    defaults = {"data__sources": sources, "data__mix": {"a": 3, "b": 2, "c": 1}, "train__row_tokens": 256}
    return config_with(**{**defaults, "train__epochs": 2, "train__batch_rows": 4, "view__max_shown": 3, **overrides})


def planned(**overrides: Any) -> Plan:
    return plan_rows(config(**overrides), TABLES, codec_of(tiny_tokenizer()))

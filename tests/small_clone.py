"""A folder of the shape of ARC-GEN's repository: a `common.py`, and generators that draw from Python's global `random`."""

from pathlib import Path

COMMON = """
import random

def grid(height, width):
    return [[random.randint(0, 9) for _ in range(width)] for _ in range(height)]

def randint(low, high):
    return random.randint(low, high)
"""
GENERATOR = """
import common

def generate(size=None):
    if size is None:
        size = common.randint(2, 9)
    {body}
    grid = common.grid(size, size + 1)
    return {{"input": grid, "output": [row[::-1] for row in grid]}}

def validate():
    return {{"train": [generate(3)], "test": [generate(4)]}}
"""
BODIES = {
    "00000001": "",
    "00000002": "common.grid(1, len({str(cell) for cell in common.grid(1, 9)}))",
    "0000dead": "while size > 6: pass",  # for some seeds
    "bad0hang": "while True: pass",
    "bad0rais": "raise LookupError('no such colour')",
    "bad0size": "size = 30",
    "bad0exit": "import os; os._exit(3)",
    "bad0colr": "return {'input': [[1, 12]], 'output': [[1, 2]]}",
    "bad0none": "return None",
}
"""Task id -> what its generator does before it makes its grids."""


def write_clone(folder: Path, *task_ids: str, common: str = COMMON) -> str:
    """Write a clone with generators of these tasks; return its path."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "common.py").write_text(common)
    for task_id in task_ids:
        (folder / "tasks" / f"task_{task_id}.py").write_text(GENERATOR.format(body=BODIES[task_id]))
    return str(folder)

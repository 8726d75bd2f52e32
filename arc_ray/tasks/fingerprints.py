"""Fingerprints of pairs and tasks that see through symmetries and colour names: the guard against training on tests.

Two pairs have one fingerprint if and only if one of the 8 symmetries of the square, applied to both grids, and a
renaming of colours turn one into the other (up to collisions of a 128-bit digest).
"""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from arc_ray.errors import UserError, first_few
from arc_ray.tasks.task import NUM_COLORS, NUM_SYMMETRIES, Grid, Pair, Task, TaskTable, puzzle_of, turn

OverlapKind = Literal["id", "task", "pair"]
"""One puzzle by name; equal content under two names; an equal pair within different tasks. Strongest first."""

COINCIDENCE_CELLS = 16
"""Pairs with fewer cells, both grids together, agree by chance: 3x3 to 1x1 in ARC-1's 27a28665 and 44f52bb0."""

KNOWN = {
    "ARC-AGI-1 training, 416 outputs": "d52093a9701c9851 8b33fa9e9e9704e0",
    "ARC-AGI-1 evaluation, 419 outputs": "3bc0e93af313b92a bc1faa85982d607d",
    "ARC-AGI-1 training of 2019, 416 outputs": "88b74cc8b4805d25 103fd0b06e0b9aad",
    "ARC-AGI-1 evaluation of 2019, 419 outputs": "de6e55d086f8defa af5e3f8dab3eefdc",
    "ARC-AGI-1 evaluation of Kaggle 2024, 419 outputs": "e837ece73d3212bc 54de77c6fed4185d",
    "ARC-AGI-2 training, 1076 outputs": "c5328b65f035e8a6 25a5da78ea193893",
    "ARC-AGI-2 evaluation, 167 outputs": "efbd75458a3a9459 df8abc5f93770bb4",
    "ARC-AGI-2 evaluation, 172 outputs": "433ff6c1217a2842 72404fd1ff1d3842",
}
"""Versions of ARC that circulate -> their fingerprints, with the asked outputs and with all of them hidden. Kaggle took the
172 outputs in 2025 and 2026, the official repository has the 167; their tasks differ in six."""

DIGEST = 4
"""Bytes that tell a task from what it was before: one changed task in four billion goes unnoticed."""


@dataclass(frozen=True)
class Overlap:
    """A puzzle of the training mix that is, or shares a pair with, a puzzle of the evaluation set."""

    kind: OverlapKind
    train_id: str
    eval_id: str

    def __str__(self) -> str:
        verb = {"id": "is", "task": "equals", "pair": "shares a pair with"}[self.kind]
        return f"training task {self.train_id} {verb} evaluation task {self.eval_id}"


def canonical_pair(pair: Pair) -> bytes:
    """Fingerprint a pair (16 bytes) modulo the 8 symmetries and colour names; a hidden output is left out."""
    return min(_digests(pair))


def canonical_task(task: Task) -> bytes:
    """Fingerprint a task (16 bytes) modulo symmetries, colour names, the order of its pairs and which are tests.

    A symmetry is applied to all pairs at once. Colours are named pair by pair, because common names would depend on the
    order of pairs: tasks that agree but for another renaming in each pair are taken for equal, which for a guard is the
    safe side. Descriptions and questions do not count.
    """
    return _canonical_task([_digests(pair) for pair in task.pairs])


def overlap(train_tasks: Iterable[Task], eval_tasks: Iterable[Task]) -> list[Overlap]:
    """List every training puzzle that is also evaluated: each couple once, by its strongest kind, strongest first.

    Tasks cut from one puzzle (`id#k`) count as that puzzle. A hidden output cannot be compared: such a pair is matched
    by its input alone. Tasks with questions are compared by id only, since small counting grids repeat by chance.
    """
    train_tasks, eval_tasks = list(train_tasks), list(eval_tasks)
    puzzles = {puzzle_of(task.id) for task in train_tasks} & {puzzle_of(task.id) for task in eval_tasks}
    found = {Overlap("id", puzzle, puzzle) for puzzle in puzzles} | set(_overlap_by_content(train_tasks, eval_tasks))
    strength = get_args(OverlapKind).index
    strongest: dict[tuple[str, str], Overlap] = {}
    for overlap in sorted(found, key=lambda o: (strength(o.kind), o.train_id, o.eval_id)):
        strongest.setdefault((overlap.train_id, overlap.eval_id), overlap)
    return list(strongest.values())


def count_duplicates(tasks: Iterable[Task]) -> dict[str, int]:
    """Count the tasks, and the pairs over all tasks, that an earlier one equals modulo symmetries and colour names."""
    digests = [[_digests(pair) for pair in task.pairs] for task in tasks]
    pairs = [min(digest) for task in digests for digest in task]
    return {
        "duplicate_tasks": len(digests) - len(set(map(_canonical_task, digests))),
        "duplicate_pairs": len(pairs) - len(set(pairs)),
    }


def count_met(train_tasks: Iterable[Task], eval_tasks: Iterable[Task]) -> dict[str, int]:
    """Count the pairs that evaluation asks, and those of them that equal a training pair up to symmetry and colours, which a
    model may answer from memory. Counting tasks have no outputs: their pairs are not asked."""
    asked = [pair for task in eval_tasks for pair in task.test if pair.output is not None]
    sketches = {_sketch(pair) for pair in asked}
    trained = (pair for task in train_tasks for pair in task.pairs)
    met = {canonical_pair(pair) for pair in trained if _sketch(pair) in sketches}
    return {"asked": len(asked), "met": sum(canonical_pair(pair) in met for pair in asked)}


def count_views(tasks: Iterable[Task]) -> dict[str, int]:
    """Count the views that the 8 symmetries and the choice of the asked pair give, and the distinct ones among them.

    A view shows all other pairs with a known output, in any order, and keeps colours: two are equal if they show the
    same pairs and ask the same one, cell by cell.
    """
    num_views, distinct = 0, set()
    for task in tasks:
        known = [pair for pair in task.pairs if pair.output is not None]
        num_views += NUM_SYMMETRIES * len(known)
        for pairs in zip(*map(_turned, known), strict=True):
            digests = [_digest(b"".join(bytes(grid.shape) + grid.tobytes() for grid in grids)) for grids in pairs]
            whole = _digest(b"".join(sorted(digests)))
            distinct.update(whole + digest for digest in digests)
    return {"views": num_views, "distinct_views": len(distinct)}


def digest_tasks(table: TaskTable) -> str:
    """Digest every task as it is, by id, pairs, questions and description: 4 bytes a task, in order, as base64."""
    return base64.b64encode(b"".join(_task_digests(table, DIGEST, table.questions, table.descriptions))).decode()


def set_fingerprint(table: TaskTable) -> str:
    """Digest a set by the ids and pairs of its tasks, in whatever order these stand: 16 hexadecimal digits."""
    return hashlib.blake2b(b"".join(sorted(_task_digests(table, 16))), digest_size=8).hexdigest()


def is_arc_id(task_id: str) -> bool:
    """Tell whether an id looks like one of ARC's tasks."""
    return re.fullmatch("[0-9a-f]{8}", task_id) is not None


def known_set(table: TaskTable) -> str | None:
    """Name the version of ARC that a set is, None if it is none that is known."""
    found = set_fingerprint(table)
    return next((name for name, digests in KNOWN.items() if found in digests.split()), None)


def _task_digests(table: TaskTable, size: int, *texts: Sequence[Any]) -> Iterator[bytes]:
    """Digest each task by its id, its pairs and what `texts` say of it."""
    for task, (first, last) in enumerate(pairwise((2 * table.first_pair).tolist())):
        shapes = table.height[first:last].tobytes() + table.width[first:last].tobytes()
        cells = table.cells[table.start[first] : table.start[last]].tobytes()
        words = (table.ids[task], int(table.num_train[task]), *(text[task : task + 1] for text in texts))
        yield hashlib.blake2b(repr(words).encode() + shapes + cells, digest_size=size).digest()


def refuse_changes(before: Mapping[str, str], tables: Mapping[str, TaskTable], folder: str) -> None:
    """Refuse to go on with other data than a run in `folder` began with: `before` maps names of sources to what
    `digest_tasks` returned then; others are not looked at. Raises UserError."""
    for name in before.keys() & tables.keys():
        if (now := digest_tasks(tables[name])) != before[name]:
            contents = (base64.b64decode(digests) for digests in (before[name], now))
            then, found = ([c[at : at + DIGEST] for at in range(0, len(c), DIGEST)] for c in contents)
            other = [task_id for task_id, digest in zip(tables[name].ids, found, strict=True) if digest not in then]
            counted = f"{len(then)} tasks then, {len(found)} now" if len(then) != len(found) else "as many tasks"
            raise UserError(
                f"{folder}: the data of source {name} has changed since this run began ({counted}; changed or new:"
                f" {first_few(other, 10) or 'none, but others are gone or their order is another'}); put it back as it was, or"
                f" choose another name=..., or delete the folder"
            )


def _overlap_by_content(train_tasks: Sequence[Task], eval_tasks: Sequence[Task]) -> Iterator[Overlap]:
    by_sketch: defaultdict[bytes, list[tuple[Pair, Task]]] = defaultdict(list)
    for task in eval_tasks:
        for pair in () if task.is_counting else task.pairs:
            by_sketch[_sketch(pair)].append((pair, task))
    canonical = cache(canonical_pair)
    for task in train_tasks:
        for pair in () if task.is_counting else task.pairs:
            for known in (pair, Pair(pair.input, None)):
                # Nearly every pair is cleared by its sketch, at a tenth of a fingerprint's cost.
                for asked, other in by_sketch.get(_sketch(known), ()):
                    if puzzle_of(task.id) == puzzle_of(other.id) or canonical(known) != canonical(asked):
                        continue
                    if len(task.pairs) == len(other.pairs) and canonical_task(task) == canonical_task(other):
                        yield Overlap("task", puzzle_of(task.id), puzzle_of(other.id))
                    elif sum(grid.size for grid in known.grids) >= COINCIDENCE_CELLS:
                        yield Overlap("pair", puzzle_of(task.id), puzzle_of(other.id))


def _canonical_task(digests: Sequence[tuple[bytes, ...]]) -> bytes:
    """Digest a task from its pairs' digests: for each symmetry the sorted digests of all pairs, then the least."""
    return min(_digest(b"".join(sorted(pairs))) for pairs in zip(*digests, strict=True))


def _digests(pair: Pair) -> tuple[bytes, ...]:
    """Digest a pair under each of the 8 symmetries, colours named 0, 1, 2... by first appearance: 8 times 16 bytes."""
    digests = []
    for grids in _turned(pair):
        cells = rest = b"".join(grid.tobytes() for grid in grids)
        colors = b""
        while rest:  # once a colour, in C: a set or a dict of up to 1,800 cells would take ten times as long
            colors += rest[:1]
            rest = rest.lstrip(colors)
        renamed = cells.translate(bytes.maketrans(colors, bytes(range(len(colors)))))
        digests.append(_digest(bytes(side for grid in grids for side in grid.shape) + renamed))
    return tuple(digests)


def _turned(pair: Pair) -> Iterator[tuple[Grid, ...]]:
    """Yield a pair's grids under each of the 8 symmetries."""
    return (tuple(turn(grid, symmetry) for grid in pair.grids) for symmetry in range(NUM_SYMMETRIES))


def _sketch(pair: Pair) -> bytes:
    """Describe a pair by what no symmetry and no renaming changes: sides and colour counts of each grid, sorted."""
    counts = (np.sort(np.bincount(grid.ravel(), minlength=NUM_COLORS)).tobytes() for grid in pair.grids)
    return bytes(side for grid in pair.grids for side in sorted(grid.shape)) + b"".join(counts)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()

"""`Grid`, `Pair`, `Task`: what a puzzle is, its ARC JSON, and `TaskTable`, the same puzzles as flat arrays.

Everything that reads a puzzle from outside goes through `parse_task`: a malformed grid is reported once, with its place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.seeding import digest64

Grid = npt.NDArray[np.uint8]
"""A puzzle grid: uint8 (height, width), 1 to 30 a side, colours 0 to 9."""

MAX_SIDE = 30
NUM_COLORS = 10
COLORS = frozenset(range(NUM_COLORS))
PALETTE = ("#000000", "#1E93FF", "#F93C31", "#4FCC30", "#FFDC00", "#999999", "#E53AA3", "#FF851B", "#87D8F1", "#921231")
"""ARC's own ten colours, as the official viewer shows them."""
NUM_SYMMETRIES = 8
"""Those of the square: of a symmetry's number the low two bits are quarter turns counter-clockwise, bit 2 transposes first."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One input and its output; the output is None where it is hidden (a test pair of a competition)."""

    input: Grid
    output: Grid | None

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The input and, if it is known, the output."""
        return (self.input,) if self.output is None else (self.input, self.output)


@dataclass(frozen=True)
class Question:
    """A question about a grid, its answer as text, and its kind (for accuracy per kind)."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, eq=False)
class Task:
    """A puzzle: shown pairs, pairs to answer, and optionally questions about its grids or a description of its rule.

    A counting task has no shown pairs: its grids are the inputs of `test` and its questions are about them.
    """

    id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    questions: tuple[Question, ...] = ()
    description: str | None = None

    @property
    def is_counting(self) -> bool:
        """Whether the task asks questions about its grids."""
        return bool(self.questions)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs, shown ones first."""
        return self.train + self.test

    def __repr__(self) -> str:
        return f"<Task {self.id} | {len(self.train)} train | {len(self.test)} test | {len(self.questions)} questions>"

    def _repr_html_(self) -> str:
        """Show the grids in colour in a notebook: a column a pair, its input above its output."""
        columns = "".join(f"<td>{'<br>'.join(map(grid_svg, pair.grids))}</td>" for pair in self.pairs)
        return f"<p>{escape(repr(self))}</p><table><tr style='vertical-align: top'>{columns}</tr></table>"


def grid_svg(grid: Grid, cell: int = 8) -> str:
    """Draw a grid as an SVG whose cells are so many pixels wide."""
    height, width = grid.shape
    cells = "".join(f'<path fill="{PALETTE[c]}" d="M{x} {y}h1v1h-1z"/>' for (y, x), c in np.ndenumerate(grid))
    size = f'width="{cell * width}" height="{cell * height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} stroke="#555" stroke-width=".06">{cells}</svg>'


def turn(grid: Grid, symmetry: int) -> Grid:
    """Turn and mirror a grid without copying cells: (h, w) to (h, w) or (w, h)."""
    grid = grid.T if symmetry & 4 else grid
    match symmetry & 3:
        case 0:
            return grid
        case 1:
            return grid.T[::-1]
        case 2:
            return grid[::-1, ::-1]
        case _:
            return grid.T[:, ::-1]


def same_grid(a: Grid | None, b: Grid | None) -> bool:
    """Tell whether two grids agree in shape and every cell; a missing grid equals nothing."""
    return a is not None and b is not None and a.shape == b.shape and bool((a == b).all())


def without_tests(task: Task) -> Task:
    """Return the task without its test pairs, so that no asked answer can be reached from it."""
    return Task(task.id, task.train, (), description=task.description)


def puzzle_of(task_id: str) -> str:
    """Name the puzzle that a task was cut from: `id#k` comes from `id`, any other id is a puzzle of its own."""
    return task_id.partition("#")[0]


def largest_side(pairs: Sequence[Pair]) -> int:
    """Return the longest side, in cells, of any grid of these pairs, 0 of none."""
    return max((max(grid.shape) for pair in pairs for grid in pair.grids), default=0)


def parse_grid(value: object, where: str) -> Grid:
    """Check and convert a list of lists of colours. Raises UserError that begins with `where` (file, task and pair) for
    anything but a rectangle of integers 0-9 with sides of 1 to 30."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(row, list | tuple) for row in value):
        raise UserError(f"{where}: a grid is a non-empty list of rows, each a list of colours; got {_short(value)}")
    widths = {len(row) for row in value}
    if len(widths) > 1:
        raise UserError(f"{where}: rows differ in length ({sorted(widths)}); every row has the same number of cells")
    height, width = len(value), widths.pop()
    if not 1 <= width <= MAX_SIDE or height > MAX_SIDE:
        raise UserError(f"{where}: the grid is {height}x{width}; sides go from 1 to {MAX_SIDE}")
    cells = [*chain.from_iterable(value)]
    if {*map(type, cells)} != {int} or not COLORS.issuperset(cells):  # in a tenth of the time of the loop
        for cell in cells:
            if isinstance(cell, bool) or not isinstance(cell, int | float | np.integer) or cell not in COLORS:
                raise UserError(f"{where}: {_short(cell)} is no colour; colours are the integers 0 to 9")
    return np.array(value, dtype=np.uint8)


def parse_task(task_id: str, value: object, file: str) -> Task:
    """Convert one task of ARC JSON ({"train": [...], "test": [...]}, perhaps "questions" and "description"). Raises
    UserError naming file, task and pair."""
    where = f"{file}: task {task_id}"
    if not isinstance(value, dict) or not all(isinstance(value.get(side), list) for side in ("train", "test")):
        raise UserError(f'{where}: a task is an object with lists "train" and "test"; got {_short(value)}')
    train = tuple(parse_pair(pair, f"{where}, train pair {i}", hidden=False) for i, pair in enumerate(value["train"]))
    test = tuple(parse_pair(pair, f"{where}, test pair {i}", hidden=True) for i, pair in enumerate(value["test"]))
    questions = _parse_questions(value.get("questions", []), where)
    if not test and len(train) < (1 if questions else 2):
        raise UserError(f"{where}: nothing to answer; give a test pair, or at least two train pairs")
    description = value.get("description")
    if not isinstance(description, str | None):
        raise UserError(f"{where}: a description is text; got {_short(description)}")
    return Task(task_id, train, test, questions, description)


def parse_pair(value: object, where: str, hidden: bool) -> Pair:
    """Check and convert one {"input": grid, "output": grid}, whose output may be missing only if it may be `hidden`. Raises
    UserError that begins with `where`."""
    if not isinstance(value, dict) or "input" not in value:
        raise UserError(f'{where}: a pair is an object with "input" and "output"; got {_short(value)}')
    if value.get("output") is None and not hidden:
        raise UserError(f'{where}: "output" is missing')
    given = parse_grid(value["input"], f"{where}, input")
    return Pair(given, None if value.get("output") is None else parse_grid(value["output"], f"{where}, output"))


def _parse_questions(value: object, where: str) -> tuple[Question, ...]:
    keys = ("kind", "question", "answer")
    if not isinstance(value, list):
        raise UserError(f'{where}: "questions" is a list; got {_short(value)}')
    for i, record in enumerate(value):
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in keys):
            raise UserError(f"{where}, question {i}: a question has the texts {', '.join(keys)}; got {_short(record)}")
    return tuple(Question(*(record[key] for key in keys)) for record in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def pair_to_json(pair: Pair) -> dict[str, Any]:
    """Convert a pair to ARC JSON; a hidden output is left out."""
    record = {"input": pair.input.tolist()}
    return record if pair.output is None else {**record, "output": pair.output.tolist()}


def task_to_json(task: Task) -> dict[str, Any]:
    """Convert a task to ARC JSON; a hidden output is left out, questions and description are kept under their names."""
    record: dict[str, Any] = {side: [pair_to_json(p) for p in getattr(task, side)] for side in ("train", "test")}
    if task.questions:
        record["questions"] = [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in task.questions]
    if task.description is not None:
        record["description"] = task.description
    return record


@dataclass(frozen=True, eq=False)
class TaskTable:
    """Tasks as flat arrays, so that a worker maps them from shared memory and draws views without Python objects.

    Task t owns pairs `first_pair[t]` to `first_pair[t+1]`, the first `num_train[t]` of them shown ones. Pair p has its
    input at grid 2p and its output at grid 2p+1, of height 0 where hidden. Two tasks, `a` with a train pair [[1, 2]] ->
    [[3], [4]] and a test pair [[5]] -> hidden, and `b` with questions about the grid [[6, 7]], are

        first_pair = [0, 2, 3]              num_train = [1, 0]
        height = [1, 2, 1, 0, 1, 0]         of grids 0 to 5
        width = [2, 1, 1, 0, 2, 0]
        start = [0, 2, 4, 5, 5, 7, 7]       cells = [1, 2, 3, 4, 5, 6, 7]
    """

    ids: tuple[str, ...]
    cells: npt.NDArray[np.uint8]
    """All grids' cells in row-major order, one after another: (total cells,)."""
    start: npt.NDArray[np.int64]
    """Offset of each grid's first cell in `cells`: (num_grids + 1,)."""
    height: npt.NDArray[np.uint8]
    width: npt.NDArray[np.uint8]
    first_pair: npt.NDArray[np.int32]
    num_train: npt.NDArray[np.int32]
    questions: tuple[tuple[Question, ...], ...]
    descriptions: tuple[str | None, ...]

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> "TaskTable":
        """Flatten tasks in the order given."""
        tasks = list(tasks)
        grids = [grid for task in tasks for pair in task.pairs for grid in (pair.input, pair.output)]
        shapes = np.array([(0, 0) if grid is None else grid.shape for grid in grids], np.uint8).reshape(-1, 2)
        return cls(
            ids=tuple(task.id for task in tasks),
            cells=np.concatenate([np.zeros(0, np.uint8), *(grid.ravel() for grid in grids if grid is not None)]),
            start=np.cumsum([0, *shapes.prod(axis=1, dtype=np.int64)], dtype=np.int64),
            height=shapes[:, 0].copy(),
            width=shapes[:, 1].copy(),
            first_pair=np.cumsum([0] + [len(task.pairs) for task in tasks]).astype(np.int32),
            num_train=np.array([len(task.train) for task in tasks], np.int32),
            questions=tuple(task.questions for task in tasks),
            descriptions=tuple(task.description for task in tasks),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def grid(self, index: int) -> Grid:
        """Return grid `index` as a read-only view of `cells`: uint8 (height, width)."""
        height, width = int(self.height[index]), int(self.width[index])
        return self.cells[self.start[index] : self.start[index] + height * width].reshape(height, width)

    @cached_property
    def is_counting(self) -> npt.NDArray[np.bool_]:
        """Which tasks ask questions about their grids: (num_tasks,)."""
        return np.array([bool(questions) for questions in self.questions], bool)

    @cached_property
    def digests(self) -> npt.NDArray[np.uint64]:
        """Each task's id as a number, from which random draws follow: (num_tasks,)."""
        return np.array([digest64(task_id) for task_id in self.ids], np.uint64)

    @cached_property
    def num_pairs(self) -> npt.NDArray[np.int32]:
        """How many pairs each task owns: (num_tasks,)."""
        return np.diff(self.first_pair)

"""The gallery: which answered outputs are worth a look, and their grids as small drawings with wrong cells marked."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from arc_ray.report.frames import DataFrame, Row
from arc_ray.report.words import is_number
from arc_ray.tasks.task import Grid, parse_grid, puzzle_of, same_grid

NEARLY = 0.8
"""Share of right cells from which an answer of the right size is called nearly solved."""
PER_GROUP = 3
"""Outputs shown for each set and group."""
GROUPS = {
    "differ": "arms differ",
    "solved": "solved",
    "nearly": "nearly",
    "failed": "failed",
    "unscored": "answer not known",
}
GRID_PIXELS = 100
"""Longest side of the largest grid of a card on the page, as far as `CELL_PIXELS` allows."""
CELL_PIXELS = (4, 14)
"""Side of the smallest and of the largest cell."""


class Drawing(NamedTuple):
    """A grid as SVG paths: cells are dashes of lines, one path a colour, so that gaps between cells cost nothing."""

    height: int
    width: int
    paths: tuple[tuple[int, str], ...]
    """Colour and path, each line `M x y h n` for n cells of one row; y is the middle of the row."""
    crosses: str
    """Path of the marks on wrong cells; empty if nothing is wrong or the size is."""


class Prediction(NamedTuple):
    """What one arm wrote."""

    arm: str
    drawing: Drawing | None
    """None where nothing could be read."""
    title: str
    """Which attempt; empty for the first."""
    is_right: bool | None
    note: str


class Card(NamedTuple):
    """One test output with what all arms made of it."""

    set: str
    task: str
    output: int
    group: str
    cell: int
    """Pixels per cell of all its grids."""
    shown: Sequence[tuple[Drawing, ...]]
    """Input and output of each shown pair."""
    input: Drawing
    truth: Drawing | None
    predictions: Sequence[Prediction]


def make_cards(answers: DataFrame) -> list[Card]:
    """Choose outputs of every set and group, and draw what each arm's first seed answered.

    Raises UserError for a grid that is none.
    """
    seed = answers["seed"].astype(float)
    answers = answers[seed.isna() | (seed == seed.groupby(answers["arm"]).transform("min"))]
    outputs: dict[tuple[str, str, int], list[Row]] = {}
    for row in answers.to_dict("records"):
        outputs.setdefault((row["set"], row["task"], row["output"]), []).append(row)
    groups = {(name, group): [] for name in answers["set"].unique() for group in GROUPS}
    for key in sorted(outputs):
        groups[key[0], _group(outputs[key])].append(outputs[key])
    return [_card(rows, group) for (_, group), found in groups.items() for rows in _most_telling(found)[:PER_GROUP]]


def draw(grid: Grid, truth: Grid | None = None) -> Drawing:
    """Draw a grid; cells that differ from a truth of the same size get a cross."""
    height, width = grid.shape
    paths: dict[int, str] = {}
    for y, row in enumerate(grid):
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), width]):
            color = int(row[start])
            paths[color] = f"{paths.get(color, '')}M{start} {y}.5h{stop - start}"
    wrong = np.argwhere(grid != truth) if truth is not None and truth.shape == grid.shape else np.zeros((0, 2), int)
    crosses = "".join(f"M{x}.25 {y}.25l.5.5m0-.5l-.5.5" for y, x in wrong.tolist())
    return Drawing(height, width, tuple(sorted(paths.items())), crosses)


def _group(rows: Sequence[Row]) -> str:
    """Name the group of an output from the answers of all arms to it."""
    if any(row["truth"] is None for row in rows):
        return "unscored"
    right = [bool(row["is_right"]) for row in rows]
    if any(right):
        return "solved" if all(right) else "differ"
    return "nearly" if _right_cells(rows) >= NEARLY else "failed"


def _right_cells(rows: Sequence[Row]) -> float:
    return max((row["cell_accuracy"] for row in rows if is_number(row["cell_accuracy"])), default=0.0)


def _most_telling(outputs: Iterable[Sequence[Row]]) -> list[Sequence[Row]]:
    """Put one output of every puzzle (`id#k` is cut from `id`) before the next of any, the best predicted first."""
    best = sorted(outputs, key=lambda rows: -_right_cells(rows))
    seen: Counter[str] = Counter()
    turns = []
    for rows in best:
        puzzle = puzzle_of(str(rows[0]["task"]))
        turns.append(seen[puzzle])
        seen[puzzle] += 1
    return [rows for _, rows in sorted(zip(turns, best, strict=True), key=lambda pair: pair[0])]


def _card(rows: Sequence[Row], group: str) -> Card:
    """Draw one output from the answers of all arms to it."""
    first = rows[0]
    where = f"answers of {first['set']}, task {first['task']}"
    shown = [
        tuple(draw(parse_grid(pair[side], where)) for side in ("input", "output")) for pair in first["shown"] or ()
    ]
    asked = draw(parse_grid(first["input"], where))
    truth = None if first["truth"] is None else parse_grid(first["truth"], where)
    drawn_truth = None if truth is None else draw(truth)
    predictions = [prediction for row in rows for prediction in _predictions(row, truth, where)]
    drawings = [asked, drawn_truth, *chain.from_iterable(shown), *(prediction.drawing for prediction in predictions)]
    longest = max(max(drawing.height, drawing.width) for drawing in drawings if drawing)
    cell = int(np.clip(GRID_PIXELS // longest, *CELL_PIXELS))
    return Card(first["set"], first["task"], first["output"], group, cell, shown, asked, drawn_truth, predictions)


def _predictions(row: Row, truth: Grid | None, where: str) -> Iterable[Prediction]:
    """Draw an arm's first attempt, the second if only that is right, the greedy answer if only that is."""
    arm, attempts = str(row["arm"]), [parse_grid(grid, where) for grid in row["attempts"] if grid]
    yield _prediction(arm, "", attempts[0] if attempts else None, truth)
    if truth is not None and attempts and not same_grid(attempts[0], truth):
        if any(same_grid(grid, truth) for grid in attempts[1:2]):
            yield _prediction(arm, "attempt 2", attempts[1], truth)
        if not row["is_right"] and row["greedy_right"]:
            yield _prediction(arm, "greedy, outvoted", parse_grid(row["greedy"], where), truth)


def _prediction(arm: str, title: str, grid: Grid | None, truth: Grid | None) -> Prediction:
    is_right = None if truth is None else same_grid(grid, truth)
    if grid is None:
        return Prediction(arm, None, title, is_right, "nothing to read as a grid")
    if truth is None or is_right:
        note = "right" if is_right else ""
    elif grid.shape != truth.shape:
        note = f"{grid.shape[0]} × {grid.shape[1]}, not {truth.shape[0]} × {truth.shape[1]}"
    else:
        note = f"{int((grid != truth).sum())} of {truth.size} cells wrong"
    return Prediction(arm, draw(grid, truth), title, is_right, note)

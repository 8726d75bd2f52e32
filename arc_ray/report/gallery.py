"""The gallery: which answered outputs are worth a look, and their grids as small drawings with wrong cells marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.report.frames import Frame
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
"""Longest side of the largest grid of a card on the page."""
SMALLEST_CELL, LARGEST_CELL = 4, 14


@dataclass(frozen=True)
class Drawing:
    """A grid as SVG paths: cells are dashes of lines, one path a colour, so that gaps between cells cost nothing."""

    height: int
    width: int
    paths: tuple[tuple[int, str], ...]
    """Colour and path, each line `M x y h n` for n cells of one row; y is the middle of the row."""
    crosses: str
    """Path of the marks on wrong cells; empty if nothing is wrong or the size is."""
    cell: int
    """Pixels per cell."""


@dataclass(frozen=True)
class Prediction:
    """What one arm wrote."""

    arm: str
    drawing: Drawing | None
    """None where nothing could be read."""
    title: str
    """Which attempt; empty for the first."""
    is_right: bool | None
    note: str


@dataclass(frozen=True)
class Card:
    """One test output with what all arms made of it."""

    set: str
    task: str
    output: int
    group: str
    shown: tuple[tuple[Drawing, Drawing], ...]
    input: Drawing
    truth: Drawing | None
    predictions: tuple[Prediction, ...]


def make_cards(answers: Frame, per_group: int = PER_GROUP) -> list[Card]:
    """Choose outputs of every set and group, and draw what each arm's first seed answered.

    Raises UserError for a grid that is none.
    """
    if answers.empty:
        return []
    seed = answers["seed"].astype(float)
    answers = answers[seed.isna() | (seed == seed.groupby(answers["arm"]).transform("min"))]
    sets: dict[str, dict[str, list[Frame]]] = {
        name: {group: [] for group in GROUPS} for name in answers["set"].unique()
    }
    for (name, _, _), of_output in answers.groupby(["set", "task", "output"]):
        sets[name][group_of(of_output)].append(of_output)
    chosen = ((group, _most_telling(outputs)) for groups in sets.values() for group, outputs in groups.items())
    return [make_card(of_output, group) for group, outputs in chosen for of_output in outputs[:per_group]]


def group_of(of_output: Frame) -> str:
    """Name the group of an output from the answers of all arms to it (rows of `answers`)."""
    if of_output["truth"].isna().any():
        return "unscored"
    right = of_output["is_right"].astype(bool)
    if right.all():
        return "solved"
    if right.any():
        return "differ"
    return "nearly" if of_output["cell_accuracy"].max() >= NEARLY else "failed"


def make_card(of_output: Frame, group: str) -> Card:
    """Draw one output from the answers of all arms to it. Raises UserError for a grid that is none."""
    first = of_output.iloc[0]
    where = f"answers of {first['set']}, task {first['task']}"
    shown = [(parse_grid(p["input"], where), parse_grid(p["output"], where)) for p in first["shown"] or ()]
    asked = parse_grid(first["input"], where)
    truth = None if first["truth"] is None else parse_grid(first["truth"], where)
    attempts = [(row, [parse_grid(g, where) for g in row["attempts"] if g]) for _, row in of_output.iterrows()]
    grids = [asked, truth, *(g for pair in shown for g in pair), *(g for _, of_arm in attempts for g in of_arm)]
    cell = cell_pixels([grid for grid in grids if grid is not None])
    return Card(
        set=str(first["set"]),
        task=str(first["task"]),
        output=int(first["output"]),
        group=group,
        shown=tuple((draw(a, cell), draw(b, cell)) for a, b in shown),
        input=draw(asked, cell),
        truth=None if truth is None else draw(truth, cell),
        predictions=tuple(p for row, of_arm in attempts for p in predictions_of(row, of_arm, truth, cell, where)),
    )


def predictions_of(row: Any, attempts: Sequence[Grid], truth: Grid | None, cell: int, where: str) -> list[Prediction]:
    """Choose what to show of an arm: its first attempt, the second if only that is right, greedy if only that is."""
    arm = str(row["arm"])
    if not attempts:
        return [Prediction(arm, None, "", False if truth is not None else None, "nothing to read as a grid")]
    found = [_prediction(arm, "", attempts[0], truth, cell)]
    if not found[0].is_right and truth is not None:
        found += [_prediction(arm, "attempt 2", g, truth, cell) for g in attempts[1:2] if same_grid(g, truth)]
        if not row["is_right"] and row["greedy_right"]:
            found.append(_prediction(arm, "greedy, outvoted", parse_grid(row["greedy"], where), truth, cell))
    return found


def draw(grid: Grid, cell: int, truth: Grid | None = None) -> Drawing:
    """Draw a grid; cells that differ from a truth of the same size get a cross."""
    height, width = grid.shape
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(grid):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), width]
        for start, stop in pairwise(edges):
            paths.setdefault(int(row[start]), []).append(f"M{start} {y}.5h{stop - start}")
    wrong = np.argwhere(grid != truth) if truth is not None and truth.shape == grid.shape else np.zeros((0, 2), int)
    crosses = "".join(f"M{x}.25 {y}.25l.5.5m0-.5l-.5.5" for y, x in wrong.tolist())
    return Drawing(height, width, tuple((color, "".join(paths[color])) for color in sorted(paths)), crosses, cell)


def cell_pixels(grids: Sequence[npt.NDArray[np.uint8]]) -> int:
    """Choose how large cells are, so that the largest grid of a card fits and small ones do not look silly."""
    longest = max(max(grid.shape) for grid in grids)
    return min(max(GRID_PIXELS // longest, SMALLEST_CELL), LARGEST_CELL)


def _prediction(arm: str, title: str, grid: Grid, truth: Grid | None, cell: int) -> Prediction:
    if truth is None:
        return Prediction(arm, draw(grid, cell), title, None, "")
    if grid.shape != truth.shape:
        note = f"{grid.shape[0]} × {grid.shape[1]}, not {truth.shape[0]} × {truth.shape[1]}"
    else:
        num_wrong = int((grid != truth).sum())
        note = f"{num_wrong} of {truth.size} cells wrong" if num_wrong else "right"
    return Prediction(arm, draw(grid, cell, truth), title, same_grid(grid, truth), note)


def _most_telling(outputs: Sequence[Frame]) -> list[Frame]:
    """Put one output of every puzzle (`id#k` is cut from `id`) before the next of any, the best predicted first."""
    best = sorted(outputs, key=lambda rows: -float(rows["cell_accuracy"].fillna(0).max()))
    seen: dict[str, int] = {}
    turn = []
    for rows in best:
        puzzle = puzzle_of(str(rows.iloc[0]["task"]))
        turn.append(seen.setdefault(puzzle, 0))
        seen[puzzle] += 1
    return [best[i] for i in sorted(range(len(best)), key=lambda i: (turn[i], i))]

"""The gallery: which answered outputs are worth a look, and their grids as small drawings with wrong cells marked."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from arc_ray.report.frames import DataFrame, Row
from arc_ray.report.load import Report
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
"""Longest side of the largest grid of a card on the page."""
SMALLEST_CELL, LARGEST_CELL = 4, 14


class Drawing(NamedTuple):
    """A grid as SVG paths: cells are dashes of lines, one path a colour, so that gaps between cells cost nothing."""

    height: int
    width: int
    paths: tuple[tuple[int, str], ...]
    """Colour and path, each line `M x y h n` for n cells of one row; y is the middle of the row."""
    crosses: str
    """Path of the marks on wrong cells; empty if nothing is wrong or the size is."""
    cell: int
    """Pixels per cell."""


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
    shown: tuple[tuple[Drawing, Drawing], ...]
    input: Drawing
    truth: Drawing | None
    predictions: tuple[Prediction, ...]


def gallery_view(report: Report) -> dict[str, Any]:
    """Draw the cards, and tell what there is to choose among them."""
    cards = make_cards(report.answers)
    groups = {card.group for card in cards}
    return {
        "cards": cards,
        "card_groups": [group for group in GROUPS if group in groups],
        "card_sets": list(dict.fromkeys(card.set for card in cards)),
        "num_outputs": len(report.answers.drop_duplicates(["set", "task", "output"])),
    }


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


def draw(grid: Grid, cell: int, truth: Grid | None = None) -> Drawing:
    """Draw a grid; cells that differ from a truth of the same size get a cross."""
    height, width = grid.shape
    paths: dict[int, str] = {}
    for y, row in enumerate(grid):
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), width]):
            color = int(row[start])
            paths[color] = f"{paths.get(color, '')}M{start} {y}.5h{stop - start}"
    wrong = np.argwhere(grid != truth) if truth is not None and truth.shape == grid.shape else np.zeros((0, 2), int)
    crosses = "".join(f"M{x}.25 {y}.25l.5.5m0-.5l-.5.5" for y, x in wrong.tolist())
    return Drawing(height, width, tuple(sorted(paths.items())), crosses, cell)


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
    shown = [(parse_grid(p["input"], where), parse_grid(p["output"], where)) for p in first["shown"] or ()]
    asked = parse_grid(first["input"], where)
    truth = None if first["truth"] is None else parse_grid(first["truth"], where)
    attempts = [[parse_grid(grid, where) for grid in row["attempts"] if grid] for row in rows]
    grids = [asked, *(grid for pair in shown for grid in pair), *(grid for grids in attempts for grid in grids)]
    longest = max(max(grid.shape) for grid in [*grids, *([] if truth is None else [truth])])
    cell = min(max(GRID_PIXELS // longest, SMALLEST_CELL), LARGEST_CELL)
    return Card(
        set=str(first["set"]),
        task=str(first["task"]),
        output=int(first["output"]),
        group=group,
        shown=tuple((draw(a, cell), draw(b, cell)) for a, b in shown),
        input=draw(asked, cell),
        truth=None if truth is None else draw(truth, cell),
        predictions=tuple(
            _prediction(str(row["arm"]), title, grid, truth, cell)
            for row, grids in zip(rows, attempts, strict=True)
            for title, grid in _worth_showing(row, grids, truth, where)
        ),
    )


def _worth_showing(
    row: Row, attempts: Sequence[Grid], truth: Grid | None, where: str
) -> Iterable[tuple[str, Grid | None]]:
    """Choose what to show of an arm: its first attempt, the second if only that is right, greedy if only that is."""
    yield "", attempts[0] if attempts else None
    if truth is not None and attempts and not same_grid(attempts[0], truth):
        yield from (("attempt 2", grid) for grid in attempts[1:2] if same_grid(grid, truth))
        if not row["is_right"] and row["greedy_right"]:
            yield "greedy, outvoted", parse_grid(row["greedy"], where)


def _prediction(arm: str, title: str, grid: Grid | None, truth: Grid | None, cell: int) -> Prediction:
    is_right = None if truth is None else same_grid(grid, truth)
    if grid is None:
        return Prediction(arm, None, title, is_right, "nothing to read as a grid")
    if truth is None or is_right:
        note = "right" if is_right else ""
    elif grid.shape != truth.shape:
        note = f"{grid.shape[0]} × {grid.shape[1]}, not {truth.shape[0]} × {truth.shape[1]}"
    else:
        note = f"{int((grid != truth).sum())} of {truth.size} cells wrong"
    return Prediction(arm, draw(grid, cell, truth), title, is_right, note)

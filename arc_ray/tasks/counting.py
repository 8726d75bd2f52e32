"""Counting: random grids of objects, with questions whose answers are measured on the finished grid.

An object is a connected set of cells of one colour other than the background's; the background is the colour of more
than half of the cells. Grids are drawn freely, so that shapes may touch, merge and cut each other; then they are
measured, and drawn again where a rule is broken.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from arc_ray.config.sources import CountingSource
from arc_ray.errors import UserError
from arc_ray.seeding import rng_for
from arc_ray.tasks.task import NUM_COLORS, Grid, Pair, Question, Task

WORDINGS = {
    "objects": "How many objects does {place} have?",
    "areas": "How many cells does each object of {place} have, smallest first?",
    "biggest": "How many cells does the biggest object of {place} have?",
    "smallest": "How many cells does the smallest object of {place} have?",
    "objects_of_color": "How many objects of color {color} does {place} have?",
    "background": "Which color is the background of {place}?",
    "cells_of_color": "How many cells of color {color} does {place} have?",
    "symmetry": "How many mirror lines does {place} have?",
    "which_grid": "Which grid has the most objects?",
}
"""Question kind -> its wording: few words, because a model with a small vocabulary must read them."""

MIN_SIDE = 3
MAX_OBJECTS = 8
"""Objects in a grid, so that the list of areas stays short."""
SEVERAL_SHARE = 0.2
"""Share of tasks that hold two or three grids; they are small, up to SEVERAL_SIDE cells a side."""
SEVERAL_SIDE = 8
BLACK_SHARE = 0.8
"""Share of grids whose background is colour 0; other backgrounds share the rest."""
MIRROR_SHARE = 0.4
"""Share of grids that are mirrored: random ones hardly ever have a mirror line, so "0" would always be right."""

SHAPES = ("blob", "blob", "line", "diagonal", "frame", "rectangle")
"""Kinds of objects drawn, equally often but for blobs."""
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Ways from a cell to its neighbours, the four across an edge first."""

REFLECTIONS: tuple[Callable[[Grid], Grid], ...] = (np.fliplr, np.flipud, np.transpose, lambda grid: grid[::-1, ::-1].T)
"""Reflections in a vertical, a horizontal and, in a square, the two diagonal lines."""
MIRROR_SETS = ((0,), (1,), (0, 1), (2,), (3,), (2, 3), (0, 1, 2))
"""Reflections of REFLECTIONS that, one after another, leave a grid with 1, 1, 2, 1, 1, 2 and 4 mirror lines."""

Connectivity = Literal[4, 8]
"""8 joins cells that touch at a corner to one object, 4 does not."""
Stencil = npt.NDArray[np.bool_]
"""A shape within its bounding box: bool (height, width)."""


class Answered(NamedTuple):
    """One answered question: its kind, how hard its task was (see `extent_of`), and whether the answer was right."""

    kind: str
    height: int
    width: int
    num_objects: int
    is_right: bool


def counting_task(config: CountingSource, index: int) -> Task:
    """Draw task `index`, a pure function of config and index: grids as test inputs, and questions in a fixed order.

    Raises UserError for an unknown question kind, or if `max_side` leaves no room for objects.
    """
    kinds = _asked_kinds(config.questions)
    if config.max_side < MIN_SIDE:
        raise UserError(f"max_side = {config.max_side}: a counting grid needs at least {MIN_SIDE} cells a side")
    rng = rng_for(config.seed, "counting", index)
    has_several = rng.random() < SEVERAL_SHARE and "which_grid" in kinds
    if has_several or kinds == ["which_grid"]:
        grids, questions = _several_grids(rng, config, kinds)
    else:
        grids = [_draw_grid(rng, config.max_side, config.connectivity)]
        questions = _questions_about(rng, grids[0], config.connectivity, "the grid")
    test = tuple(Pair(grid, None) for grid in grids)
    return Task(f"count-{config.seed}-{index:06d}", (), test, tuple(q for q in questions if q.kind in kinds))


def background_of(grid: Grid) -> int:
    """Return the colour of most cells; of several, the lowest."""
    return int(np.bincount(grid.ravel()).argmax())


def objects_of(grid: Grid, connectivity: Connectivity) -> list[tuple[int, int]]:
    """Measure the objects of a grid, in the order of colours: (colour, area) of each."""
    from scipy import ndimage  # takes 0.3 s to import

    background, structure = background_of(grid), ndimage.generate_binary_structure(2, connectivity // 4)
    labels = np.empty(grid.shape, np.int32)
    objects = []
    for color in np.flatnonzero(np.bincount(grid.ravel())).tolist():
        if color != background:
            ndimage.label(grid == color, structure, output=labels)
            objects += [(color, area) for area in np.bincount(labels.ravel())[1:].tolist()]
    return objects


def count_mirror_lines(grid: Grid) -> int:
    """Count the mirror lines of a grid among vertical, horizontal and, in a square, the two diagonals: 0, 1, 2 or 4."""
    return [np.array_equal(grid, mirror(grid)) for mirror in REFLECTIONS].count(True)


def extent_of(task: Task, connectivity: Connectivity) -> tuple[int, int, int]:
    """Return (height, width, number of objects), each the largest of any grid of a counting task: how hard it is."""
    extents = [(*pair.input.shape, len(objects_of(pair.input, connectivity))) for pair in task.test]
    height, width, num_objects = map(max, zip(*extents, strict=True))
    return height, width, num_objects


def accuracy_by_kind(records: Iterable[Answered]) -> dict[str, float]:
    """Average answers over all kinds and per kind, then by longest side (in fives) and by number of objects.

    Keys are `accuracy`, `accuracy/<kind>`, `accuracy/<kind>/side_06_10`, `accuracy/<kind>/objects_04` (with "all" for
    the kind there), each beside one that ends in `/right` and one in `/of`: right answers and questions asked.
    """
    groups: defaultdict[str, list[bool]] = defaultdict(list)
    for record in records:
        top = -(-max(record.height, record.width) // 5) * 5
        parts = (f"side_{top - 4:02d}_{top:02d}", f"objects_{record.num_objects:02d}")
        for name in ("accuracy", f"accuracy/{record.kind}"):
            groups[name].append(record.is_right)
        for part in parts:
            for kind in ("all", record.kind):
                groups[f"accuracy/{kind}/{part}"].append(record.is_right)
    found: dict[str, float] = {}
    for name, right in sorted(groups.items()):
        found |= {name: sum(right) / len(right), f"{name}/right": sum(right), f"{name}/of": len(right)}
    return found


def _asked_kinds(questions: Sequence[str]) -> list[str]:
    asked = list(WORDINGS) if questions == "all" else questions
    unknown = [kind for kind in asked if kind not in WORDINGS]
    if unknown or not asked:
        given = f"there is no {unknown[0]!r}" if unknown else "none is named"
        raise UserError(f"questions: {given}; choose of {', '.join(WORDINGS)}, or all")
    return [kind for kind in WORDINGS if kind in asked]


def _several_grids(rng: Generator, config: CountingSource, kinds: Sequence[str]) -> tuple[list[Grid], list[Question]]:
    """Draw two or three small grids of which one has the most objects; ask which, and one more question about each."""
    num_grids, max_side = rng.integers(2, 4), min(config.max_side, SEVERAL_SIDE)
    while True:
        grids = [_draw_grid(rng, max_side, config.connectivity) for _ in range(num_grids)]
        counts = [len(objects_of(grid, config.connectivity)) for grid in grids]
        if counts.count(max(counts)) == 1:
            break
    questions = [Question("which_grid", WORDINGS["which_grid"], str(counts.index(max(counts)) + 1))]
    for number, grid in enumerate(grids, start=1):
        about = _questions_about(rng, grid, config.connectivity, f"grid {number}")
        asked = [question for question in about if question.kind in kinds]
        questions += [asked[rng.integers(len(asked))]] if asked else []
    return grids, questions


def _questions_about(rng: Generator, grid: Grid, connectivity: Connectivity, place: str) -> list[Question]:
    """Ask every kind of question about one grid, in the order of WORDINGS; one about the cells of a random colour."""
    objects, cells = objects_of(grid, connectivity), np.bincount(grid.ravel(), minlength=NUM_COLORS)
    areas = sorted(area for _, area in objects)
    per_color = np.bincount([color for color, _ in objects])
    color = rng.choice(np.flatnonzero(cells))

    def ask(kind: str, answer: object, **words: object) -> Question:
        return Question(kind, WORDINGS[kind].format(place=place, **words), str(answer))

    return [
        ask("objects", len(objects)),
        ask("areas", ", ".join(map(str, areas))),
        ask("biggest", areas[-1]),
        ask("smallest", areas[0]),
        *(ask("objects_of_color", per_color[c], color=c) for c in np.flatnonzero(per_color)),
        ask("background", background_of(grid)),
        ask("cells_of_color", cells[color], color=color),
        ask("symmetry", count_mirror_lines(grid)),
    ]


def _draw_grid(rng: Generator, max_side: int, connectivity: Connectivity) -> Grid:
    """Draw a grid of 1 to MAX_OBJECTS objects that cover less than half of it; short sides are more frequent."""
    height, width = (MIN_SIDE + ((max_side - MIN_SIDE + 1) * rng.random(2) ** 2).astype(int)).tolist()
    background = 0 if rng.random() < BLACK_SHARE else rng.integers(1, NUM_COLORS)
    others = np.delete(np.arange(NUM_COLORS), background)
    colors = np.array([background, *rng.permutation(others)], np.uint8)
    while True:
        grid = colors[_draw_canvas(rng, height, width, connectivity)]
        if 1 <= len(objects_of(grid, connectivity)) <= MAX_OBJECTS:
            return grid


def _draw_canvas(rng: Generator, height: int, width: int, connectivity: Connectivity) -> Grid:
    """Put shapes of paint 1 to 4 on empty places of a canvas of 0, then perhaps mirror all: uint8 (height, width). Less than
    half is covered, with all mirror images, so that the background stays the colour of most cells."""
    canvas = np.zeros((height, width), np.uint8)
    possible = [mirrors for mirrors in MIRROR_SETS if height == width or max(mirrors) < 2]
    mirrors = possible[rng.integers(len(possible))] if rng.random() < MIRROR_SHARE else ()
    num_copies = 2 ** len(mirrors)
    num_paints, longest = rng.integers(1, 5), (min(height, width) + 1) // 2
    for _ in range(rng.integers(1, MAX_OBJECTS // num_copies + 1)):
        sides = rng.integers(1, longest + 1, size=2)
        shape = _draw_shape(rng, int(sides[0]), int(sides[1]), connectivity)
        windows = np.lib.stride_tricks.sliding_window_view(canvas, shape.shape, writeable=True)
        places = np.argwhere(~windows[:, :, shape].any(axis=2))
        covered = num_copies * (np.count_nonzero(canvas) + np.count_nonzero(shape))
        if len(places) and 2 * covered < canvas.size:
            row, column = places[rng.integers(len(places))]
            windows[row, column][shape] = rng.integers(1, num_paints + 1)
    for mirror in mirrors:
        canvas = np.maximum(canvas, REFLECTIONS[mirror](canvas))
    return canvas


def _draw_shape(rng: Generator, height: int, width: int, connectivity: Connectivity) -> Stencil:
    match SHAPES[rng.integers(len(SHAPES))]:
        case "blob":
            return _grow_blob(rng, height, width, connectivity)
        case "line":
            return np.ones((height, 1) if rng.random() < 0.5 else (1, width), bool)
        case "diagonal":
            diagonal = np.eye(min(height, width), dtype=bool)
            return diagonal if rng.random() < 0.5 else diagonal[::-1]
        case "frame":
            frame = np.ones((height, width), bool)
            frame[1:-1, 1:-1] = False
            return frame
        case _:
            return np.ones((height, width), bool)


def _grow_blob(rng: Generator, height: int, width: int, connectivity: Connectivity) -> Stencil:
    """Grow from one cell, at each step by a random neighbour of a random cell, unless it is outside of the box."""
    cells = [(int(rng.integers(height)), int(rng.integers(width)))]
    picks, steps = rng.random(height * width), rng.integers(connectivity, size=height * width)
    for pick, step in zip(picks.tolist(), steps.tolist(), strict=True):
        row, column = cells[int(pick * len(cells))]
        grown = row + STEPS[step][0], column + STEPS[step][1]
        if 0 <= grown[0] < height and 0 <= grown[1] < width and grown not in cells:
            cells.append(grown)
    mask = np.zeros((height, width), bool)
    mask[tuple(zip(*cells, strict=True))] = True
    return mask[np.ix_(mask.any(axis=1), mask.any(axis=0))]

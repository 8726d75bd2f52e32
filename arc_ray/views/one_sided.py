"""One-sided augmentation: inputs or outputs alone are changed, by one rule for the whole task, which makes another puzzle.

The new rule is the old one and the change, one after the other; because the change can be undone, the puzzle stays
solvable. The four kinds and their weights are those that ironbar's arc24 found to help (its iteration 21).
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from arc_ray.tasks.task import NUM_COLORS, Grid
from arc_ray.views.symmetries import NUM_SYMMETRIES, swaps_sides, symmetry_name, turn, turn_back

Side = Literal["input", "output"]
Kind = Literal["geometric", "padding", "upscale", "mirror"]
SIDES: tuple[Side, ...] = get_args(Side)
KINDS: tuple[Kind, ...] = get_args(Kind)
MIRRORS = ("right", "left", "down", "up")
"""Where the mirror image is put; parameter of `mirror`."""
MOST_PADDING = 5
MOST_UPSCALE = 4

Codes = npt.NDArray[np.uint8]
"""One-sided changes as columns: 0 for none or 1 + side, kind, and three parameters: (n, 5)."""


@dataclass(frozen=True)
class OneSided:
    """A change of all inputs or of all outputs of a task."""

    side: Side
    kind: Kind
    parameters: tuple[int, ...]
    """geometric: the symmetry. padding: rows above and below, columns left and right, colour. upscale: factors of
    height and width. mirror: index into MIRRORS."""

    def __post_init__(self) -> None:
        first, second, third = (*self.parameters, 0, 0)[:3]
        is_known = {
            "geometric": len(self.parameters) == 1 and 1 <= first < NUM_SYMMETRIES,
            "padding": len(self.parameters) == 3 and 0 < max(first, second) <= MOST_PADDING and third < NUM_COLORS,
            "upscale": len(self.parameters) == 2 and first * second > 1 and max(first, second) <= MOST_UPSCALE,
            "mirror": len(self.parameters) == 1 and first < len(MIRRORS),
        }
        if min(self.parameters) < 0 or not is_known[self.kind]:
            raise ValueError(f"{self.parameters} are no parameters of {self.kind}")

    def apply(self, grid: Grid) -> Grid:
        """Change a grid of the side that this is for."""
        match self.kind, self.parameters:
            case "geometric", (symmetry,):
                return turn(grid, symmetry)
            case "padding", (rows, columns, color):
                return np.pad(grid, ((rows, rows), (columns, columns)), constant_values=color)
            case "upscale", (down, across):
                return grid.repeat(down, axis=0).repeat(across, axis=1)
            case _, (mirror,):
                axis, image = int(mirror < 2), np.flip(grid, axis=int(mirror < 2))
                return np.concatenate((image, grid) if mirror % 2 else (grid, image), axis=axis)
        raise AssertionError(self)

    def invert(self, grid: Grid) -> Grid:
        """Undo `apply`. Raises ValueError for a grid that `apply` cannot have made."""
        height, width = grid.shape
        match self.kind, self.parameters:
            case "geometric", (symmetry,):
                return turn_back(grid, symmetry)
            case "padding", (rows, columns, _):
                inner = grid[rows : height - rows, columns : width - columns]
            case "upscale", (down, across):
                inner = grid[::down, ::across]
            case _, (mirror,):
                half = (height, width // 2) if mirror < 2 else (height // 2, width)
                inner = grid[height - half[0] :, width - half[1] :] if mirror % 2 else grid[: half[0], : half[1]]
        if inner.size == 0 or not np.array_equal(self.apply(inner), grid):
            raise ValueError(f"the {height}x{width} grid was not made by {self.name}")
        return np.ascontiguousarray(inner)

    @property
    def name(self) -> str:
        """A readable name that `parse_one_sided` reads back, such as output-scale2x3 or input-pad1x0c5."""
        match self.kind, self.parameters:
            case "geometric", (symmetry,):
                return f"{self.side}-{symmetry_name(symmetry).replace('.', '-')}"
            case "padding", (rows, columns, color):
                return f"{self.side}-pad{rows}x{columns}c{color}"
            case "upscale", (down, across):
                return f"{self.side}-scale{down}x{across}"
            case _, (mirror, *_):
                return f"{self.side}-mirror-{MIRRORS[mirror]}"
        raise AssertionError(self)

    @classmethod
    def from_code(cls, code: Codes) -> "OneSided | None":
        """Read one row of codes; None where nothing is changed."""
        side, kind, *parameters = code.tolist()
        if not side:
            return None
        number = {"geometric": 1, "padding": 3, "upscale": 2, "mirror": 1}[KINDS[kind]]
        return cls(SIDES[side - 1], KINDS[kind], tuple(parameters[:number]))


def parse_one_sided(name: str) -> OneSided:
    """Read a one-sided change back from its name. Raises ValueError for anything that is no such name."""
    match = re.fullmatch(
        rf"(input|output)-(?:pad([0-9])x([0-9])c([0-9])|scale([1-9])x([1-9])|mirror-({'|'.join(MIRRORS)})"
        r"|(transpose)?-?(?:turn([1-3]))?)",
        name,
    )
    if match:
        side: Side = "input" if match[1] == "input" else "output"
        if match[2]:
            found = OneSided(side, "padding", (int(match[2]), int(match[3]), int(match[4])))
        elif match[5]:
            found = OneSided(side, "upscale", (int(match[5]), int(match[6])))
        elif match[7]:
            found = OneSided(side, "mirror", (MIRRORS.index(match[7]),))
        else:
            found = OneSided(side, "geometric", ((4 if match[8] else 0) + int(match[9] or 0),))
        if found.name == name:
            return found
    raise ValueError(f"{name!r} is no name of a one-sided change; one looks like output-scale2x3")


def changed_shapes(
    codes: Codes, side: Side, height: npt.NDArray[np.integer], width: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Return the shapes that grids of a side have after the changes: heights and widths, all (n,)."""
    is_on = codes[:, 0] == 1 + SIDES.index(side)
    of_kind = {kind: is_on & (codes[:, 1] == number) for number, kind in enumerate(KINDS)}
    a, b = codes[:, 2].astype(np.int64), codes[:, 3].astype(np.int64)
    height, width = height.astype(np.int64), width.astype(np.int64)
    turns = of_kind["geometric"] & swaps_sides(a)
    height, width = np.where(turns, width, height), np.where(turns, height, width)
    height = height + np.where(of_kind["padding"], 2 * a, 0)
    width = width + np.where(of_kind["padding"], 2 * b, 0)
    height = height * np.where(of_kind["upscale"], a, 1) * np.where(of_kind["mirror"] & (a >= 2), 2, 1)
    width = width * np.where(of_kind["upscale"], b, 1) * np.where(of_kind["mirror"] & (a < 2), 2, 1)
    return height, width

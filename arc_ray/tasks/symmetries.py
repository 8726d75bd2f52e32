"""The 8 symmetries of the square, by number: the low two bits are quarter turns counter-clockwise, bit 2 transposes first."""

from functools import cache

import numpy as np
import numpy.typing as npt

from arc_ray.tasks.task import Grid

NUM_SYMMETRIES = 8


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


def turn_back(grid: Grid, symmetry: int) -> Grid:
    """Undo `turn`; the result is contiguous."""
    turned = turn(grid, -symmetry & 3)
    return np.ascontiguousarray(turned.T if symmetry & 4 else turned)


def swaps_sides(symmetry: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Tell for each symmetry whether it exchanges height and width."""
    return ((symmetry >> 2) ^ symmetry) & 1 == 1


@cache
def cell_order(height: int, width: int, symmetry: int) -> npt.NDArray[np.int32]:
    """Return where each cell of a turned height x width grid comes from: `turned.ravel() == grid.ravel()[order]`."""
    return turn(np.arange(height * width, dtype=np.int32).reshape(height, width), symmetry).ravel()  # pyright: ignore


def symmetry_name(symmetry: int) -> str:
    """Name a symmetry, such as transpose.turn1; the identity has an empty name."""
    turns = [f"turn{symmetry & 3}"] if symmetry & 3 else []
    return ".".join((["transpose"] if symmetry & 4 else []) + turns)

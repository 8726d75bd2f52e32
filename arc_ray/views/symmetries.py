"""The 8 symmetries of the square, by number: the low two bits are quarter turns counter-clockwise, bit 2 transposes first."""

from functools import cache

import numpy as np
import numpy.typing as npt

from arc_ray.tasks.task import NUM_COLORS, Grid

SAME_COLORS = tuple(range(NUM_COLORS))
NUM_SYMMETRIES = 8


def turn(grid: Grid, symmetry: int) -> Grid:
    """Turn and mirror a grid: uint8 (h, w) to (h, w) or (w, h)."""
    return np.rot90(grid.T if symmetry & 4 else grid, symmetry & 3)


def turn_back(grid: Grid, symmetry: int) -> Grid:
    """Undo `turn`."""
    turned = np.rot90(grid, -(symmetry & 3))
    return np.ascontiguousarray(turned.T if symmetry & 4 else turned)


def swaps_sides(symmetry: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Tell for each symmetry whether it exchanges height and width."""
    return ((symmetry >> 2) ^ symmetry) & 1 == 1


@cache
def cell_order(height: int, width: int, symmetry: int) -> npt.NDArray[np.int32]:
    """Return where each cell of the transformed grid comes from: `transformed.ravel() == grid.ravel()[order]`.

    `height` and `width` are those of the grid before the symmetry; the result is int32 (height * width,).
    """
    positions = np.arange(height * width, dtype=np.int32).reshape(height, width)
    return np.rot90(positions.T if symmetry & 4 else positions, symmetry & 3).ravel().copy()


def symmetry_name(symmetry: int) -> str:
    """Name a symmetry, such as transpose.turn1; the identity has an empty name."""
    turns = [f"turn{symmetry & 3}"] if symmetry & 3 else []
    return ".".join((["transpose"] if symmetry & 4 else []) + turns)

"""How hard a pair looks: RE-ARC's PSO difficulty, from pixels, symbols and objects."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS, Grid, Pair

_EDGES = ndimage.generate_binary_structure(2, 1)


def pso_difficulties(pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
    """Rate pairs from 0 (easy) to 1, all at once, because one by one costs 2 % of generating them: (len(pairs),).

    The mean of three numbers (Hodel, arXiv 2404.07353): cells of both grids / 1800, colours of both / 10, and objects per
    cell, averaged over the two grids. An object is a patch of one colour, connected by edges; the background's count too.
    """
    grids = [grid for pair in pairs for grid in (pair.input, pair.output) if grid is not None]
    assert len(grids) == 2 * len(pairs), "a hidden output cannot be rated"
    sizes = np.array([grid.size for grid in grids], np.int64).reshape(-1, 2)
    density = (count_patches(grids).reshape(-1, 2) / sizes).mean(axis=1)
    is_used = np.zeros((len(pairs), NUM_COLORS), dtype=bool)
    cells = np.concatenate([grid.ravel() for grid in grids]) if grids else np.zeros(0, np.uint8)
    is_used[np.repeat(np.arange(len(pairs)), sizes.sum(axis=1)), cells] = True
    return (sizes.sum(axis=1) / (2 * MAX_SIDE**2) + is_used.mean(axis=1) + density) / 3


def count_patches(grids: Sequence[Grid]) -> npt.NDArray[np.int64]:
    """Count each grid's patches of one colour, all by one labelling: (len(grids),).

    The grids lie under each other on a canvas of twice their size: cells at even places, and between two neighbours a
    bridge where they have the same colour. Labels are numbered from top to bottom, so each grid has a range of them.
    """
    if not grids:
        return np.zeros(0, np.int64)
    tops = np.cumsum([0, *(2 * grid.shape[0] for grid in grids)])
    canvas = np.zeros((tops[-1], 2 * max(grid.shape[1] for grid in grids) - 1), dtype=bool)
    for grid, top in zip(grids, tops, strict=False):
        place = canvas[top : top + 2 * grid.shape[0] - 1, : 2 * grid.shape[1] - 1]
        place[::2, ::2] = True
        place[1::2, ::2] = grid[1:] == grid[:-1]
        place[::2, 1::2] = grid[:, 1:] == grid[:, :-1]
    labels = np.empty(canvas.shape, np.int32)
    ndimage.label(canvas, _EDGES, output=labels)
    return np.diff(np.maximum.reduceat(labels.max(axis=1), tops[:-1]), prepend=0)

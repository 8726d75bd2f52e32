"""`Augmentation`: a frozen value that turns, mirrors and recolours grids, can be undone, and has a readable name."""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from arc_ray.tasks import NUM_COLORS, Grid, Pair, Task

SAME_COLORS = tuple(range(NUM_COLORS))
NUM_SYMMETRIES = 8


@dataclass(frozen=True)
class Augmentation:
    """One of the 8 symmetries of the square and a renaming of the colours, applied alike to every grid of a task."""

    symmetry: int = 0
    """0-7: the low two bits are quarter turns counter-clockwise, bit 2 transposes before turning."""
    colors: tuple[int, ...] = SAME_COLORS
    """Colour c becomes colors[c]; always a bijection."""

    def __post_init__(self) -> None:
        if not 0 <= self.symmetry < NUM_SYMMETRIES:
            raise ValueError(f"symmetry {self.symmetry} is not in 0..7")
        if sorted(self.colors) != list(SAME_COLORS):
            raise ValueError(f"colours {self.colors} are no bijection: two colours would merge")

    def apply(self, grid: Grid) -> Grid:
        """Transform a grid: uint8 (h, w) to (h, w) or (w, h)."""
        turned = np.rot90(grid.T if self.symmetry & 4 else grid, self.symmetry & 3)
        return np.asarray(self.colors, np.uint8)[turned]

    def invert(self, grid: Grid) -> Grid:
        """Undo `apply`."""
        turned = np.rot90(np.argsort(self.colors).astype(np.uint8)[grid], -(self.symmetry & 3))
        return np.ascontiguousarray(turned.T if self.symmetry & 4 else turned)

    def apply_to_task(self, task: Task) -> Task:
        """Transform every grid of a task; questions and description are dropped, because they may no longer be true."""

        def both(pair: Pair) -> Pair:
            return Pair(self.apply(pair.input), None if pair.output is None else self.apply(pair.output))

        return Task(task.id, tuple(map(both, task.train)), tuple(map(both, task.test)))

    @property
    def name(self) -> str:
        """A readable name that `parse_augmentation` reads back, such as `transpose.turn1.colors0312456789`."""
        parts = ["transpose"] if self.symmetry & 4 else []
        if self.symmetry & 3:
            parts.append(f"turn{self.symmetry & 3}")
        if self.colors != SAME_COLORS:
            parts.append("colors" + "".join(map(str, self.colors)))
        return ".".join(parts) or "same"


def parse_augmentation(name: str) -> Augmentation:
    """Read an augmentation back from its name. Raises ValueError for anything that is no such name."""
    match = re.fullmatch(r"same|(transpose)?\.?(?:turn([123]))?\.?(?:colors([0-9]{10}))?", name)
    if match:
        symmetry = (4 if match[1] else 0) + int(match[2] or 0)
        found = Augmentation(symmetry, tuple(map(int, match[3])) if match[3] else SAME_COLORS)
        if found.name == name:
            return found
    raise ValueError(
        f"{name!r} is no name of an augmentation; one looks like transpose.turn1.colors0312456789, or same"
    )


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

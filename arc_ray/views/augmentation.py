"""`Augmentation`: a frozen value that turns, mirrors and recolours grids, can be undone, and has a readable name."""

from dataclasses import dataclass

import numpy as np

from arc_ray.tasks.symmetries import NUM_SYMMETRIES, symmetry_name, turn, turn_back
from arc_ray.tasks.task import NUM_COLORS, Grid
from arc_ray.views.one_sided import OneSided, Side

SAME_COLORS = tuple(range(NUM_COLORS))


@dataclass(frozen=True)
class Augmentation:
    """One of the 8 symmetries of the square and a renaming of the colours, applied alike to every grid of a task.

    Before them, `one_sided` may change the inputs or the outputs alone.
    """

    symmetry: int = 0
    """A number of `tasks.symmetries`."""
    colors: tuple[int, ...] = SAME_COLORS
    """Colour c becomes colors[c]; always a bijection."""
    one_sided: OneSided | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.symmetry < NUM_SYMMETRIES:
            raise ValueError(f"symmetry {self.symmetry} is not in 0..7")
        if sorted(self.colors) != list(SAME_COLORS):
            raise ValueError(f"colours {self.colors} are no bijection: two colours would merge")

    def apply(self, grid: Grid, side: Side | None = None) -> Grid:
        """Transform a grid, uint8 (h, w); `side` says whose it is, which matters if one side is changed alone."""
        change = self._change(side)
        return np.asarray(self.colors, np.uint8)[turn(change.apply(grid) if change else grid, self.symmetry)]

    def invert(self, grid: Grid, side: Side | None = None) -> Grid:
        """Undo `apply`. Raises ValueError for a grid that a one-sided change cannot have made."""
        change = self._change(side)
        common = turn_back(np.argsort(self.colors).astype(np.uint8)[grid], self.symmetry)
        return change.invert(common) if change else common

    @property
    def name(self) -> str:
        """A readable name that no other augmentation has, such as `transpose.turn1.colors0312456789`."""
        colors = "colors" + "".join(map(str, self.colors)) if self.colors != SAME_COLORS else ""
        parts = [self.one_sided.name if self.one_sided else "", symmetry_name(self.symmetry), colors]
        return ".".join(filter(None, parts)) or "same"

    def _change(self, side: Side | None) -> OneSided | None:
        assert side or not self.one_sided, "an augmentation that changes one side must be told whose grid it gets"
        return self.one_sided if self.one_sided and self.one_sided.side == side else None

"""`Augmentation`: a frozen value that turns, mirrors and recolours grids, can be undone, and has a readable name."""

import re
from dataclasses import dataclass

import numpy as np

from arc_ray.tasks.task import Grid, Pair, Task
from arc_ray.views.one_sided import OneSided, Side, parse_one_sided
from arc_ray.views.symmetries import NUM_SYMMETRIES, SAME_COLORS, symmetry_name, turn, turn_back


@dataclass(frozen=True)
class Augmentation:
    """One of the 8 symmetries of the square and a renaming of the colours, applied alike to every grid of a task.

    Before them, `one_sided` may change the inputs or the outputs alone.
    """

    symmetry: int = 0
    """0-7: the low two bits are quarter turns counter-clockwise, bit 2 transposes before turning."""
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

    def apply_to_task(self, task: Task) -> Task:
        """Transform every grid of a task; questions and description are dropped, because they may no longer be true."""

        def both(pair: Pair) -> Pair:
            output = None if pair.output is None else self.apply(pair.output, "output")
            return Pair(self.apply(pair.input, "input"), output)

        return Task(task.id, tuple(map(both, task.train)), tuple(map(both, task.test)))

    @property
    def name(self) -> str:
        """A readable name that `parse_augmentation` reads back, such as `transpose.turn1.colors0312456789`."""
        colors = "colors" + "".join(map(str, self.colors)) if self.colors != SAME_COLORS else ""
        parts = [self.one_sided.name if self.one_sided else "", symmetry_name(self.symmetry), colors]
        return ".".join(filter(None, parts)) or "same"

    def _change(self, side: Side | None) -> OneSided | None:
        assert side or not self.one_sided, "an augmentation that changes one side must be told whose grid it gets"
        return self.one_sided if self.one_sided and self.one_sided.side == side else None


def parse_augmentation(name: str) -> Augmentation:
    """Read an augmentation back from its name. Raises ValueError for anything that is no such name."""
    first, _, rest = name.partition(".")
    one_sided = parse_one_sided(first) if first.startswith(("input-", "output-")) else None
    match = re.fullmatch(
        r"same|(transpose)?\.?(?:turn([123]))?\.?(?:colors([0-9]{10}))?", (rest or "same") if one_sided else name
    )
    if match:
        symmetry = (4 if match[1] else 0) + int(match[2] or 0)
        found = Augmentation(symmetry, tuple(map(int, match[3])) if match[3] else SAME_COLORS, one_sided)
        if found.name == name:
            return found
    raise ValueError(
        f"{name!r} is no name of an augmentation; one looks like transpose.turn1.colors0312456789, or same"
    )

"""`Augmentation`: a frozen value that turns, mirrors and recolours grids, can be undone, and has a readable name.

One-sided, it changes inputs or outputs alone. That makes another puzzle, whose rule is the old one and the change, and
because the change can be undone, it stays solvable. The kinds of changes are those that ironbar's arc24 found to help.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from arc_ray.seeding import below, unit_floats
from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS, NUM_SYMMETRIES, Grid, turn

SAME_COLORS = tuple(range(NUM_COLORS))

PairSide = Literal["input", "output"]
Kind = Literal["geometric", "padding", "upscale", "mirror"]
SIDES: tuple[PairSide, ...] = get_args(PairSide)
KINDS: dict[Kind, int] = {"geometric": 1, "padding": 3, "upscale": 2, "mirror": 1}
"""Kind -> number of its parameters; its place here is its number in codes."""
MIRRORS = ("right", "left", "down", "up")
"""Where the mirror image is put; parameter of `mirror`."""
MOST_PADDING = 5
MOST_UPSCALE = 4
NUM_DRAWS = 7
"""Random numbers that one change takes."""

Codes = npt.NDArray[np.uint8]
"""One-sided changes as columns: 0 for none or 1 + side, kind, and three parameters: (n, 5)."""
_Ints = npt.NDArray[np.integer]
_Bits = npt.NDArray[np.uint64]


def turn_back(grid: Grid, symmetry: int) -> Grid:
    """Undo `turn`; the result is contiguous."""
    turned = turn(grid, -symmetry & 3)
    return np.ascontiguousarray(turned.T if symmetry & 4 else turned)


def swaps_sides(symmetry: _Ints) -> npt.NDArray[np.bool_]:
    """Tell for each symmetry whether it exchanges height and width."""
    return ((symmetry >> 2) ^ symmetry) & 1 == 1


def cell_order(height: int, width: int, symmetry: int) -> _Ints:
    """Return where each cell of a turned height x width grid comes from: `turned.ravel() == grid.ravel()[order]`."""
    return turn(np.arange(height * width).reshape(height, width), symmetry).ravel()  # pyright: ignore


def _symmetry_name(symmetry: int) -> str:
    """Name a symmetry, such as transpose.turn1; the identity has an empty name."""
    turns = [f"turn{symmetry & 3}"] if symmetry & 3 else []
    return ".".join((["transpose"] if symmetry & 4 else []) + turns)


@dataclass(frozen=True)
class OneSided:
    """A change of all inputs or of all outputs of a task."""

    side: PairSide
    kind: Kind
    parameters: tuple[int, ...]
    """geometric: the symmetry. padding: rows above and below, columns left and right, colour. upscale: factors of
    height and width. mirror: index into MIRRORS."""

    def __post_init__(self) -> None:
        a, b, color = (*self.parameters, 0, 0)[:3]
        is_known = {
            "geometric": 1 <= a < NUM_SYMMETRIES,
            "padding": 0 < max(a, b) <= MOST_PADDING and color < NUM_COLORS,
            "upscale": a * b > 1 and max(a, b) <= MOST_UPSCALE,
            "mirror": a < len(MIRRORS),
        }
        if len(self.parameters) != KINDS[self.kind] or min(self.parameters) < 0 or not is_known[self.kind]:
            raise ValueError(f"{self.parameters} are no parameters of {self.kind}")

    def apply(self, grid: Grid) -> Grid:
        """Change a grid of the side that this is for."""
        a, b, color = (*self.parameters, 0, 0)[:3]
        match self.kind:
            case "geometric":
                return turn(grid, a)
            case "padding":
                return np.pad(grid, ((a, a), (b, b)), constant_values=color)
            case "upscale":
                return grid.repeat(a, axis=0).repeat(b, axis=1)
            case "mirror":
                axis = int(a < 2)
                parts = (grid, np.flip(grid, axis))
                return np.concatenate(parts[::-1] if a % 2 else parts, axis)

    def invert(self, grid: Grid) -> Grid:
        """Undo `apply`. Raises ValueError for a grid that `apply` cannot have made."""
        a, b, _ = (*self.parameters, 0, 0)[:3]
        height, width = grid.shape
        match self.kind:
            case "geometric":
                return turn_back(grid, a)
            case "padding":
                inner = grid[a : height - a, b : width - b]
            case "upscale":
                inner = grid[::a, ::b]
            case "mirror":
                half = (height, width // 2) if a < 2 else (height // 2, width)
                inner = grid[height - half[0] :, width - half[1] :] if a % 2 else grid[: half[0], : half[1]]
        if inner.size == 0 or not np.array_equal(self.apply(inner), grid):
            raise ValueError(f"the {height}x{width} grid was not made by {self.name}")
        return np.ascontiguousarray(inner)

    @property
    def name(self) -> str:
        """A readable name that no other change has, such as output-scale2x3 or input-pad1x0c5."""
        a, b, color = (*self.parameters, 0, 0)[:3]
        match self.kind:
            case "geometric":
                return f"{self.side}-{_symmetry_name(a).replace('.', '-')}"
            case "padding":
                return f"{self.side}-pad{a}x{b}c{color}"
            case "upscale":
                return f"{self.side}-scale{a}x{b}"
            case "mirror":
                return f"{self.side}-mirror-{MIRRORS[a]}"

    @classmethod
    def from_code(cls, code: Codes) -> "OneSided | None":
        """Read one row of codes; None where nothing is changed."""
        side, number, *parameters = code.tolist()
        kind = list(KINDS)[number]
        return cls(SIDES[side - 1], kind, tuple(parameters[: KINDS[kind]])) if side else None


@dataclass(frozen=True)
class Augmentation:
    """One of the 8 symmetries of the square and a renaming of the colours, applied alike to every grid of a task.

    Before them, `one_sided` may change the inputs or the outputs alone.
    """

    symmetry: int = 0
    """A number below NUM_SYMMETRIES."""
    colors: tuple[int, ...] = SAME_COLORS
    """Colour c becomes colors[c]; always a bijection."""
    one_sided: OneSided | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.symmetry < NUM_SYMMETRIES:
            raise ValueError(f"symmetry {self.symmetry} is not in 0..7")
        if sorted(self.colors) != list(SAME_COLORS):
            raise ValueError(f"colours {self.colors} are no bijection: two colours would merge")

    def apply(self, grid: Grid, side: PairSide | None = None) -> Grid:
        """Transform a grid; `side` says whose it is, which matters if one side is changed alone."""
        change = self._change(side)
        return np.asarray(self.colors, np.uint8)[turn(change.apply(grid) if change else grid, self.symmetry)]

    def invert(self, grid: Grid, side: PairSide | None = None) -> Grid:
        """Undo `apply`. Raises ValueError for a grid that a one-sided change cannot have made."""
        change = self._change(side)
        common = turn_back(np.argsort(self.colors).astype(np.uint8)[grid], self.symmetry)
        return change.invert(common) if change else common

    @property
    def name(self) -> str:
        """A readable name that no other augmentation has, such as `transpose.turn1.colors0312456789`."""
        colors = "colors" + "".join(map(str, self.colors)) if self.colors != SAME_COLORS else ""
        parts = [self.one_sided.name if self.one_sided else "", _symmetry_name(self.symmetry), colors]
        return ".".join(filter(None, parts)) or "same"

    def _change(self, side: PairSide | None) -> OneSided | None:
        assert side or not self.one_sided, "an augmentation that changes one side must be told whose grid it gets"
        return self.one_sided if self.one_sided and self.one_sided.side == side else None


def changed_shapes(codes: Codes, side: PairSide, height: _Ints, width: _Ints) -> tuple[_Ints, _Ints]:
    """Return the shapes that grids of a side have after the changes: heights and widths, all (n,)."""
    is_on = codes[:, 0] == 1 + SIDES.index(side)
    is_kind = {kind: is_on & (codes[:, 1] == number) for number, kind in enumerate(KINDS)}
    a, b, height, width = (column.astype(np.int64) for column in (codes[:, 2], codes[:, 3], height, width))
    turns = is_kind["geometric"] & swaps_sides(a)
    height, width = np.where(turns, width, height), np.where(turns, height, width)
    height = height + np.where(is_kind["padding"], 2 * a, 0)
    width = width + np.where(is_kind["padding"], 2 * b, 0)
    height = height * np.where(is_kind["upscale"], a, 1) * np.where(is_kind["mirror"] & (a >= 2), 2, 1)
    width = width * np.where(is_kind["upscale"], b, 1) * np.where(is_kind["mirror"] & (a < 2), 2, 1)
    return height, width


def draw_one_sided(
    bits: _Bits, probability: float, weights: Mapping[Kind, float], height: _Ints, width: _Ints
) -> Codes:
    """Draw changes after which no side is longer than 30 cells: a side uniformly, a kind by `weights`. Where the kind has no
    room, nothing is changed. `bits` is uint64 (n, 7); `height` and `width` are the longest of each view's inputs and
    outputs, (n, 2)."""
    side = below(bits[:, 1], 2)
    tall, wide = (longest[np.arange(len(side)), side] for longest in (height, width))
    shares = np.cumsum([weights.get(kind, 0.0) for kind in KINDS])
    kind = np.searchsorted(shares, unit_floats(bits[:, 2]) * shares[-1], side="right")
    a, b, both = bits[:, 3], bits[:, 4], bits[:, 5] >> np.uint64(63) == 1
    none = np.zeros(len(side), np.int64)
    drawn = (
        (1 + below(a, NUM_SYMMETRIES - 1), none, none),
        (*_padding(a, b, both, tall, wide), below(bits[:, 6], NUM_COLORS)),
        (*_upscale(a, b, both, tall, wide), none),
        (_mirror(a, tall, wide), none, none),
    )
    parameters = np.stack(drawn)[kind, :, np.arange(len(side))]
    largest = parameters[:, :2].max(axis=1)
    has_room = np.choose(kind, [largest >= 0, largest > 0, largest > 1, parameters[:, 0] < len(MIRRORS)])
    is_changed = (unit_floats(bits[:, 0]) < probability) & has_room & (tall > 0)
    codes = np.concatenate([1 + side[:, None], kind[:, None], parameters], axis=1)
    return np.where(is_changed[:, None], codes, 0).astype(np.uint8)


def _padding(a: _Bits, b: _Bits, both: npt.NDArray[np.bool_], tall: _Ints, wide: _Ints) -> tuple[_Ints, _Ints]:
    """Rows and columns added on each side, 1 to 5 where there is room; in half of the draws as many of both."""
    most_rows, most_columns = (np.minimum(MOST_PADDING, (MAX_SIDE - longest) // 2) for longest in (tall, wide))
    rows = np.where(most_rows > 0, 1 + below(a, most_rows), 0)
    columns = np.where(most_columns > 0, 1 + below(b, most_columns), 0)
    even = both & (rows > 0) & (columns > 0)
    least = np.minimum(rows, columns)
    return np.where(even, least, rows), np.where(even, least, columns)


def _upscale(a: _Bits, b: _Bits, both: npt.NDArray[np.bool_], tall: _Ints, wide: _Ints) -> tuple[_Ints, _Ints]:
    """Factors of 1 to 4, not both 1 where there is room; in half of the draws the same for both, 2 at least."""
    most_down, most_across = (np.minimum(MOST_UPSCALE, MAX_SIDE // np.maximum(longest, 1)) for longest in (tall, wide))
    down, across = 1 + below(a, most_down), 1 + below(b, most_across)
    down = np.where((down == 1) & (across == 1), np.minimum(2, most_down), down)
    across = np.where((down == 1) & (across == 1), np.minimum(2, most_across), across)
    most = np.minimum(most_down, most_across)
    same = 2 + below(a, np.maximum(most - 1, 1))
    even = both & (most > 1)
    return np.where(even, same, down), np.where(even, same, across)


def _mirror(a: _Bits, tall: _Ints, wide: _Ints) -> _Ints:
    """Where the mirror image goes; along the other axis where one has no room, and beyond MIRRORS where none has."""
    place = below(a, len(MIRRORS))
    fits_across, fits_down = 2 * wide <= MAX_SIDE, 2 * tall <= MAX_SIDE
    fits = np.where(place < 2, fits_across, fits_down)
    fits_other = np.where(place < 2, fits_down, fits_across)
    return np.where(fits, place, np.where(fits_other, (place + 2) % len(MIRRORS), len(MIRRORS)))

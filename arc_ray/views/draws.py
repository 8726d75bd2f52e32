"""Random one-sided changes for many views at once, such that no side becomes longer than 30 cells."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from arc_ray.seeding import below, unit_floats
from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS
from arc_ray.views.one_sided import KINDS, MIRRORS, MOST_PADDING, MOST_UPSCALE, Codes, Kind
from arc_ray.views.symmetries import NUM_SYMMETRIES

NUM_DRAWS = 7
"""Random numbers that one change takes."""

Ints = npt.NDArray[np.int64]


def draw_one_sided(
    bits: npt.NDArray[np.uint64], probability: float, weights: Mapping[Kind, float], height: Ints, width: Ints
) -> Codes:
    """Draw changes: `bits` is uint64 (n, 7); `height` and `width` are the longest of each view's inputs and outputs, (n, 2).

    A side is drawn uniformly, a kind by `weights`. Where the kind has no room, nothing is changed.
    """
    side = below(bits[:, 1], 2)
    tall, wide = (longest[np.arange(len(side)), side] for longest in (height, width))
    shares = np.cumsum([weights.get(kind, 0.0) for kind in KINDS])
    kind = np.searchsorted(shares, unit_floats(bits[:, 2]) * shares[-1], side="right")
    a, b, both = bits[:, 3], bits[:, 4], bits[:, 5] >> np.uint64(63) == 1
    none = np.zeros(len(side), np.int64)
    parameters = np.select(
        [kind[:, None] == number for number in range(len(KINDS))],
        [
            np.stack([1 + below(a, NUM_SYMMETRIES - 1), none, none], 1),
            np.stack([*_padding(a, b, both, tall, wide), below(bits[:, 6], NUM_COLORS)], 1),
            np.stack([*_upscale(a, b, both, tall, wide), none], 1),
            np.stack([_mirror(a, tall, wide), none, none], 1),
        ],
    )
    has_room = np.select(
        [kind == KINDS.index("padding"), kind == KINDS.index("upscale"), kind == KINDS.index("mirror")],
        [parameters[:, :2].max(axis=1) > 0, parameters[:, :2].max(axis=1) > 1, parameters[:, 0] < len(MIRRORS)],
        default=True,
    )
    is_changed = (unit_floats(bits[:, 0]) < probability) & has_room & (tall > 0)
    codes = np.concatenate([1 + side[:, None], kind[:, None], parameters], axis=1)
    return np.where(is_changed[:, None], codes, 0).astype(np.uint8)


def _padding(
    a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], both: npt.NDArray[np.bool_], tall: Ints, wide: Ints
) -> tuple[Ints, Ints]:
    """Rows and columns added on each side, 1 to 5 where there is room; in half of the draws as many of both."""
    most_rows, most_columns = (np.minimum(MOST_PADDING, (MAX_SIDE - longest) // 2) for longest in (tall, wide))
    rows = np.where(most_rows > 0, 1 + below(a, most_rows), 0)
    columns = np.where(most_columns > 0, 1 + below(b, most_columns), 0)
    even = both & (rows > 0) & (columns > 0)
    least = np.minimum(rows, columns)
    return np.where(even, least, rows), np.where(even, least, columns)


def _upscale(
    a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], both: npt.NDArray[np.bool_], tall: Ints, wide: Ints
) -> tuple[Ints, Ints]:
    """Factors of 1 to 4, not both 1 where there is room; in half of the draws the same for both, 2 at least."""
    most_down, most_across = (np.minimum(MOST_UPSCALE, MAX_SIDE // np.maximum(longest, 1)) for longest in (tall, wide))
    down, across = 1 + below(a, most_down), 1 + below(b, most_across)
    down = np.where((down == 1) & (across == 1), np.minimum(2, most_down), down)
    across = np.where((down == 1) & (across == 1), np.minimum(2, most_across), across)
    most = np.minimum(most_down, most_across)
    even = both & (most > 1)
    same = 2 + below(a, np.maximum(most - 1, 1))
    return np.where(even, same, down), np.where(even, same, across)


def _mirror(a: npt.NDArray[np.uint64], tall: Ints, wide: Ints) -> Ints:
    """Where the mirror image goes; along the other axis where one has no room, and beyond MIRRORS where none has."""
    place = below(a, len(MIRRORS))
    fits_across, fits_down = 2 * wide <= MAX_SIDE, 2 * tall <= MAX_SIDE
    fits = np.where(place < 2, fits_across, fits_down)
    fits_other = np.where(place < 2, fits_down, fits_across)
    return np.where(fits, place, np.where(fits_other, (place + 2) % len(MIRRORS), len(MIRRORS)))

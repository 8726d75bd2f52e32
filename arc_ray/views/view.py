"""A view: one task, augmented, with some pairs shown and one to answer; drawn for a million (task, copy, epoch) at once.

A view is a value: everything random about it follows from its key (seed, source, task, copy, epoch), so whoever
computes it, when, and after which crash, gets the same bytes. `Views` holds many of them as columns.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.config.training import ViewConfig
from arc_ray.seeding import below, counter_bits, digest64, unit_floats, view_keys
from arc_ray.tasks.task import NUM_COLORS, NUM_SYMMETRIES, TaskTable
from arc_ray.views.augmentation import NUM_DRAWS, SAME_COLORS, Augmentation, Codes, OneSided, draw_one_sided

_SYMMETRY, _COLORS, _BACKGROUND, _PAIRS, _ORDER, _QUESTIONS, _ONE_SIDED, _NUM_SHOWN = range(8)
_LAST = np.iinfo(np.uint64).max

_Ints = npt.NDArray[np.integer]
_Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Views:
    """n views of the tasks of one table, as columns."""

    task: npt.NDArray[np.int32]
    """Index into the table: (n,)."""
    key: npt.NDArray[np.uint64]
    """What the view's randomness comes from: (n,)."""
    symmetry: npt.NDArray[np.uint8]
    """0-7, see `Augmentation`: (n,)."""
    colors: npt.NDArray[np.uint8]
    """Colour c becomes colors[i, c]: (n, 10)."""
    shown: npt.NDArray[np.int32]
    """Pairs shown, in order, as pair numbers of the table; -1 where fewer are shown: (n, most shown)."""
    asked: npt.NDArray[np.int32]
    """Pair to answer; for counting tasks the first grid: (n,)."""
    one_sided: Codes | None = None
    """What is changed in inputs or outputs alone, before the symmetry: (n, 5); None where no view changes anything."""

    def __len__(self) -> int:
        return len(self.task)

    def num_shown(self) -> npt.NDArray[np.int64]:
        """Return how many pairs each view shows: (n,)."""
        return (self.shown >= 0).sum(axis=1)

    def nth(self) -> _Ints:
        """Return the number of each view among those of its task, which must stand together: (n,)."""
        return np.arange(len(self)) - np.searchsorted(self.task, self.task)

    def take(self, index: _Ints | slice) -> "Views":
        """Return the views at these positions."""
        columns = (getattr(self, field.name) for field in fields(self))
        return Views(*(None if column is None else column[index] for column in columns))  # pyright: ignore

    def augmentation(self, i: int) -> Augmentation:
        """Return the augmentation of view `i`."""
        one_sided = None if self.one_sided is None else OneSided.from_code(self.one_sided[i])
        return Augmentation(int(self.symmetry[i]), tuple(self.colors[i].tolist()), one_sided)

    def showing(self, most: _Ints) -> "Views":
        """Return the same views with at most so many shown pairs each, the first ones: `most` is (n,)."""
        kept = np.arange(self.shown.shape[1]) < np.asarray(most)[:, None]
        return replace(self, shown=np.where(kept, self.shown, -1))


def keys_of(seed: int, source: str, table: TaskTable, task: _Ints, copy: _Ints, epoch: _Ints | int) -> _Keys:
    """Return the keys of views, (n,): they depend on names, not on positions, so adding a task moves no other view. `task`,
    `copy` and `epoch` are (n,) or broadcast to it."""
    return view_keys(seed, "view", (np.asarray(digest64(source), np.uint64), table.digests[task], copy, epoch))


def draw_views(config: ViewConfig, table: TaskTable, task: _Ints, key: _Keys) -> Views:
    """Draw the views that belong to keys, all at once: `task` is (n,) int, `key` (n,) uint64."""
    task = np.asarray(task, np.int32)
    symmetry = below(counter_bits(key, _SYMMETRY, 1)[:, 0], NUM_SYMMETRIES) if config.symmetries else 0
    colors = _draw_colors(config, key)
    shown, asked = _choose_pairs(config, table, task, key)
    # Fresh counting grids cost less than augmented ones, and their questions name colours and directions.
    is_counting = table.is_counting[task]
    views = Views(
        task,
        key,
        symmetry=np.where(is_counting, 0, symmetry).astype(np.uint8),
        colors=np.where(is_counting[:, None], SAME_COLORS, colors).astype(np.uint8),
        shown=np.where(is_counting[:, None], -1, shown).astype(np.int32),
        asked=np.where(is_counting, table.first_pair[task], asked).astype(np.int32),
    )
    return replace(views, one_sided=_draw_one_sided(config, table, views)) if config.one_sided else views


def plain_views(table: TaskTable, max_shown: int, symmetry: int = 0) -> Views:
    """Return the views that evaluation answers: each test pair of each task, train pairs shown in their order; nothing is
    random but the question order of counting tasks, which follows from their ids."""
    counts = np.where(table.is_counting, 1, table.num_pairs - table.num_train)
    task = np.repeat(np.arange(len(table), dtype=np.int32), counts)
    nth = np.arange(len(task)) - np.repeat(np.cumsum(counts) - counts, counts)
    first, num_train, position = table.first_pair[task], table.num_train[task], np.arange(max_shown)
    return Views(
        task,
        key=view_keys(0, "plain", (table.digests[task],)) if len(task) else np.zeros(0, np.uint64),
        symmetry=np.where(table.is_counting[task], 0, symmetry).astype(np.uint8),
        colors=np.tile(np.array(SAME_COLORS, np.uint8), (len(task), 1)),
        shown=np.where(position < num_train[:, None], first[:, None] + position, -1).astype(np.int32),
        asked=(first + num_train + nth).astype(np.int32),
    )


def redrawn(config: ViewConfig, table: TaskTable, views: Views, max_shown: int, copy: int, seed: int) -> Views:
    """Return puzzle views with other colours and other shown pairs, in another order: copy 1, 2... of evaluation's views,
    which show every train pair. The draw follows from (seed, task, asked pair, symmetry, copy)."""
    key = view_keys(seed, "evaluate", (table.digests[views.task], views.nth(), views.symmetry, copy))
    bits = counter_bits(key, _ORDER, views.shown.shape[1])
    shown = _shuffled(views.shown, bits, views.num_shown())[:, :max_shown]
    return Views(views.task, key, views.symmetry, _draw_colors(config, key), shown, views.asked)


def question_order(key: np.uint64, num_questions: int) -> npt.NDArray[np.int64]:
    """Return the random order in which a view asks its questions (a fixed order leaks answers): (num_questions,)."""
    return np.argsort(counter_bits(np.array([key]), _QUESTIONS, num_questions)[0], kind="stable")


def _draw_colors(config: ViewConfig, key: _Keys) -> npt.NDArray[np.uint8]:
    if config.colors == "keep":
        return np.tile(np.array(SAME_COLORS, np.uint8), (len(key), 1))
    ranks = counter_bits(key, _COLORS, NUM_COLORS)
    moves_background = unit_floats(counter_bits(key, _BACKGROUND, 1)[:, 0]) < config.background_probability
    ranks[:, 0] = np.where(moves_background, ranks[:, 0], 0)
    return np.argsort(ranks, axis=1, kind="stable").astype(np.uint8)


def _draw_one_sided(config: ViewConfig, table: TaskTable, views: Views) -> Codes:
    """Draw what is changed in inputs or outputs alone; the limit is the longest grid of the view's own pairs."""
    pairs = np.concatenate([views.shown, views.asked[:, None]], axis=1)
    grids = np.where(pairs >= 0, 2 * pairs, 0)[:, :, None] + np.arange(2)
    is_there = (pairs >= 0)[:, :, None] & ~table.is_counting[views.task][:, None, None]
    height, width = (np.where(is_there, sides[grids], 0).max(axis=1) for sides in (table.height, table.width))
    bits = counter_bits(views.key, _ONE_SIDED, NUM_DRAWS)
    return draw_one_sided(bits, config.one_sided, config.one_sided_weights, height.astype(int), width.astype(int))


def _choose_pairs(config: ViewConfig, table: TaskTable, task: _Ints, key: _Keys) -> tuple[_Ints, _Ints]:
    """Choose the shown pairs and the asked one among those with a known output: (n, max_shown), -1 for none, and (n,)."""
    is_known = table.height[1::2] > 0
    known = np.flatnonzero(is_known)
    first_known = np.concatenate([[0], np.cumsum(is_known)])[table.first_pair]
    pool, offset = np.diff(first_known)[task], first_known[:-1][task]
    num_shown = np.clip(pool - 1, 0, config.max_shown)
    if config.min_shown:
        fewest = np.minimum(config.min_shown, num_shown)
        num_shown = fewest + below(counter_bits(key, _NUM_SHOWN, 1)[:, 0], num_shown - fewest + 1)
    position = np.arange(config.max_shown)
    if config.shuffle_pairs:
        chosen = _distinct(counter_bits(key, _PAIRS, config.max_shown + 1), pool, num_shown + 1)
        # Floyd's set is uniform, but its order is not.
        chosen = _shuffled(chosen, counter_bits(key, _ORDER, config.max_shown + 1), num_shown + 1)
        asked, shown = chosen[:, 0], chosen[:, 1:]
    else:
        asked, shown = pool - 1, position
    is_shown = position < num_shown[:, None]
    padded = np.append(known, -1)
    asked = np.where(pool > 0, padded[np.minimum(offset + asked, len(known))], -1)
    return np.where(is_shown, padded[np.minimum(offset[:, None] + np.where(is_shown, shown, 0), len(known))], -1), asked


def _distinct(bits: _Keys, pool: _Ints, count: _Ints) -> _Ints:
    """Choose `count[i]` distinct numbers below `pool[i]` in each row, uniformly, by Floyd's algorithm (CACM 30:9, 1987): as
    many draws as numbers, however large the pool. Columns beyond `count` hold rubbish."""
    chosen = np.full(bits.shape, -1, np.int64)
    for i in range(bits.shape[1]):
        last = pool - count + i
        drawn = below(bits[:, i], np.maximum(last + 1, 1))
        is_taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
        chosen[:, i] = np.where(is_taken, last, drawn)
    return chosen


def _shuffled(values: npt.NDArray[Any], bits: _Keys, count: _Ints) -> npt.NDArray[Any]:
    """Shuffle the first `count[i]` columns of each row; the others stay behind them."""
    ranks = np.where(np.arange(bits.shape[1]) < count[:, None], bits >> np.uint64(1), _LAST)
    return np.take_along_axis(values, np.argsort(ranks, axis=1, kind="stable"), axis=1)

"""How long views are, without making a token of them: shapes and the layout's constants say it all on the look-up path."""

from itertools import product

import numpy as np
import numpy.typing as npt

from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import GridSlot, Text
from arc_ray.prompts.sample import refuse_unreadable_texts
from arc_ray.tasks.task import MAX_SIDE, TaskTable
from arc_ray.views.augmentation import changed_shapes, swaps_sides
from arc_ray.views.view import Views, question_order

Lengths = npt.NDArray[np.int64]
"""Tokens and learned tokens of each view: (2, n)."""

_TOKENIZED_AT_ONCE = 1024
"""Views in one call of the tokenizer on the slow path: keeps all cores busy, and memory small."""


def view_lengths(codec: Codec, table: TaskTable, views: Views) -> Lengths:
    """Return the tokens and the learned tokens of each view, exactly; the slow path has to tokenize."""
    lengths = np.zeros((2, len(views)), np.int64)
    if not codec.is_fast:
        for begin in range(0, len(views), _TOKENIZED_AT_ONCE):
            here = slice(begin, begin + _TOKENIZED_AT_ONCE)
            encoded = codec.encode(table, views.take(here))
            lengths[:, here] = np.array([(len(ids), mask.sum()) for ids, mask in encoded]).T
        return lengths
    sizes = _grid_sizes(codec, table, any_shape=views.one_sided is not None)
    for here in _alike(codec, table, views):
        some = views.take(here)
        [layout] = codec.layouts_of(table, some.take(slice(1)))
        total, learned = np.zeros((2, len(here)), np.int64)
        for segment in layout:
            if isinstance(segment, GridSlot):
                length = sizes[_shapes(table, some, segment)]
            else:
                assert isinstance(segment, Text)
                length = len(codec.text_ids(segment))
            total += length
            learned += length * segment.learn
        lengths[:, here] = total, learned
    return lengths


def fit_views(
    codec: Codec, table: TaskTable, views: Views, row_tokens: int, drop: bool
) -> tuple[npt.NDArray[np.int64], Lengths]:
    """Find how many pairs each view may show to fit into a row: -1 where it does not fit even with one.

    Returns the numbers, int64 (n,), and the lengths at those numbers. With `drop`, a view that does not fit as it is is -1.
    A view that asks for nothing, because its task has no known output or lacks the description, is -1 as well. Raises
    UserError for questions that the tokenizer cannot write.
    """
    asks = np.flatnonzero(codec.can_write(table, views))
    if len(asks) < len(views):
        fitting, lengths = np.full(len(views), -1, np.int64), np.zeros((2, len(views)), np.int64)
        fitting[asks], lengths[:, asks] = fit_views(codec, table, views.take(asks), row_tokens, drop)
        return fitting, lengths
    if len(views) and table.is_counting[views.task[0]]:
        refuse_unreadable_texts(codec, codec.layouts_of(table, views.take(slice(1))))
    fitting, lengths = views.num_shown(), view_lengths(codec, table, views)
    long = np.flatnonzero(lengths[0] > row_tokens)
    while len(long):
        # A view that showed none to begin with (counting) has nothing to lose; one that would show none is no puzzle.
        fitting[long] -= 1
        lost = drop | (fitting[long] < 1)
        fitting[long[lost]] = -1
        long = long[~lost]
        lengths[:, long] = view_lengths(codec, table, views.take(long).showing(fitting[long]))
        long = long[lengths[0, long] > row_tokens]
    return fitting, lengths


def _grid_sizes(codec: Codec, table: TaskTable, any_shape: bool) -> npt.NDArray[np.int64]:
    """Return the tokens of grids between their seams by height and width, of the table's shapes or all: int64 (31, 31)."""
    sizes, sides = np.zeros((MAX_SIDE + 1, MAX_SIDE + 1), np.int64), range(1, MAX_SIDE + 1)
    shapes = set(zip(table.height.tolist(), table.width.tolist(), strict=True)) - {(0, 0)}
    for height, width in product(sides, sides) if any_shape else shapes | {shape[::-1] for shape in shapes}:
        sizes[height, width] = len(codec.template(height, width).ids)
    return sizes


def _alike(codec: Codec, table: TaskTable, views: Views) -> list[npt.NDArray[np.int64]]:
    """Group views, by their positions, whose texts have one length: puzzles that show as many pairs, and have the same
    description if they are described; counting tasks with the same first question, which alone may merge with a grid."""
    kind, is_counting = views.num_shown(), table.is_counting[views.task]
    for i in np.flatnonzero(is_counting):
        kind[i] = question_order(views.key[i], len(table.questions[views.task[i]]))[0]
    group = kind + (views.task + 1) * (kind.max(initial=0) + 1) * (is_counting | codec.needs_description)
    order = np.argsort(group, kind="stable")
    return [here for here in np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(here)]


def _shapes(table: TaskTable, views: Views, slot: GridSlot) -> tuple[npt.NDArray[np.integer], ...]:
    """Return height and width of the grid that each of some views that are alike has in a slot, both (n,)."""
    if table.is_counting[views.task[0]]:
        pair = table.first_pair[views.task] + slot.pair
    else:
        pair = views.asked if slot.pair == views.num_shown()[0] else views.shown[:, slot.pair]
    grid = 2 * pair.astype(np.int64) + (slot.side == "output")
    shapes = table.height[grid], table.width[grid]
    if views.one_sided is not None:
        shapes = changed_shapes(views.one_sided, slot.side, *shapes)
    height, width = shapes
    turned = swaps_sides(views.symmetry)
    return np.where(turned, width, height), np.where(turned, height, width)

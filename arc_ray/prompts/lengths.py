"""How long views are, without making a token of them: shapes and the layout's constants say it all on the look-up path."""

import numpy as np
import numpy.typing as npt

from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import GridSlot, Layout, Text
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
    is_counting = table.is_counting[views.task]
    counting: dict[tuple[int, int], Lengths] = {}
    for i in np.flatnonzero(is_counting):
        task = int(views.task[i])
        first = int(question_order(views.key[i], len(table.questions[task]))[0])
        if (task, first) not in counting:
            counting[task, first] = _counting_length(codec, table, task, first)
        lengths[:, i] = counting[task, first]
    sizes = _grid_lengths(codec, table) if views.one_sided is None else _all_shapes(codec)
    num_shown = views.num_shown()
    for shown in np.unique(num_shown[~is_counting]):
        here = np.flatnonzero(~is_counting & (num_shown == shown))
        lengths[:, here] = _puzzle_lengths(codec, table, sizes, views.take(here), int(shown))
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


def _all_shapes(codec: Codec) -> npt.NDArray[np.int64]:
    """Return the tokens of grids of every shape between their seams, by height and width: int64 (31, 31)."""
    sides = range(1, MAX_SIDE + 1)
    sizes = np.zeros((MAX_SIDE + 1, MAX_SIDE + 1), np.int64)
    sizes[1:, 1:] = [[len(codec.template(height, width).ids) for width in sides] for height in sides]
    return sizes


def _grid_lengths(codec: Codec, table: TaskTable) -> npt.NDArray[np.int64]:
    """Return the tokens of every grid of the table between its seams, upright and with sides exchanged: (2, num_grids)."""
    by_shape = np.zeros((MAX_SIDE + 1, MAX_SIDE + 1), np.int64)
    for height, width in {(h, w) for h, w in zip(table.height.tolist(), table.width.tolist(), strict=True) if h}:
        by_shape[height, width] = len(codec.template(height, width).ids)
        by_shape[width, height] = len(codec.template(width, height).ids)
    return np.stack([by_shape[table.height, table.width], by_shape[table.width, table.height]])


def _puzzle_lengths(
    codec: Codec, table: TaskTable, sizes: npt.NDArray[np.int64], views: Views, num_shown: int
) -> Lengths:
    """Return the lengths of puzzle views that all show so many pairs."""
    # What is no grid is the same for all views, or for those of a task if it is described.
    tasks, which = np.unique(views.task, return_inverse=True)
    if not codec.needs_description:
        tasks, which = tasks[:1], np.zeros(len(views), np.int64)
    texts = [_text_length(codec, codec.puzzle_layout(table, int(task), num_shown)) for task in tasks]
    lengths = np.array(texts).T[:, which]
    turned = swaps_sides(views.symmetry)
    for segment in codec.layout(num_shown):
        if isinstance(segment, GridSlot):
            pair = views.asked if segment.pair == num_shown else views.shown[:, segment.pair]
            grid = 2 * pair.astype(np.int64) + (segment.side == "output")
            if views.one_sided is None:
                length = sizes[turned.astype(np.int64), grid]
            else:
                shapes = changed_shapes(views.one_sided, segment.side, table.height[grid], table.width[grid])
                length = np.where(turned, sizes[shapes[1], shapes[0]], sizes[shapes])
            lengths += np.stack([length, length * segment.learn])
    return lengths


def _text_length(codec: Codec, layout: Layout) -> Lengths:
    """Return the tokens and learned tokens of what is no grid: (2,)."""
    texts = [segment for segment in layout if isinstance(segment, Text)]
    return sum((len(codec.text_ids(text)) * np.array([1, text.learn]) for text in texts), np.zeros(2, np.int64))


def _counting_length(codec: Codec, table: TaskTable, task: int, first: int) -> Lengths:
    """Return the lengths of a counting task, (2,): of the order of its questions only the first matters, which may merge
    with the grid before it, while the others follow the end of an answer."""
    order = [first, *(j for j in range(len(table.questions[task])) if j != first)]
    layout = codec.counting_layout(table, task, order)
    grids = 2 * (table.first_pair[task] + np.array([s.pair for s in layout if isinstance(s, GridSlot)]))
    cells = sum(len(codec.template(int(table.height[g]), int(table.width[g])).ids) for g in grids)
    return _text_length(codec, layout) + np.array([cells, 0])

"""How long views are, without making a token of them: shapes and the layout's constants say it all on the look-up path."""

import numpy as np
import numpy.typing as npt

from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import GridSlot, Text
from arc_ray.prompts.sample import refuse_unreadable_texts
from arc_ray.tasks.symmetries import swaps_sides
from arc_ray.tasks.task import MAX_SIDE, TaskTable
from arc_ray.views.one_sided import changed_shapes
from arc_ray.views.view import Views, question_order

Lengths = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Tokens and learned tokens of each view: two int64 (n,)."""

_TOKENIZED_AT_ONCE = 1024
"""Views in one call of the tokenizer on the slow path: keeps all cores busy, and memory small."""


def view_lengths(codec: Codec, table: TaskTable, views: Views) -> Lengths:
    """Return the tokens and the learned tokens of each view, exactly; the slow path has to tokenize."""
    tokens, learned = np.zeros(len(views), np.int64), np.zeros(len(views), np.int64)
    if not codec.is_fast:
        for begin in range(0, len(views), _TOKENIZED_AT_ONCE):
            here = slice(begin, begin + _TOKENIZED_AT_ONCE)
            encoded = codec.encode(table, views.take(here))
            tokens[here] = [len(ids) for ids, _ in encoded]
            learned[here] = [mask.sum() for _, mask in encoded]
        return tokens, learned
    is_counting = table.is_counting[views.task]
    counting: dict[tuple[int, int], tuple[int, int]] = {}
    for i in np.flatnonzero(is_counting):
        task, num = int(views.task[i]), len(table.questions[views.task[i]])
        first = int(question_order(views.key[i], num)[0])
        if (task, first) not in counting:
            counting[task, first] = _counting_length(codec, table, task, first)
        tokens[i], learned[i] = counting[task, first]
    sizes = _grid_lengths(codec, table) if views.one_sided is None else _all_shapes(codec)
    num_shown = views.num_shown()
    for shown in np.unique(num_shown[~is_counting]):
        here = np.flatnonzero(~is_counting & (num_shown == shown))
        tokens[here], learned[here] = _puzzle_lengths(codec, table, sizes, views.take(here), int(shown))
    return tokens, learned


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
        fitting, tokens, learned = (np.full(len(views), value, np.int64) for value in (-1, 0, 0))
        fitting[asks], (tokens[asks], learned[asks]) = fit_views(codec, table, views.take(asks), row_tokens, drop)
        return fitting, (tokens, learned)
    if len(views) and table.is_counting[views.task[0]]:
        refuse_unreadable_texts(codec, codec.layouts_of(table, views.take(slice(1))))
    fitting = views.num_shown()
    tokens, learned = view_lengths(codec, table, views)
    # A view that showed none to begin with (counting) has nothing to lose; one that would show none is no puzzle.
    long = np.flatnonzero(tokens > row_tokens)
    while len(long):
        fitting[long] -= 1
        lost = long if drop else long[fitting[long] < 1]
        fitting[lost] = -1
        long = np.setdiff1d(long, lost, assume_unique=True)
        if not len(long):
            break
        fewer = views.take(long).showing(fitting[long])
        tokens[long], learned[long] = view_lengths(codec, table, fewer)
        long = long[tokens[long] > row_tokens]
    return fitting, (tokens, learned)


def _all_shapes(codec: Codec) -> npt.NDArray[np.int64]:
    """Return the tokens of grids of every shape between their seams, by height and width: int64 (31, 31)."""
    sides = range(1, MAX_SIDE + 1)
    sizes = np.zeros((MAX_SIDE + 1, MAX_SIDE + 1), np.int64)
    sizes[1:, 1:] = [[len(codec.template(height, width).ids) for width in sides] for height in sides]
    return sizes


def _grid_lengths(codec: Codec, table: TaskTable) -> npt.NDArray[np.int64]:
    """Return the tokens of every grid of the table between its seams, upright and with sides exchanged.

    int64 (2, num_grids + 1). The last column is 0: the grid of a missing pair.
    """
    by_shape = np.zeros((MAX_SIDE + 1, MAX_SIDE + 1), np.int64)
    for height, width in {(int(h), int(w)) for h, w in zip(table.height, table.width, strict=True) if h}:
        by_shape[height, width] = len(codec.template(height, width).ids)
        by_shape[width, height] = len(codec.template(width, height).ids)
    upright = np.append(by_shape[table.height, table.width], 0)
    return np.stack([upright, np.append(by_shape[table.width, table.height], 0)])


def _puzzle_lengths(
    codec: Codec, table: TaskTable, sizes: npt.NDArray[np.int64], views: Views, num_shown: int
) -> Lengths:
    tokens, learned = _text_lengths(codec, table, views, num_shown)
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
            tokens += length
            learned += length * segment.learn
    return tokens, learned


def _text_lengths(codec: Codec, table: TaskTable, views: Views, num_shown: int) -> Lengths:
    """Tokens and learned tokens of what is no grid: the same for all views, or for those of a task if it is described."""
    tasks, which = np.unique(views.task, return_inverse=True)
    if not codec.needs_description:
        tasks, which = tasks[:1], np.zeros(len(views), np.int64)
    tokens, learned = np.zeros(len(tasks), np.int64), np.zeros(len(tasks), np.int64)
    for i, task in enumerate(tasks):
        for segment in codec.puzzle_layout(table, int(task), num_shown):
            if isinstance(segment, Text):
                length = len(codec.text_ids(segment.text, segment.after_grid, segment.before_grid))
                tokens[i] += length
                learned[i] += length * segment.learn
    return tokens[which], learned[which]


def _counting_length(codec: Codec, table: TaskTable, task: int, first: int) -> tuple[int, int]:
    """Tokens and learned tokens of a counting task: of the order of its questions only the first matters, which may
    merge with the grid before it, while the others follow the end of an answer."""
    begin = int(table.first_pair[task])
    order = [first, *(j for j in range(len(table.questions[task])) if j != first)]
    tokens = learned = 0
    for segment in codec.counting_layout(table, task, order):
        if isinstance(segment, Text):
            length = len(codec.text_ids(segment.text, segment.after_grid, segment.before_grid))
        else:
            assert isinstance(segment, GridSlot)
            grid = 2 * (begin + segment.pair)
            length = len(codec.template(int(table.height[grid]), int(table.width[grid])).ids)
        tokens += length
        learned += length * segment.learn
    return tokens, learned

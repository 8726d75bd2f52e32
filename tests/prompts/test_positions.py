"""Positions of tokens: their number, or where the cell that they write lies; the same however a view is cut."""

import numpy as np
import pytest
from builders import (
    codec_of,
    counting,
    grouping_tokenizer,
    merging_tokenizer,
    phi_like_tokenizer,
    puzzle,
    qwen_like_tokenizer,
    smollm_like_tokenizer,
    tiny_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ray.errors import UserError
from arc_ray.prompts.encoders import ENCODERS
from arc_ray.prompts.formats import FORMATS, GridSlot
from arc_ray.prompts.positions import BEGIN, SEQUENCE
from arc_ray.tasks.task import Pair, Task, TaskTable
from arc_ray.views.view import plain_views

TOKENIZERS = {
    "tiny": tiny_tokenizer,
    "smollm": smollm_like_tokenizer,
    "qwen": qwen_like_tokenizer,
    "phi": phi_like_tokenizer,
}
TABLE = TaskTable.of([puzzle("a", 4, 1, most=9), puzzle("b", 2, 2, most=30), puzzle("c", 1, 1, most=14)])


def test_the_positions_of_a_small_view():
    """The whole rule, written out: would catch any change of it, which would make every checkpoint read otherwise."""
    a, b, c = (np.array(rows, np.uint8) for rows in ([[0, 1], [2, 3]], [[4]], [[5, 6, 7], [8, 9, 0]]))
    table = TaskTable.of([Task("t", (Pair(a, b),), (Pair(c, a),))])
    codec = codec_of(tiny_tokenizer(), positions="grid")
    [(ids, _)] = codec.encode(table, plain_views(table, 1))
    words = codec.tokenizer.convert_ids_to_tokens(ids)
    assert list(zip(words, codec.positions.of(ids).tolist(), strict=True)) == [
        *(("<bos>", 0), ("I", 1)),
        *(("0", 1024), ("1", 1025), ("Ċ", 1026), ("2", 1056), ("3", 1057), ("Ċ", 1058), ("O", 1059)),
        *(("4", 2048), ("Ċ", 2049), ("<eos>", 2050), ("I", 2051)),
        *(("5", 3072), ("6", 3073), ("7", 3074), ("Ċ", 3075), ("8", 3104), ("9", 3105), ("0", 3106), ("Ċ", 3107)),
        *(("O", 3108), ("0", 4096), ("1", 4097), ("Ċ", 4098), ("2", 4128), ("3", 4129), ("Ċ", 4130), ("<eos>", 4131)),
    ]
    assert SEQUENCE.of(ids).tolist() == list(range(len(ids)))
    assert codec_of(tiny_tokenizer()).positions == SEQUENCE


def test_row_numbers_of_two_digits_do_not_move_columns():
    """Would catch a cell of row 10 that is another distance from the one above than that of row 9."""
    codec = codec_of(tiny_tokenizer(), "rows", positions="grid")
    grid = np.zeros((12, 2), np.uint8)
    ids = codec.answer_ids(grid)
    found, _ = codec.positions.after(ids.tolist())
    first_cells = np.array(found)[codec.whole_grid(12, 2).slots[::2, 0]]
    assert np.diff(first_cells).tolist() == [64] * 11


@pytest.mark.parametrize("encoder", [*ENCODERS, "compact-columns", "shape_rows-columns"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_same_cell_lies_as_far_apart_in_every_grid(tokenizer: str, encoder: str):
    """Every format: cells below and beside each other, and the same cell of the next grid, whatever shapes grids have; would
    catch a line that is not seen, a shape's digits taken for cells, and text that moves what follows it."""
    formats = dict.fromkeys(FORMATS)
    if tokenizer == "tiny" and encoder in ("plain", "separated"):
        # Without a chat template a line's end is all that stands between two of its grids.
        formats.pop("input_from_inputs")
    for format in formats:
        codec = codec_of(TOKENIZERS[tokenizer](), encoder, format, positions="grid")
        views, positions = plain_views(TABLE, 3), codec.positions
        layouts = codec.layouts_of(TABLE, views)
        found = [positions.of(ids) for ids, _ in codec.look_up(TABLE, views, layouts)]
        assert all((np.diff(own) > 0).all() for own in found), "two tokens at one position"
        _, _, ends, placed = codec._lay_out(TABLE, views, layouts)
        parts, corners = iter(placed), set()
        for i, layout in enumerate(layouts):
            pairs = [*(pair for pair in views.shown[i] if pair >= 0), views.asked[i]]
            for number, slot in enumerate(segment for segment in layout if isinstance(segment, GridSlot)):
                begin, _, slots, _ = next(parts)
                shape = TABLE.grid(2 * pairs[slot.pair] + (slot.side == "output")).shape
                cells = found[i][begin - ends[i] + slots[:, 0]].reshape(shape)
                cells = cells.T if encoder.endswith("columns") else cells
                assert (np.diff(cells, axis=0) == positions.lines[10] - positions.lines[9]).all()
                assert (np.diff(cells, axis=1) == slots.shape[1] + bool(codec.encoder.separator)).all()
                corners.add(int(cells[0, 0]) - number * positions.step)
        assert len(corners) == 1, "where a grid begins depends on what stands before it"


SOME = codec_of(tiny_tokenizer(), positions="grid").positions
tokens = st.lists(st.sampled_from([*SOME.kinds, 1, 2, 60]), max_size=60)


@settings(deadline=None)
@given(tokens, st.lists(st.integers(1, 7), max_size=20))
def test_a_token_at_a_time_gives_what_the_whole_gives(ids: list[int], cuts: list[int]):
    """Any tokens, sense or not, as a model writes them: would catch a place that forgets what the tokens before said, and a
    second token at position 0, where the next view of a row would be taken to begin."""
    for positions in (SOME, SEQUENCE):
        whole, last = positions.after(ids)
        assert positions.of(np.array(ids, np.int32)).tolist() == whole
        found, place, rest = [], BEGIN, ids
        for size in [*cuts, len(ids)]:
            part, place = positions.after(rest[:size], place)
            found, rest = found + part, rest[size:]
        assert (found, place) == (whole, last)
        assert [i for i, position in enumerate(whole) if position <= 0] == [0][: len(ids)]


def test_questions_have_positions_too():
    """Would catch a counting task that cannot be trained on beside puzzles: its answers are digits that begin a line."""
    table = TaskTable.of([counting(1)])
    codec = codec_of(tiny_tokenizer(), positions="grid")
    [(ids, _)] = codec.encode(table, plain_views(table, 1))
    found = codec.positions.of(ids)
    assert (np.diff(found) > 0).all()
    assert found[-1] > len(table.questions[0]) * codec.positions.step


@pytest.mark.parametrize(
    ("tokenizer", "encoder", "format", "message"),
    [
        (tiny_tokenizer, "compact-snake", "compact", "encoder compact-snake writes no rows or columns"),
        (tiny_tokenizer, "shape_rows-spiral", "compact", "encoder shape_rows-spiral writes no rows or columns"),
        (merging_tokenizer, "compact", "compact", "gives cells no tokens of their own"),
        (grouping_tokenizer, "shape_rows", "compact", "gives cells no tokens of their own"),
        (tiny_tokenizer, "plain", "input_from_inputs", "nothing tells where one grid ends and the next begins"),
    ],
)
def test_what_has_no_places_is_refused(tokenizer, encoder: str, format: str, message: str):
    """Would catch a snake whose rows are taken to begin at the left, and cells that are looked for where there are none."""
    with pytest.raises(UserError, match=rf"prompt\.positions grid: .*{message}.*prompt\.positions=sequence"):
        codec_of(tokenizer(), encoder, format, quiet=True, positions="grid")

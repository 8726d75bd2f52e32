"""Grids as text: every encoder reads back what it wrote, and says why when it cannot read."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_ray.errors import UserError
from arc_ray.prompts.encoders import ENCODERS, TRAVERSALS, NoGrid, cells_in_lines, encoder_named
from arc_ray.tasks.task import NUM_COLORS, Grid

shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))
grids = hnp.arrays(np.uint8, shapes, elements=st.integers(0, 9))
TRAVERSED = [f"{name}-{traversal}" for name in ENCODERS for traversal in TRAVERSALS[1:]]
SOME = ["compact-snake", "separated-columns", "shape_rows-columns", "rows-spiral", "repeated-spiral"]
names = st.sampled_from([*ENCODERS, *TRAVERSED])


@settings(deadline=None)
@given(names, grids)
def test_every_encoder_reads_back_what_it_wrote(name: str, grid: Grid):
    encoder = encoder_named(name)
    read = encoder.parse(encoder.render(grid))
    assert isinstance(read, np.ndarray), read
    assert read.dtype == np.uint8
    assert np.array_equal(read, grid)


@pytest.mark.parametrize("name", [*ENCODERS, *SOME])
def test_every_shape_is_read_back(name: str):
    """All 900 shapes: would catch a row number of two digits, or a one-column grid, that is read otherwise."""
    encoder = encoder_named(name)
    for height in range(1, 31):
        for width in range(1, 31):
            grid = (np.arange(height * width, dtype=np.uint16) % 10).astype(np.uint8).reshape(height, width)
            read = encoder.parse(encoder.render(grid))
            assert isinstance(read, np.ndarray)
            assert np.array_equal(read, grid)


@pytest.mark.parametrize("name", [*ENCODERS, *TRAVERSED])
def test_cell_spans_are_where_the_cells_are(name: str):
    """Would catch a look-up table whose tokens are those of the neighbouring cell."""
    encoder = encoder_named(name)
    for height, width in ((1, 1), (3, 5), (12, 2), (10, 10), (30, 30)):
        grid = (np.arange(height * width, dtype=np.uint16) % 10).astype(np.uint8).reshape(height, width)
        text = encoder.render(grid)
        spans = encoder.cell_spans(height, width)
        assert spans.shape == (height * width, 2)
        assert [text[a:b] for a, b in spans] == [encoder.cells[c] for c in grid.ravel()]


@pytest.mark.parametrize("name", ENCODERS)
def test_text_around_an_answer_does_not_matter(name: str):
    """Models put newlines around an answer, and words around a fence."""
    encoder = encoder_named(name)
    grid = np.array([[1, 2], [3, 4]], np.uint8)
    around = ["\n{}\n", "{}\n\n"] + (["Here it is:\n{}\nDone."] if encoder.fence else [])
    for text in around:
        assert np.array_equal(encoder.parse(text.format(encoder.render(grid))), grid)


@given(st.sampled_from(TRAVERSALS), shapes)
def test_a_traversal_goes_through_every_cell_once(traversal: str, shape: tuple[int, int]):
    """Would catch a cell that is left out, and steps to a cell that is no neighbour, which rows and columns make at ends."""
    order = cells_in_lines(traversal, *shape)
    assert sorted(order.ravel().tolist()) == list(range(shape[0] * shape[1]))
    assert order.shape == (shape[::-1] if traversal == "columns" else shape)
    rows, columns = np.divmod(order.ravel(), shape[1])
    steps = abs(np.diff(rows)) + abs(np.diff(columns))
    assert (steps == 1).all() == (traversal in ("snake", "spiral") or min(shape) == 1)


BAD: list[tuple[str, str, NoGrid]] = [
    ("plain", "", "empty"),
    ("plain", "\n\n", "empty"),
    ("plain", "12\n3a", "bad_cell"),
    ("plain", "12\n\n34", "bad_cell"),
    ("plain", "1 2", "bad_cell"),
    ("plain", "12\n3", "ragged"),
    ("plain", "1" * 31, "too_large"),
    ("plain", "\n".join("1" * 31), "too_large"),
    ("separated", "1|2|", "bad_cell"),
    ("separated", "1|22", "bad_cell"),
    ("separated", "12", "bad_cell"),
    ("fenced", "12\n34", "no_fence"),
    ("fenced", "```grid\n12\n34", "no_fence"),
    ("fenced", "```\n12\n```", "no_fence"),
    ("fenced", "```grid\n\n```", "empty"),
    ("shape", "```grid\n12\n```", "bad_shape_line"),
    ("shape", "```grid shape: 1x2 \n12\n```", "bad_shape_line"),
    ("shape", "```grid shape: 2x1\n12\n```", "shape_differs"),
    ("shape", "```grid shape: 999999999999x1\n12\n```", "shape_differs"),
    ("rows", "```grid\n1 12\n3 34\n```", "bad_row_number"),
    ("rows", "```grid\n12\n34\n```", "bad_row_number"),
    ("rows", "```grid\n1 12\n2 3\n```", "ragged"),
    ("rows", "```grid\n1 \n```", "bad_cell"),
    ("shape_rows", "```grid shape: 1x2\n1  12\n```", "bad_cell"),
    ("repeated", "```grid\n111\n22\n```", "bad_cell"),
    ("repeated", "```grid\n112\n```", "bad_cell"),
    ("symbols", "```grid\n12\n```", "bad_cell"),
    ("compact", "12\n3", "ragged"),
]


@pytest.mark.parametrize(("name", "text", "reason"), BAD)
def test_what_is_no_grid_gives_the_reason(name: str, text: str, reason: NoGrid):
    """Would catch a wrong answer that is repaired in silence, and a report that blames the wrong thing."""
    assert ENCODERS[name].parse(text) == reason


def test_every_reason_has_a_test():
    assert {reason for _, _, reason in BAD} == set(NoGrid.__args__)


@settings(deadline=None)
@given(names, st.text("0123456789|`grid shape:x\nñò ", max_size=60))
def test_no_text_at_all_makes_parsing_fail_otherwise(name: str, text: str):
    """Would catch an exception in the middle of an evaluation, raised by whatever a model happened to write."""
    read = encoder_named(name).parse(text)
    assert isinstance(read, np.ndarray) or read in NoGrid.__args__


@settings(deadline=None)
@given(names, grids, st.data())
def test_a_cut_answer_is_never_read_as_the_whole_grid(name: str, grid: Grid, data: st.DataObject):
    """Would catch an unfinished answer that counts as right."""
    encoder = encoder_named(name)
    text = encoder.render(grid).rstrip("\n")
    read = encoder.parse(text[: data.draw(st.integers(0, len(text) - 1))])
    assert not (isinstance(read, np.ndarray) and np.array_equal(read, grid))


def test_texts_of_the_encoders_that_papers_use():
    """Written out, because a checkpoint knows its encoder by this text and by nothing else."""
    grid = np.array([[0, 1], [2, 3]], np.uint8)
    assert ENCODERS["plain"].render(grid) == "01\n23"
    assert ENCODERS["separated"].render(grid) == "0|1\n2|3"
    assert ENCODERS["fenced"].render(grid) == "```grid\n01\n23\n```"
    assert ENCODERS["shape_rows"].render(grid) == "```grid shape: 2x2\n1 01\n2 23\n```"
    wide = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert encoder_named("shape_rows-columns").render(wide) == "```grid shape: 2x3\n1 03\n2 14\n3 25\n```"
    assert encoder_named("compact-snake").render(wide) == "012\n543\n"
    assert encoder_named("plain-spiral").render(np.arange(9, dtype=np.uint8).reshape(3, 3)) == "012\n587\n634"
    assert ENCODERS["repeated"].render(grid) == "```grid\n000111\n222333\n```"
    assert ENCODERS["symbols"].render(grid) == "```grid\nñò\n÷û\n```"
    assert ENCODERS["compact"].render(grid) == "01\n23\n"


@pytest.mark.parametrize("name", ENCODERS)
def test_the_cells_of_an_encoder_are_distinct_and_of_one_length(name: str):
    """Would catch two colours with one text, and spans that depend on colours."""
    cells = ENCODERS[name].cells
    assert len(set(cells)) == NUM_COLORS
    assert len({len(cell) for cell in cells}) == 1


def test_an_unknown_encoder_is_refused_with_all_names():
    with pytest.raises(UserError, match=re.escape(", ".join(ENCODERS))):
        encoder_named("shapes")
    for name in ("compact-zigzag", "compact-", "compact-rows", "-snake"):
        with pytest.raises(UserError, match="with -columns or -snake or -spiral behind it"):
            encoder_named(name)
    assert encoder_named("shape").name == "shape"

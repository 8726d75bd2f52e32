"""`make_codec`, and the views on which it compares the look-up path with the tokenizer before it trusts it.

A tokenizer that cannot write the prompt at all (a vocabulary cut down to what somebody else's prompt needs) is refused:
its model would train, and even be right about what it sees, on prompts in which colours or words are lost.
"""

import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from arc_ray.config.training import PromptConfig
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import CellsMergeError, encoder_named, find_cell_ids
from arc_ray.prompts.formats import FORMATS, GridSlot, Layout, Text, format_named, joined
from arc_ray.prompts.positions import Positions, TokenKind, grid_positions, no_places
from arc_ray.prompts.tokenizer import frame_of
from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS, NUM_SYMMETRIES, Grid, Pair, Question, Task, TaskTable, same_grid
from arc_ray.views.view import Views, plain_views

SAMPLED_SIDES = (1, 2, 3, 5, 9, 10, 11, 14, 20, 29, 30)
_MAX_SHOWN = 3


def make_codec(tokenizer: Any, prompt: PromptConfig) -> Codec:
    """Make a codec that looks ids up if that gives the tokenizer's own on a sample of views, else one that tokenizes.

    The slow path is correct for every tokenizer and 20 times slower; taking it is warned about once. Raises UserError
    for a tokenizer that cannot write this prompt's grids or words so that they can be read back.
    """
    frame, encoder = frame_of(tokenizer), encoder_named(prompt.encoder)
    codec = Codec(tokenizer, frame, encoder, format_named(prompt.format), prompt.learn)
    table, views = sample_views()
    layouts = codec.layouts_of(table, views)
    try:
        codec.cell_ids = find_cell_ids(tokenizer, encoder)
        ending = [codec.text_ids(Text("", after_grid=True)), codec.text_ids(Text(frame.end))]
        if not np.array_equal(codec.text_ids(Text(frame.end, after_grid=True)), np.concatenate(ending)):
            raise CellsMergeError("a grid merges with the end of an answer")
        looked_up, tokenized = codec.look_up(table, views, layouts), codec.tokenize(table, views, layouts)
        for fast, slow in zip(looked_up, tokenized, strict=True):
            if not (np.array_equal(fast[0], slow[0]) and np.array_equal(fast[1], slow[1])):
                raise CellsMergeError("looked-up ids differ from the tokenizer's own")
    except CellsMergeError as error:
        warnings.warn(
            f"{type(tokenizer).__name__} with encoder {encoder.name!r}: {error}; every view goes through the tokenizer,"
            f" which is about 20 times slower",
            stacklevel=2,
        )
        codec.is_fast = False
    refuse_unreadable_texts(codec, [layouts[i] for i in np.flatnonzero(table.num_train)])
    _refuse_unreadable_grids(codec)
    if prompt.positions == "grid":
        codec.positions = _grid_positions(codec)
    return codec


def _grid_positions(codec: Codec) -> Positions:
    """Tell kinds of tokens apart, and the places of cells by them. Raises UserError."""
    if not codec.is_fast:
        raise no_places("this tokenizer gives cells no tokens of their own")
    texts = codec.tokenizer.batch_decode([[token] for token in range(len(codec.tokenizer))])
    kinds: dict[int, TokenKind] = {token: "line_end" for token, text in enumerate(texts) if text.endswith("\n")}
    kinds |= {token: "blank" for token, text in enumerate(texts) if not text.strip(" ")}
    kinds |= dict.fromkeys(codec.cell_ids[:, 0].tolist(), "cell")
    last = 0
    for segment in joined(codec.format(codec.frame, 2, codec.learn), ""):
        if isinstance(segment, GridSlot) and not codec.encoder.fence:
            kinds.setdefault(last, "mark")
        elif isinstance(segment, Text):
            last = next(
                (token for token in codec.text_ids(segment)[::-1].tolist() if kinds.get(token) != "blank"), last
            )
    positions = grid_positions(codec.encoder, codec.whole_grid(MAX_SIDE, MAX_SIDE), kinds)
    table, views = sample_views()
    puzzles = views.take(slice(NUM_SYMMETRIES))
    for (ids, _), layout in zip(codec.encode(table, puzzles), codec.layouts_of(table, puzzles), strict=True):
        if positions.after(ids.tolist())[1].grid != sum(isinstance(segment, GridSlot) for segment in layout):
            raise no_places(f"with encoder {codec.encoder.name} nothing tells where one grid ends and the next begins")
    return positions


def refuse_unreadable_texts(codec: Codec, layouts: Iterable[Layout]) -> None:
    """Raise UserError for a text of these layouts that the tokenizer does not give back, but for spaces and case."""
    for text in {segment.text: None for layout in layouts for segment in layout if isinstance(segment, Text)}:
        read = codec.tokenizer.decode(codec.tokenizer(text, add_special_tokens=False)["input_ids"])
        if _bare(read) != _bare(text):
            raise _cannot_write(codec, text, read)


def _refuse_unreadable_grids(codec: Codec) -> None:
    """Raise UserError where grids with all colours and row numbers are not read back from their ids as evaluation does."""
    cells = np.arange(2 * MAX_SIDE, dtype=np.uint8) % NUM_COLORS
    for grid in (cells.reshape(MAX_SIDE, 2), cells.reshape(2, MAX_SIDE), cells[:1].reshape(1, 1)):
        ids = codec.answer_ids(grid).tolist()
        read = codec.tokenizer.decode(ids[: ids.index(codec.end_id)])
        parsed = codec.encoder.parse(read)
        if isinstance(parsed, str) or not same_grid(parsed, grid):
            raise _cannot_write(codec, codec.encoder.render(grid), read)


def _cannot_write(codec: Codec, text: str, read: str) -> UserError:
    name = next((name for name, format in FORMATS.items() if format is codec.format), "of this kind")
    return UserError(
        f"the model's tokenizer cannot write prompt.format {name} with prompt.encoder {codec.encoder.name}: {text[:60]!r}"
        f" is read back from its tokens as {read[:60]!r}; choose another format or encoder, or a model with these characters"
    )


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def sample_views() -> tuple[TaskTable, Views]:
    """Make views of many shapes, sides of one and two digits, all symmetries, all neighbours, and of a counting task."""
    sides = zip(SAMPLED_SIDES, SAMPLED_SIDES[3:] + SAMPLED_SIDES[:3], strict=True)
    pairs = [Pair(_grid(a, b, i), _grid(b, a * 3 % MAX_SIDE + 1, i + 1)) for i, (a, b) in enumerate(sides)]
    tasks = [
        Task(f"sample{i}", tuple(pairs[i : i + 1 + i % _MAX_SHOWN]), (pairs[-1 - i],), description=f"Move it {i} up.")
        for i in range(NUM_SYMMETRIES)
    ]
    questions = (Question("objects", "How many objects?", "12"), Question("areas", "Which areas?", "1, 2, 30"))
    tasks.append(Task("counting", (), (Pair(_grid(4, 6, 0), None),), questions))
    tasks += [Task(f"all{i}", pairs[1:], pairs[:1], description="Copy.") for i, pairs in enumerate(_neighbours())]
    table = TaskTable.of(tasks)
    number = np.arange(len(tasks))
    colors = np.array([np.roll(np.arange(NUM_COLORS), i % NUM_SYMMETRIES) for i in number], np.uint8)
    symmetry = np.where(number < NUM_SYMMETRIES, number, 0).astype(np.uint8)
    return table, replace(plain_views(table, _MAX_SHOWN), symmetry=symmetry, colors=colors)


def _neighbours() -> list[tuple[Pair, ...]]:
    """Pairs of one task each that hold all triples of colours in a row, all pairs across the end of a row, and every
    colour beside every text: a tokenizer may merge a single one of them."""
    rows = np.indices((NUM_COLORS,) * 3, np.uint8).reshape(3, -1).T.reshape(4, -1, MAX_SIDE)
    columns = np.indices((NUM_COLORS,) * 2, np.uint8).reshape(2, -1).T.reshape(NUM_COLORS, -1, 1)
    size = _MAX_SHOWN + 1
    cells = np.arange(NUM_COLORS, dtype=np.uint8).reshape(-1, 1, 1).repeat(2 * size, axis=0)
    grids = [*cells, *rows, *columns]
    pairs = [Pair(a, b) for a, b in zip(grids[::2], grids[1::2], strict=True)]
    return [tuple(pairs[i : i + size]) for i in range(0, len(pairs), size)]


def _grid(height: int, width: int, shift: int) -> Grid:
    return ((np.arange(height * width).reshape(height, width) * 7 + shift) % NUM_COLORS).astype(np.uint8)
